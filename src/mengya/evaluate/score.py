"""Numbers with their uncertainty: 95% intervals, paired differences, the delta table of a stage against another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_Z95 = 1.959964

Estimate = dict[str, float]
"""{"value", "low", "high", "n"}"""

NEITHER_IS_BETTER = ("answer_tokens",)
LOWER_IS_BETTER = ("bits_per_byte", "repetition", "refusal_rate", "kl_to_sft", "loss", "seconds")


def proportion(hits: float, n: int) -> Estimate:
    """Share of `n` with its Wilson score interval (Wilson 1927): inside [0, 1] also for few and for extreme cases."""
    if n == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    share, z2 = hits / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return {
        "value": share,
        "low": min(share, max(0.0, centre - half)),
        "high": max(share, min(1.0, centre + half)),
        "n": n,
    }


def mean(values: Sequence[float]) -> Estimate:
    """Mean with its normal interval, ± 1.96 standard errors."""
    n = len(values)
    if n == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    centre = sum(values) / n
    variance = sum((value - centre) ** 2 for value in values) / max(1, n - 1)
    half = _Z95 * math.sqrt(variance / n)
    return {"value": centre, "low": centre - half, "high": centre + half, "n": n}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Σ a / Σ b with its interval by the delta method (documents are the units: their tokens are not independent)."""
    n, total = len(denominators), sum(denominators)
    if n == 0 or total == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": n}
    value = sum(numerators) / total
    spread = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    half = _Z95 * math.sqrt(spread * n / max(1, n - 1)) / total
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def delta_table(
    before_stage: str,
    before: dict[str, Estimate],
    after: dict[str, Estimate],
    items_before: dict[str, list[float]],
    items_after: dict[str, list[float]],
) -> list[dict[str, Any]]:
    """One row for each metric that both stages have; "low" and "high" bound the change at 95%.

    Where both were measured on the same items the interval is of the paired differences, which is far tighter.
    """
    rows = []
    for name, now in after.items():
        if name not in before or name.endswith(NEITHER_IS_BETTER):
            continue
        then = before[name]
        first, second = items_before.get(name, []), items_after.get(name, [])
        if len(first) == len(second) > 0:
            change = mean([b - a for a, b in zip(first, second, strict=True)])
        else:
            half = math.hypot((now["high"] - now["low"]) / 2, (then["high"] - then["low"]) / 2)
            value = now["value"] - then["value"]
            change = {"value": value, "low": value - half, "high": value + half}
        rows.append(
            {
                "metric": name,
                "before_stage": before_stage,
                "before": then["value"],
                "after": now["value"],
                "change": now["value"] - then["value"],
                "low": change["low"],
                "high": change["high"],
                "better": "lower" if name.endswith(LOWER_IS_BETTER) else "higher",
            }
        )
    return rows
