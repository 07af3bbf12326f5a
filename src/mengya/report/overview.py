"""The head of the page: stages with their state, all metrics of the run, and the few numbers on cards."""

from __future__ import annotations

from typing import Any

from mengya.files import read_json
from mengya.report.words import STAGES, Value, as_value, interval, metric_words, shown
from mengya.run import Run
from mengya.settings import STAGE_NAMES

View = dict[str, Any]
"""What the template shows of one thing: plain values and escaped text."""

_CHAT_STAGES = ("grpo", "ppo", "dpo", "sft", "pretrain")


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
