"""What a reward's margins are worth: calibration, their histogram, correlation with length, pairs of like length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mengya.corpus.records import PreferencePair
from mengya.evaluate.score import Estimate

_BINS = 10
_HISTOGRAM_BINS = 24
_ALIKE = 0.1
_FEW = 30
"""Pairs of like length below which an accuracy on them would say next to nothing (its interval is ± 18 points)."""


def calibration(margins: Sequence[float]) -> tuple[float, list[dict[str, float]]]:
    """The expected calibration error, and ten bins {"predicted", "right", "n"} of it; empty bins are left out.

    Bradley–Terry says that the side with the higher reward is the better one with probability σ(|margin|), between 0.5
    and 1. A bin holds the pairs of like probability; `right` is the share in which that side was the chosen one (a
    margin of 0 counts half). The error is the mean of |right − predicted| over all pairs (Guo et al. 2017, eq. 3). NaN
    without pairs.
    """
    if not margins:
        return math.nan, []
    values = np.asarray(margins, dtype=np.float64)
    predicted = 1.0 / (1.0 + np.exp(-np.abs(values)))
    right = np.where(values > 0, 1.0, np.where(values < 0, 0.0, 0.5))
    numbers = np.minimum(((predicted - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins = []
    for number in range(_BINS):
        inside = numbers == number
        if inside.any():
            means = {"predicted": float(predicted[inside].mean()), "right": float(right[inside].mean())}
            bins.append({**means, "n": int(inside.sum())})
    error = sum(row["n"] * abs(row["right"] - row["predicted"]) for row in bins) / len(values)
    return error, bins


def margin_histogram(margins: Sequence[float]) -> dict[str, list[float]]:
    """{"edges", "counts"} of the margins in bins of equal width, one edge at 0; empty without pairs."""
    if not margins:
        return {"edges": [], "counts": []}
    low, high = min(0.0, *margins), max(0.0, *margins)
    width = max((high - low) / _HISTOGRAM_BINS, 1e-9)
    first, last = math.floor(low / width), math.ceil(high / width)
    edges = [width * number for number in range(first, max(last, first + 1) + 1)]
    counts, _ = np.histogram(margins, bins=np.asarray(edges))
    # Rounding may put the outermost margins beyond the last edge; they belong to its bin.
    counts[-1] += sum(margin > edges[-1] for margin in margins)
    counts[0] += sum(margin < edges[0] for margin in margins)
    return {"edges": edges, "counts": counts.tolist()}


def ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value, equal values sharing the mean of theirs."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[inverse]


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Estimate | None:
    """Pearson's correlation with its interval by Fisher's z; of `ranks`, Spearman's. None where one side is constant.

    Both answers of a pair are counted as if independent, so the interval is a little too narrow.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(a)
    if n < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    value = float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
    z, half = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), 1.959964 / math.sqrt(n - 3)
    low, high = math.tanh(z - half), math.tanh(z + half)
    return {"value": value, "low": min(low, value), "high": max(high, value), "n": n}


def length_matched(pairs: Sequence[PreferencePair]) -> tuple[list[int], str]:
    """Which pairs to look at so that length says nothing, and how they were found.

    "alike": lengths in characters differ by at most a tenth of the longer. Where these are fewer than 30, "bins": in
    each bin of the difference (a tenth of the longer side wide) as many pairs whose chosen answer is the longer as pairs
    whose chosen answer is the shorter, the first ones of each, and all pairs of equal length.
    """
    differences = [
        (len(pair.chosen) - len(pair.rejected)) / max(len(pair.chosen), len(pair.rejected), 1) for pair in pairs
    ]
    alike = [index for index, difference in enumerate(differences) if abs(difference) <= _ALIKE]
    if len(alike) >= _FEW:
        return alike, "alike"
    sides: dict[tuple[int, bool], list[int]] = {}
    for index, difference in enumerate(differences):
        sides.setdefault((int(abs(difference) / _ALIKE), difference > 0), []).append(index)
    kept = [index for index, difference in enumerate(differences) if difference == 0]
    for number in {number for number, _ in sides}:
        longer = sides.get((number, True), [])
        shorter = [index for index in sides.get((number, False), []) if differences[index] != 0]
        fewer = min(len(longer), len(shorter))
        kept += longer[:fewer] + shorter[:fewer]
    return sorted(kept), "bins"


def length_correlations(
    pairs: Sequence[PreferencePair], chosen: Sequence[float], rejected: Sequence[float]
) -> dict[str, Any]:
    """{"length_correlation": Pearson, "length_rank_correlation": Spearman} of reward and characters, over all answers."""
    lengths = [len(text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    rewards = [reward for both in zip(chosen, rejected, strict=True) for reward in both]
    found = {
        "length_correlation": correlation(lengths, rewards),
        "length_rank_correlation": correlation(ranks(lengths), ranks(rewards)),
    }
    return {name: value for name, value in found.items() if value is not None}
