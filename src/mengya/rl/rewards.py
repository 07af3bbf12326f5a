"""What an answer is worth: the reward model's score, normalised, truth, the user's own function, less what rules forbid."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mengya.console import say
from mengya.corpus.playground.judges import repetition
from mengya.evaluate.answers import Answers
from mengya.evaluate.pairs import score_texts
from mengya.model.heads import Scorer
from mengya.settings import PreferencesSettings, RolloutSettings

_CONSTANT = 1e-3
"""Standard deviation, in log-odds of one answer against another, below which scores say nothing."""


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the reward model on the SFT model's own answers: the unit of all rewards.

    Fixed at the start. A running scale would shrink the reward as the policy improves, and would have to be resumed.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scale:
        """The scale of these scores; of constant ones a deviation of 1, and a line that says so.

        Divided by their own deviation, the last bits of equal scores would become rewards of ± 1.
        """
        mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
        if deviation < _CONSTANT:
            say(
                f"the reward model gives all of {len(scores)} answers the same score (deviation {deviation:.1e}): it cannot "
                "tell them apart, and only the penalties are left to learn from"
            )
            deviation = 1.0
        return cls(mean, deviation)


def reward_scores(model: Scorer, answers: Answers) -> list[float]:
    """The raw score of every answer by the reward model, or the conservative one by an ensemble."""
    sequences = [prompt + tokens for prompt, tokens in zip(answers.prompts, answers.tokens, strict=True)]
    return score_texts(model, sequences)


def penalised(
    rewards: Sequence[float], answers: Answers, settings: RolloutSettings | PreferencesSettings
) -> list[float]:
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
