"""The guard's looks at an alignment stage: a table, the verdict, and score and training reward against KL.

A run made before a number was watched lacks it: its cell is empty, never zero.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from mengya.report import plots
from mengya.report.words import Words, metric_words, shown

KEYS = ("guard", "judge", "verdict", "stopped_early", "handed_over", "over_optimised_past")
"""What the guard and the judge leave in a stage's counts; it is shown here and nowhere else."""

_COLUMNS = {
    "score": Words("得分", "score ± error of gain"),
    "reward": Words("训练奖励", "training reward"),
    "kl": Words("KL", "nats an answer"),
    "entropy": Words("熵", "nats a token"),
    "distinct_2": metric_words("distinct_2"),
    "repetition": metric_words("repetition"),
    "longest_repeat": Words("最长重复", "characters"),
    "end_rate": Words("正常结束", "ended"),
    "length": Words("长度", "tokens"),
    "refusals": Words("拒答率", "refusals"),
    "bits_per_byte": Words("每字节比特", "of documents"),
    "answer_bits_per_byte": Words("答案每字节比特", "of reference answers"),
}
_MARKS = {
    "start": (Words("起点", "start"), "same"),
    "kept": (Words("保留", "kept"), "better"),
    "worse": (Words("没有更好", "worse"), "same"),
    "refused": (Words("拒绝", "refused"), "worse"),
}


def section(stage: str, counts: dict[str, Any]) -> dict[str, Any] | None:
    """Table, verdict and figures of the looks in a stage's counts; None where there are none."""
    looks = [look for look in counts.get("guard") or [] if isinstance(look, dict)]
    if not looks:
        return None
    rows = []
    for look in looks:
        words, verdict = _MARKS.get(look.get("mark", ""), (Words("", ""), "same"))
        zh, en = words.zh, words.en
        if look["step"] == counts.get("handed_over"):
            zh, en = f"{zh}，交出", f"{en}, handed over"
        cells = [_cell(name, look) for name in _COLUMNS]
        said = {"verdict": verdict, "zh": zh, "en": en, "why": look.get("why_not") or ""}
        rows.append({"step": f"{look['step']:,}", "cells": cells, **said})
    return {
        "columns": list(_COLUMNS.values()),
        "rows": rows,
        "verdict": counts.get("verdict") or "",
        "judge": counts.get("judge") or "",
        "stopped": counts.get("stopped_early") or "",
        "figures": _figures(stage, looks, counts),
    }


def _cell(name: str, look: dict[str, Any]) -> str:
    value = look.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if name == "longest_repeat":
        return f"{value:.1f}"
    text = shown(name, value)
    return f"{text} ± {shown(name, look['error'])}" if name == "score" and look.get("error") else text


def _figures(stage: str, looks: list[dict[str, Any]], counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Held-out score, and what training raised, over √KL (Gao et al. 2023, figure 1: there both are smooth)."""
    marks = {"handed over": counts.get("handed_over"), "over-optimised past": counts.get("over_optimised_past")}
    panels = []
    for name, zh, en in (("score", "守卫题得分", "score on guard prompts"), ("reward", "训练奖励", "training reward")):
        points = [
            plots.Point(
                look["step"], math.sqrt(max(0.0, look["kl"])), look[name], look.get("error", 0.0) * (name == "score")
            )
            for look in looks
            if isinstance(look.get(name), int | float)
        ]
        svg = plots.track(
            f"{stage}-guard-{name}", f"{stage} {name} over KL", points, marks, "√KL to SFT, √nats an answer"
        )
        if svg:
            panels.append({"title": f"{zh} · {en}", "svg": Markup(svg)})
    return panels
