"""How the page of alignment writes a value, a change with its interval, and a yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment_numbers import spread
from mengya.report.words import STAGES, metric_words, shown

Row = dict[str, Any]

_SHORT = {"sft": "SFT", "grpo-arithmetic": "GRPO on arithmetic alone"}
_WORDS = {"judge_win_rate": "win rate against SFT by a judge of other sources"}


def stage_name(stage: str) -> str:
    return _SHORT[stage] if stage in _SHORT else STAGES[stage].en


def words(metric: str) -> str:
    return _WORDS.get(metric, metric_words(metric).en)


def yes(fact: bool | None) -> str:
    return "" if fact is None else "yes" if fact else "**no**"


def change(metric: str, found: Row | None, low: str = "low", high: str = "high") -> str:
    """`+0.035 [+0.012, +0.058]`, a share in percentage points."""
    if found is None:
        return ""
    bounds = [shown(metric, found[key], signed=True) for key in (low, high) if found[key] is not None]
    return f"{shown(metric, found['value'], signed=True)}" + (f" [{', '.join(bounds)}]" if bounds else "")


def ranged(metric: str, values: Sequence[float]) -> str:
    """`0.741 (0.731…0.752)`: mean, least and most."""
    found = spread(values)
    least, most = shown(metric, found["least"]), shown(metric, found["most"])
    return f"{shown(metric, found['value'])} ({least}…{most})"
