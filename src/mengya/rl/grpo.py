"""GRPO: several answers to each prompt, each judged against the others; no value model (Shao et al. 2024, "DeepSeekMath").

With the amendments that later work found to matter, each a setting: a higher upper clip, prompts that teach nothing
replaced, every token of the same weight (Yu et al. 2025, "DAPO"); no division by the deviation (Liu et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mengya.corpus.records import Question
from mengya.evaluate.answers import Answers
from mengya.generate.sampling import Sampling
from mengya.model.transformer import Transformer
from mengya.objectives import policy as maths
from mengya.objectives.terms import Terms
from mengya.rl.align import stream_of_prompts
from mengya.rl.division import check_divisible, joined, sampled_answers
from mengya.rl.learner import Learner
from mengya.rl.replay import Replay, beside, with_replay
from mengya.rl.rewards import penalised
from mengya.rl.rollout import Rollout, answer_logps, lay_out, micro_batches, minibatches
from mengya.rl.terms import RewardTerms
from mengya.settings import GRPOSettings, micro_batch_of
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World
from mengya.train.schedule import rate_factor
from mengya.train.sharding import whole


def grpo_objective(settings: GRPOSettings) -> Callable[[Any, Any], Terms]:
    """Σ of clipped loss + β k3 over tokens, or over answers of their mean a token (Shao et al. 2024, eq. 3)."""

    def objective(model: Transformer, rollout: Rollout) -> Terms:
        logps_BA, _ = answer_logps(model, rollout)
        mask_BA = rollout.mask_BA
        losses_BA = maths.clipped_losses(
            logps_BA, rollout.logps_BA, rollout.advantages_BA, settings.clip, settings.clip_high
        )
        kl_BA = maths.k3(logps_BA, rollout.reference_BA)
        losses_BA = (losses_BA + settings.kl_coefficient * kl_BA) * mask_BA
        if settings.loss_level == "sequence":
            loss, count = (losses_BA.sum(1) / mask_BA.sum(1).clamp_min(1)).sum(), len(rollout)
        else:
            loss, count = losses_BA.sum(), int(mask_BA.sum())
        with torch.no_grad():
            ratio_BA = (logps_BA - rollout.logps_BA).exp()
            outside_BA = (ratio_BA > 1 + settings.clip_high) | (ratio_BA < 1 - settings.clip)
            share = (outside_BA & mask_BA).sum() / mask_BA.sum().clamp_min(1)
        return Terms(loss, count, {"clip_share": share * count})

    return objective


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(
        *([x for part in parts for x in getattr(part, name)] for name in ("texts", "tokens", "finished", "prompts"))
    )


class GRPO:
    """The algorithm as `align` runs it. `reference` is the frozen SFT model."""

    def __init__(
        self,
        policy: Transformer,
        reference: Transformer,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Question],
        rewards: RewardTerms,
        settings: GRPOSettings,
        *,
        world: World,
        seed: int,
        replay: Replay | None = None,
    ) -> None:
        self.policy, self.reference, self.tokenizer = policy, reference, tokenizer
        self.prompts, self.rewards, self.settings = prompts, rewards, settings
        self.world, self.seed, self.replay = world, seed, replay
        # Of the groups only those are kept that teach something, so each must divide by itself.
        check_divisible("grpo.group_size", settings.group_size, settings.minibatches, world)
        self.learner = Learner("policy", policy, settings, world)
        self.drawn = 0
        """Prompts taken from the stream so far: degenerate groups make it run ahead of the rollouts."""
        self.totals: dict[str, float] = {
            "answer_tokens": 0.0, "skipped_steps": 0.0, "degenerate_groups": 0.0, "failed_rewards": 0.0
        }  # fmt: skip

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.learner.tensors(), {
            "drawn": self.drawn,
            "rewards": self.rewards.state(),
            "replay": self.replay.state() if self.replay else [],
            "learners": self.learner.numbers(),
        }

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        self.learner.load(tensors, numbers["learners"])
        self.drawn = numbers["drawn"]
        self.rewards.load_state(numbers["rewards"])
        if self.replay:
            self.replay.load_state(numbers["replay"])

    def _groups(self, num_prompts: int) -> tuple[Answers, Tensor, Tensor, dict[str, float]]:
        """Answers to the next prompts of the stream, a group after another, rewards and their validity, (P, G), and numbers
        for the log."""
        settings, size = self.settings, self.settings.group_size
        chosen = stream_of_prompts(len(self.prompts), self.drawn, num_prompts, self.seed)
        questions = [self.prompts[i] for i in chosen for _ in range(size)]
        answers = sampled_answers(
            whole(self.policy),
            self.tokenizer,
            [question.messages for question in questions],
            self.world,
            max_new_tokens=settings.max_new_tokens,
            sampling=Sampling(temperature=settings.temperature),
            seed=self.seed * 1_000_003 + self.drawn,
            batch_size=len(questions),
        )
        self.drawn += num_prompts
        found, numbers = self.rewards(questions, answers, self.world)
        rewards = torch.tensor(penalised(found, answers, settings), dtype=torch.float32)
        rewards_PG = rewards.view(num_prompts, size)
        valid_PG = rewards_PG.isfinite() & torch.tensor([bool(t) for t in answers.tokens]).view(num_prompts, size)
        self.totals["failed_rewards"] += sum(map(math.isnan, found))
        return answers, rewards_PG.nan_to_num(), valid_PG, numbers

    def _collect(self) -> tuple[Answers, Tensor, Tensor, dict[str, float]]:
        """Answers, advantages and validity (B = P · G) of groups that teach something, and what all groups were like."""
        settings, size = self.settings, self.settings.group_size
        parts: list[tuple[Answers, Tensor, Tensor]] = []
        rewards: list[float] = []
        means: dict[str, float] = {}
        missing = settings.batch_prompts
        for _ in range(1 + settings.resample):
            answers, rewards_PG, valid_PG, found = self._groups(missing)
            rewards += rewards_PG[valid_PG].tolist()
            means = means or found  # of prompts that were not chosen for what they teach
            advantages_PG = maths.group_advantages(
                rewards_PG, valid_PG, divide_by_deviation=settings.divide_by_deviation
            )
            teaches_P = advantages_PG.abs().amax(1) > 1e-6
            kept = [row * size + g for row in teaches_P.nonzero().flatten().tolist() for g in range(size)]
            self.totals["degenerate_groups"] += int((~teaches_P).sum())
            if kept:
                parts.append((answers.chosen(kept), advantages_PG[teaches_P].flatten(), valid_PG[teaches_P].flatten()))
            missing -= int(teaches_P.sum())
            if missing == 0:
                break
        numbers = means | {
            "reward": sum(rewards) / max(1, len(rewards)),
            "groups": float(settings.batch_prompts - missing),
        }
        if not parts:
            return answers, torch.zeros(0), torch.zeros(0, dtype=torch.bool), numbers
        return (
            _joined([p[0] for p in parts]),
            torch.cat([p[1] for p in parts]),
            torch.cat([p[2] for p in parts]),
            numbers,
        )

    @torch.no_grad()
    def _lay_out(self, answers: Answers, advantages_B: Tensor, valid_B: Tensor) -> tuple[Rollout, dict[str, float]]:
        device = self.world.device
        rollout = lay_out(answers, device)
        rollout = replace(rollout, mask_BA=rollout.mask_BA & valid_B.to(device)[:, None])
        B, world = len(rollout), self.world
        own_rows = torch.arange(world.rank, B, world.size, device=device)
        parts = list(micro_batches(rollout, own_rows, micro_batch_of(self.settings)))
        pairs = zip(*(answer_logps(self.policy, part) for part in parts), strict=True)
        logps_BA, entropy_BA = (joined(x, B, world) for x in pairs)
        reference_BA = joined([answer_logps(self.reference, part)[0] for part in parts], B, world)
        mask_BA = rollout.mask_BA
        numbers = {
            "kl": (logps_BA - reference_BA).sum(1).mean().item(),
            "entropy": (entropy_BA.sum() / mask_BA.sum().clamp_min(1)).item(),
            "length": mask_BA.sum(1).float().mean().item(),
            "end_rate": sum(answers.finished) / len(answers.finished),
        }
        advantages_BA = (advantages_B.to(device)[:, None] * mask_BA).float()
        return replace(rollout, logps_BA=logps_BA, reference_BA=reference_BA, advantages_BA=advantages_BA), numbers

    def rollout(self, step: int) -> dict[str, float]:
        settings = self.settings
        answers, advantages_B, valid_B, numbers = self._collect()
        if not len(advantages_B):  # every answer to every prompt got the same: there is nothing to learn from
            return numbers | {"kl": 0.0, "length": sum(map(len, answers.tokens)) / len(answers.tokens)}
        rate = rate_factor(step, settings.steps, settings)
        rollout, more = self._lay_out(answers, advantages_B, valid_B)
        numbers |= more
        objective, skipped_before = with_replay(grpo_objective(settings)), self.totals["skipped_steps"]
        for batch in minibatches(rollout, settings, step, self.seed, self.world):
            parts = beside(batch, self.replay, settings.loss_level)
            moved = self.learner.learn(parts, objective, rate=rate, step=step, totals=self.totals)
        numbers |= {"loss": moved.loss, "grad_norm": moved.grad_norm, **moved.means}
        if self.totals["skipped_steps"] > skipped_before:
            numbers["skipped_steps"] = self.totals["skipped_steps"]
        self.totals["answer_tokens"] += int(rollout.mask_BA.sum())
        return numbers | {"tokens": self.totals["answer_tokens"], "lr": rate * settings.learning_rate}
