"""The stages side by side: their shared metrics, and their answers to the same prompts."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from mengya.report import plots
from mengya.report.overview import View
from mengya.report.words import STAGES, Value, interval, metric_words, shown

_PLOTTED = (
    "qa_accuracy",
    "multi_turn_accuracy",
    "identity_accuracy",
    "gold_score",
    "repetition",
    "win_rate_vs_sft",
)


def comparison(metrics: dict[str, Value]) -> View | None:
    """Every metric that at least two stages share: a table of stages × metrics, and a plot each of the main ones.

    Losses stay out: each stage's is on its own data.
    """
    order = [stage for stage in STAGES if stage in ("pretrain", "sft", "dpo", "ppo", "grpo")]
    shared: dict[str, dict[str, Value]] = {}
    for name, value in metrics.items():
        stage, _, rest = name.partition(".")
        if stage in order and not rest.endswith(("seconds", "_bytes", "_per_second", "loss")):
            shared.setdefault(rest, {})[stage] = value
    shared = {rest: held for rest, held in shared.items() if len(held) >= 2}
    if not shared:
        return None
    present = [stage for stage in order if any(stage in held for held in shared.values())]
    table = []
    panels = []
    for rest, held in shared.items():
        words = metric_words(rest)
        cells = [
            {"value": shown(rest, held[stage].value), "interval": interval(rest, held[stage])}
            if stage in held
            else None
            for stage in present
        ]
        table.append({"zh": words.zh, "en": words.en, "cells": cells})
        if rest in _PLOTTED:
            dots = [
                plots.Dot(stage, held[stage].value, held[stage].low, held[stage].high)
                for stage in present
                if stage in held
            ]
            svg = plots.intervals(f"compare-{rest}", f"{rest} by stage", dots, kind=words.kind)
            panels.append({"title": f"{words.zh} · {words.en}" if words.zh else words.en, "svg": Markup(svg)})
    return {"stages": present, "table": table, "figures": panels}


def answers(samples: list[View]) -> View | None:
    """The same prompts answered by each stage, side by side."""
    rows = [row for row in samples if isinstance(row.get("answers"), dict) and row["answers"]]
    if not rows:
        return None
    known = [stage for stage in STAGES if any(stage in row["answers"] for row in rows)]
    others = [key for key in dict.fromkeys(key for row in rows for key in row["answers"]) if key not in known]
    columns = known + others

    def prompt(raw: Any) -> list[View]:
        if isinstance(raw, str):
            return [{"role": "user", "content": raw}]
        return [{"role": str(turn.get("role", "")), "content": str(turn.get("content", ""))} for turn in raw or []]

    body = [
        {"prompt": prompt(row.get("prompt")), "answers": [row["answers"].get(stage) for stage in columns]}
        for row in rows
    ]
    return {"columns": columns, "rows": body}
