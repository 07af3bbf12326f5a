"""runs/NAME/report.html: one page, without network, that says what a run did and how well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mengya import __version__
from mengya.files import write_text
from mengya.report import comparison, funnel, overview, prediction, training
from mengya.report.words import STAGES, shown
from mengya.run import Run

_TRAINING_STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")


def write_report(run: Run) -> Path:
    """The path of the page, written whole; any subset of finished stages will do, an interrupted run as well."""
    path = run.directory / "report.html"
    write_text(path, render(run))
    return path


def update_report(run: Run) -> Path:
    """`write_report`, unless the page that is there is newer than all that it tells of: drawing takes seconds."""
    page, directory = run.directory / "report.html", run.directory
    told = [
        *directory.glob("*.yaml"),
        *directory.glob("plan.json"),
        *directory.glob("*/*.json"),
        *directory.glob("*/*.jsonl"),
    ]
    if page.is_file() and all(path.stat().st_mtime_ns < page.stat().st_mtime_ns for path in told):
        return page
    return write_report(run)


def render(run: Run) -> str:
    """The page as HTML. All text of the run is escaped: answers and excerpts are untrusted."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(view(run))


def view(run: Run) -> dict[str, Any]:
    """All that the template shows."""
    recipe = run.recipe()
    rows = overview.stages(run)
    by_name = {row["name"]: row for row in rows}
    metrics = overview.all_metrics(run, rows)
    trained = [training.training(by_name[name], metrics) for name in _TRAINING_STAGES if name in by_name]
    evaluate = by_name.get("evaluate", {"manifest": {}})
    return {
        "recipe": recipe,
        "recipe_text": (run.directory / "recipe.yaml").read_text(encoding="utf-8"),
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "stages": rows,
        "finished": all(row["state"] == "done" for row in rows),
        "cards": overview.cards(metrics, rows),
        "prediction": prediction.prediction(run, rows),
        "corpus": funnel.corpus(by_name["corpus"]) if "corpus" in by_name else None,
        "corpus_table": training.metric_table("corpus", metrics),
        "tokenizer": _tokenizer(by_name, metrics),
        "training": [one for one in trained if one],
        "comparison": comparison.comparison(metrics),
        "answers": comparison.answers(evaluate["manifest"].get("samples", [])),
        "environment": _environment(rows),
        "words": STAGES,
    }


def _tokenizer(by_name: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any] | None:
    """The tokenizer's measures on held-out text, and what the corpus became: documents, tokens, bytes of each split."""
    manifests = [by_name[stage]["manifest"] if stage in by_name else {} for stage in ("tokenizer", "shards")]
    tokenizer, shards = (manifest.get("counts", {}) for manifest in manifests)
    rows = training.metric_table("tokenizer", metrics)
    for words, text in training.counts_of(tokenizer):
        if words.zh not in {row["zh"] for row in rows}:  # some counts are metrics as well
            rows.append({"zh": words.zh, "en": words.en, "value": text, "interval": "", "n": ""})
    splits = {
        name: [shown(key, split[key]) if key in split else "" for key in ("documents", "tokens", "bytes")]
        for name, split in shards.items()
        if isinstance(split, dict)
    }
    return {"rows": rows, "splits": splits} if rows or splits else None


def _environment(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Hardware and versions, each distinct one with the stages that ran on it: a run may move between machines."""
    hardware: dict[str, list[str]] = {}
    versions: dict[str, list[str]] = {}
    for row in rows:
        manifest = row["manifest"]
        if "hardware" in manifest:
            held = manifest["hardware"]
            memory = held.get("memory_bytes")
            parts = [
                held.get("processor"),
                f"{held['cores']} cores" if held.get("cores") else None,
                shown("peak_memory_bytes", memory) if memory else None,
                held.get("accelerator"),
                held.get("system"),
            ]
            hardware.setdefault(" · ".join(str(part) for part in parts if part), []).append(row["name"])
        if "versions" in manifest:
            text = " · ".join(f"{name} {version}" for name, version in manifest["versions"].items())
            commit = manifest.get("commit")
            versions.setdefault(f"{text} · commit {commit}" if commit else text, []).append(row["name"])
    return {"hardware": hardware, "versions": versions}
