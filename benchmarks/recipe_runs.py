"""Runs of recipes that benchmarks are made of: one in a process of its own, its metrics, and copies of a common beginning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def run(recipe: dict[str, Any], directory: Path) -> None:
    """`mengya run` of `recipe` in `directory`; what is there and not stale is not made again."""
    file = directory.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mengya", "run", str(file), "--out", str(directory)], check=True)


def metrics(directory: Path, stage: str) -> dict[str, float]:
    """The stage's metrics, without their intervals."""
    found = json.loads((directory / stage / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return {name: value["value"] if isinstance(value, dict) else value for name, value in found.items()}


def log_lines(directory: Path, stage: str) -> list[dict[str, float]]:
    """The lines of the stage's metrics.jsonl."""
    lines = (directory / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
