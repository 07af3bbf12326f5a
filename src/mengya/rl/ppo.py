"""PPO on answers: rollout → rewards → advantages → clipped updates.

The order and the details follow Ouyang et al. 2022 and Huang et al. 2024 ("The N+ Implementation Details of RLHF with
PPO"): sampled (never greedy) rollouts, per-token KL in the reward, whitened advantages, a value model of its own that
starts from the reward model, missing-end penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mengya.corpus.records import Message
from mengya.evaluate.answers import SAMPLED, Answers
from mengya.generate.sampling import Sampling
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives import policy as maths
from mengya.objectives.terms import Terms
from mengya.rl.align import stream_of_prompts
from mengya.rl.division import check_divisible, joined, sampled_answers, share_of
from mengya.rl.rewards import Scale, combine, reward_scores
from mengya.rl.rollout import Rollout, answer_logps, answer_values, lay_out, micro_batches
from mengya.settings import PPOSettings, micro_batch_of
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.sharding import load_weights, whole
from mengya.train.state import select
from mengya.train.step import optimizer_step


@dataclass
class Actors:
    """The four models of PPO: `policy` and `values` learn, `reference` (SFT) and `rewards` do not."""

    policy: Transformer
    values: RewardModel
    reference: Transformer
    rewards: RewardModel


@dataclass
class Progressed:
    """What changes from rollout to rollout besides weights."""

    kl_coefficient: float = 0.0
    scale: Scale | None = None


@torch.no_grad()
def collect(
    actors: Actors, answers: Answers, settings: PPOSettings, progressed: Progressed, world: World
) -> tuple[Rollout, dict[str, float]]:
    """The rollout of `answers` with advantages, and its numbers for the log.

    Each rank reads its share of the rows; all get the whole, and advantages are whitened over it.
    log π_old is recomputed by the training forward pass rather than taken from generation: then the ratio of the first
    micro-batch is 1 to the last bit.
    """
    device = world.device
    rollout = lay_out(answers, device)
    B = len(rollout)
    own_scores = torch.tensor(reward_scores(actors.rewards, share_of(answers, world)), dtype=torch.float64)
    scores = joined([own_scores], B, world).tolist()
    if progressed.scale is None:
        progressed.scale = Scale.of(scores)
    rewards = combine(scores, answers, progressed.scale, settings)
    own_rows = torch.arange(world.rank, B, world.size, device=device)
    parts = list(micro_batches(rollout, own_rows, micro_batch_of(settings)))
    pairs = zip(*(answer_logps(actors.policy, part) for part in parts), strict=True)
    logps_BA, entropy_BA = (joined(x, B, world) for x in pairs)
    reference_BA = joined([answer_logps(actors.reference, part)[0] for part in parts], B, world)
    values_BA = joined([answer_values(actors.values, part) for part in parts], B, world)
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


class PPO:
    """The algorithm as `align` runs it: four models, two optimizers, and what changes from rollout to rollout."""

    def __init__(
        self,
        actors: Actors,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Sequence[Message]],
        settings: PPOSettings,
        *,
        world: World,
        seed: int,
    ) -> None:
        self.actors, self.policy = actors, actors.policy
        self.tokenizer, self.prompts, self.settings = tokenizer, prompts, settings
        self.world, self.seed = world, seed
        check_divisible("ppo.batch_prompts", settings.batch_prompts, settings.minibatches, world)
        self.policy_optimizer = Optimizer(actors.policy, settings)
        self.value_optimizer = Optimizer(actors.values, settings, settings.value_learning_rate)
        self.progressed = Progressed(kl_coefficient=settings.kl_coefficient)
        self.totals: dict[str, float] = {"answer_tokens": 0.0, "skipped_steps": 0.0}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        parts = {
            "policy/": self.policy.state_dict(),
            "values/": self.actors.values.state_dict(),
            "policy_optimizer/": self.policy_optimizer.state_tensors(),
            "value_optimizer/": self.value_optimizer.state_tensors(),
        }
        tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
        scale = self.progressed.scale
        assert scale is not None, "a checkpoint comes after a rollout"
        return tensors, {
            "kl_coefficient": self.progressed.kl_coefficient,
            "scale": [scale.mean, scale.deviation],
        }

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        load_weights(self.policy, select(tensors, "policy/"))
        load_weights(self.actors.values, select(tensors, "values/"))
        self.policy_optimizer.load_state_tensors(select(tensors, "policy_optimizer/"))
        self.value_optimizer.load_state_tensors(select(tensors, "value_optimizer/"))
        self.progressed = Progressed(numbers["kl_coefficient"], Scale(*numbers["scale"]))

    def rollout(self, step: int) -> dict[str, float]:
        settings, progressed = self.settings, self.progressed
        position = step * settings.batch_prompts
        chosen = stream_of_prompts(len(self.prompts), position, settings.batch_prompts, self.seed)
        answers = sampled_answers(
            whole(self.policy),
            self.tokenizer,
            [self.prompts[i] for i in chosen],
            self.world,
            max_new_tokens=settings.max_new_tokens,
            sampling=Sampling(temperature=settings.temperature) if settings.temperature != 1 else SAMPLED,
            seed=self.seed * 1_000_003 + step,
            batch_size=settings.batch_prompts,
        )
        rollout, numbers = collect(self.actors, answers, settings, progressed, self.world)
        rate = rate_factor(step, settings.steps, settings)
        learns_policy = step >= settings.value_warmup_steps
        policy_terms = policy_objective(settings.clip)
        value_terms = value_objective(settings.value_clip, settings.value_coefficient)
        for epoch in range(settings.epochs):
            shuffle = torch.Generator().manual_seed(self.seed * 7_919 + step * 64 + epoch)
            order = torch.randperm(len(rollout), generator=shuffle).to(self.world.device)
            for rows in order.chunk(settings.minibatches):
                own = rows[self.world.rank :: self.world.size]
                update = partial(
                    optimizer_step,
                    micro_batches=list(micro_batches(rollout, own, micro_batch_of(settings))),
                    rate=rate,
                    gradient_clip=settings.gradient_clip,
                    world=self.world,
                )
                valued = update(self.actors.values, self.value_optimizer, objective=value_terms)
                # One loss of both parts, as in eq. 9 of Schulman et al. 2017; the policy's is added where it learns.
                numbers |= {"value_loss": valued.loss, "loss": valued.loss}
                self.totals["skipped_steps"] += valued.skipped is not None
                if learns_policy:
                    moved = update(self.policy, self.policy_optimizer, objective=policy_terms)
                    numbers |= {"policy_loss": moved.loss, "grad_norm": moved.grad_norm, **moved.means}
                    numbers["loss"] += moved.loss
                    self.totals["skipped_steps"] += moved.skipped is not None
        if settings.kl_target is not None and learns_policy:
            progressed.kl_coefficient = maths.adapt_kl_coefficient(
                progressed.kl_coefficient, numbers["kl"], settings.kl_target
            )
        self.totals["answer_tokens"] += int(rollout.mask_BA.sum())
        return numbers | {"tokens": self.totals["answer_tokens"], "lr": rate * settings.learning_rate}
