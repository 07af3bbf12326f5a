"""Preference pairs → batches of chosen and rejected sequences in packed rows, pairs of like length together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from mengya.corpus.records import Message, PreferencePair
from mengya.data.conversations import without_leading_turns
from mengya.data.loader import EpochLoader
from mengya.data.origins import named
from mengya.data.packing import PADDING, PackPlan, pack
from mengya.errors import UserError
from mengya.tokenizer.encode import ChatTokenizer

_WINDOW_PAIRS = 512
_GROUP_PAIRS = 8
"""An epoch is shuffled; each window of it is sorted by length, cut into groups, and the groups are shuffled again."""
_MOST_PADDING = 0.03
_REPORTED_PAIRS = 2048


@dataclass(frozen=True)
class TokenPair:
    """Prompt (with the assistant's header) + answer + end token, twice; int64 ids. `weight` in the reward model's loss."""

    prompt_length: int
    chosen: np.ndarray
    rejected: np.ndarray
    origin: str = ""
    weight: float = 1.0

    @property
    def length(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PairBatch:
    """P pairs in packed rows: sequence p is the chosen side of the p-th, sequence P + p its rejected side.

    ids_BT, positions_BT, documents_BT as in `data.packing.PackedBatch`, documents_BT being the sequence's number.
    completion_BT[t] is True where ids_BT[t] itself is a token of the answer or its end token (not shifted). For each of
    the S = 2P sequences, last_S is where its last token stands in the flattened rows, and completion_lengths_S how many
    tokens its answer has. indices_B: which pairs; weights_B: what each counts.
    """

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    documents_BT: torch.Tensor
    completion_BT: torch.Tensor
    last_S: torch.Tensor
    completion_lengths_S: torch.Tensor
    indices_B: torch.Tensor
    weights_B: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides, prompts included, padding not."""
        return int((self.documents_BT != PADDING).sum())

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> PairBatch:
        """In memory that a GPU copies from by itself: `to` then returns at once."""
        return PairBatch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def render_pairs(
    pairs: Iterable[PreferencePair], tokenizer: ChatTokenizer, *, max_tokens: int
) -> tuple[list[TokenPair], dict[str, int]]:
    """Pairs whose longer side has at most `max_tokens` ids, and the counts {examples, dropped, turns_dropped}.

    Both sides lose the same leading turns of the prompt; `dropped` counts the pairs of which the last turn and the
    longer answer do not fit. Weights are scaled to a mean of 1 over those that are left, so that a learning rate means
    the same with ranked lists and without.
    """
    counts = {"examples": 0, "dropped": 0, "turns_dropped": 0}
    rendered: list[TokenPair] = []
    for pair in pairs:
        for turns_dropped, prompt in without_leading_turns(pair.prompt):
            token_pair = _token_pair(prompt, pair, tokenizer)
            if token_pair.length <= max_tokens:
                origin = named(pair.source, pair.origin, counts["examples"])
                counts["examples"] += 1
                counts["turns_dropped"] += turns_dropped
                rendered.append(replace(token_pair, origin=origin, weight=pair.weight))
                break
        else:
            counts["dropped"] += 1
    mean = sum(pair.weight for pair in rendered) / max(1, len(rendered))
    if rendered and mean != 1.0:
        rendered = [replace(pair, weight=pair.weight / mean) for pair in rendered]
    return rendered, counts


def _token_pair(prompt: Sequence[Message], pair: PreferencePair, tokenizer: ChatTokenizer) -> TokenPair:
    prompt_ids, _ = tokenizer.render(prompt, add_generation_prompt=True)
    sides = []
    for answer in (pair.chosen, pair.rejected):
        ids, trained = tokenizer.render((*prompt, Message("assistant", answer)))
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(
                f"the chat template gives the prompt other tokens when {answer[:20]!r} follows it",
                mend="use a template whose answers begin right after a special token, such as Mengya's own",
            )
        end = len(ids) - trained[::-1].index(True)  # some foreign templates write a newline after the end token
        sides.append(np.array(ids[:end], dtype=np.int64))
    return TokenPair(len(prompt_ids), sides[0], sides[1])


def _lengths(pairs: Sequence[TokenPair]) -> np.ndarray:
    """Lengths of the chosen sides, then of the rejected ones."""
    return np.array([len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs])


def narrow_rows(lengths_S: np.ndarray) -> PackPlan:
    """A plan of whole sequences whose rows are as narrow as less than 3% of padding allows.

    Attention costs the square of a row's width, padding its length: so the most rows (of at least the longest
    sequence) into which best fit gets all sequences with that little left empty; at worst one row, which has none.
    """
    total, longest = int(lengths_S.sum()), int(lengths_S.max())
    num_rows = total // longest
    while True:
        width = max(longest, int(total / (num_rows * (1.0 - _MOST_PADDING))) if num_rows > 1 else total)
        plan = pack(lengths_S, width, None)
        if plan.num_rows <= num_rows:
            break
        num_rows = max(1, min(num_rows - 1, num_rows * 19 // 20))
    widest = int(np.add.reduceat(plan.lengths, plan.row_starts[:-1]).max())
    return replace(plan, row_length=widest)


def pair_batch(pairs: Sequence[TokenPair], indices: Sequence[int], pad_id: int) -> PairBatch:
    """The pairs of these indices, both sides of all of them packed together."""
    own = [pairs[index] for index in indices]
    sequences = [pair.chosen for pair in own] + [pair.rejected for pair in own]
    prompts_S = np.array([pair.prompt_length for pair in own] * 2)
    lengths_S = _lengths(own)
    plan = narrow_rows(lengths_S)
    shape = (plan.num_rows, plan.row_length)
    ids_BT, positions_BT = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64)
    documents_BT, completion_BT = np.full(shape, PADDING), np.zeros(shape, dtype=bool)
    last_S = np.empty(len(sequences), dtype=np.int64)
    counting = np.arange(plan.row_length)
    for b in range(plan.num_rows):
        end = 0
        for number, _, length in plan.pieces(b):
            begin, end = end, end + length
            ids_BT[b, begin:end], documents_BT[b, begin:end] = sequences[number], number
            positions_BT[b, begin:end] = counting[:length]
            completion_BT[b, begin + prompts_S[number] : end] = True
            last_S[number] = b * plan.row_length + end - 1
        positions_BT[b, end:] = counting[: plan.row_length - end]
    weights_B = np.array([pair.weight for pair in own], dtype=np.float32)
    arrays = (ids_BT, positions_BT, documents_BT, completion_BT, last_S, lengths_S - prompts_S, np.array(indices))
    return PairBatch(*map(torch.from_numpy, (*arrays, weights_B)))


class PairLoader(EpochLoader[int, PairBatch]):
    """Endless steps of pair micro-batches, shuffled; exact state as of every `EpochLoader` (its row is a pair)."""

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        *,
        pairs_per_step: int,
        micro_batch_pairs: int,
        seed: int,
        pad_id: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not pairs:
            raise UserError("no pair is left to train on", mend="see the stage's counts of what was dropped")
        digest = hashlib.sha256()
        for pair in pairs:
            for side in (pair.chosen, pair.rejected):
                digest.update(len(side).to_bytes(8, "little") + side.tobytes())
        super().__init__(
            seed=seed,
            data=digest.hexdigest(),
            rows_per_step=pairs_per_step,
            micro_batch_rows=micro_batch_pairs,
            rank=rank,
            world=world,
        )
        self._pairs, self._pad_id = pairs, pad_id
        self._lengths_N = np.array([pair.length for pair in pairs])

    def _order(self, epoch: int, window: int) -> list[int]:
        rng = np.random.default_rng([self._identity["seed"], epoch])
        shuffled = rng.permutation(len(self._pairs))
        groups = []
        for first in range(0, len(shuffled), _WINDOW_PAIRS):
            near = shuffled[first : first + _WINDOW_PAIRS]
            by_length = near[np.argsort(self._lengths_N[near], kind="stable")]
            groups += [by_length[g : g + _GROUP_PAIRS] for g in range(0, len(by_length), _GROUP_PAIRS)]
        return np.concatenate([groups[index] for index in rng.permutation(len(groups))]).tolist()

    def _arrange(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda index: self._lengths_N[index])

    def _batch(self, rows: Sequence[int]) -> PairBatch:
        return pair_batch(self._pairs, rows, self._pad_id)

    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE:LINE" of a pair, as far as it is known; else "preferences, pair N"."""
        return self._pairs[index].origin or f"preferences, pair {index}"

    def packing(self) -> dict[str, float | int]:
        """What packing costs, for the manifest: {"padding_share"}, over the first steps of the first epoch."""
        order = self.rows_of(0)
        tokens = places = 0
        for first in range(0, min(len(order), _REPORTED_PAIRS), self._rows_per_step):
            for rows in self._split(self._arrange(list(order[first : first + self._rows_per_step]))):
                plan = narrow_rows(_lengths([self._pairs[index] for index in rows]))
                tokens, places = tokens + plan.num_offered, places + plan.num_rows * plan.row_length
        return {"padding_share": round(1.0 - tokens / places, 5)}
