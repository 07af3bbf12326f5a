"""Figures as inline SVG that take their colours and font from the page, so one drawing serves light and dark.

matplotlib draws with stand-in colours; `_inline` puts CSS variables (`var(--ink)`, `var(--series-1)`) in their place.
Every label here is the project's own English text: words of the data (reasons, answers) stay in the HTML.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule"} | {
    colour: f"--series-{index}" for index, colour in enumerate(_SERIES, start=1)
}
_MAX_POINTS = 800
_TICK_STEPS = [1, 2, 2.5, 5, 10]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Series(NamedTuple):
    """One curve: `y` may hold NaN, where nothing was measured. `smooth` adds a running mean over a faint raw line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    smooth: bool = False


class Level(NamedTuple):
    """A horizontal line to compare a curve with."""

    label: str
    y: float


class Dot(NamedTuple):
    label: str
    value: float
    low: float | None
    high: float | None


class Point(NamedTuple):
    """Where a training was at `step`: x, y, and the standard error of y (0: none known)."""

    step: int
    x: float
    y: float
    error: float = 0.0


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    # Figure without pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _inline(figure: Any, name: str, title: str) -> str:
    """The figure as an <svg> element for a page: CSS colours, the page's font, ids that are unique to `name`."""
    import matplotlib as mpl

    target = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head = re.match(r"<svg[^>]*>", svg)
    assert head, "matplotlib wrote no <svg> element"
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box, "matplotlib wrote no viewBox"
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{html.escape(title)}">'
    return re.sub(r"\s*\n\s*", "\n", opening + svg[head.end() :].strip())


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points, each the mean of its stretch, so a long run's page stays small."""
    if len(x) <= _MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), _MAX_POINTS + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / counts, np.add.reduceat(y, edges[:-1]) / counts


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Centred mean over about 5% of the points, narrower at both ends so that nothing is invented there."""
    half = max(1, len(y) // 40)
    total = np.concatenate([[0.0], np.cumsum(y)])
    reach = np.minimum(half, np.minimum(np.arange(len(y)), np.arange(len(y))[::-1]))
    index = np.arange(len(y))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def curves(
    name: str,
    title: str,
    series: Sequence[Series],
    levels: Sequence[Level] = (),
    *,
    kind: str = "",
    width: float = 5.2,
    height: float = 2.9,
) -> str:
    """SVG of curves over optimizer steps, with levels as dashed lines; "" when there is not one finite point.

    `width` and `height` in inches; text keeps its size, so a small panel is drawn small, not shrunk.
    """
    import matplotlib as mpl
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn = []
    for one in series:
        x, y = np.asarray(one.x, float), np.asarray(one.y, float)
        finite = np.isfinite(y)
        if finite.any():
            drawn.append((one, *_thin(x[finite], y[finite])))
    if not drawn:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(width, height)
        for (one, x, y), colour in zip(drawn, _SERIES, strict=False):
            marker = "o" if len(x) <= 25 else None
            if one.smooth and len(x) >= 40:
                axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
                y = _running_mean(y)
            axes.plot(x, y, color=colour, linewidth=1.7, marker=marker, markersize=3.2, label=one.label)
        levels = [level for level in levels if math.isfinite(level.y)]
        for level, dashes in zip(levels, ("--", ":", "-."), strict=False):
            axes.axhline(level.y, color=_MUTED, linewidth=1.1, linestyle=dashes, label=level.label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(round(width), steps=_TICK_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(_axis_format(kind, axes.get_ylim())))
        axes.margins(x=0.015)
        if len(drawn) + len(levels) > 1:
            axes.legend(loc="best", handlelength=1.8)
        return _inline(figure, name, title)


def _axis_format(kind: str, limits: tuple[float, float]) -> Any:
    top = max(abs(limit) for limit in limits)
    if kind == "percent":
        return lambda value, _: f"{100 * value:.3g}%"
    if top >= 1000:
        return lambda value, _: f"{value:,.0f}"
    if top < 0.01:
        return lambda value, _: "0" if abs(value) < 1e-12 else f"{value:.1e}".replace("e-0", "e−")
    return lambda value, _: f"{value:.4g}"


def intervals(name: str, title: str, dots: Sequence[Dot], *, kind: str = "") -> str:
    """SVG of one value a line with its 95% interval: stages compared on one metric."""
    import matplotlib as mpl
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(5.2, 0.75 + 0.36 * len(dots))
        for place, dot in enumerate(dots):
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [place, place], color=_SERIES[0], linewidth=2.4, alpha=0.45)
            axes.plot([dot.value], [place], "o", color=_SERIES[0], markersize=6.5)
        axes.set_yticks(range(len(dots)), [dot.label for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", labelcolor=_INK)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(_axis_format(kind, axes.get_xlim())))
        return _inline(figure, name, title)


def track(name: str, title: str, points: Sequence[Point], marks: Mapping[str, int | None], label: str) -> str:
    """SVG of the way of a training through two numbers, step by step, y ± its error; "" without two finite points.

    `marks` are two steps to be named in the legend; one that is None, or not among the points, is left out.
    """
    import matplotlib as mpl
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(points) < 2:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(5.2, 2.9)
        x, y = [point.x for point in points], [point.y for point in points]
        axes.errorbar(
            x, y, yerr=[point.error for point in points], color=_SERIES[0], linewidth=1.4, elinewidth=0.8, zorder=1
        )
        axes.plot(x, y, "o", color=_SERIES[0], markersize=3.2)
        shapes = ({"marker": "*", "markersize": 10}, {"marker": "o", "markersize": 12, "markerfacecolor": "none"})
        for (words, step), shape, colour in zip(marks.items(), shapes, (_SERIES[1], _SERIES[3]), strict=True):
            for point in points:
                if point.step == step:
                    axes.plot([point.x], [point.y], color=colour, label=f"{words} (step {step})", linestyle="", **shape)
        for point in points:
            axes.annotate(
                str(point.step), (point.x, point.y), (4, 4), textcoords="offset points", fontsize=8, color=_MUTED
            )
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(_axis_format("", axes.get_ylim())))
        axes.margins(x=0.06, y=0.12)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", handlelength=1.0)
        return _inline(figure, name, title)


def histogram(name: str, title: str, edges: Sequence[float], counts: Sequence[float], label: str) -> str:
    """SVG of counts a bin, with a line at 0; `label` is what the bins are of."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(5.2, 2.9)
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=_SERIES[0], alpha=0.75, linewidth=0)
        axes.axvline(0.0, color=_INK, linewidth=1.1)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS, integer=True))
        return _inline(figure, name, title)


