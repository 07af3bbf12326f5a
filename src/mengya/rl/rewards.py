"""What an answer is worth: the reward model's score, normalised, truth, the user's own function, less what rules forbid."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mengya.corpus.playground.judges import repetition
from mengya.evaluate.answers import Answers
from mengya.evaluate.pairs import score_texts
from mengya.model.heads import RewardModel
from mengya.settings import RolloutSettings


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the reward model on the SFT model's own answers: the unit of all rewards.

    Fixed at the start. A running scale would shrink the reward as the policy improves, and would have to be resumed.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scale:
        return cls(statistics.fmean(scores), max(statistics.pstdev(scores), 1e-3))


def reward_scores(model: RewardModel, answers: Answers) -> list[float]:
    """The reward model's raw score of every answer."""
    sequences = [prompt + tokens for prompt, tokens in zip(answers.prompts, answers.tokens, strict=True)]
    return score_texts(model, sequences)


def penalised(rewards: Sequence[float], answers: Answers, settings: RolloutSettings) -> list[float]:
    """The rewards less what rules take: for an answer that never ends, and for repetition.

    The end penalty (Huang et al. 2024, detail 4: without it answers run into the length limit) and the repetition
    penalty, which looks at characters because Chinese has no spaces to split at, come after the clip of the reward
    model's score, so that no score can pay for them. An answer without a reward (NaN) stays without one.
    """
    found = []
    for reward, text, finished in zip(rewards, answers.texts, answers.finished, strict=True):
        reward -= 0.0 if finished else settings.missing_end_penalty
        reward -= settings.repetition_penalty * repetition(text)
        found.append(reward)
    return found
