"""Write what a finished quickstart measured into both READMEs, between their marks.

    python scripts/quickstart_results [runs/quickstart]      (run where the READMEs are; nothing in that block is written by hand)

en.md and zh.md hold the words. A name in double braces is a metric of the run's summary.json with its 95% interval, or, with
a format behind it, its value; `*` stands for the four stages that answer; the rest is named in `facts`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mengya.console import duration
from mengya.files import read_json, write_text
from mengya.run import Run
from mengya.settings import STAGE_NAMES

HERE = Path(__file__).parent
MARKS = ("<!-- quickstart-results: begin -->\n", "\n<!-- quickstart-results: end -->")
STAGES = ("pretrain", "sft", "dpo", "ppo")
KINDS = ("qa", "multi_turn", "identity", "unknown", "list", "arithmetic")
NUMBERS = ("gold_score", "bits_per_byte")
"""Metrics that are not shares."""


def answers(samples: list[dict[str, Any]]) -> str:
    """Rows of a table: the first prompt of each kind, and what the tuned stages answer."""
    lines = []
    for kind in KINDS:
        for sample in [sample for sample in samples if sample["kind"] == kind][:1]:
            prompt = " / ".join(message["content"] for message in sample["prompt"])
            cells = [prompt, *(sample["answers"].get(stage, "") for stage in STAGES[1:])]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def facts(manifests: dict[str, Any], seconds: float) -> dict[str, str]:
    """What stands in manifests alone."""
    sft, preferences = manifests["sft"], manifests["preferences"]
    asked = preferences["settings"]["preferences"]
    return {
        "cores": str(sft["hardware"]["cores"]),
        "processor": sft["hardware"]["processor"],
        "seed": str(sft["seed"]),
        "commit": str(sft["commit"])[:7],
        "whole": duration(seconds),
        "times": ", ".join(f"{name} {duration(manifest['seconds'])}" for name, manifest in manifests.items()),
        "num_prompts": f"{asked['num_prompts']:,}",
        "num_answers": f"{asked['num_prompts'] * asked['num_samples']:,}",
        "num_pairs": f"{preferences['counts']['pairs']['kept']['train']['pairs']:,}",
        "answers": answers(manifests["evaluate"]["samples"]),
        **{f"{stage}.verdict": manifests[stage]["counts"]["verdict"] for stage in ("dpo", "ppo")},
    }


def main() -> None:
    run = Run(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
    metrics = read_json(run.directory / "summary.json")
    manifests = {name: manifest for name in STAGE_NAMES if (manifest := run.manifest(name)) is not None}
    known = facts(manifests, metrics["run.seconds"]["value"])

    def shown(name: str, form: str) -> str:
        if name in known:
            return known[name]
        if name.startswith("*."):
            return " | ".join(shown(name.replace("*", stage), form) for stage in STAGES)
        numbers = [metrics[name][key] for key in ("value", "low", "high")]
        if form:
            return format(numbers[0], form)
        value, low, high = (format(x, ".3f" if name.endswith(NUMBERS) else ".1%") for x in numbers)
        return f"{value} [{low}, {high}]"

    for name, words in (("README.md", "en.md"), ("README.zh.md", "zh.md")):
        template = (HERE / words).read_text(encoding="utf-8").strip()
        block = re.sub(r"\{\{([^:}]+):?([^}]*)\}\}", lambda match: shown(*match.groups()), template)
        text = Path(name).read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        write_text(Path(name), before + MARKS[0] + block + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
