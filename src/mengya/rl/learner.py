"""A model that learns from rollouts: its optimizer, and the watch over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mengya.console import say
from mengya.settings import RolloutSettings
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.sharding import load_weights
from mengya.train.stability import Watch
from mengya.train.state import select
from mengya.train.step import Objective, StepResult, optimizer_step


class Learner:
    """`model` and all that its training remembers; `name` is what is said of it.

    A step without a finite loss, or with a spike, is not taken, as in `train.loop.fit`. There is no going back: the guard
    already keeps the best policy, and the next rollout is other data.
    """

    def __init__(
        self, name: str, model: nn.Module, settings: RolloutSettings, world: World, learning_rate: float | None = None
    ) -> None:
        self.name, self.model, self.settings, self.world = name, model, settings, world
        self.optimizer = Optimizer(model, settings, learning_rate)
        self.watch = Watch(settings.spike_sigmas)

    def learn(
        self, micro_batches: Sequence[Any], objective: Objective, *, rate: float, step: int, totals: dict[str, float]
    ) -> StepResult:
        """One optimizer step in rollout `step` (from 0); one that was not taken is said, and counted in `totals`."""
        result = optimizer_step(
            self.model,
            self.optimizer,
            micro_batches,
            objective,
            rate=rate,
            gradient_clip=self.settings.gradient_clip,
            world=self.world,
            why_bad=self.watch.why_bad,
        )
        if result.skipped is None:
            self.watch.taken(result.loss, result.grad_norm)
        elif result.overflow:
            totals["overflowed_steps"] = totals.get("overflowed_steps", 0) + 1
        else:
            totals["skipped_steps"] += 1
            self.watch.bad_in_a_row += 1
            if self.watch.bad_in_a_row == 1:
                say(f"rollout {step + 1}: a step of the {self.name} skipped, {result.skipped}")
        return result

    def tensors(self) -> dict[str, Tensor]:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_tensors()}
        return {f"{self.name}/{part}/{name}": value for part, held in parts.items() for name, value in held.items()}

    def numbers(self) -> dict[str, Any]:
        return {self.name: self.watch.state()}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Be as `tensors` and `numbers` (those of other learners may be among them) were taken."""
        load_weights(self.model, select(tensors, f"{self.name}/model/"))
        self.optimizer.load_state_tensors(select(tensors, f"{self.name}/optimizer/"))
        self.watch.load_state(numbers[self.name])
