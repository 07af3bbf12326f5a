"""Continuous batching: rows that end give their place to the next prompt, so that the batch stays full.

B rows being decoded, T tokens, C width, V vocabulary, P prompts, N new tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from mengya.generate.inference import InferenceModel
from mengya.generate.sampling import Sampling, sample

_MIN_SHARED = 16  # tokens that all prompts begin with, from which on they are read once for all
_READ_TOKENS = 512  # of prompts, padding included, read at a time: activations that stay in the processor's cache


@dataclass(slots=True)
class Row:
    """What has been said to one prompt. It ends with a stop token (`finished`) or after `room` tokens."""

    index: int
    room: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: bool = False


class _PromptReader:
    """Reads prompts, each different one once: those of the last group are remembered, and what all begin with."""

    def __init__(self, model: InferenceModel, prompts: Collection[tuple[int, ...]]) -> None:
        self.model = model
        # The last token of every prompt is read with the prompt: its hidden state predicts the first new one.
        both = zip(min(prompts)[:-1], max(prompts)[:-1], strict=False) if len(prompts) > 1 else ()
        shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        self.num_shared = len(shared) if len(shared) >= _MIN_SHARED else 0
        if self.num_shared:
            self.shared_cache = model.new_cache(1, self.num_shared)
            model.hidden(torch.tensor([shared], device=model.device), self.shared_cache)
            self.shared_cache.advance([self.num_shared])
        self.place: dict[tuple[int, ...], int] = {}  # the row in `cache` and `x_BC` of each prompt of the last group

    def read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Forget the last group and read the first of these, not all of them where they are many."""
        group: list[tuple[int, ...]] = []
        longest = 0
        for prompt in dict.fromkeys(prompts):
            longest = max(longest, len(prompt) - self.num_shared)
            if group and longest * (len(group) + 1) > _READ_TOKENS:
                break
            group.append(prompt)
        longest = max(map(len, group)) - self.num_shared
        lengths = [len(prompt) - self.num_shared for prompt in group]
        self.cache = self.model.new_cache(len(group), self.num_shared + longest)
        if self.num_shared:
            self.cache.compact([])
            self.cache.append(self.shared_cache, [0] * len(group))
        rows_BT = [[*prompt[self.num_shared :], *[0] * (longest - n)] for prompt, n in zip(group, lengths, strict=True)]
        x_BTC = self.model.hidden(torch.tensor(rows_BT, device=self.model.device), self.cache)
        self.cache.advance(lengths)
        last_B = torch.tensor(lengths, device=self.model.device) - 1
        self.x_BC = x_BTC[torch.arange(len(group), device=self.model.device), last_B]
        self.place = {prompt: row for row, prompt in enumerate(group)}


