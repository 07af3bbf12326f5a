"""What `fit` asks of those who stand beside it: the loader of its data, and one who watches what it makes of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import nn

from mengya.train.parallel import World


class Loader(Protocol):
    """Yields the micro-batches of one step at a time, for ever; its position is exact state."""

    def __iter__(self) -> Iterator[Sequence[Any]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Overseer(Protocol):
    """Looks at the model from time to time; says which weights are the best, and when to stop.

    All that it remembers is in its state, numbers that JSON can hold: a resumed training has the same overseer.
    """

    looks_first: bool
    """Whether it looks before the first step too; then these weights are saved, and may be the best."""

    @property
    def best(self) -> dict[str, float] | None:
        """{"step"} of the best weights so far (0: those before the first step), and what may be said of them."""

    def see(self, model: nn.Module, step: int, numbers: dict[str, float]) -> tuple[bool, dict[str, float]]:
        """Whether the weights after `step` are the best so far, and numbers for the log. Called on every rank, which must
        all get the same answer; `numbers` are those of the log's line so far, none before the first step."""

    def stop_reason(self) -> str | None:
        """Why training should end now; a function of the looks so far alone."""

    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


def look_due(step: int, every: int, num_steps: int) -> bool:
    """Whether there is a look after `step`: after the last, and after every `every` steps (0: at no other).

    Not where the end is less than half of `every` away: two looks at nearly the same model cost twice and tell once.
    """
    return step == num_steps or (every > 0 and step % every == 0 and 2 * (num_steps - step) >= every)


def num_looks(every: int, num_steps: int) -> int:
    """How many there are after the first step and later."""
    return sum(look_due(step, every, num_steps) for step in range(1, num_steps + 1))


class LowestLoss:
    """The overseer of a validation loss: of the weights that `evaluate` looked at, the best have the lowest.

    `evaluate` finds numbers for the log, "validation_loss" among them; without it, or where not `keeps_best`, none are best.
    """

    looks_first = False

    def __init__(self, evaluate: Callable[[], dict[str, float]], keeps_best: bool, world: World) -> None:
        self.evaluate, self.keeps_best, self.world = evaluate, keeps_best, world
        self.best: dict[str, float] | None = None

    def see(self, model: nn.Module, step: int, numbers: dict[str, float]) -> tuple[bool, dict[str, float]]:
        found = self.evaluate()
        loss = found.get("validation_loss", float("nan"))
        lowest = float("inf") if self.best is None else self.best["validation_loss"]
        better = self.world.any(self.keeps_best and loss < lowest)
        if better:
            self.best = {"step": step, "validation_loss": loss}
        return better, found

    def stop_reason(self) -> str | None:
        return None

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
