"""The one training loop: `fit` takes a model, batches and an objective; `optimizer_step` is all that RL needs of it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mengya.console import MetricsLog, Progress, say
from mengya.errors import Interrupted, UserError
from mengya.objectives.terms import Terms
from mengya.settings import TrainSettings
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.state import Checkpoints, TrainState, random_state, set_random_state

Objective = Callable[[Any, Any], Terms]

_MAX_BAD_STEPS = 10
"""Consecutive steps without a finite gradient after which training stops: the weights cannot recover by skipping."""


class Loader(Protocol):
    """Yields the micro-batches of one step at a time, for ever; its position is exact state."""

    def __iter__(self) -> Iterator[Sequence[Any]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class StepResult:
    """`loss` is the mean over the step's whole batch on all ranks; `finite` False means that nothing was changed."""

    loss: float
    count: int
    grad_norm: float
    finite: bool
    means: dict[str, float] = field(default_factory=dict)


def optimizer_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: Sequence[Any],
    objective: Objective,
    *,
    rate: float,
    gradient_clip: float,
    world: World,
) -> StepResult:
    """One optimizer step over `micro_batches`: the gradient of Σ loss / Σ count, over micro-batches and ranks.

    Gradients of sums are added up and divided once by the global count, so the result does not depend on the split.
    A step whose gradient is not finite changes nothing, on all ranks together.
    """
    loss_sum = torch.zeros((), device=world.device)
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in micro_batches:
        terms = objective(model, batch.to(world.device))
        terms.loss_sum.backward()
        loss_sum += terms.loss_sum.detach()
        count += terms.count
        for name, value in terms.sums.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value.detach()
    gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
    totals = torch.stack([loss_sum.float(), torch.tensor(float(count), device=world.device), *sums.values()])
    world.sum_([*gradients, totals])
    total = totals[1].item()
    torch._foreach_mul_(gradients, 1.0 / max(total, 1.0))
    norm = torch.nn.utils.clip_grad_norm_(optimizer.parameters, gradient_clip).item()
    means = {name: totals[2 + i].item() / max(total, 1.0) for i, name in enumerate(sums)}
    finite = math.isfinite(norm)
    if finite:
        optimizer.step(rate)
    optimizer.zero_grad()
    return StepResult(totals[0].item() / max(total, 1.0), int(total), norm, finite, means)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM wait for the end of the step; the callable says whether one came."""
    came: list[int] = []
    try:
        old = {s: signal.signal(s, lambda number, _: came.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        old = {}
    try:
        yield lambda: bool(came)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def fit(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    settings: TrainSettings,
    *,
    num_steps: int,
    directory: Path,
    world: World,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    unit: str = "tokens",
) -> dict[str, Any]:
    """Train `model` in place for `num_steps`; totals {"step", `unit`, "skipped_steps", "train_seconds"}.

    Resumes from the newest sound checkpoint under `directory`; interrupted anywhere and called again, it ends with the
    bits of an uninterrupted run (same hardware, same number of ranks). `unit` names what the objective counts: tokens
    that carry loss, or pairs; then "tokens" are all that went through the model.
    """
    optimizer = Optimizer(model, settings)
    checkpoints = Checkpoints(directory / "checkpoints", settings.keep_checkpoints)
    totals: dict[str, Any] = {"step": 0, "tokens": 0, unit: 0, "skipped_steps": 0, "train_seconds": 0.0}
    bad_in_a_row = 0

    def snapshot() -> TrainState:
        tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.state_tensors().items()}
        return TrainState(totals["step"], tensors | random_state(), {"totals": totals, "loader": loader.state_dict()})

    state = checkpoints.latest(say)
    if state is not None:
        model.load_state_dict(select(state.tensors, "model/"), strict=True)
        optimizer.load_state_tensors(select(state.tensors, "optimizer/"))
        set_random_state(state.tensors)
        totals = dict(state.numbers["totals"])
        loader.load_state_dict(state.numbers["loader"])
        say(f"{directory.name}: resumed at step {totals['step']} of {num_steps}")

    model.train()
    steps = iter(loader)
    with (
        deferred_signals() as signal_came,
        MetricsLog(directory, start_step=totals["step"]) as log,
        Progress(directory.name, total=num_steps, start=totals["step"]) as bar,
    ):
        mark, mark_totals = time.perf_counter(), dict(totals)
        while totals["step"] < num_steps:
            rate = rate_factor(totals["step"], num_steps, settings)
            micro_batches = next(steps)
            result = optimizer_step(
                model,
                optimizer,
                micro_batches,
                objective,
                rate=rate,
                gradient_clip=settings.gradient_clip,
                world=world,
            )
            totals["step"] += 1
            totals[unit] += result.count
            if unit != "tokens":
                totals["tokens"] += sum(batch.num_tokens for batch in micro_batches)
            bad_in_a_row = 0 if result.finite else bad_in_a_row + 1
            totals["skipped_steps"] += not result.finite
            if bad_in_a_row == _MAX_BAD_STEPS:
                raise UserError(
                    f"{_MAX_BAD_STEPS} steps in a row had no finite gradient (last loss {result.loss:.4g})",
                    where=f"{directory.name}.learning_rate",
                    mend="lower it, or set precision: fp32; the checkpoint before the trouble is kept",
                )
            step = totals["step"]
            last = step == num_steps
            logged = step % settings.log_every == 0 or last
            evaluated = evaluate is not None and (last or (evaluate_every and step % evaluate_every == 0))
            saved = last or step % settings.checkpoint_every == 0 or signal_came()
            if not (logged or evaluated or saved):
                continue
            elapsed = time.perf_counter() - mark
            totals["train_seconds"] += elapsed
            counts = {name: totals[name] for name in ("tokens", unit)}
            speeds = {f"{name}_per_second": (count - mark_totals[name]) / elapsed for name, count in counts.items()}
            numbers = {**counts, "loss": result.loss, "lr": rate * settings.learning_rate}
            numbers |= {"grad_norm": result.grad_norm, **speeds, **result.means}
            if evaluated and evaluate is not None:
                model.eval()
                numbers |= evaluate()
                model.train()
            if world.is_main:
                if logged or evaluated:
                    log.write(step, **numbers)
                speed = f"{unit}_per_second"
                bar.update(step, **{"loss": result.loss, speed: speeds[speed]})
                if saved:
                    checkpoints.save(snapshot())
            world.barrier()
            if signal_came() and not last:
                raise Interrupted(directory.name, step)
            mark, mark_totals = time.perf_counter(), dict(totals)
    model.eval()
    return totals


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