class Bin(NamedTuple):
    """`n` cases whose probability was said to be `predicted`, of which the share `right` was."""

    predicted: float
    right: float
    n: int


def reliability(name: str, title: str, bins: Sequence[Bin]) -> str:
    """SVG of the share right against the probability predicted, beside the diagonal; a dot's area is its share of cases."""
    import matplotlib as mpl
    from matplotlib.ticker import FuncFormatter

    low = min([0.5, *(one.right for one in bins)])
    total = sum(one.n for one in bins)
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure(5.2, 2.9)
        axes.plot([0.5, 1.0], [0.5, 1.0], color=_MUTED, linewidth=1.1, linestyle="--", label="calibrated")
        x, y = [one.predicted for one in bins], [one.right for one in bins]
        axes.plot(x, y, color=_SERIES[0], linewidth=1.2, alpha=0.5)
        axes.scatter(
            x, y, s=[16 + 160 * one.n / total for one in bins], color=_SERIES[0], linewidths=0, label="measured"
        )
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(low - 0.03, 1.03)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("predicted")
        axes.xaxis.set_major_formatter(FuncFormatter(_axis_format("percent", (0.5, 1.0))))
        axes.yaxis.set_major_formatter(FuncFormatter(_axis_format("percent", (low, 1.0))))
        axes.legend(loc="upper left", handlelength=1.8)
        return _inline(figure, name, title)
