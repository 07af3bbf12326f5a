"""What the section of the reward model has besides its training: baselines, calibration, margins, by reason."""

from __future__ import annotations

from markupsafe import Markup

from mengya.report import plots
from mengya.report.overview import View
from mengya.report.words import STEPS_AND_REASONS, Value, interval, shown

_COMPARED = (
    ("pair_accuracy", "reward model"),
    ("length_matched_accuracy", "of like length"),
    ("answer_only_accuracy", "no prompt"),
    ("characters_only_accuracy", "characters"),
    ("length_only_accuracy", "length"),
)


def baselines(metrics: dict[str, Value]) -> View | None:
    """The model's accuracy, that of an ensemble's members, and what could be told without it, with intervals."""
    rows = [
        *_COMPARED[:1],
        *((name, f"member {name.rpartition('.')[2]}") for name in _members(metrics)),
        *_COMPARED[1:],
    ]
    dots = [
        plots.Dot(label, value.value, value.low, value.high)
        for name, label in rows
        if (value := metrics.get(f"reward.{name}")) is not None
    ]
    if len(dots) < 2:
        return None
    svg = plots.intervals("reward-baselines", "reward model beside its baselines", dots, kind="percent")
    return {"title": "成对判断正确率与基线 · accuracy on held-out pairs, beside its baselines", "svg": Markup(svg)}


def _members(metrics: dict[str, Value]) -> list[str]:
    prefix = "reward.member_accuracy."
    return [name.removeprefix("reward.") for name in sorted(metrics) if name.startswith(prefix)]


def quality(counts: View, metrics: dict[str, Value]) -> View:
    """{"verdict", "judge": a line or "", "figures": panels} of what the stage counted; what it did not measure is left out."""
    panels = [found for found in (baselines(metrics),) if found]
    bins = [plots.Bin(row["predicted"], row["right"], row["n"]) for row in counts.get("calibration", [])]
    if bins:
        svg = plots.reliability("reward-calibration", "calibration of the reward model", bins)
        panels.append({"title": "校准 · share right by the probability that the margin predicts", "svg": Markup(svg)})
    histogram = counts.get("margin_histogram", {})
    if histogram.get("counts"):
        svg = plots.histogram(
            "reward-margins",
            "margins of the reward model",
            histogram["edges"],
            histogram["counts"],
            "chosen − rejected",
        )
        panels.append({"title": "奖励差的分布 · margins of held-out pairs", "svg": Markup(svg)})
    lines = {key: str(counts.get(key, "")) for key in ("verdict", "judge")}
    return {**lines, "figures": panels}


def by_reason(metrics: dict[str, Value]) -> list[View]:
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
