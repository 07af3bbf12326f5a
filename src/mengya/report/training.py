"""The section of a training stage, finished or not: curves, metrics, the change against the stage before.

Every function copes with missing metrics: what was not measured is left out, never drawn as zero.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from mengya.console import read_metrics
from mengya.report import guard, plots, reward
from mengya.report.overview import View
from mengya.report.words import Value, Words, as_value, interval, metric_words, shown

_LABELS = {
    "loss": "training",
    "validation_loss": "validation",
    "accuracy": "training",
    "validation_accuracy": "validation",
    "reward_chosen": "chosen",
    "reward_rejected": "rejected",
}

_PANELS: dict[str, list[tuple[str, ...]]] = {
    "pretrain": [("loss", "validation_loss")],
    "sft": [("loss", "validation_loss")],
    "reward": [("loss", "validation_loss"), ("accuracy", "validation_accuracy")],
    "dpo": [("loss", "validation_loss"), ("accuracy", "validation_accuracy"), ("guard_score",)],
    "ppo": [("reward",), ("guard_score",)],
    "grpo": [("reward",), ("guard_score",)],
}
"""The large panels of a stage, each a group of columns of metrics.jsonl; every other column gets a small one, but for
those of the guard's looks, which have a table."""

_NOT_CURVES = {"step", "tokens", "pairs", "seconds", "epoch", "time"}
_TOGETHER = (("reward_chosen", "reward_rejected"),)
_SMALL_FIRST = ("kl", "length", "entropy", "value_loss", "end_rate", "kl_coefficient", "margin", "lr", "grad_norm")
_EXACT = ("lr", "kl_coefficient", "guard_score")
"""Set or measured seldom, not noisy: drawn as they are, without a running mean."""


def _headline(stage: str, names: tuple[str, ...]) -> str:
    words = metric_words(names[0])
    if names[0] == "loss":
        return "损失 · loss" + (", nats per token" if stage in ("pretrain", "sft") else "")
    return f"{words.zh} · {words.en}" if words.zh else words.en


def _levels(stage: str, names: tuple[str, ...], metrics: dict[str, Value]) -> list[plots.Level]:
    if stage == "pretrain" and "loss" in names:
        known = (("trigram", "pretrain.trigram_loss"), ("unigram", "pretrain.unigram_loss"))
        return [plots.Level(label, metrics[name].value) for label, name in known if name in metrics]
    if stage == "reward" and "accuracy" in names:
        known = (("length only", "reward.length_only_accuracy"), ("characters only", "reward.characters_only_accuracy"))
        return [plots.Level(label, metrics[name].value) for label, name in known if name in metrics]
    return []


def figures(stage: str, lines: list[View], metrics: dict[str, Value]) -> tuple[list[View], list[View]]:
    """Large and small panels of curves, together of every column of metrics.jsonl that holds numbers."""
    columns = dict.fromkeys(key for line in lines for key in line)
    large = _PANELS.get(stage, [])
    named = {name for group in large for name in group} | _NOT_CURVES
    rest = [name for name in columns if name not in named and not name.startswith("guard_")]
    rest.sort(key=lambda name: _SMALL_FIRST.index(name) if name in _SMALL_FIRST else len(_SMALL_FIRST))
    small = [next((group for group in _TOGETHER if name in group), (name,)) for name in rest]
    small = list(dict.fromkeys(small))

    def draw(groups: list[Any], width: float, height: float) -> list[View]:
        panels = []
        for group in groups:
            series = []
            for name in group:
                points = [(line["step"], line[name]) for line in lines if _is_number(line.get(name))]
                if points:
                    x, y = zip(*points, strict=True)
                    noisy = not name.startswith("validation") and name not in _EXACT
                    series.append(plots.Series(_LABELS.get(name, name), x, y, smooth=noisy))
            svg = plots.curves(
                f"{stage}-{group[0]}",
                f"{stage} {group[0]}",
                series,
                _levels(stage, group, metrics),
                kind=metric_words(group[0]).kind,
                width=width,
                height=height,
            )
            if svg:
                panels.append({"title": _headline(stage, group), "svg": Markup(svg)})
        return panels

    return draw(large, 10.6 if len(large) == 1 else 5.2, 2.9), draw(small, 3.5, 2.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def delta_table(rows: list[View]) -> list[View]:
    """The stage's change against the one before, with its 95% interval.

    `verdict` is better, worse, or same where the interval of the change holds zero.
    """
    found = []
    for row in rows:
        before, after, change = as_value(row.get("before")), as_value(row.get("after")), as_value(row.get("change"))
        if before is None or after is None or change is None:
            continue
        name, low, high = row["metric"], row.get("low"), row.get("high")
        bounds = (
            ""
            if low is None or high is None
            else f"[{shown(name, low, signed=True)}, {shown(name, high, signed=True)}]"
        )
        unclear = change.value == 0 or (low is not None and high is not None and low <= 0 <= high)
        good = change.value > 0 if row["better"] == "higher" else change.value < 0
        words = metric_words(name)
        found.append(
            {
                "zh": words.zh,
                "en": words.en,
                "before_stage": row.get("before_stage", ""),
                "before": shown(name, before.value),
                "after": shown(name, after.value),
                "change": shown(name, change.value, signed=True),
                "interval": bounds,
                "verdict": "same" if unclear else "better" if good else "worse",
            }
        )
    return found


def metric_table(stage: str, metrics: dict[str, Value], *, leave_out: tuple[str, ...] = ()) -> list[View]:
    """The stage's own metrics with interval and n, by name; times and memory stand in the table of stages."""
    found = []
    for name, value in metrics.items():
        head, _, rest = name.partition(".")
        if head != stage or rest in ("seconds", "peak_memory_bytes", *leave_out) or "accuracy." in rest:
            continue
        words = metric_words(name)
        found.append(
            {
                "zh": words.zh,
                "en": words.en,
                "value": shown(name, value.value),
                "interval": interval(name, value),
                "n": f"{value.n:,}" if value.n else "",
            }
        )
    return found


def training(row: View, metrics: dict[str, Value]) -> View | None:
    """Curves, metrics and delta table of a training stage, finished or not; None when it left nothing."""
    lines = read_metrics(row["directory"] / "metrics.jsonl")
    manifest = row["manifest"]
    counts = dict(manifest.get("counts", {}))
    if not lines and not manifest:
        return None
    large, small = figures(row["name"], lines, metrics)
    shown_by_reason, is_reward = ("pair_accuracy", "length_only_accuracy"), row["name"] == "reward"
    return row | {
        "figures": large,
        "small_figures": small,
        "table": metric_table(row["name"], metrics, leave_out=shown_by_reason),
        "delta": delta_table(manifest.get("delta", [])),
        "by_reason": reward.by_reason(metrics) if is_reward else [],
        "quality": reward.quality(counts, metrics) if is_reward else None,
        "last_step": lines[-1]["step"] if lines else None,
        "guard": guard.section(row["name"], counts),
        "counts": counts_of(
            {
                key: value
                for key, value in counts.items()
                if key not in guard.KEYS and not (is_reward and key == "verdict")
            }
        ),
    }


def counts_of(counts: View) -> list[tuple[Words, str]]:
    """Every number and line of a stage's counts with its words; what is nested has a place of its own, or none."""
    found = []
    for key, value in counts.items():
        words = metric_words(key)
        if _is_number(value):
            is_plain = words.kind == "number" and isinstance(value, int)
            found.append((words, f"{value:,}" if is_plain else shown(key, value)))
        elif isinstance(value, str):
            found.append((words, value))
    return found
