"""The reward of GRPO: terms with weights, each a number an answer; NaN where a term could not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mengya.corpus.playground import judges
from mengya.corpus.records import Question
from mengya.errors import UserError
from mengya.evaluate.answers import Answers, has_truth
from mengya.model.heads import RewardModel
from mengya.rl.rewards import Scale, reward_scores
from mengya.rl.user_reward import UserReward
from mengya.settings import RewardTerm


@dataclass
class RewardTerms:
    """All terms of a recipe; `scale` is set by the first rollout, and is the unit of the reward model's scores."""

    terms: Sequence[RewardTerm]
    model: RewardModel | None
    functions: dict[int, UserReward]
    scale: Scale | None = None

    @classmethod
    def of(cls, terms: Sequence[RewardTerm], model: RewardModel | None) -> RewardTerms:
        functions = {}
        for number, term in enumerate(terms):
            if term.kind == "function":
                if term.function is None:
                    raise UserError(
                        "a reward function without a name",
                        where=f"grpo.rewards.{number}.function",
                        mend="write FILE.py:NAME",
                    )
                functions[number] = UserReward(term.function, term.timeout_seconds)
        return cls(terms, model, functions)

    def __call__(self, questions: Sequence[Question], answers: Answers) -> list[float]:
        """One number an answer: Σ weight · term. UserError when a user's function failed for every answer."""
        totals = [0.0] * len(questions)
        for number, term in enumerate(self.terms):
            values = self._values(number, term, questions, answers)
            totals = [total + term.weight * value for total, value in zip(totals, values, strict=True)]
        return totals

    def _values(self, number: int, term: RewardTerm, questions: Sequence[Question], answers: Answers) -> list[float]:
        if term.kind == "truth":
            return [
                float(judges.is_right(text, question)) if has_truth(question) else 0.0
                for text, question in zip(answers.texts, questions, strict=True)
            ]
        if term.kind == "model":
            assert self.model is not None, "the stage loads it where a term asks for it"
            scores = reward_scores(self.model, answers)
            if self.scale is None:
                self.scale = Scale.of(scores)
            return [(score - self.scale.mean) / self.scale.deviation for score in scores]
        function = self.functions[number]
        values = function(questions, answers.texts)
        if all(math.isnan(value) for value in values):
            raise UserError(
                f"the reward function failed for all of {len(values)} answers: {function.last_failure}",
                where=function.spec,
                mend="mend it; the run goes on from its last checkpoint",
            )
        return values

    @property
    def failures(self) -> int:
        """Calls of the user's functions that failed so far, in this process."""
        return sum(function.failures for function in self.functions.values())

    def close(self) -> None:
        for function in self.functions.values():
            function.close()
