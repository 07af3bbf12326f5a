"""What `mengya plan --out RUN` predicted beside what then happened, stage by stage."""

from __future__ import annotations

from typing import Any

from mengya.files import read_json, sha256_of
from mengya.report.overview import View
from mengya.report.words import as_value, shown
from mengya.run import Run

_PLAN_FILE = "plan.json"


def prediction(run: Run, rows: list[View]) -> View | None:
    """Seconds and peak memory, predicted and actual, of every stage that was planned; None without a plan.

    The total is over the finished stages, so that an interrupted run is compared with its own part of the plan. A stage that was
    resumed took what its processes took together.
    """
    path = run.directory / _PLAN_FILE
    if not path.is_file():
        return None
    plan = read_json(path)
    table, predicted, actual = [], 0.0, 0.0
    for row in rows:
        planned = plan["stages"].get(row["name"])
        if planned is None:
            continue
        manifest: dict[str, Any] = row["manifest"]
        seconds = manifest.get("seconds")
        if seconds is not None:
            predicted, actual = predicted + planned["seconds"], actual + seconds
        peak = as_value(manifest.get("metrics", {}).get(f"{row['name']}.peak_memory_bytes"))
        memory = (planned.get("memory") or {}).get("total")
        table.append(
            {
                "words": row["words"],
                "predicted": shown("seconds", planned["seconds"]),
                "actual": "" if seconds is None else shown("seconds", seconds),
                "difference": _difference(planned["seconds"], seconds),
                "predicted_memory": "" if memory is None else shown("peak_memory_bytes", memory),
                "actual_memory": "" if peak is None else shown("peak_memory_bytes", peak.value),
            }
        )
    return {
        "rows": table,
        "made": str(plan["made"])[:16].replace("T", " "),
        "predicted": shown("seconds", predicted),
        "actual": shown("seconds", actual) if actual else "",
        "difference": _difference(predicted, actual or None),
        "changed": plan["identity"] != sha256_of(run.recipe().model_dump(mode="json")),
    }


def _difference(predicted: float, actual: float | None) -> str:
    """How far the actual time was from the predicted one, in percent of the predicted one."""
    return "" if not actual or not predicted else f"{(actual - predicted) / predicted:+.0%}"
