"""Views of a run for the page template: plain dictionaries and SVG text, made from whatever stages have left.

Every function copes with a stage that is absent, interrupted or without some of its metrics: what was not measured is
left out, never drawn as zero.
"""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mengya.console import read_metrics
from mengya.files import read_json
from mengya.report import plots
from mengya.report.words import STAGES, STEPS_AND_REASONS, Value, as_value, interval, metric_words, shown
from mengya.run import Run
from mengya.settings import STAGE_NAMES

View = dict[str, Any]

_EXAMPLES_A_REASON = 3
_EXCERPT_CHARACTERS = 240
_CHAT_STAGES = ("ppo", "dpo", "sft", "pretrain")

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
    "dpo": [("loss", "validation_loss"), ("accuracy", "validation_accuracy")],
    "ppo": [("reward",), ("guard_score",)],
}
"""The large panels of a stage, each a group of columns of metrics.jsonl; every other column gets a small one."""

_NOT_CURVES = {"step", "tokens", "seconds", "epoch", "time"}
_TOGETHER = (("reward_chosen", "reward_rejected"),)
_SMALL_FIRST = ("kl", "length", "entropy", "value_loss", "end_rate", "kl_coefficient", "margin", "lr", "grad_norm")
_EXACT = ("lr", "kl_coefficient", "guard_score", "guard_kl", "guard_repetition")
"""Set or measured seldom, not noisy: drawn as they are, without a running mean."""


def stages(run: Run) -> list[View]:
    """One row a stage that the recipe names or that left something: its state, time, memory and headline."""
    names = [*STAGE_NAMES, *(name for name in STAGES if name not in STAGE_NAMES)]
    planned = set(run.recipe().stages)
    rows = []
    for name in names:
        directory = run.directory / name
        if name not in planned and not directory.is_dir():
            continue
        manifest = run.manifest(name) or {}
        state = "done" if manifest else "interrupted" if (directory / "started.json").exists() else "not run"
        metrics = manifest.get("metrics", {})
        memory = as_value(metrics.get(f"{name}.peak_memory_bytes"))
        rows.append(
            {
                "name": name,
                "words": STAGES[name],
                "state": state,
                "manifest": manifest,
                "directory": directory,
                "started": str(manifest.get("started", ""))[:16].replace("T", " "),
                "seconds": shown("seconds", manifest["seconds"]) if "seconds" in manifest else "",
                "memory": shown("peak_memory_bytes", memory.value) if memory else "",
                "resumed": bool(manifest.get("resumed")),
                "seed": manifest.get("seed", ""),
            }
        )
    return rows


def all_metrics(run: Run, rows: list[View]) -> dict[str, Value]:
    """{"STAGE.METRIC": Value} of the manifests and of summary.json, the later word of which counts."""
    raw: dict[str, Any] = {}
    for row in rows:
        raw |= row["manifest"].get("metrics", {})
    summary = run.directory / "summary.json"
    if summary.is_file():
        raw |= read_json(summary)
    values = {name: as_value(value) for name, value in raw.items()}
    return {name: value for name, value in values.items() if value is not None}


def cards(metrics: dict[str, Value], rows: list[View]) -> list[View]:
    """The handful of numbers that a reader looks for first."""

    def card(name: str, note: str = "") -> View:
        words = metric_words(name)
        return {
            "zh": words.zh or words.en,
            "en": words.en,
            "value": shown(name, metrics[name].value),
            "note": note,
            "interval": interval(name, metrics[name]),
        }

    def beside(label: str, name: str) -> str:
        return f"{label} {shown(name, metrics[name].value)}" if name in metrics else ""

    found = []
    if "pretrain.validation_loss" in metrics:
        found.append(card("pretrain.validation_loss", beside("trigram", "pretrain.trigram_loss")))
    if "pretrain.bits_per_byte" in metrics:
        found.append(card("pretrain.bits_per_byte"))
    for metric in ("qa_accuracy", "multi_turn_accuracy", "identity_accuracy", "gold_score"):
        held = [stage for stage in _CHAT_STAGES if f"{stage}.{metric}" in metrics]
        if held:
            earlier = beside("SFT", f"sft.{metric}") if held[0] != "sft" else ""
            found.append(card(f"{held[0]}.{metric}", " · ".join(part for part in (held[0].upper(), earlier) if part)))
    if "reward.pair_accuracy" in metrics:
        found.append(card("reward.pair_accuracy", beside("length only", "reward.length_only_accuracy")))
    seconds = sum(row["manifest"].get("seconds", 0) for row in rows)
    if seconds:
        done = sum(row["state"] == "done" for row in rows)
        found.append(
            {
                "zh": "总用时",
                "en": "total time",
                "value": shown("seconds", seconds),
                "note": f"{done} / {len(rows)} stages done",
                "interval": "",
            }
        )
    return found


# ---------------------------------------------------------------------------------------------------------- data


