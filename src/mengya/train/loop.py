"""The one training loop: `fit` takes a model, batches and an objective; `optimizer_step` is all that RL needs of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mengya.console import MetricsLog, Progress, say
from mengya.errors import Interrupted, UserError
from mengya.train.incidents import Incidents
from mengya.train.optimizer import Optimizer
from mengya.train.overseer import Loader, LowestLoss, Overseer, look_due
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.sharding import agreed, gathered, load_weights
from mengya.train.signals import deferred_signals
from mengya.train.stability import Watch
from mengya.train.state import Checkpoints, TrainState, random_state, select, set_random_state
from mengya.train.step import Objective, StepResult, optimizer_step

if TYPE_CHECKING:
    from mengya.settings import FitSettings


def fit(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    settings: FitSettings,
    *,
    num_steps: int,
    directory: Path,
    world: World,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    unit: str = "tokens",
    best_checkpoint: Literal["keep", "hand_over", "ignore"] = "ignore",
    overseer: Overseer | None = None,
) -> dict[str, Any]:
    """Train `model` in place for `num_steps`; totals {"step", `unit`, "skipped_steps", "rewinds", "train_seconds"}.

    Resumes from the newest sound checkpoint under `directory`; interrupted anywhere and called again, it ends with the
    bits of an uninterrupted run (same hardware, same number of ranks). `unit` names what the objective counts: tokens
    that carry loss, or pairs; then "tokens" are all that went through the model. `best_checkpoint` is of the lowest
    "validation_loss" that `evaluate` finds. An `overseer` looks when `evaluate` would, and before the first step; training
    ends when it says so, with the weights that it chose in `model`. The data of a skipped step is named as exactly as
    `loader` can tell (`train.incidents`).
    """
    hands_over = overseer is not None or best_checkpoint == "hand_over"
    if overseer is None and evaluate is not None:
        overseer = LowestLoss(evaluate, best_checkpoint != "ignore", world)
    training = _Training(
        model=model,
        loader=loader,
        objective=objective,
        settings=settings,
        num_steps=num_steps,
        directory=directory,
        world=world,
        overseer=overseer,
        evaluate_every=evaluate_every,
        unit=unit,
    )
    model.train()
    with deferred_signals() as signal_came, training.checkpoints:
        training.resume()
        while not training.go_on(signal_came):
            training.rewind()
        if hands_over:
            training.take_best()
    model.eval()
    return training.totals


@dataclass
class _Training:
    """A training under way: what `fit` was given, and all that changes from step to step."""

    model: nn.Module
    loader: Loader
    objective: Objective
    settings: FitSettings
    num_steps: int
    directory: Path
    world: World
    overseer: Overseer | None
    evaluate_every: int
    unit: str

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.model, self.settings)
        self.checkpoints = Checkpoints(self.directory / "checkpoints", self.settings.keep_checkpoints)
        self.incidents = Incidents(self.directory, self.world.rank, self.loader)
        self.watch = Watch(self.settings.spike_sigmas)
        self.steps = iter(self.loader)
        names = dict.fromkeys(("step", "tokens", self.unit, "skipped_steps", "rewinds"), 0)
        self.totals: dict[str, Any] = {**names, "train_seconds": 0.0}
        self.events: dict[str, float] = {}
        """Numbers of what happened since the last line of metrics.jsonl."""
        self.last_incident = ("", "")

    def tell(self, line: str) -> None:
        if self.world.is_main:
            say(f"{self.directory.name}: {line}")

    # ------------------------------------------------------------------------------------------------------ state

    def snapshot(self) -> TrainState:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state_tensors().items()}
        numbers = {"totals": self.totals, "watch": self.watch.state(), "loader": self.loader.state_dict()}
        if self.overseer is not None:
            numbers["overseer"] = self.overseer.state()
        tensors = gathered(tensors, self.world) | random_state()
        return TrainState(self.totals["step"], tensors, numbers, self.totals.get("best", {}).get("step"))

    def restore(self, state: TrainState) -> None:
        """Be as `state` was, but for the place in the data."""
        load_weights(self.model, select(state.tensors, "model/"))
        self.optimizer.load_state_tensors(select(state.tensors, "optimizer/"))
        set_random_state(state.tensors)
        self.totals = dict(state.numbers["totals"])
        self.watch.load_state(state.numbers["watch"])
        if self.overseer is not None:
            self.overseer.load_state(state.numbers["overseer"])

    def resume(self) -> None:
        state = self.checkpoints.latest(self.tell)
        agreed(self.world.gather(None if state is None else state.step))
        if state is not None:
            self.restore(state)
            self.loader.load_state_dict(state.numbers["loader"])
            self.tell(f"resumed at step {state.step} of {self.num_steps}")
        elif self.overseer is not None and self.overseer.looks_first:
            self.look(self.overseer, {})
            self.save(stop=False)  # the weights to hand over where none are better
        self.incidents.resume(self.totals["skipped_steps"])

    # ------------------------------------------------------------------------------------------------------ steps

    def go_on(self, signal_came: Callable[[], bool]) -> bool:
        """Train to the last step, or until too many steps in a row were skipped; whether it was the last."""
        settings, totals, watch, world = self.settings, self.totals, self.watch, self.world
        with ExitStack() as stack:
            log = bar = None
            if world.is_main:
                log = stack.enter_context(MetricsLog(self.directory, start_step=totals["step"]))
                bar = stack.enter_context(Progress(self.directory.name, total=self.num_steps, start=totals["step"]))
            mark, mark_totals = time.perf_counter(), dict(totals)
            while totals["step"] < self.num_steps and not self.stopped:
                self.checkpoints.check()
                rate = rate_factor(totals["step"], self.num_steps, settings) * watch.rate
                result = self.take_step(rate)
                if watch.bad_in_a_row >= settings.rewind_after:
                    return False
                step, stop = totals["step"], world.any(signal_came())
                last = step == self.num_steps
                logged = step % settings.log_every == 0 or last or bool(self.events)
                looks = look_due(step, self.evaluate_every, self.num_steps)
                overseer = self.overseer if looks else None
                # Not among skipped steps: such a checkpoint holds nothing new, and would push out one to go back to.
                saved = last or stop or (step % settings.checkpoint_every == 0 and not watch.bad_in_a_row)
                if not (logged or overseer or saved):
                    continue
                elapsed = time.perf_counter() - mark
                totals["train_seconds"] += elapsed
                counts = {name: totals[name] for name in ("tokens", self.unit)}
                speeds = {f"{name}_per_second": (count - mark_totals[name]) / elapsed for name, count in counts.items()}
                numbers = {**counts, "loss": result.loss, "lr": rate * settings.learning_rate}
                numbers |= {"grad_norm": result.grad_norm, **speeds, **result.means, **self.events}
                if overseer:
                    best, found = self.look(overseer, numbers)
                    saved = saved or best or self.stopped
                    numbers |= found
                self.events.clear()
                if log is not None and bar is not None:
                    if logged or overseer:
                        log.write(step, **numbers)
                    speed = f"{self.unit}_per_second"
                    bar.update(step, **{"loss": result.loss, speed: speeds[speed]})
                if saved:
                    self.save(stop)
                if stop and not last:
                    self.checkpoints.wait()
                    world.barrier()  # no rank leaves before the state is on disk
                    raise Interrupted(self.directory.name, step)
                mark, mark_totals = time.perf_counter(), dict(totals)
        return True

    def take_step(self, rate: float) -> StepResult:
        """One optimizer step on the loader's next micro-batches, counted; what was skipped is recorded."""
        totals, watch = self.totals, self.watch
        micro_batches = next(self.steps)
        result = optimizer_step(
            self.model,
            self.optimizer,
            micro_batches,
            self.objective,
            rate=rate,
            gradient_clip=self.settings.gradient_clip,
            world=self.world,
            why_bad=watch.why_bad,
        )
        totals["step"] += 1
        totals[self.unit] += result.count
        if self.unit != "tokens":
            totals["tokens"] += self.world.total(sum(batch.num_tokens for batch in micro_batches))
        if result.skipped is None:
            watch.taken(result.loss, result.grad_norm)
        elif result.overflow:
            totals["overflowed_steps"] = totals.get("overflowed_steps", 0) + 1
        else:
            totals["skipped_steps"] += 1
            watch.bad_in_a_row += 1
            self.events["skipped_steps"] = totals["skipped_steps"]
            losses = [loss.item() for loss in result.micro_losses]
            documents = self.incidents.add(
                totals["step"], result.skipped, result.loss, result.grad_norm, micro_batches, losses
            )
            self.last_incident = (result.skipped, documents)
            if watch.bad_in_a_row == 1:
                self.tell(f"step {totals['step']} skipped, {result.skipped}; its data: {documents}")
        return result

    def look(self, overseer: Overseer, numbers: dict[str, float]) -> tuple[bool, dict[str, float]]:
        """Whether these are the best weights so far (then it is noted), and what was measured."""
        self.model.eval()
        found = overseer.see(self.model, self.totals["step"], numbers)
        self.model.train()
        if overseer.best is not None:
            self.totals["best"] = overseer.best
        return found

    @property
    def stopped(self) -> bool:
        return self.overseer is not None and self.overseer.stop_reason() is not None

    def save(self, stop: bool) -> None:
        if not stop:
            self.watch.rewound_to = None
        state = self.snapshot()
        if self.world.is_main:
            self.checkpoints.save_behind(state)

    # ------------------------------------------------------------------------------------------------- after trouble

    def rewind(self) -> None:
        """Go back to a checkpoint and on from it with the data after the skipped steps', at a lower rate.

        A second time before another checkpoint was written, to the one before. UserError when nothing is left to try.
        """
        settings, done, watch = self.settings, self.totals, self.watch
        reason, documents = self.last_incident
        self.checkpoints.wait()
        self.world.barrier()
        state = None
        if done["rewinds"] < settings.max_rewinds:
            before = watch.rewound_to
            state = self.checkpoints.latest(self.tell, before)
            if state is None and before is not None:
                state = self.checkpoints.latest(self.tell, before + 1)
        trouble = f"{watch.bad_in_a_row} steps in a row were skipped, the last because {reason}"
        if state is None:
            tried = f"after {done['rewinds']} rewinds" if done["rewinds"] else "with no checkpoint to go back to"
            raise UserError(
                f"{trouble}, {tried}; its data: {documents}",
                where=f"{self.directory.name}.learning_rate",
                mend="lower it, or set precision: fp32; look at the data; the checkpoint before the trouble is kept",
            )
        rate = watch.rate * settings.rewind_rate
        self.restore(state)
        watch.rate, watch.rewound_to, watch.bad_in_a_row = rate, state.step, 0
        self.totals |= {"rewinds": done["rewinds"] + 1, "skipped_steps": done["skipped_steps"], "rate_factor": rate}
        self.events = {name: self.totals[name] for name in ("skipped_steps", "rewinds", "rate_factor")}
        self.tell(
            f"{trouble}; goes back to step {state.step} of {self.num_steps} and on from there with the data that follows "
            f"theirs, learning rates × {rate:g}. The last one's data: {documents}"
        )

    def take_best(self) -> None:
        """Give the model the weights of the best checkpoint."""
        if "best" not in self.totals:
            raise UserError(
                "no validation loss was measured, so there is no best checkpoint",
                where=f"{self.directory.name}.best_checkpoint",
                mend="set it to keep",
            )
        self.checkpoints.wait()
        self.world.barrier()
        step = self.totals["best"]["step"]
        if step != self.totals["step"]:
            load_weights(self.model, select(self.checkpoints.at(step).tensors, "model/"))
        if isinstance(self.overseer, LowestLoss):
            self.tell(f"hands over the weights of step {step}, with the lowest validation loss")
