"""All that is measured of a reward model, and whether it is better than what could be told without it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from mengya.corpus.records import PreferencePair
from mengya.evaluate import calibration
from mengya.evaluate.baselines import characters_only_accuracy
from mengya.evaluate.pairs import PairScores, length_only_accuracy
from mengya.evaluate.score import Estimate, proportion
from mengya.model.heads import conservative
from mengya.settings import RewardSettings

BASELINES = {"length": "the length", "characters": "the characters", "answer": "the answer without its prompt"}
"""What a reward model has to beat, as `reward.must_beat` calls it, and in words; NAME_only_accuracy among the metrics."""


def offset_of(scores: PairScores) -> float:
    """The zero point of a member of an ensemble: its mean reward over both sides of the held-out pairs."""
    return statistics.fmean([*scores.chosen, *scores.rejected]) if scores.pairs else 0.0


def joint(members: Sequence[PairScores], offsets: Sequence[float], conservatism: float) -> PairScores:
    """The scores of an ensemble from those of its members on the same pairs, as `RewardEnsemble` computes them."""

    def combined(sides: Sequence[Sequence[float]]) -> list[float]:
        scores_MN = torch.tensor(sides, dtype=torch.float64) - torch.tensor(offsets, dtype=torch.float64)[:, None]
        return conservative(scores_MN, conservatism).tolist()

    first = members[0]
    return PairScores(
        first.pairs, combined([one.chosen for one in members]), combined([one.rejected for one in members])
    )


def measure_reward(
    scores: PairScores, bare: PairScores, train: Sequence[PreferencePair]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics without their stage, counts) of a reward model by its `scores` of held-out pairs.

    `bare`: of the same pairs without their prompts; `train`: the pairs that it was trained on, from which the baselines
    learn. Counts hold "calibration" (bins), "margin_histogram", "length_matched" (how, pairs) and "best_baseline".
    """
    pairs, hits = scores.pairs, scores.hits
    metrics: dict[str, Any] = {
        "pair_accuracy": scores.accuracy(),
        "length_only_accuracy": length_only_accuracy(train, pairs),
        "characters_only_accuracy": characters_only_accuracy(train, pairs),
        "answer_only_accuracy": bare.accuracy(),
    }
    matched, how = calibration.length_matched(pairs)
    metrics["length_matched_accuracy"] = proportion(sum(hits[index] for index in matched), len(matched))
    metrics |= {f"pair_accuracy.{reason}": value for reason, value in scores.by_reason().items()}
    error, bins = calibration.calibration(scores.margins)
    metrics["calibration_error"] = error
    metrics |= calibration.length_correlations(pairs, scores.chosen, scores.rejected)
    name, _ = best_baseline(metrics)
    metrics["margin_over_baselines"] = margin_over_baselines(metrics)
    return metrics, {
        "calibration": bins,
        "margin_histogram": calibration.margin_histogram(scores.margins),
        "length_matched": {"how": how, "pairs": len(matched)},
        "best_baseline": BASELINES[name],
    }


def best_baseline(metrics: Mapping[str, Any], among: Iterable[str] = BASELINES) -> tuple[str, Estimate]:
    """The baseline of the highest accuracy, by name."""
    name = max(among, key=lambda baseline: metrics[f"{baseline}_only_accuracy"]["value"])
    return name, metrics[f"{name}_only_accuracy"]


def margin_over_baselines(metrics: Mapping[str, Any], among: Iterable[str] = BASELINES) -> float:
    """The lower end of the accuracy's 95% interval less the best baseline's value; NaN without held-out pairs.

    Above 0 the model is better than any baseline, beyond the error of its own measurement. The Wilson interval holds for
    few pairs too: two right of two have 34% for their lower end, and prove nothing.
    """
    low: float = metrics["pair_accuracy"]["low"]
    value: float = best_baseline(metrics, among)[1]["value"]
    return low - value


def why_weak(metrics: Mapping[str, Any], settings: RewardSettings) -> str | None:
    """In words, why a reward model with these metrics is not to be trained against; None where it may be."""
    accuracy = metrics["pair_accuracy"]
    if not accuracy["n"]:
        return "the reward model was measured on no held-out pair"
    if margin_over_baselines(metrics, settings.must_beat) > settings.min_margin:
        return None
    name, baseline = best_baseline(metrics, settings.must_beat)
    needed = f"{settings.min_margin:+.1%} " if settings.min_margin else ""
    return (
        f"the reward model is right on {accuracy['value']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}] of "
        f"{accuracy['n']} held-out pairs, {BASELINES[name]} alone on {baseline['value']:.1%}: the lower end is not "
        f"{needed}above it"
    )
