"""PPO on answers: rollout → rewards → advantages → clipped updates, resumable between rollouts.

The order and the details follow Ouyang et al. 2022 and Huang et al. 2024 ("The N+ Implementation Details of RLHF with
PPO"): sampled (never greedy) rollouts, per-token KL in the reward, whitened advantages, a value model of its own that
starts from the reward model, missing-end penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mengya.console import MetricsLog, Progress, say
from mengya.corpus.records import Message
from mengya.errors import Interrupted
from mengya.evaluate.answers import SAMPLED, Answers, answer
from mengya.generate.sampling import Sampling
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives import policy as maths
from mengya.objectives.terms import Terms
from mengya.rl.guard import Guard, Look
from mengya.rl.rewards import Scale, combine, reward_scores
from mengya.rl.rollout import Rollout, answer_logps, answer_values, lay_out, micro_batches
from mengya.settings import PPOSettings
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.loop import deferred_signals, optimizer_step, select
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.state import Checkpoints, TrainState, random_state, set_random_state


@dataclass
class Actors:
    """The four models of PPO: `policy` and `values` learn, `reference` (SFT) and `rewards` do not."""

    policy: Transformer
    values: RewardModel
    reference: Transformer
    rewards: RewardModel


@dataclass
class Progressed:
    """All that changes from rollout to rollout besides weights."""

    step: int = 0
    kl_coefficient: float = 0.0
    scale: Scale | None = None
    totals: dict[str, float] = field(default_factory=lambda: {"answer_tokens": 0.0, "skipped_steps": 0.0})


def prompts_of_step(num_prompts: int, batch: int, step: int, seed: int) -> list[int]:
    """Indices of the prompts of rollout `step`: a fresh shuffle each time through, a function of (seed, step) only."""
    chosen: list[int] = []
    position = step * batch
    while len(chosen) < batch:
        epoch, offset = divmod(position, num_prompts)
        order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        taken = order[offset : offset + batch - len(chosen)].tolist()
        chosen += taken
        position += len(taken)
    return chosen


@torch.no_grad()
def collect(
    actors: Actors, answers: Answers, settings: PPOSettings, progressed: Progressed, device: torch.device
) -> tuple[Rollout, dict[str, float]]:
    """The rollout of `answers` with advantages, and its numbers for the log.

    log π_old is recomputed by the training forward pass rather than taken from generation: then the ratio of the first
    micro-batch is 1 to the last bit.
    """
    rollout = lay_out(answers, device)
    scores = reward_scores(actors.rewards, answers)
    if progressed.scale is None:
        progressed.scale = Scale.of(scores)
    rewards = combine(scores, answers, progressed.scale, settings)
    parts = list(micro_batches(rollout, torch.arange(len(rollout), device=device), settings.micro_batch_rows))
    logps_BA, entropy_BA = (torch.cat(x) for x in zip(*(answer_logps(actors.policy, p) for p in parts), strict=True))
    reference_BA = torch.cat([answer_logps(actors.reference, part)[0] for part in parts])
    values_BA = torch.cat([answer_values(actors.values, part) for part in parts])
    mask_BA = rollout.mask_BA
    rewards_BA = maths.kl_penalised_rewards(
        torch.tensor(rewards, device=device), logps_BA, reference_BA, mask_BA, progressed.kl_coefficient
    )
    advantages_BA, returns_BA = maths.gae(rewards_BA, values_BA, mask_BA, settings.gamma, settings.gae_lambda)
    kl = (logps_BA - reference_BA).sum(1).mean().item()
    numbers = {
        "reward": sum(rewards) / len(rewards),
        "score": sum(scores) / len(scores),
        "kl": kl,
        "kl_coefficient": progressed.kl_coefficient,
        "entropy": (entropy_BA.sum() / mask_BA.sum()).item(),
        "length": mask_BA.sum(1).float().mean().item(),
        "end_rate": sum(answers.finished) / len(answers.finished),
        "value_mean": (values_BA.sum() / mask_BA.sum()).item(),
    }
    whitened_BA = maths.whiten(advantages_BA, mask_BA)
    filled = replace(rollout, logps_BA=logps_BA, values_BA=values_BA, advantages_BA=whitened_BA, returns_BA=returns_BA)
    return filled, numbers


def policy_objective(clip: float) -> Callable[[Any, Any], Terms]:
    def objective(model: Transformer, rollout: Rollout) -> Terms:
        logps_BA, _ = answer_logps(model, rollout)
        mask_BA = rollout.mask_BA
        loss = maths.policy_loss(logps_BA, rollout.logps_BA, rollout.advantages_BA, mask_BA, clip)
        with torch.no_grad():
            ratio_BA = (logps_BA - rollout.logps_BA).exp()
            clipped = (((ratio_BA - 1).abs() > clip) & mask_BA).float().sum()
            # k3 estimator: unbiased, never negative (Schulman 2020).
            moved = ((rollout.logps_BA - logps_BA).exp() - 1 + (logps_BA - rollout.logps_BA))[mask_BA].sum()
        return Terms(loss, int(mask_BA.sum()), {"clip_share": clipped, "kl_to_old": moved})

    return objective


def value_objective(clip: float, coefficient: float) -> Callable[[Any, Any], Terms]:
    def objective(model: RewardModel, rollout: Rollout) -> Terms:
        values_BA = answer_values(model, rollout)
        loss = maths.value_loss(values_BA, rollout.values_BA, rollout.returns_BA, rollout.mask_BA, clip)
        return Terms(coefficient * loss, int(rollout.mask_BA.sum()))

    return objective


def train_ppo(
    actors: Actors,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[Message]],
    settings: PPOSettings,
    *,
    look: Callable[[Transformer, int], Look],
    directory: Path,
    world: World,
    seed: int,
) -> dict[str, Any]:
    """Train `actors.policy` in place and leave in it the guard's choice; totals, looks and the verdict.

    `look(policy, step)` measures the policy on held-out prompts. Resumes from the newest checkpoint under `directory`.
    """
    policy_optimizer = Optimizer(actors.policy, settings)
    value_optimizer = Optimizer(actors.values, settings, settings.value_learning_rate)
    checkpoints = Checkpoints(directory / "checkpoints", settings.keep_checkpoints)
    guard = Guard(settings.max_kl)
    progressed = Progressed(kl_coefficient=settings.kl_coefficient)
    best = {name: value.clone() for name, value in actors.policy.state_dict().items()}

    def snapshot() -> TrainState:
        parts = {
            "policy/": actors.policy.state_dict(),
            "values/": actors.values.state_dict(),
            "best/": best,
            "policy_optimizer/": policy_optimizer.state_tensors(),
            "value_optimizer/": value_optimizer.state_tensors(),
        }
        tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
        assert progressed.scale is not None
        numbers = {
            "kl_coefficient": progressed.kl_coefficient,
            "scale": [progressed.scale.mean, progressed.scale.deviation],
            "totals": progressed.totals,
            "guard": guard.state(),
        }
        return TrainState(progressed.step, tensors | random_state(), numbers)

    state = checkpoints.latest(say)
    if state is not None:
        actors.policy.load_state_dict(select(state.tensors, "policy/"))
        actors.values.load_state_dict(select(state.tensors, "values/"))
        best = select(state.tensors, "best/")
        policy_optimizer.load_state_tensors(select(state.tensors, "policy_optimizer/"))
        value_optimizer.load_state_tensors(select(state.tensors, "value_optimizer/"))
        set_random_state(state.tensors)
        numbers = state.numbers
        progressed = Progressed(state.step, numbers["kl_coefficient"], Scale(*numbers["scale"]), numbers["totals"])
        guard.load_state(numbers["guard"])
        say(f"{directory.name}: resumed at rollout {state.step} of {settings.steps}")
    else:
        guard.see(look(actors.policy, 0))

    sampling = Sampling(temperature=settings.temperature) if settings.temperature != 1 else SAMPLED
    policy_terms = policy_objective(settings.clip)
    value_terms = value_objective(settings.value_clip, settings.value_coefficient)
    stop_reason = guard.stop_reason()
    with (
        deferred_signals() as signal_came,
        MetricsLog(directory, start_step=progressed.step) as log,
        Progress(directory.name, total=settings.steps, start=progressed.step) as bar,
    ):
        while progressed.step < settings.steps and stop_reason is None:
            chosen = prompts_of_step(len(prompts), settings.batch_prompts, progressed.step, seed)
            answers = answer(
                actors.policy,
                tokenizer,
                [prompts[i] for i in chosen],
                max_new_tokens=settings.max_new_tokens,
                sampling=sampling,
                seed=seed * 1_000_003 + progressed.step,
                batch_size=settings.batch_prompts,
            )
            rollout, numbers = collect(actors, answers, settings, progressed, world.device)
            rate = rate_factor(progressed.step, settings.steps, settings)
            learns_policy = progressed.step >= settings.value_warmup_steps
            for epoch in range(settings.epochs):
                shuffle = torch.Generator().manual_seed(seed * 7_919 + progressed.step * 64 + epoch)
                order = torch.randperm(len(rollout), generator=shuffle).to(world.device)
                for rows in order.chunk(settings.minibatches):
                    step = partial(
                        optimizer_step,
                        micro_batches=list(micro_batches(rollout, rows, settings.micro_batch_rows)),
                        rate=rate,
                        gradient_clip=settings.gradient_clip,
                        world=world,
                    )
                    valued = step(actors.values, value_optimizer, objective=value_terms)
                    numbers["value_loss"] = valued.loss
                    if learns_policy:
                        moved = step(actors.policy, policy_optimizer, objective=policy_terms)
                        numbers |= {"policy_loss": moved.loss, "grad_norm": moved.grad_norm, **moved.means}
                        progressed.totals["skipped_steps"] += not moved.finite
            if settings.kl_target is not None and learns_policy:
                progressed.kl_coefficient = maths.adapt_kl_coefficient(
                    progressed.kl_coefficient, numbers["kl"], settings.kl_target
                )
            progressed.step += 1
            progressed.totals["answer_tokens"] += int(rollout.mask_BA.sum())
            last = progressed.step == settings.steps
            if last or progressed.step % settings.evaluate_every == 0:
                seen = look(actors.policy, progressed.step)
                if guard.see(seen):
                    best = {name: value.clone() for name, value in actors.policy.state_dict().items()}
                stop_reason = guard.stop_reason()
                numbers |= {"guard_score": seen.score, "guard_repetition": seen.repetition, "guard_kl": seen.kl}
            if world.is_main:
                log.write(progressed.step, **numbers)
                bar.update(progressed.step, reward=numbers["reward"], kl=numbers["kl"], length=numbers["length"])
                if last or stop_reason or progressed.step % settings.checkpoint_every == 0 or signal_came():
                    checkpoints.save(snapshot())
            if signal_came() and not last:
                raise Interrupted(directory.name, progressed.step)
    if stop_reason:
        say(f"{directory.name}: stopped early: {stop_reason}")
    actors.policy.load_state_dict(best)
    say(f"{directory.name}: {guard.verdict()}")
    return {
        **progressed.totals,
        "rollouts": progressed.step,
        "stopped_early": stop_reason,
        "verdict": guard.verdict(),
        "guard": guard.state()["looks"],
    }
