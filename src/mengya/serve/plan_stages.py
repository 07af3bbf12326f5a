"""What each stage of a recipe will take on this machine: tokens, FLOPs, memory and seconds, from the sample and the probe.

Every term stands for something that the stage does: rendering its data, its steps, its looks at held-out data and the evaluation at
its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import torch

from mengya.corpus import records
from mengya.data.conversations import render_conversations
from mengya.data.token_files import TokenSource, open_tokens
from mengya.evaluate.ngram import ngram_losses
from mengya.model.heads import RewardModel
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.reward import reward_loss
from mengya.serve.plan_batches import first_pairs, positions, random_ids
from mengya.serve.plan_parts import StagePlan
from mengya.serve.plan_probe import StepTime
from mengya.serve.plan_rollouts import RolloutParts
from mengya.serve.plan_sample import DATA_STAGES
from mengya.settings import (
    DPOSettings,
    PairTrainSettings,
    PretrainSettings,
    RewardSettings,
    SFTSettings,
    micro_batch_key,
    micro_batch_of,
)
from mengya.stages.common import packed_loader
from mengya.stages.dpo import objective_of
from mengya.stages.micro_batch import longest_batch
from mengya.stages.preferences import pair_loader, preference_pairs
from mengya.stages.sft import with_documents
from mengya.train.overseer import num_looks
from mengya.train.step import Objective

_BASE_MODEL_RUNS_ON = 1.5
"""Longer answers of a model that only continues text: 16.3 tokens against 10.6 of the quickstart's SFT model."""


