"""What PPO and GRPO will take on this machine: rollouts, what is computed on them, the updates, the guard's looks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from mengya.evaluate.answers import Answers
from mengya.model.heads import RewardEnsemble, RewardModel
from mengya.rl.grpo import grpo_objective
from mengya.rl.ppo import Actors, collect, policy_objective, value_objective
from mengya.rl.rewards import reward_scores
from mengya.rl.rollout import Rollout, answer_logps, lay_out, micro_batches
from mengya.serve.plan_batches import answers_of_lengths, chosen_answers, widths
from mengya.serve.plan_parts import FORWARD, Parts, StagePlan
from mengya.serve.plan_probe import StepTime
from mengya.settings import DPOSettings, GRPOSettings, PPOSettings, RolloutSettings, micro_batch_of
from mengya.stages.aligned import GUARD_TEXTS, distinct_prompts
from mengya.stages.common import GUARD_PROMPTS
from mengya.stages.grpo import grpo_prompts
from mengya.stages.preferences import preference_pairs
from mengya.train.overseer import num_looks

_GUARD_BATCH = 128
"""Prompts that the guard has answered at a time."""


class RolloutParts(Parts):
    """The stages that train on the model's own answers."""

    def _ppo(self, plan: StagePlan) -> None:
        settings = self._settings("ppo")
        assert isinstance(settings, PPOSettings)
        train = preference_pairs(self.context, "train")
        if not train:
            return
        answers = chosen_answers(train, self.tokenizer, settings.batch_prompts, settings)
        if not answers.prompts:
            return
        began = time.perf_counter()
        for prompt in distinct_prompts(train):
            self.tokenizer.render(prompt, add_generation_prompt=True)
        growth = self.sample.count("preference") / len(train)
        plan.parts["data"] = plan.cpu_seconds = (time.perf_counter() - began) * growth
        model, world = self.probe.model, self.probe.world
        values = RewardModel.from_language_model(model)
        members = self.recipe.reward.members
        rewards = RewardEnsemble([RewardModel.from_language_model(model)] * members, [0.0] * members, 1.0)
        actors, few = Actors(model, values, model), self._few(answers)

        def collecting() -> Rollout:
            scores = reward_scores(rewards, few)
            return collect(actors, few, scores, settings, settings.kl_coefficient, world)[0]

        rollout, seconds = self.probe.made_and_timed(collecting)
        self._collecting(plan, settings, few, settings.batch_prompts, seconds, 3 + members)
        policy, per_update = self._update(settings, rollout, settings.batch_prompts, policy_objective(settings))
        value, _ = self._update(
            settings, rollout, settings.batch_prompts, value_objective(settings.value_clip, 1.0), values
        )
        learning = max(0, settings.steps - settings.value_warmup_steps)
        self._replay(plan, settings, learning * settings.epochs * settings.minibatches)
        for rollouts, timed in ((learning, policy), (settings.steps, value)):
            self._learning(plan, settings, rollout, settings.batch_prompts, per_update, rollouts, timed)
        self._rollouts_and_looks(plan, settings, answers, settings.batch_prompts)

    def _grpo(self, plan: StagePlan) -> None:
        """Groups that teach nothing, and are replaced by others, are not foreseen; nor is a reward function of the user's."""
        settings = self._settings("grpo")
        assert isinstance(settings, GRPOSettings)
        began = time.perf_counter()
        sampled = settings.model_copy(update={"pairs_from": "corpus"})  # the only pairs that a sample has
        prompts = [question.messages for question in grpo_prompts(self.context, sampled)]
        count = settings.batch_prompts * settings.group_size
        lengths = self._drawn(self.answer_lengths, count, settings.max_new_tokens)
        answers = answers_of_lengths(prompts, self.tokenizer, lengths, settings)
        plan.parts["data"] = plan.cpu_seconds = time.perf_counter() - began
        if not answers.prompts:
            return
        model, few = self.probe.model, self._few(answers)
        rollout = lay_out(few, self.probe.world.device)
        parts = list(micro_batches(rollout, torch.arange(len(rollout)), micro_batch_of(settings)))

        @torch.no_grad()
        def read() -> torch.Tensor:
            return torch.cat([answer_logps(model, part)[0] for part in parts])

        logps_BA, seconds = self.probe.made_and_timed(read)
        rollout = replace(rollout, logps_BA=logps_BA, reference_BA=logps_BA, advantages_BA=rollout.mask_BA.float())
        models = 2 + self.recipe.reward.members * any(term.kind == "model" for term in settings.rewards)
        self._collecting(plan, settings, few, count, seconds, models, of=models)
        policy, per_update = self._update(settings, rollout, count, grpo_objective(settings))
        self._learning(plan, settings, rollout, count, per_update, settings.steps, policy)
        self._replay(plan, settings, settings.steps * settings.epochs * settings.minibatches)
        self._rollouts_and_looks(plan, settings, answers, count)

    # ------------------------------------------------------------------------------------------------- the parts

    def _few(self, answers: Answers) -> Answers:
        """As many of them as can be timed."""
        return answers.chosen(range(self.probe.rows_to_time(max(widths(answers)), len(answers.prompts))))

    def _collecting(
        self,
        plan: StagePlan,
        settings: RolloutSettings,
        few: Answers,
        count: int,
        seconds: float,
        models: int,
        of: int = 1,
    ) -> None:
        """Reading `count` answers with `models` models; `seconds` of reading `few` with all of them, or with one where they are `of`."""
        width = max(widths(few))
        whole = seconds / self.probe.share(width) * count / len(few.prompts)
        plan.parts["collecting"] = settings.steps * of * whole
        read = float(width * count)
        plan.forward_flops += models * settings.steps * read * self.probe.whole.flops_per_token(width) * FORWARD

    def _update(
        self, settings: RolloutSettings, rollout: Rollout, count: int, objective: Any, model: Any = None
    ) -> tuple[StepTime, float]:
        """The time of an optimizer step on a mini-batch of `count` answers, and its micro-batches."""
        width, minibatch = rollout.ids_BT.shape[1], -(-count // settings.minibatches)
        micro = min(micro_batch_of(settings), minibatch)
        rows = torch.arange(min(len(rollout), minibatch), device=rollout.ids_BT.device)
        parts = list(micro_batches(rollout, rows, micro))
        per_update = minibatch / micro
        timed = self.probe.step_time(
            objective,
            settings,
            parts,
            model=model,
            length=width,
            rows_share=len(parts[0]) / micro,
            single=per_update <= 1,
        )
        return timed, per_update

    def _learning(
        self,
        plan: StagePlan,
        settings: RolloutSettings,
        rollout: Rollout,
        count: int,
        per_update: float,
        rollouts: int,
        timed: StepTime,
    ) -> None:
        """Add the updates of one model in so many rollouts."""
        width, updates = rollout.ids_BT.shape[1], settings.epochs * settings.minibatches
        tokens = float(width * count * settings.epochs * rollouts)
        plan.steps = settings.steps
        plan.parts["training"] = plan.parts.get("training", 0.0) + updates * rollouts * timed.step(per_update)
        plan.micro_batches += updates * per_update * rollouts
        plan.tokens += tokens
        plan.flops += tokens * self.probe.whole.flops_per_token(width)

    def _rollouts_and_looks(self, plan: StagePlan, settings: RolloutSettings, answers: Answers, count: int) -> None:
        own = len(answers.prompts)
        asked = [len(answers.prompts[i % own]) for i in range(count)]
        answered = [len(answers.tokens[i % own]) for i in range(count)]
        self._generate(plan, "rollouts", asked, answered, count, settings.steps)
        self._looks(plan, settings, settings.steps)
        self._memory(plan, settings)
        self._aligned(plan)

    def _looks(self, plan: StagePlan, settings: RolloutSettings | DPOSettings, steps: int) -> None:
        """The guard's looks in so many steps: the first is of the SFT model, which is not read beside itself."""
        looks = 1 + num_looks(settings.evaluate_every, steps)
        practises = isinstance(settings, RolloutSettings) and settings.kinds and self.knows_truth
        guard = len(self.held.guard) + (GUARD_PROMPTS if practises else 0)
        questions = self._drawn(self.prompt_lengths, guard)
        lengths = self._drawn(self.answer_lengths, guard, settings.max_new_tokens)
        self._generate(plan, "guard", questions, lengths, _GUARD_BATCH, looks)
        asked = self._drawn(self.prompt_lengths, GUARD_TEXTS)
        told = self._drawn(self.answer_lengths, GUARD_TEXTS)
        answers, foretold = (
            sum(questions) + sum(lengths),
            sum(asked) + sum(told) + self._tokens_of_documents(GUARD_TEXTS),
        )
        # Where the truth is not known a model scores them: the judge, or the reward model.
        scored = 0 if self.knows_truth or "reward" not in self.recipe.stages else looks * answers
        self._read(plan, "guard", (2 * looks - 1) * answers + looks * foretold + scored)
