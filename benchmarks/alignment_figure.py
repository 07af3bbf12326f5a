"""The curves of docs/results/alignment.md: held-out score and training reward against √KL, a row a stage, a colour a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_words import stage_name
from mengya.files import atomic_path


def draw(seeds: Sequence[dict[str, Any]], stages: Sequence[str], path: Path) -> bool:
    """Write the SVG; False, and nothing written, where no stage ran under the guard.

    KL on a square-root axis, where both curves are nearly straight at first (Gao et al. 2023). A filled point is what the
    guard handed over, a cross the over-optimisation point.
    """
    shown = [stage for stage in stages if any(s["stages"].get(stage, {}).get("looks") for s in seeds)]
    if not shown:
        return False
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mengya"  # the same picture is the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(shown), 2, figsize=(8, 0.5 + 2.3 * len(shown)), squeeze=False, layout="constrained"
    )
    for stage, (left, right) in zip(shown, panels, strict=True):
        for index, seed in enumerate(seeds):
            row, colour = seed["stages"].get(stage), f"C{index}"
            if not row or not row["looks"]:
                continue
            looks = row["looks"]
            x = [root(look["kl"]) for look in looks]
            scores = [look["score"] for look in looks]
            errors = [1.96 * look.get("error", 0.0) for look in looks]
            left.errorbar(
                x, scores, yerr=errors, color=colour, linewidth=1.2, elinewidth=0.6, marker="o",
                markersize=4, markerfacecolor="white", label=f"seed {seed['seed']}",
            )  # fmt: skip
            for look in looks:
                if look["step"] == row["handed_over"]:
                    left.plot(root(look["kl"]), look["score"], "o", color=colour, markersize=6, zorder=5)
            if row["over_optimised"]:
                peak = row["over_optimised"]
                left.plot(root(peak["kl"]), peak["score"], "x", color="black", markersize=10)
            log = row["log"] or [look for look in looks if look.get("reward") is not None]
            # One rollout a point: noisy, so a faint line in the order of training shows which way it went.
            right.plot(
                [root(one["kl"]) for one in log],
                [one["reward"] for one in log],
                color=colour,
                alpha=0.25,
                linewidth=0.8,
            )
            right.plot(
                [root(one["kl"]) for one in log], [one["reward"] for one in log], "o", color=colour, markersize=3
            )
        left.set_ylabel(f"{stage_name(stage)}\nheld-out score")
        right.set_ylabel("training reward")
        for panel in (left, right):
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
    known = {label: handle for row in panels for handle, label in zip(*row[0].get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(known), frameon=False, fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("√KL to SFT (KL in nats an answer)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return True


def root(kl: float) -> float:
    """√KL; an estimate from samples may be a little below 0."""
    return math.sqrt(max(kl, 0.0))
