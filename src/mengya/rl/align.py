"""The loop of every stage that trains on the model's own answers: rollout by rollout, resumable, under the guard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mengya.console import MetricsLog, Progress, say
from mengya.errors import Interrupted
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.rl.oversight import Oversight
from mengya.settings import RolloutSettings
from mengya.train.overseer import look_due
from mengya.train.parallel import World
from mengya.train.sharding import agreed, gathered, like
from mengya.train.signals import deferred_signals
from mengya.train.state import Checkpoints, TrainState, random_state, select, set_random_state


class Algorithm(Protocol):
    """A way to improve `policy` by its own answers; all that it remembers besides is in its state."""

    policy: Transformer
    totals: dict[str, float]

    def rollout(self, step: int) -> dict[str, float]:
        """Collect the answers of rollout `step` (from 0) and train on them; numbers for the log, "reward" among them."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...
    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None: ...


def stream_of_prompts(num_prompts: int, position: int, count: int, seed: int) -> list[int]:
    """Indices position … position + count − 1 of an endless stream of prompts, a fresh shuffle each time through."""
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        taken = order[offset : offset + count - len(chosen)].tolist()
        chosen += taken
        position += len(taken)
    return chosen


def align(
    algorithm: Algorithm,
    settings: RolloutSettings,
    *,
    look: Callable[[Transformer, int], Look],
    directory: Path,
    world: World,
) -> dict[str, Any]:
    """Train `algorithm.policy` in place and leave in it the guard's choice; totals, looks and the verdict.

    `look(policy, step)` measures the policy on held-out prompts, on rank 0. Resumes from the newest checkpoint under `directory`.
    """
    checkpoints = Checkpoints(directory / "checkpoints", settings.keep_checkpoints)
    oversight = Oversight(directory.name, settings.guard, look, world)
    policy, step = algorithm.policy, 0
    best = {name: value.clone() for name, value in policy.state_dict().items()}

    def snapshot() -> TrainState:
        tensors, numbers = algorithm.state()
        tensors = {f"algorithm/{name}": value for name, value in tensors.items()}
        tensors |= {f"best/{name}": value for name, value in best.items()}
        tensors = gathered(tensors, world) | random_state()
        return TrainState(step, tensors, {"algorithm": numbers, "totals": algorithm.totals, "guard": oversight.state()})

    state = checkpoints.latest(say)
    agreed(world.gather(None if state is None else state.step))
    if state is not None:
        algorithm.load_state(select(state.tensors, "algorithm/"), state.numbers["algorithm"])
        algorithm.totals = state.numbers["totals"]
        best = {name: like(value, best[name]) for name, value in select(state.tensors, "best/").items()}
        set_random_state(state.tensors)
        oversight.load_state(state.numbers["guard"])
        step = state.step
        say(f"{directory.name}: resumed at rollout {step} of {settings.steps}")
    else:
        oversight.see(policy, 0, {})

    stop_reason = oversight.stop_reason()
    with (
        deferred_signals() as signal_came,
        MetricsLog(directory, start_step=step, active=world.is_main) as log,
        Progress(directory.name, total=settings.steps, start=step) as bar,
    ):
        while step < settings.steps and stop_reason is None:
            numbers = algorithm.rollout(step)
            step += 1
            last = step == settings.steps
            if look_due(step, settings.evaluate_every, settings.steps):
                better, found = oversight.see(policy, step, numbers)
                if better:
                    best = {name: value.clone() for name, value in policy.state_dict().items()}
                stop_reason = oversight.stop_reason()
                numbers |= found
            stopping = world.any(signal_came())
            log.write(step, **numbers)
            bar.update(step, reward=numbers["reward"], kl=numbers["kl"], length=numbers["length"])
            if last or stop_reason or step % settings.checkpoint_every == 0 or stopping:
                state = snapshot()
                if world.is_main:
                    checkpoints.save(state)
            if stopping and not last:
                world.barrier()  # no rank leaves before the state is on disk
                raise Interrupted(directory.name, step)
    policy.load_state_dict(best)
    return {**algorithm.totals, "rollouts": step, **oversight.close()}
