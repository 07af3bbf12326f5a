"""The reward of PPO and GRPO: terms with weights, each a number an answer; NaN where a term could not tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mengya.console import say
from mengya.corpus.playground import judges
from mengya.corpus.records import Question
from mengya.errors import UserError
from mengya.evaluate.answers import Answers, has_truth
from mengya.model.heads import Scorer
from mengya.rl.division import joined, share_of
from mengya.rl.rewards import Scale, reward_scores
from mengya.rl.user_reward import UserReward
from mengya.settings import PPOSettings, PreferencesSettings, RewardTerm, RolloutSettings
from mengya.train.parallel import World


@dataclass
class RewardTerms:
    """All terms of a recipe; `scale` is set by the first rollout, and is the unit of the reward model's scores.

    The model's scores are whitened where `normalise` says so, then clipped to ± `clip`. `functions` are the user's, by the
    number of their term; only rank 0 has any: they may be slow, or give another number each time.
    """

    terms: Sequence[RewardTerm]
    model: Scorer | None
    functions: dict[int, UserReward] = field(default_factory=dict)
    normalise: bool = True
    clip: float | None = None
    scale: Scale | None = None

    @classmethod
    def of(
        cls, settings: RolloutSettings | PreferencesSettings, model: Scorer | None, world: World, stage: str
    ) -> RewardTerms:
        """The terms of `settings`; UserError for a function that is not there or cannot be loaded."""
        functions = {}
        for number, term in enumerate(settings.rewards):
            if term.kind != "function":
                continue
            if term.function is None:
                raise UserError(
                    "a reward function without a name",
                    where=f"{stage}.rewards.{number}.function",
                    mend="write FILE.py:NAME",
                )
            if world.is_main:
                functions[number] = UserReward(term.function, term.timeout_seconds)
        if isinstance(settings, PPOSettings):
            return cls(settings.rewards, model, functions, settings.normalise_rewards, settings.reward_clip)
        return cls(settings.rewards, model, functions)

    def __call__(
        self, questions: Sequence[Question], answers: Answers, world: World
    ) -> tuple[list[float], dict[str, float]]:
        """Σ weight · term, one number an answer, the same on all ranks; and means for the log: the reward model's raw
        score, and each term where there are several. UserError when a user's function failed for every answer."""
        totals = [0.0] * len(questions)
        means: dict[str, float] = {}
        for number, term in enumerate(self.terms):
            judged = [
                i for i, question in enumerate(questions) if not term.questions or question.kind in term.questions
            ]
            if not judged:
                continue
            asked, given = [questions[i] for i in judged], answers.chosen(judged)
            if term.kind == "truth":
                values = [
                    float(judges.is_right(text, question)) if has_truth(question) else 0.0
                    for text, question in zip(given.texts, asked, strict=True)
                ]
            elif term.kind == "model":
                scores = self._scores(given, world)
                means["score"] = statistics.fmean(scores)
                values = self._normalised(scores)
            else:
                values = self._asked(number, asked, given, world)
            if len(self.terms) > 1:
                known = [value for value in values if not math.isnan(value)]
                means[f"reward_{number}_{term.kind}"] = statistics.fmean(known)
            for i, value in zip(judged, values, strict=True):
                totals[i] += term.weight * value
        return totals, means

    def _scores(self, answers: Answers, world: World) -> list[float]:
        """The reward model's, each rank having read its share."""
        assert self.model is not None, "the stage loads it where a term asks for it"
        own = torch.tensor(reward_scores(self.model, share_of(answers, world)), dtype=torch.float64)
        return [float(score) for score in joined([own], len(answers.texts), world).tolist()]

    def _normalised(self, scores: Sequence[float]) -> list[float]:
        if self.scale is None:
            self.scale = Scale.of(scores) if self.normalise else Scale(0.0, 1.0)
        values = [(score - self.scale.mean) / self.scale.deviation for score in scores]
        return values if self.clip is None else [min(max(value, -self.clip), self.clip) for value in values]

    def _asked(self, number: int, questions: Sequence[Question], answers: Answers, world: World) -> list[float]:
        """The user's function's, called on rank 0 and told to all."""
        return world.from_main(lambda: self._ask(number, questions, answers))

    def _ask(self, number: int, questions: Sequence[Question], answers: Answers) -> list[float]:
        function = self.functions[number]
        values = function(questions, answers.texts)
        failed = sum(map(math.isnan, values))
        if failed == len(values):
            raise UserError(
                f"the reward function failed for all of {failed} answers: {function.last_failure}",
                where=function.spec,
                mend="mend it; the run goes on from its last checkpoint",
            )
        if failed:
            say(f"{function.spec}: no reward for {failed} of {len(values)} answers: {function.last_failure}")
        return values

    def state(self) -> dict[str, Any]:
        return {"scale": None if self.scale is None else [self.scale.mean, self.scale.deviation]}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale = None if state["scale"] is None else Scale(*state["scale"])

    def close(self) -> None:
        for function in self.functions.values():
            function.close()