def _examples(directory: Path) -> dict[str, list[View]]:
    """The first samples of each reason in a dropped.jsonl or rejects.jsonl."""
    found: dict[str, list[View]] = {}
    for path in (directory / "dropped.jsonl", directory / "rejects.jsonl"):
        if not path.is_file():
            continue
        with open(path, encoding="utf-8") as file:
            for line in islice(file, 20_000):
                row = json.loads(line)
                held = found.setdefault(str(row.get("reason", "")), [])
                if len(held) < _EXAMPLES_A_REASON:
                    origin = row.get("origin") or ":".join(str(row[k]) for k in ("file", "line") if k in row)
                    excerpt = str(row.get("excerpt", ""))
                    cut = excerpt[:_EXCERPT_CHARACTERS] + ("…" if len(excerpt) > _EXCERPT_CHARACTERS else "")
                    held.append({"origin": origin, "excerpt": cut, "twin": row.get("twin", "")})
    return found


def _amounts(raw: Any) -> dict[str, float]:
    """{"documents": …, "characters": …} of a count that may also be a bare number."""
    if isinstance(raw, dict):
        return {key: value for key, value in raw.items() if isinstance(value, int | float)}
    return {"records": raw} if isinstance(raw, int | float) else {}


def funnel(kind: str, counts: View, directory: Path) -> View | None:
    """The way of one kind of data (documents, conversations, preferences) from what came in to what is kept."""
    if not isinstance(counts, dict) or not counts:
        return None
    raw_steps = [(str(row.get("step", "")), _amounts(row)) for row in counts.get("funnel", [])]
    raw_dropped = {str(reason): _amounts(amount) for reason, amount in (counts.get("dropped") or {}).items()}
    unit = counts["unit"]
    first = raw_steps[0][1] if raw_steps else {}
    most = max([amounts.get(unit, 0) for _, amounts in raw_steps] or [0]) or 1
    examples = _examples(directory)

    def row(name: str, amounts: dict[str, float], whole: float) -> View:
        share = amounts.get(unit, 0) / whole if whole else 0.0
        return {
            "name": name,
            "zh": STEPS_AND_REASONS.get(name, ""),
            "count": f"{amounts.get(unit, 0):,.0f}",
            "characters": shown("characters", amounts["characters"]) if "characters" in amounts else "",
            "share": share,
            "percent": f"{100 * share:.1f}%",
            "examples": examples.get(name, []),
        }

    lost = sorted(raw_dropped.items(), key=lambda item: (-item[1].get(unit, 0), item[0]))
    total_in = first.get(unit, 0)
    return {
        "kind": kind,
        "unit": unit,
        "steps": [row(name, amounts, most) for name, amounts in raw_steps],
        "dropped": [row(reason, amounts, total_in) for reason, amounts in lost if amounts.get(unit, 0)],
        "widest_drop": max([amounts.get(unit, 0) / total_in for _, amounts in lost] or [0]) if total_in else 0,
        "sources": _sources(counts.get("by_source") or {}),
        "boilerplate": counts.get("boilerplate") or {},
        "has_characters": any("characters" in amounts for _, amounts in raw_steps),
    }


def _sources(by_source: View) -> list[View]:
    """Read and kept a source, and its three commonest reasons to drop."""
    found = []
    for name, amounts in by_source.items():
        read, kept = amounts.get("read", 0), amounts.get("kept", 0)
        reasons = sorted((amounts.get("dropped") or {}).items(), key=lambda item: (-item[1], item[0]))[:3]
        found.append(
            {
                "name": name,
                "read": f"{read:,}",
                "kept": f"{kept:,}",
                "percent": f"{100 * kept / read:.1f}%" if read else "",
                "reasons": " · ".join(f"{STEPS_AND_REASONS.get(reason, reason)} {n:,}" for reason, n in reasons),
            }
        )
    return found


def corpus(row: View) -> View | None:
    """Funnels of the three kinds of data, what could not be read at all, and the planted-dirt scores."""
    if not row["manifest"]:
        return None
    counts = row["manifest"].get("counts", {})
    kinds = (("documents", "预训练文档"), ("conversations", "对话"), ("preferences", "偏好对"))
    funnels = []
    for kind, zh in kinds:
        view = funnel(kind, counts.get(kind, {}), row["directory"] / kind)
        if view:
            funnels.append(view | {"zh": zh})
    rejects = _amounts(counts.get("rejects", {}))
    reject_examples = _examples(row["directory"])
    return {
        "funnels": funnels,
        "rejects": [
            {
                "name": reason,
                "zh": STEPS_AND_REASONS.get(reason, ""),
                "count": f"{n:,.0f}",
                "examples": reject_examples.get(reason, []),
            }
            for reason, n in rejects.items()
        ],
    }


# ------------------------------------------------------------------------------------------------------ training


