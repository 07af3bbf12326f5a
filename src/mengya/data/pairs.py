"""Preference pairs → batches of chosen and rejected sequences, pairs of like length together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from mengya.corpus.records import Message, PreferencePair
from mengya.data.conversations import without_leading_turns
from mengya.data.loader import EpochLoader
from mengya.errors import UserError
from mengya.tokenizer.encode import ChatTokenizer

_WINDOW_PAIRS = 512
_GROUP_PAIRS = 8
"""An epoch is shuffled; each window of it is sorted by length, cut into groups, and the groups are shuffled again."""


@dataclass(frozen=True)
class TokenPair:
    """Prompt (with the assistant's header) + answer + end token, twice; int64 ids."""

    prompt_length: int
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def length(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class PaddedSequences:
    """Right-padded sequences: ids_BT int64, lengths_B int64, completion_BT bool.

    completion_BT[t] is True where ids_BT[t] itself is a token of the answer or its end token (not shifted).
    """

    ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    completion_BT: torch.Tensor

    def to(self, device: torch.device | str) -> PaddedSequences:
        return PaddedSequences(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class PairBatch:
    """Row b of `chosen` and of `rejected` answer the same prompt; both have one width T. indices_B: which pairs."""

    chosen: PaddedSequences
    rejected: PaddedSequences
    indices_B: torch.Tensor

    @property
    def both(self) -> PaddedSequences:
        """2B rows, the chosen first: one forward pass for both."""
        names = [field.name for field in fields(PaddedSequences)]
        return PaddedSequences(
            *(torch.cat([getattr(self.chosen, name), getattr(self.rejected, name)]) for name in names)
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides, prompts included, padding not."""
        return int(self.chosen.lengths_B.sum() + self.rejected.lengths_B.sum())

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(self.chosen.to(device), self.rejected.to(device), self.indices_B.to(device))


def render_pairs(
    pairs: Iterable[PreferencePair], tokenizer: ChatTokenizer, *, max_tokens: int
) -> tuple[list[TokenPair], dict[str, int]]:
    """Pairs whose longer side has at most `max_tokens` ids, and the counts {examples, dropped, turns_dropped}.

    Both sides lose the same leading turns of the prompt; `dropped` counts the pairs of which the last turn and the
    longer answer do not fit.
    """
    counts = {"examples": 0, "dropped": 0, "turns_dropped": 0}
    rendered: list[TokenPair] = []
    for pair in pairs:
        for turns_dropped, prompt in without_leading_turns(pair.prompt):
            token_pair = _token_pair(prompt, pair, tokenizer)
            if token_pair.length <= max_tokens:
                counts["examples"] += 1
                counts["turns_dropped"] += turns_dropped
                rendered.append(token_pair)
                break
        else:
            counts["dropped"] += 1
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
    return TokenPair(len(prompt_ids), *sides)


def pair_batch(pairs: Sequence[TokenPair], indices: Sequence[int], pad_id: int) -> PairBatch:
    """The pairs of these indices, padded to the longest of both sides."""
    width = max(pairs[index].length for index in indices)

    def padded(sequences: list[np.ndarray]) -> PaddedSequences:
        lengths_B = np.array([len(sequence) for sequence in sequences])
        prompts_B = np.array([pairs[index].prompt_length for index in indices])
        ids_BT = np.full((len(sequences), width), pad_id, dtype=np.int64)
        for row, sequence in zip(ids_BT, sequences, strict=True):
            row[: len(sequence)] = sequence
        places_T = np.arange(width)
        completion_BT = (places_T >= prompts_B[:, None]) & (places_T < lengths_B[:, None])
        return PaddedSequences(*map(torch.from_numpy, (ids_BT, lengths_B, completion_BT)))

    return PairBatch(
        padded([pairs[index].chosen for index in indices]),
        padded([pairs[index].rejected for index in indices]),
        torch.tensor(indices, dtype=torch.int64),
    )


class PairLoader(EpochLoader[int, PairBatch]):
    """Endless steps of pair micro-batches, shuffled; exact state as of every `EpochLoader` (a row is a pair)."""

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

    def _order(self, rng: np.random.Generator) -> list[int]:
        shuffled = rng.permutation(len(self._pairs))
        groups = []
        for first in range(0, len(shuffled), _WINDOW_PAIRS):
            window = shuffled[first : first + _WINDOW_PAIRS]
            by_length = window[np.argsort(self._lengths_N[window], kind="stable")]
            groups += [by_length[g : g + _GROUP_PAIRS] for g in range(0, len(by_length), _GROUP_PAIRS)]
        return np.concatenate([groups[index] for index in rng.permutation(len(groups))]).tolist()

    def _arrange(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda index: self._lengths_N[index])

    def _batch(self, rows: Sequence[int]) -> PairBatch:
        return pair_batch(self._pairs, rows, self._pad_id)


def one_pass_of_pairs(
    pairs: Sequence[TokenPair], *, micro_batch_pairs: int, pad_id: int, rank: int = 0, world: int = 1
) -> Iterator[PairBatch]:
    """Every pair once, shortest first: for evaluation (`indices_B` tells which)."""
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].length)[rank::world]
    for first in range(0, len(order), micro_batch_pairs):
        yield pair_batch(pairs, order[first : first + micro_batch_pairs], pad_id)
