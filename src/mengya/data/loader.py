"""Endless steps of micro-batches in an order that is a function of (seed, epoch), with an exact position in it.

The position is (epoch, window, row): it does not depend on the number of ranks or the micro-batch size, so a run may go
on with other ones. Going to a position costs the plan of one window (`data.windows`), never a pass over the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from mengya.data.mixture import Mixture
from mengya.data.packing import Examples, PackedBatch, PackPlan, batch_of, pack
from mengya.data.token_source import TokenSource
from mengya.data.windows import WINDOW_EXAMPLES, plan_of, windows_of
from mengya.errors import UserError

Row = TypeVar("Row")
Batch = TypeVar("Batch")


class EpochLoader(ABC, Generic[Row, Batch]):
    """An endless iterator of steps; a step is the list of this rank's micro-batches.

    Every step takes the next `rows_per_step` rows of one global order, running on from an epoch into the next, and each
    rank takes every `world`-th of them. Steps end where epochs end only by chance: `epoch` counts the finished ones.
    """

    num_windows = 1
    """Parts of an epoch, each ordered by itself."""

    def __init__(
        self, *, seed: int, data: str, rows_per_step: int, micro_batch_rows: int, rank: int = 0, world: int = 1
    ) -> None:
        if rows_per_step % world:
            raise UserError(
                f"{rows_per_step} rows a step do not divide among {world} ranks", mend=f"use a multiple of {world}"
            )
        self._identity: dict[str, Any] = {"seed": seed, "data": data}
        self._rows_per_step, self._micro_batch_rows = rows_per_step, micro_batch_rows
        self._rank, self._world = rank, world
        self._orders: list[tuple[tuple[int, int], Sequence[Row]]] = []
        self.epoch = 0
        self.window = 0
        self.row = 0

    @abstractmethod
    def _order(self, epoch: int, window: int) -> Sequence[Row]:
        """The rows of a window of an epoch."""

    @abstractmethod
    def _batch(self, rows: Sequence[Row]) -> Batch: ...

    @abstractmethod
    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE:LINE" of an example, as far as it is known; `index` as the batches say it."""

    def _arrange(self, rows: list[Row]) -> list[Row]:
        """The rows of a step in the order in which ranks and micro-batches take them."""
        return rows

    def _split(self, rows: list[Row]) -> list[list[Row]]:
        """A rank's rows of a step as micro-batches."""
        size = self._micro_batch_rows
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def rows_of(self, epoch: int, window: int = 0) -> Sequence[Row]:
        for place, order in self._orders:
            if place == (epoch, window):
                return order
        order = self._order(epoch, window)
        self._orders = [((epoch, window), order), *self._orders[:1]]  # two: a step may end one and begin the next
        return order

    def num_rows(self, epoch: int = 0) -> int:
        """Rows of a whole epoch: every window of it is planned, 0.4 s each."""
        return sum(len(self.rows_of(epoch, window)) for window in range(self.num_windows))

    def _take(self) -> list[Row]:
        """The rows of the next step, of all ranks."""
        rows: list[Row] = []
        while len(rows) < self._rows_per_step:
            order = self.rows_of(self.epoch, self.window)
            stop = min(len(order), self.row + self._rows_per_step - len(rows))
            rows += [order[row] for row in range(self.row, stop)]
            self.row = stop
            if stop == len(order):
                self.window, self.row = self.window + 1, 0
                if self.window == self.num_windows:
                    self.epoch, self.window = self.epoch + 1, 0
        return rows

    def skip(self, num_steps: int) -> None:
        """Go on by so many steps without reading their data."""
        for _ in range(num_steps):
            self._take()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        own = self._arrange(self._take())[self._rank :: self._world]
        return [self._batch(rows) for rows in self._split(own)]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "window": self.window, "row": self.row, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; UserError if the saved order had another seed, data or row length."""
        saved = {key: value for key, value in state.items() if key not in ("epoch", "window", "row")}
        for key in {**self._identity, **saved}:
            old, own = saved.get(key), self._identity.get(key)
            if old != own:
                raise UserError(
                    f"the checkpoint's data order was made with {key} {old!r}, this run's with {own!r}",
                    mend="restore it, or start the stage anew",
                )
        # A state without a window is of an order that had only one.
        self.epoch, self.window, self.row = state["epoch"], state.get("window", 0), state["row"]


class _PlanRows(Sequence[tuple[PackPlan, int]]):
    """The rows of a plan, each with its plan: a step may hold rows of two windows."""

    def __init__(self, plan: PackPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, row: Any) -> Any:
        return (self.plan, row)


class PackedLoader(EpochLoader[tuple[PackPlan, int], PackedBatch]):
    """Shuffled, packed rows of token shards (pretraining) or of rendered conversations (instruction tuning)."""

    def __init__(
        self,
        examples: Examples,
        *,
        row_length: int,
        rows_per_step: int,
        micro_batch_rows: int,
        seed: int,
        pad_id: int,
        rank: int = 0,
        world: int = 1,
        window_examples: int = WINDOW_EXAMPLES,
    ) -> None:
        super().__init__(
            seed=seed,
            data=examples.fingerprint,
            rows_per_step=rows_per_step,
            micro_batch_rows=micro_batch_rows,
            rank=rank,
            world=world,
        )
        if not _has_inputs(examples):
            raise UserError("no example is left to train on", mend="see the stage's counts of what was dropped")
        self._identity["row_length"] = row_length
        self._examples, self._row_length, self._pad_id = examples, row_length, pad_id
        self._windows = windows_of(examples, window_examples)
        self.num_windows = self._windows.num_windows
        if self.num_windows > 1:
            self._identity["windows"] = [self._windows.blocks, self._windows.block_size]

    def _order(self, epoch: int, window: int) -> _PlanRows:
        seed = self._identity["seed"]
        return _PlanRows(plan_of(self._examples, self._windows, self._row_length, seed, epoch, window))

    def _batch(self, rows: Sequence[tuple[PackPlan, int]]) -> PackedBatch:
        return batch_of(self._examples, rows, self._pad_id)

    def origin_of(self, index: int) -> str:
        return self._examples.origin_of(index)

    def plan(self, epoch: int = 0, window: int = 0) -> PackPlan:
        """The plan of a window of an epoch."""
        rows = self.rows_of(epoch, window)
        assert isinstance(rows, _PlanRows)
        return rows.plan

    def packing(self) -> dict[str, float | int]:
        """What packing costs, for the manifest: {"padding_share", "split_documents", "cropped_tokens", "windows"}.

        Counted in the first epoch's first window; `windows` says how many such an epoch has. A split document is longer
        than a row and goes on in another one without what came before; a cropped token would be read by no row.
        """
        plan = self.plan()
        return {
            "padding_share": round(plan.padding_share, 5),
            "split_documents": plan.num_split,
            "cropped_tokens": plan.num_cropped,
            "windows": self.num_windows,
        }


def _has_inputs(examples: Examples) -> bool:
    if isinstance(examples, Mixture):
        return examples.num_tokens > 0
    if isinstance(examples, TokenSource):
        return examples.num_tokens > len(examples)
    return bool(np.asarray(examples.num_inputs_N).any())


def one_pass(
    examples: Examples, *, row_length: int, micro_batch_rows: int, pad_id: int, rank: int = 0, world: int = 1
) -> Iterator[PackedBatch]:
    """Every example once, in a fixed order: for evaluation."""
    plan = pack(np.asarray(examples.num_inputs_N), row_length, None)
    own = [(plan, row) for row in range(rank, plan.num_rows, world)]
    for first in range(0, len(own), micro_batch_rows):
        yield batch_of(examples, own[first : first + micro_batch_rows], pad_id)