class Planner(RolloutParts):
    """The recipe's stages one by one."""

    def makers(self) -> dict[str, Callable[[StagePlan], None]]:
        return {
            "pretrain": self._pretrain,
            "sft": self._sft,
            "preferences": self._preferences,
            "reward": self._pairs,
            "dpo": self._pairs,
            "ppo": self._ppo,
            "grpo": self._grpo,
            "evaluate": self._evaluate,
        }

    def plan(self) -> list[StagePlan]:
        """One of each stage of the recipe, in its order; a stage that nobody here knows is not `known`."""
        makers, plans = self.makers(), []
        for stage in self.recipe.stages:
            plan = StagePlan(stage)
            if stage in DATA_STAGES:
                plan.parts["data"] = plan.cpu_seconds = self.sample.seconds[stage]
                plan.tokens = sum(self.sample.tokens.values()) if stage == "shards" else 0.0
            elif stage in makers:
                makers[stage](plan)
            else:
                plan.known = False
            plans.append(plan)
        return plans

    # ------------------------------------------------------------------------------------------------- the stages

    def _pretrain(self, plan: StagePlan) -> None:
        settings = self._settings("pretrain")
        assert isinstance(settings, PretrainSettings)
        length, micro = settings.sequence_length, micro_batch_of(settings)
        rows = self.probe.rows_to_time(length, micro // length)
        plan.steps = max(1, settings.tokens // settings.batch_tokens)
        per_step = settings.batch_tokens / micro
        batch = random_ids(longest_batch(settings, rows * length, self.probe.world.device), self.probe.whole.vocab_size)
        share = rows / (micro // length)
        train = open_tokens(self.context.path("shards/tokens"), "train")
        loader = packed_loader(self.context, train, settings, self.tokenizer, self.probe.world)
        timed = self._timed_whole(next_token_loss, settings, loader, settings.batch_tokens, length)
        if timed is None:
            timed = self.probe.step_time(
                next_token_loss, settings, [batch], length=length, rows_share=share, single=per_step == 1
            )
        self._train(plan, settings, timed, per_step, float(plan.steps * settings.batch_tokens))
        looks = 1 + num_looks(settings.evaluate_every, plan.steps)
        self._read(plan, "validation", looks * self._validation_tokens())
        self._read(plan, "untrained", self._document_tokens() + self._cloze_tokens())
        plan.parts["baselines"] = self._ngram_seconds(train)
        plan.cpu_seconds += plan.parts["baselines"]
        self._evaluation(plan, _BASE_MODEL_RUNS_ON)

    def _ngram_seconds(self, train: TokenSource) -> float:
        """Of the n-gram models that pretraining is compared with, on at most 20 million tokens."""
        held = self.held.validation
        documents = [train[i].astype(np.int64) for i in range(min(len(train), 4000))]
        validation = [held[i].astype(np.int64) for i in range(min(len(held), 200))]
        if not validation:
            return 0.0
        began = time.perf_counter()
        ngram_losses(documents, validation, self.probe.whole.vocab_size)
        whole = min(20e6, sum(self.sample.tokens.values()))
        return (time.perf_counter() - began) * whole / max(1, sum(map(len, documents)))

    def _sft(self, plan: StagePlan) -> None:
        settings = self._settings("sft")
        assert isinstance(settings, SFTSettings)
        length, micro = settings.sequence_length, micro_batch_of(settings)
        conversations = [records.conversation(row) for row in self._rows("corpus/conversations/train.jsonl")]
        if not conversations:
            return
        began = time.perf_counter()
        examples, _ = render_conversations(conversations, self.tokenizer, max_tokens=length + 1)
        growth = self.sample.count("conversation") / len(conversations)
        plan.parts["data"] = plan.cpu_seconds = (time.perf_counter() - began) * growth
        if not len(examples):
            return
        rows = self.probe.rows_to_time(length, micro // length)
        timed_settings = settings.model_copy(
            update={"batch_tokens": 2 * rows * length, micro_batch_key(settings): rows * length}
        )
        mixed, _ = with_documents(self.context, examples, settings.documents)
        loader = packed_loader(self.context, mixed, settings, self.tokenizer, self.probe.world)
        whole = settings.epochs * loader.num_rows() * growth * length
        plan.steps = max(1, round(whole / settings.batch_tokens))
        per_step = settings.batch_tokens / micro
        timed = self._timed_whole(next_token_loss, settings, loader, settings.batch_tokens, length)
        if timed is None:
            parts = packed_loader(self.context, mixed, timed_settings, self.tokenizer, self.probe.world)
            timed = self.probe.step_time(
                next_token_loss,
                settings,
                list(next(parts)),
                length=length,
                rows_share=rows / (micro // length),
                single=per_step == 1,
            )
        self._train(plan, settings, timed, per_step, whole)
        looks = 1 + num_looks(settings.evaluate_every, plan.steps)
        answers = sum(self.answer_lengths) + sum(self.prompt_lengths)
        self._read(plan, "validation", looks * answers)
        self._evaluation(plan)

    def _preferences(self, plan: StagePlan) -> None:
        """The answers; what choosing prompts and pairs takes is little."""
        settings = self.recipe.preferences
        samples = settings.num_samples if settings.method == "best_of_n" else 1
        prompts = self._drawn(self.prompt_lengths, settings.batch_size)
        lengths = self._drawn(self.answer_lengths, settings.batch_size, settings.max_new_tokens)
        times = self.own_prompts * samples / settings.batch_size
        self._generate(plan, "answers", prompts, lengths, settings.batch_size, times)
        self._forward_memory(plan)

    def _pairs(self, plan: StagePlan) -> None:
        settings = self._settings(plan.stage)
        assert isinstance(settings, PairTrainSettings)
        train, validation = (preference_pairs(self.context, split) for split in ("train", "validation"))
        if not train:
            return
        began = time.perf_counter()
        pairs, counts, _, rendered = pair_loader(self.context, self.tokenizer, train, settings, self.probe.world)
        growth = self.sample.count("preference") / len(train)
        # Own pairs are not there yet: they are taken to be like the corpus's, of which there are `growth` times as many.
        count = growth * counts["examples"] * (settings.pairs_from != "own")
        count += self.own_pairs * (settings.pairs_from != "corpus")
        prepare = (time.perf_counter() - began) * count / max(1, counts["examples"])
        share, members = self.judge_share, settings.members if isinstance(settings, RewardSettings) else 1
        judge, whole = count * share, count * (1 - share)
        plan.steps = members * max(1, round(settings.epochs * whole / settings.batch_pairs))
        if isinstance(settings, RewardSettings) and share:
            plan.steps += max(1, round(settings.epochs * judge / settings.batch_pairs))
        micro = micro_batch_of(settings)
        per_step = settings.batch_pairs / micro
        steps = [next(pairs) for _ in range(max(1, min(40, len(rendered) // settings.batch_pairs)))]
        steps.sort(key=positions)
        mean = sum(map(positions, steps)) / len(steps)
        length = max(1, round(mean / (2 * settings.batch_pairs)))
        reward = plan.stage == "reward"
        model: Any = self.probe.model
        objective: Objective = reward_loss(self.recipe.reward.lm_coefficient)
        if reward:
            model = RewardModel.from_language_model(model)
        else:
            assert isinstance(settings, DPOSettings)
            reference_N2 = torch.zeros(len(rendered), 2, device=self.probe.world.device)
            objective = objective_of(settings, reference_N2)
        rows = self.probe.rows_to_time(length, 2 * min(micro, settings.batch_pairs))
        kept = max(1, rows // 2)
        pad_id, device = self.tokenizer.end_of_text_id, self.probe.world.device
        # A quarter and three quarters up from the step of the shortest pairs: none of all is like the mean one.
        quarters = cycle([steps[len(steps) // 4], steps[3 * len(steps) // 4]])
        timed = self._timed_whole(objective, settings, quarters, mean, length, model, least=2)
        if timed is None:
            # The pairs of a step lie by length: the micro-batch in its middle, and what share it is goes by positions.
            middle = steps[len(steps) // 2]
            batch = first_pairs(rendered, middle[len(middle) // 2], kept, pad_id).to(device)
            timed = self.probe.step_time(
                objective,
                settings,
                [batch],
                model=model,
                length=length,
                rows_share=positions([batch]) * max(1.0, per_step) / mean,
                single=per_step <= 1,
            )
        self._train(plan, settings, timed, per_step, plan.steps * mean, length=length)
        a_pair = sum(len(pair.chosen) + len(pair.rejected) for pair in rendered) / len(rendered)
        if reward:
            # At half time, at the end (twice), and without the prompts, in which the judge is not asked.
            looks = members * 4 + (3 if share else 0)
            plan.parts["data"] = ((1 + members) * (1 - share) + share) * prepare
            plan.parts["data"] += looks * prepare * len(validation) / max(1, len(train) * growth)
            self._read(plan, "validation", looks * len(validation) * a_pair)
        else:
            plan.parts["data"] = prepare * (1 - share)
            assert isinstance(settings, DPOSettings)
            if settings.loss != "simpo":
                self._read(plan, "reference", whole * a_pair)
            self._replay(plan, settings, plan.steps)
            self._looks(plan, settings, plan.steps)
            self._aligned(plan)
        plan.cpu_seconds += plan.parts["data"]

    def _timed_whole(
        self, objective: Any, settings: Any, steps: Any, tokens: float, length: int, model: Any = None, least: int = 1
    ) -> StepTime | None:
        """Of steps of the loader, where they can be timed as they are."""
        seconds = self.probe.whole_steps(
            objective, settings, steps, tokens=tokens, length=length, model=model, least=least
        )
        return None if seconds is None else StepTime(seconds, 0.0)

    def _evaluate(self, plan: StagePlan) -> None:
        settings = self.recipe.evaluate
        models = 1 + sum(stage in self.recipe.stages for stage in ("sft", "dpo", "ppo", "grpo"))
        kinds = len({question.kind for question in self.held.questions})
        prompts = len(settings.samples) or 2 * kinds or 10
        lengths = self._drawn(self.answer_lengths, prompts, settings.max_new_tokens)
        self._generate(plan, "answers", self._drawn(self.prompt_lengths, prompts), lengths, settings.batch_size, models)
        self._read(plan, "likelihood", models * self._document_tokens())
        self._forward_memory(plan)
