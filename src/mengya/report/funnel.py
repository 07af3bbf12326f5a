"""The corpus section: what came in, what was dropped and why, with examples, and what is kept."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from mengya.report.overview import View
from mengya.report.words import STEPS_AND_REASONS, TRANSFORMATIONS, shown

_EXAMPLES_A_REASON = 3
_EXCERPT_CHARACTERS = 240


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
            "zh": STEPS_AND_REASONS.get(name, name.replace("contaminated", "含评测题") if "contam" in name else ""),
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
        "sentences": counts.get("sentences") or {},
        "changed": [
            {
                "name": step,
                "zh": TRANSFORMATIONS.get(step, ""),
                "count": f"{found[unit]:,}",
                "examples": found["examples"][:2],
            }
            for step, found in (counts.get("changed") or {}).items()
        ],
        "contamination": [
            {
                "name": name,
                "count": f"{found['contaminated']:,}",
                "touched": f"{found['touched']:,}",
                "passages": [example["passage"] for example in found["examples"][:2]],
            }
            for name, found in (counts.get("contamination") or {}).get("sets", {}).items()
        ],
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
