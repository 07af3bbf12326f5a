"""PPO on answers: rollout → rewards → advantages → clipped updates.

The order and the details follow Ouyang et al. 2022 and Huang et al. 2024 ("The N+ Implementation Details of RLHF with
PPO"): sampled (never greedy) rollouts, per-token KL in the reward, whitened advantages, a value model of its own that
starts from the reward model, missing-end penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mengya.corpus.records import Question
from mengya.evaluate.answers import SAMPLED, Answers
from mengya.generate.sampling import Sampling
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives import policy as maths
from mengya.objectives.terms import Terms
from mengya.rl.align import stream_of_prompts
from mengya.rl.division import check_divisible, joined, sampled_answers
from mengya.rl.learner import Learner
from mengya.rl.replay import Replay, beside, with_replay
from mengya.rl.rewards import penalised
from mengya.rl.rollout import Rollout, answer_logps, answer_values, lay_out, micro_batches, minibatches
from mengya.rl.terms import RewardTerms
from mengya.settings import PPOSettings, micro_batch_of
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.sharding import whole


@dataclass
class Actors:
    """The three models of PPO besides the rewards: `policy` and `values` learn, `reference` (SFT) does not."""

    policy: Transformer
    values: RewardModel
    reference: Transformer


@torch.no_grad()
def collect(
    actors: Actors,
    answers: Answers,
    rewards: Sequence[float],
    settings: PPOSettings,
    kl_coefficient: float,
    world: World,
) -> tuple[Rollout, dict[str, float]]:
    """The rollout of `answers` with advantages, and its numbers for the log.

    Each rank reads its share of the rows; all get the whole, and advantages are whitened over it. An answer without a
    reward (NaN), or without a token, teaches nothing: it is outside the mask.
    log π_old is recomputed by the training forward pass rather than taken from generation: then the ratio of the first
    micro-batch is 1 to the last bit.
    """
    device = world.device
    rollout = lay_out(answers, device)
    B = len(rollout)
    valid_B = torch.tensor([math.isfinite(r) and bool(t) for r, t in zip(rewards, answers.tokens, strict=True)])
    rewards_B = torch.tensor(rewards, dtype=torch.float32).nan_to_num().to(device)
    rollout = replace(rollout, mask_BA=rollout.mask_BA & valid_B.to(device)[:, None])
    own_rows = torch.arange(world.rank, B, world.size, device=device)
    parts = list(micro_batches(rollout, own_rows, micro_batch_of(settings)))
    pairs = zip(*(answer_logps(actors.policy, part) for part in parts), strict=True)
    logps_BA, entropy_BA = (joined(x, B, world) for x in pairs)
    reference_BA = joined([answer_logps(actors.reference, part)[0] for part in parts], B, world)
    values_BA = joined([answer_values(actors.values, part) for part in parts], B, world)
    mask_BA = rollout.mask_BA
    rewards_BA = maths.kl_penalised_rewards(
        rewards_B, logps_BA, reference_BA, mask_BA, kl_coefficient, settings.kl_estimator
    )
    advantages_BA, returns_BA = maths.gae(rewards_BA, values_BA, mask_BA, settings.gamma, settings.gae_lambda)
    if settings.whiten_advantages and mask_BA.any():
        advantages_BA = maths.whiten(advantages_BA, mask_BA)
    num_tokens = mask_BA.sum().clamp_min(1)
    known = [reward for reward, valid in zip(rewards, valid_B.tolist(), strict=True) if valid]
    kl_B = (logps_BA - reference_BA).sum(1)[valid_B.to(device)]
    numbers = {
        "reward": sum(known) / max(1, len(known)),
        "kl": kl_B.mean().item() if known else 0.0,
        "kl_coefficient": kl_coefficient,
        "entropy": (entropy_BA.sum() / num_tokens).item(),
        "length": mask_BA.sum().item() / max(1, len(known)),
        "end_rate": sum(answers.finished) / len(answers.finished),
        "value_mean": (values_BA.sum() / num_tokens).item(),
    }
    filled = replace(
        rollout,
        logps_BA=logps_BA,
        reference_BA=reference_BA,
        values_BA=values_BA,
        advantages_BA=advantages_BA,
        returns_BA=returns_BA,
    )
    return filled, numbers


def policy_objective(settings: PPOSettings) -> Callable[[Any, Any], Terms]:
    """Σ over tokens of the clipped loss, + `kl_loss_coefficient` × k3, − `entropy_coefficient` × entropy."""
    clip, learns_entropy = settings.clip, settings.entropy_coefficient > 0

    def objective(model: Transformer, rollout: Rollout) -> Terms:
        logps_BA, entropy_BA = answer_logps(model, rollout, learns_entropy=learns_entropy)
        mask_BA = rollout.mask_BA
        loss = maths.policy_loss(logps_BA, rollout.logps_BA, rollout.advantages_BA, mask_BA, clip)
        if settings.kl_loss_coefficient:
            loss = loss + settings.kl_loss_coefficient * (maths.k3(logps_BA, rollout.reference_BA) * mask_BA).sum()
        if learns_entropy:
            loss = loss - settings.entropy_coefficient * entropy_BA.sum()
        with torch.no_grad():
            ratio_BA = (logps_BA - rollout.logps_BA).exp()
            clipped = (((ratio_BA - 1).abs() > clip) & mask_BA).float().sum()
            # k3 estimator: unbiased, never negative (Schulman 2020).
            moved = ((rollout.logps_BA - logps_BA).exp() - 1 + (logps_BA - rollout.logps_BA))[mask_BA].sum()
        return Terms(loss, int(mask_BA.sum()), {"clip_share": clipped, "kl_to_old": moved})

    return objective


def value_objective(clip: float | None, coefficient: float) -> Callable[[Any, Any], Terms]:
    def objective(model: RewardModel, rollout: Rollout) -> Terms:
        values_BA = answer_values(model, rollout)
        loss = maths.value_loss(values_BA, rollout.values_BA, rollout.returns_BA, rollout.mask_BA, clip)
        return Terms(coefficient * loss, int(rollout.mask_BA.sum()))

    return objective


class PPO:
    """The algorithm as `align` runs it: the models, two of which learn, and what changes from rollout to rollout."""

    def __init__(
        self,
        actors: Actors,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Question],
        rewards: RewardTerms,
        settings: PPOSettings,
        *,
        world: World,
        seed: int,
        replay: Replay | None = None,
    ) -> None:
        self.actors, self.policy = actors, actors.policy
        self.tokenizer, self.prompts, self.rewards, self.settings = tokenizer, prompts, rewards, settings
        self.world, self.seed, self.replay = world, seed, replay
        check_divisible("ppo.batch_prompts", settings.batch_prompts, settings.minibatches, world)
        self.policy_learner = Learner("policy", actors.policy, settings, world)
        self.value_learner = Learner("values", actors.values, settings, world, settings.value_learning_rate)
        self.kl_coefficient = settings.kl_coefficient
        self.totals: dict[str, float] = {"answer_tokens": 0.0, "skipped_steps": 0.0, "failed_rewards": 0.0}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        learners = (self.policy_learner, self.value_learner)
        return self.policy_learner.tensors() | self.value_learner.tensors(), {
            "kl_coefficient": self.kl_coefficient,
            "rewards": self.rewards.state(),
            "replay": self.replay.state() if self.replay else [],
            "learners": {name: numbers for learner in learners for name, numbers in learner.numbers().items()},
        }

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        for learner in (self.policy_learner, self.value_learner):
            learner.load(tensors, numbers["learners"])
        self.kl_coefficient = numbers["kl_coefficient"]
        self.rewards.load_state(numbers["rewards"])
        if self.replay:
            self.replay.load_state(numbers["replay"])

    def _answers(self, step: int) -> tuple[Answers, list[float], dict[str, float]]:
        """Answers to the rollout's prompts, their rewards, and numbers about these for the log."""
        settings = self.settings
        position = step * settings.batch_prompts
        chosen = stream_of_prompts(len(self.prompts), position, settings.batch_prompts, self.seed)
        questions = [self.prompts[i] for i in chosen]
        answers = sampled_answers(
            whole(self.policy),
            self.tokenizer,
            [question.messages for question in questions],
            self.world,
            max_new_tokens=settings.max_new_tokens,
            sampling=Sampling(temperature=settings.temperature) if settings.temperature != 1 else SAMPLED,
            seed=self.seed * 1_000_003 + step,
            # All at once: rows that end leave the batch, so that a smaller one saves no work and takes more steps.
            batch_size=settings.batch_prompts,
        )
        found, numbers = self.rewards(questions, answers, self.world)
        self.totals["failed_rewards"] += sum(map(math.isnan, found))
        return answers, penalised(found, answers, settings), numbers

    def rollout(self, step: int) -> dict[str, float]:
        settings = self.settings
        answers, rewards, numbers = self._answers(step)
        rollout, more = collect(self.actors, answers, rewards, settings, self.kl_coefficient, self.world)
        numbers |= more
        rate = rate_factor(step, settings.steps, settings)
        learns_policy = step >= settings.value_warmup_steps
        policy_terms = with_replay(policy_objective(settings))
        value_terms = value_objective(settings.value_clip, settings.value_coefficient)
        skipped_before = self.totals["skipped_steps"]
        for batch in minibatches(rollout, settings, step, self.seed, self.world):
            valued = self.value_learner.learn(batch.own, value_terms, rate=rate, step=step, totals=self.totals)
            # One loss of both parts, as in eq. 9 of Schulman et al. 2017; the policy's is added where it learns.
            numbers |= {"value_loss": valued.loss, "loss": valued.loss}
            if learns_policy:
                parts = beside(batch, self.replay)
                moved = self.policy_learner.learn(parts, policy_terms, rate=rate, step=step, totals=self.totals)
                numbers |= {"policy_loss": moved.loss, "grad_norm": moved.grad_norm, **moved.means}
                numbers["loss"] += moved.loss
        if settings.kl_target is not None and learns_policy:
            self.kl_coefficient = maths.adapt_kl_coefficient(self.kl_coefficient, numbers["kl"], settings.kl_target)
        self.totals["answer_tokens"] += int(rollout.mask_BA.sum())
        if self.totals["skipped_steps"] > skipped_before:
            numbers["skipped_steps"] = self.totals["skipped_steps"]
        return numbers | {"tokens": self.totals["answer_tokens"], "lr": rate * settings.learning_rate}