def _headline(stage: str, names: tuple[str, ...]) -> str:
    words = metric_words(names[0])
    if names[0] == "loss":
        return "损失 · loss" + (", nats per token" if stage in ("pretrain", "sft") else "")
    return f"{words.zh} · {words.en}" if words.zh else words.en


def _levels(stage: str, names: tuple[str, ...], metrics: dict[str, Value]) -> list[plots.Level]:
    if stage == "pretrain" and "loss" in names:
        known = (("trigram", "pretrain.trigram_loss"), ("unigram", "pretrain.unigram_loss"))
        return [plots.Level(label, metrics[name].value) for label, name in known if name in metrics]
    if stage == "reward" and "accuracy" in names and "reward.length_only_accuracy" in metrics:
        return [plots.Level("length only", metrics["reward.length_only_accuracy"].value)]
    return []


def figures(stage: str, lines: list[View], metrics: dict[str, Value]) -> tuple[list[View], list[View]]:
    """Large and small panels of curves, together of every column of metrics.jsonl that holds numbers."""
    columns = dict.fromkeys(key for line in lines for key in line)
    large = _PANELS.get(stage, [])
    named = {name for group in large for name in group} | _NOT_CURVES
    rest = [name for name in columns if name not in named]
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
        unclear = change.value == 0 or (low is not None and high is not None and low <= 0 <= high)
        good = change.value > 0 if row["better"] == "higher" else change.value < 0
        known = low is not None and high is not None
        words = metric_words(name)
        found.append(
            {
                "zh": words.zh,
                "en": words.en,
                "before_stage": row.get("before_stage", ""),
                "before": shown(name, before.value),
                "after": shown(name, after.value),
                "change": shown(name, change.value, signed=True),
                "interval": f"[{shown(name, low, signed=True)}, {shown(name, high, signed=True)}]" if known else "",
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


def reward_by_reason(metrics: dict[str, Value]) -> list[View]:
    """Accuracy of the reward model beside the length-only baseline: all pairs, then by reason (`…accuracy.REASON`)."""
    found = []
    prefix = "reward.pair_accuracy"
    for name, value in metrics.items():
        if name != prefix and not name.startswith(prefix + "."):
            continue
        reason = name[len(prefix) + 1 :]
        baseline = metrics.get("reward.length_only_accuracy" + name[len(prefix) :])
        found.append(
            {
                "reason": reason,
                "zh": STEPS_AND_REASONS.get(reason, "") if reason else "全部",
                "value": shown(name, value.value),
                "share": value.value,
                "interval": interval(name, value),
                "baseline": shown(name, baseline.value) if baseline else "–",
                "baseline_share": baseline.value if baseline else None,
                "n": f"{value.n:,}" if value.n else "",
            }
        )
    return sorted(found, key=lambda row: (row["reason"] != "", row["reason"]))


def training(row: View, metrics: dict[str, Value]) -> View | None:
    """Curves, metrics and delta table of a training stage, finished or not; None when it left nothing."""
    lines = read_metrics(row["directory"] / "metrics.jsonl")
    manifest = row["manifest"]
    if not lines and not manifest:
        return None
    large, small = figures(row["name"], lines, metrics)
    shown_by_reason = ("pair_accuracy", "length_only_accuracy")
    return row | {
        "figures": large,
        "small_figures": small,
        "table": metric_table(row["name"], metrics, leave_out=shown_by_reason),
        "delta": delta_table(manifest.get("delta", [])),
        "by_reason": reward_by_reason(metrics) if row["name"] == "reward" else [],
        "last_step": lines[-1]["step"] if lines else None,
        "counts": counts_of(manifest.get("counts", {})),
    }


def counts_of(counts: View) -> list[tuple[str, str]]:
    """(label, text) of every number and line of a stage's counts; nested ones carry both names; lists are left out."""
    found = []
    for key, value in counts.items():
        words = metric_words(key)
        label = words.zh or words.en
        if isinstance(value, dict):
            found += [(f"{key} {inner}", text) for inner, text in counts_of(value)]
        elif _is_number(value):
            text = shown(key, value) if words.kind != "number" or isinstance(value, float) else f"{value:,}"
            found.append((label, text))
        elif isinstance(value, str):
            found.append((label, value))
    return found


# ---------------------------------------------------------------------------------------------------- comparison


def comparison(metrics: dict[str, Value]) -> View | None:
    """Every metric that at least two stages share: a table of stages × metrics, and a plot each of the main ones."""
    order = [stage for stage in STAGES if stage in ("pretrain", "sft", "dpo", "ppo", "grpo")]
    shared: dict[str, dict[str, Value]] = {}
    for name, value in metrics.items():
        stage, _, rest = name.partition(".")
        if stage in order and rest not in ("seconds", "peak_memory_bytes", "tokens_per_second"):
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
        dots = [
            plots.Dot(stage, held[stage].value, held[stage].low, held[stage].high) for stage in present if stage in held
        ]
        if "." not in rest and not rest.endswith("loss"):
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
