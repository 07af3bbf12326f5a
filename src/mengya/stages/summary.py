"""summary.json: every number of a run, flat, each with its 95% interval."""

from __future__ import annotations

import math
from typing import Any

from mengya.files import write_json
from mengya.run import Run
from mengya.stages import STAGES


def write_summary(run: Run) -> dict[str, Any]:
    """{"STAGE.METRIC": {"value", "low", "high", "n"}} from the manifests of finished stages; a plain measurement has
    low = high = value and n = 1."""
    flat: dict[str, Any] = {}
    seconds = 0.0
    for name in STAGES:
        manifest = run.manifest(name)
        if manifest is None:
            continue
        seconds += manifest["seconds"]
        for key, value in manifest["metrics"].items():
            estimate = value if isinstance(value, dict) else {"value": value, "low": value, "high": value, "n": 1}
            if isinstance(estimate["value"], int | float) and math.isfinite(estimate["value"]):
                flat[key] = estimate
    flat["run.seconds"] = {"value": round(seconds, 3), "low": round(seconds, 3), "high": round(seconds, 3), "n": 1}
    write_json(run.directory / "summary.json", flat)
    return flat
