"""Examples of many lengths → rows of one length with little padding: best fit, nothing dropped, nothing repeated.

Legend: B rows, T row length. A *piece* is an example, or a part of one that is longer than a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch

from mengya.data.slices import Column

IGNORE = -100
"""The target of a position without loss, as in torch.nn.functional.cross_entropy."""
PADDING = -1
"""The document id of padding."""
WINDOW_PIECES = 4096
"""Pieces sorted together. Larger pads less; smaller keeps a row's pieces a more random choice of lengths."""


class Examples(Protocol):
    """What can be packed: token shards, or a list of rendered conversations."""

    @property
    def num_inputs_N(self) -> np.ndarray | Column:
        """Inputs of every example: an array, or what reads slices of one that is too long to be held."""
        ...

    @property
    def fingerprint(self) -> str: ...

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 (length,) each; targets are already shifted, IGNORE where there is no loss."""
        ...

    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE:LINE" of an example, as far as it is known."""
        ...


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed pieces, int64 (B, T) each, and where they carry loss.

    targets_BT[t] is the token after ids_BT[t] in the same document, or IGNORE. positions_BT restart at 0 with every
    piece. documents_BT is the example's index in its data set, PADDING behind a row's last piece; a row never holds two
    pieces of one example, so equal ids in a row mean one document. trained_N are the places of the flattened rows whose
    target is not IGNORE, found where the batch is made: a GPU would have to be waited for.
    """

    ids_BT: torch.Tensor
    targets_BT: torch.Tensor
    positions_BT: torch.Tensor
    documents_BT: torch.Tensor
    trained_N: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.trained_N is None:
            trained_N = (self.targets_BT.flatten() != IGNORE).nonzero().squeeze(1)
            object.__setattr__(self, "trained_N", trained_N)

    @property
    def num_targets(self) -> int:
        return len(self.trained_N)

    @property
    def num_tokens(self) -> int:
        """Input tokens, padding not counted."""
        return int((self.documents_BT != PADDING).sum())

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> PackedBatch:
        """In memory that a GPU copies from by itself: `to` then returns at once."""
        return PackedBatch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


@dataclass(frozen=True)
class PackPlan:
    """Which pieces stand in which row: row r holds the pieces row_starts[r] … row_starts[r + 1] - 1, in that order.

    `num_offered` are the inputs that were to be packed.
    """

    row_length: int
    row_starts: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    num_offered: int

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def padding_share(self) -> float:
        return 1.0 - float(self.lengths.sum()) / max(1, self.num_rows * self.row_length)

    @property
    def num_split(self) -> int:
        """Examples that are longer than a row: each has one second piece."""
        return int((self.starts == self.row_length).sum())

    @property
    def num_cropped(self) -> int:
        """Inputs that stand in no row."""
        return self.num_offered - int(self.lengths.sum())

    def pieces(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(document, start, length) of each piece of a row."""
        chosen = slice(self.row_starts[row], self.row_starts[row + 1])
        return zip(
            self.documents[chosen].tolist(), self.starts[chosen].tolist(), self.lengths[chosen].tolist(), strict=True
        )


def pack(lengths_N: np.ndarray, row_length: int, rng: np.random.Generator | None) -> PackPlan:
    """A plan that places every token of every example exactly once; rows and examples in random order, or as given.

    An example longer than a row gives full rows and one remainder. Best fit decreasing within windows of shuffled
    pieces: each piece goes to the open row that it fills best. Without `rng`, the order is the examples' own.
    (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830, without the windows.)
    """
    lengths_N = np.asarray(lengths_N, dtype=np.int64)
    order = np.arange(len(lengths_N)) if rng is None else rng.permutation(len(lengths_N))
    order = order[lengths_N[order] > 0]
    num_pieces = -(-lengths_N[order] // row_length)
    documents = np.repeat(order, num_pieces)
    first_piece = np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    starts = (np.arange(len(documents)) - first_piece) * row_length
    lengths = np.minimum(lengths_N[documents] - starts, row_length)

    row_of = np.empty(len(documents), dtype=np.int64)
    full = lengths == row_length
    num_rows = int(full.sum())
    row_of[full] = np.arange(num_rows)
    rest = np.flatnonzero(~full)
    row_of[rest], num_rows = _best_fit(lengths[rest], row_length, num_rows)

    row_order = np.arange(num_rows) if rng is None else rng.permutation(num_rows)
    row_of = row_order[row_of]
    by_row = np.argsort(row_of, kind="stable")
    row_starts = np.searchsorted(row_of[by_row], np.arange(num_rows + 1))
    offered = int(lengths_N.sum())
    return PackPlan(row_length, row_starts, documents[by_row], starts[by_row], lengths[by_row], offered)


def _best_fit(lengths: np.ndarray, row_length: int, first_row: int) -> tuple[np.ndarray, int]:
    """The row of each piece, rows counted from `first_row`, and the number of rows in all."""
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows_by_space: list[list[int]] = [[] for _ in range(row_length + 1)]
    spaces: list[int] = []  # the free lengths that some open row has, in order
    num_rows = first_row
    for window in range(0, len(lengths), WINDOW_PIECES):
        part = lengths[window : window + WINDOW_PIECES]
        for piece in np.argsort(-part, kind="stable").tolist():
            length = int(part[piece])
            place = bisect_left(spaces, length)
            if place == len(spaces):
                row, space = num_rows, row_length
                num_rows += 1
            else:
                space = spaces[place]
                row = rows_by_space[space].pop()
                if not rows_by_space[space]:
                    del spaces[place]
            space -= length
            if space:
                if not rows_by_space[space]:
                    insort(spaces, space)
                rows_by_space[space].append(row)
            row_of[window + piece] = row
    return row_of, num_rows


def batch_of(examples: Examples, rows: Sequence[tuple[PackPlan, int]], pad_id: int) -> PackedBatch:
    """Rows of one or more plans as tensors; `pad_id` stands behind a row's last piece."""
    row_length = rows[0][0].row_length
    shape = (len(rows), row_length)
    ids_BT, targets_BT = np.full(shape, pad_id), np.full(shape, IGNORE)
    positions_BT, documents_BT = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING)
    counting = np.arange(row_length)
    for b, (plan, row) in enumerate(rows):
        end = 0
        for document, start, length in plan.pieces(row):
            begin, end = end, end + length
            ids_BT[b, begin:end], targets_BT[b, begin:end] = examples.piece(document, start, length)
            positions_BT[b, begin:end] = counting[:length]
            documents_BT[b, begin:end] = document
        positions_BT[b, end:] = counting[: row_length - end]
    return PackedBatch(*map(torch.from_numpy, (ids_BT, targets_BT, positions_BT, documents_BT)))