class Batch:
    """The rows being decoded, of at most `num_rows`, over one cache of at most `num_slots` positions a row."""

    def __init__(
        self,
        model: InferenceModel,
        prompts: Sequence[tuple[int, ...]],
        stop_ids: Collection[int],
        sampling: Sampling,
        uniform_PN: Tensor,
        num_rows: int,
        num_slots: int,
    ) -> None:
        self.model, self.prompts, self.sampling, self.uniform_PN = model, prompts, sampling, uniform_PN
        self.stops = frozenset(stop_ids)
        self.cache = model.new_cache(num_rows, num_slots)
        self.cache.compact([])
        self.rows: list[Row] = []
        width, vocab_size = model.config.width, model.config.vocab_size
        # Of each row: the hidden state that predicts its next token, its prompt's index, the number of its tokens.
        self.x_BC = torch.empty(0, width, dtype=model.dtype, device=model.device)
        self.index_B = torch.empty(0, dtype=torch.long, device=model.device)
        self.step_B = self.index_B
        self.seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self.seen_BV = torch.empty(0, vocab_size, dtype=torch.bool, device=model.device)

    def admit(self, rows: Sequence[Row], reader: _PromptReader) -> None:
        """Begin these rows, which are to be decoded beside the others from the next step on."""
        states_BC, place = [self.x_BC], 0
        while place < len(rows):
            if self._prompt(rows[place]) not in reader.place:
                reader.read([self._prompt(row) for row in rows[place:]])
            sources = []
            while place < len(rows) and self._prompt(rows[place]) in reader.place:
                sources.append(reader.place[self._prompt(rows[place])])
                place += 1
            self.cache.append(reader.cache, sources)
            states_BC.append(reader.x_BC[sources])
        self.rows += rows
        self.x_BC = torch.cat(states_BC)
        self.index_B = torch.cat((self.index_B, self.index_B.new_tensor([row.index for row in rows])))
        self.step_B = torch.cat((self.step_B, self.step_B.new_zeros(len(rows))))
        if self.seen_BV is not None:
            new = [tokens_seen(self._prompt(row), self.seen_BV) for row in rows]
            self.seen_BV = torch.cat((self.seen_BV, *new))

    def step(self) -> list[Row]:
        """One more token in every row; the rows that ended with it, which leave the batch."""
        uniform_B = self.uniform_PN[self.index_B, self.step_B]
        ids_B, logp_B = sample(self.model.logits(self.x_BC), self.sampling, uniform_B, self.seen_BV)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, ids_B[:, None], True)
        self.step_B = self.step_B + 1
        leaving = []
        for place, (row, token, logp) in enumerate(zip(self.rows, ids_B.tolist(), logp_B.tolist(), strict=True)):
            row.tokens.append(token)
            row.logps.append(logp)
            row.finished = token in self.stops
            if row.finished or len(row.tokens) == row.room:
                leaving.append(place)
        ended = [self.rows[place] for place in leaving]
        if leaving:
            ids_B = ids_B[self._leave(leaving)]
        if self.rows:
            self.x_BC = self.model.hidden(ids_B[:, None], self.cache)[:, -1]
            self.cache.advance([1] * len(self.rows))
        return ended

    def _leave(self, leaving: list[int]) -> Tensor:
        """keep_B, the rows that stay in their new order: those at the end take the places that become free."""
        gone = set(leaving)
        num_kept = len(self.rows) - len(gone)
        movers = iter(place for place in range(num_kept, len(self.rows)) if place not in gone)
        keep = [next(movers) if place in gone else place for place in range(num_kept)]
        self.cache.compact(keep)
        self.rows = [self.rows[place] for place in keep]
        keep_B = torch.tensor(keep, dtype=torch.long, device=self.model.device)
        self.x_BC, self.index_B, self.step_B = self.x_BC[keep_B], self.index_B[keep_B], self.step_B[keep_B]
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[keep_B]
        return keep_B

    def _prompt(self, row: Row) -> tuple[int, ...]:
        return self.prompts[row.index]


def tokens_seen(prompt: Sequence[int], like_BV: Tensor) -> Tensor:
    """seen_1V: whether a token of the vocabulary occurs in the prompt, on the device of `like_BV`."""
    seen_1V = like_BV.new_zeros(1, like_BV.shape[1])
    seen_1V[0, torch.tensor(list(prompt), device=like_BV.device)] = True
    return seen_1V


@torch.inference_mode()
def decode(
    model: InferenceModel,
    prompts: Sequence[tuple[int, ...]],
    rows: Sequence[Row],
    stop_ids: Collection[int],
    sampling: Sampling,
    uniform_PN: Tensor,
    batch_size: int,
) -> None:
    """Fill the rows, at most `batch_size` at a time, with tokens and their log-probabilities.

    The longest prompts come first, equal ones after one another. uniform_PN holds the chance of each prompt and step,
    so that it matters to no row when and beside whom it is decoded. Memory: a cache of batch_size rows, as long as the
    longest of them can become, and one group of prompts being read.
    """
    queue = sorted(rows, key=lambda row: (-len(prompts[row.index]), prompts[row.index]))
    # The last token of a row is predicted but never read back.
    num_slots = max(len(prompts[row.index]) + row.room - 1 for row in rows)
    reader = _PromptReader(model, {prompts[row.index] for row in rows})
    batch = Batch(model, prompts, stop_ids, sampling, uniform_PN, min(batch_size, len(rows)), num_slots)
    # Prompts are read several at a time, as soon as so many places are free: one by one the weights would be read for
    # a single prompt. Meanwhile as many rows are missing in every step.
    enough = max(1, batch_size // 8)
    while batch.rows or queue:
        free = batch_size - len(batch.rows)
        if queue and (free >= min(enough, len(queue)) or not batch.rows):
            batch.admit(queue[:free], reader)
            del queue[:free]
        batch.step()
