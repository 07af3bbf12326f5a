"""Endless steps of micro-batches in an order that is a function of (seed, epoch), with an exact position in it.

The position is (epoch, row): it does not depend on the number of ranks or the micro-batch size, so a run may go on with
other ones. Going to a position costs one epoch's plan, never a pass over the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from mengya.data.mixture import Mixture
from mengya.data.packing import Examples, PackedBatch, PackPlan, batch_of, pack
from mengya.errors import UserError

Row = TypeVar("Row")
Batch = TypeVar("Batch")


class EpochLoader(ABC, Generic[Row, Batch]):
    """An endless iterator of steps; a step is the list of this rank's micro-batches.

    Every step takes the next `rows_per_step` rows of one global order, running on from an epoch into the next, and each
    rank takes every `world`-th of them. Steps end where epochs end only by chance: `epoch` counts the finished ones.
    """

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
        self._epochs: dict[int, Sequence[Row]] = {}
        self.epoch = 0
        self.row = 0

    @abstractmethod
    def _order(self, rng: np.random.Generator) -> Sequence[Row]:
        """The rows of an epoch."""

    @abstractmethod
    def _batch(self, rows: Sequence[Row]) -> Batch: ...

    def _arrange(self, rows: list[Row]) -> list[Row]:
        """The rows of a step in the order in which ranks and micro-batches take them."""
        return rows

    def rows_of(self, epoch: int) -> Sequence[Row]:
        if epoch not in self._epochs:
            self._epochs = {near: rows for near, rows in self._epochs.items() if abs(near - epoch) == 1}
            self._epochs[epoch] = self._order(np.random.default_rng([self._identity["seed"], epoch]))
        return self._epochs[epoch]

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        rows: list[Row] = []
        while len(rows) < self._rows_per_step:
            order = self.rows_of(self.epoch)
            stop = min(len(order), self.row + self._rows_per_step - len(rows))
            rows += [order[row] for row in range(self.row, stop)]
            self.row = stop
            if stop == len(order):
                self.epoch, self.row = self.epoch + 1, 0
        own = self._arrange(rows)[self._rank :: self._world]
        return [
            self._batch(own[first : first + self._micro_batch_rows])
            for first in range(0, len(own), self._micro_batch_rows)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "row": self.row, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; UserError if the saved order had another seed, data or row length."""
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the checkpoint's data order was made with {key} {state.get(key)!r}, this run's with {value!r}",
                    mend="restore it, or start the stage anew",
                )
        self.epoch, self.row = state["epoch"], state["row"]


class _PlanRows(Sequence[tuple[PackPlan, int]]):
    """The rows of a plan, each with its plan: a step may hold rows of two epochs."""

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
    ) -> None:
        super().__init__(
            seed=seed,
            data=examples.fingerprint,
            rows_per_step=rows_per_step,
            micro_batch_rows=micro_batch_rows,
            rank=rank,
            world=world,
        )
        if not examples.num_inputs_N.any():
            raise UserError("no example is left to train on", mend="see the stage's counts of what was dropped")
        self._identity["row_length"] = row_length
        self._examples, self._row_length, self._pad_id = examples, row_length, pad_id

    def _order(self, rng: np.random.Generator) -> _PlanRows:
        if not isinstance(self._examples, Mixture):
            return _PlanRows(pack(self._examples.num_inputs_N, self._row_length, rng))
        chosen = self._examples.examples_of_epoch(rng)
        lengths_N = self._examples.num_inputs_N
        plan = pack(lengths_N[chosen % len(lengths_N)], self._row_length, rng)
        return _PlanRows(replace(plan, documents=chosen[plan.documents]))

    def _batch(self, rows: Sequence[tuple[PackPlan, int]]) -> PackedBatch:
        return batch_of(self._examples, rows, self._pad_id)

    def plan(self, epoch: int = 0) -> PackPlan:
        """An epoch's plan: its number of rows and its padding share, to be reported."""
        rows = self.rows_of(epoch)
        assert isinstance(rows, _PlanRows)
        return rows.plan


def one_pass(
    examples: Examples, *, row_length: int, micro_batch_rows: int, pad_id: int, rank: int = 0, world: int = 1
) -> Iterator[PackedBatch]:
    """Every example once, in a fixed order: for evaluation."""
    plan = pack(examples.num_inputs_N, row_length, None)
    own = [(plan, row) for row in range(rank, plan.num_rows, world)]
    for first in range(0, len(own), micro_batch_rows):
        yield batch_of(examples, own[first : first + micro_batch_rows], pad_id)
