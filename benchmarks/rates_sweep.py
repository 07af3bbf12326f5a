"""Which learning rate suits which width: validation bits per byte over factor × width on real text, for the rules of `stages.dial`.

    python benchmarks/rates_sweep.py --data ../shared/data/pretrain --widths 128,256 --tokens 400000 --out FOLDER
        [--page docs/results/rates.md]

For every width a model of the dial's depth is pretrained with multiples of the rule's rates: Muon's for the matrices, AdamW's beside
it, AdamW's alone; the same tokenizer, data and tokens. Factors are tried from 1 outwards, on a side only until the loss rises
there: what lies beyond says nothing about the best (`--every` tries all). The best is the vertex of the parabola, in the
factor's logarithm, through the lowest and its two neighbours. The rule holds where it does not move with the width.
Finished runs are kept under --out and not made again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mengya.errors import UserError
from mengya.files import write_text
from mengya.run import Run
from mengya.settings import Recipe
from mengya.stages.dial import rates
from pretrainings import (
    Kept,
    Row,
    add_arguments,
    base_recipe,
    command_of,
    data_line,
    decides,
    folder_of,
    head,
    prepared,
    shape_of,
    trained,
    users_mistakes,
    varied,
)
from results_page import table

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SWEEPS = {
    "matrix": ("Muon's rate, of the matrices", "muon", "matrix_learning_rate"),
    "beside": ("AdamW's rate beside Muon", "muon", "learning_rate"),
    "adamw": ("AdamW's rate alone", "adamw", "learning_rate"),
}
_AS_GOOD = 0.01
"""Bits per byte above the lowest that are called as good."""


def recipe_of(base: Row, width: int, seed: int, optimizer: str, factors: Mapping[str, float]) -> Recipe:
    """The dial's shape and rates of a width, some of the rates times a factor."""
    ruled = rates("pretrain", optimizer, width)
    changed = {key: float(f"{value * factors.get(key, 1.0):.4g}") for key, value in ruled.items()}
    return varied(base, seed, shape_of(width), {"optimizer": optimizer, **changed})


def tried(factors: Sequence[float], loss: Callable[[float], float], every: bool = False) -> dict[float, float]:
    """{factor: loss}, ascending: the middle factor and its neighbours, then outwards while the lowest is at an end."""
    ordered = sorted(factors)
    middle = min(range(len(ordered)), key=lambda i: abs(math.log(ordered[i])))
    low, high = (0, len(ordered)) if every else (max(0, middle - 1), min(len(ordered), middle + 2))
    losses = {ordered[i]: loss(ordered[i]) for i in range(low, high)}
    while True:
        best = min(losses, key=losses.__getitem__)
        if best == ordered[low] and low > 0:
            low -= 1
            losses[ordered[low]] = loss(ordered[low])
        elif best == ordered[high - 1] and high < len(ordered):
            losses[ordered[high]] = loss(ordered[high])
            high += 1
        else:
            return dict(sorted(losses.items()))


def vertex(losses: Mapping[float, float]) -> Row:
    """{"factor", "loss", "from", "to"}: the lowest point of the parabola in log₂(factor) through the lowest loss and its
    neighbours, and between which factors it is less than 0.01 higher; {"factor": it, "at": the end} where the lowest has no neighbour on
    a side, so that the best may lie beyond."""
    factors = sorted(losses)
    best = min(range(len(factors)), key=lambda i: losses[factors[i]])
    if best in (0, len(factors) - 1):
        return {"factor": factors[best], "loss": losses[factors[best]], "at": "below" if best == 0 else "above"}
    (x0, y0), (x1, y1), (x2, y2) = ((math.log2(f), losses[f]) for f in factors[best - 1 : best + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if curvature <= 0:  # three equal losses
        return {"factor": factors[best], "loss": y1, "from": factors[best - 1], "to": factors[best + 1]}
    slope = left - curvature * (x0 + x1)
    x = -slope / (2 * curvature)
    lowest = y1 + curvature * (x**2 - x1**2) + slope * (x - x1)
    half = math.sqrt(_AS_GOOD / curvature)
    return {"factor": 2**x, "loss": lowest, "from": 2 ** (x - half), "to": 2 ** (x + half)}


def swept(arguments: argparse.Namespace, base: Row, data: Run, kept: Kept) -> dict[str, dict[str, Row]]:
    """{width: {sweep: {"rule": rate, "losses": {seed: {factor: bits per byte}}, "best": {seed: vertex}}}}."""
    found: dict[str, dict[str, Row]] = {}
    for width in arguments.widths:
        found[str(width)] = {}
        for name, (_, optimizer, key) in SWEEPS.items():
            row: Row = {"rule": rates("pretrain", optimizer, width)[key], "losses": {}, "best": {}}
            for seed in arguments.seeds:

                def loss(
                    factor: float, width: int = width, seed: int = seed, optimizer: str = optimizer, key: str = key
                ) -> float:
                    recipe = recipe_of(base, width, seed, optimizer, {key: factor})
                    # At the rule's own rates the two sweeps of Muon are one run.
                    label = f"{width}-{optimizer}-{seed}" + ("" if factor == 1.0 else f"-{key}-{factor:g}")
                    result = kept.get(label, decides(recipe), lambda: trained(recipe, data))
                    print(f"{label}: {result['bits_per_byte']:.4f} bits per byte", flush=True)
                    return float(result["bits_per_byte"])

                losses = tried(arguments.factors, loss, arguments.every)
                row["losses"][str(seed)] = {f"{factor:g}": value for factor, value in losses.items()}
                row["best"][str(seed)] = vertex(losses)
            found[str(width)][name] = row
    return found


def best_of(row: Row) -> str:
    """`1.3`, of several seeds `1.3 (1.1…1.6)`; `≤ 0.25` where the lowest is at the end of what was tried."""

    def shown(best: Row) -> str:
        return {"below": "≤ ", "above": "≥ "}.get(best.get("at", ""), "") + f"{best['factor']:.2g}"

    bests = list(row["best"].values())
    if len(bests) == 1:
        return shown(bests[0])
    ordered = sorted(bests, key=lambda best: best["factor"])
    middle = 2 ** statistics.fmean(math.log2(best["factor"]) for best in bests)
    return f"{middle:.2g} ({shown(ordered[0])}…{shown(ordered[-1])})"


def as_good(row: Row) -> str:
    """Between which factors the parabola is less than 0.01 above its lowest, over all seeds; empty where it is open."""
    bests = row["best"].values()
    if any("at" in best for best in bests):
        return ""
    return f"{max(best['from'] for best in bests):.2g}…{min(best['to'] for best in bests):.2g}"


def price(row: Row) -> float | None:
    """Bits per byte that the rule's own rate costs against the best, the mean over seeds; None where 1 was not tried."""
    if any("1" not in losses for losses in row["losses"].values()):
        return None
    return statistics.fmean(row["losses"][seed]["1"] - best["loss"] for seed, best in row["best"].items())


def page(arguments: argparse.Namespace, data: Run, kept: Kept, found: dict[str, dict[str, Row]]) -> Iterator[str]:
    """docs/results/rates.md."""
    seeds = arguments.seeds
    command = command_of("rates_sweep", arguments, ["widths", "factors"]) + (" --every" if arguments.every else "")
    yield from head("Learning rates over widths", command, data_line(arguments, data), kept)
    yield (
        f"Models of the dial's depth, {int(arguments.tokens):,} tokens in steps of {arguments.batch_tokens:,}; in each table one rate "
        "is the dial's rule times a factor, all else is as the dial has it. Validation bits per byte"
        + (f", mean of seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f", seed {seeds[0]}")
        + "; – was not tried, since the loss had risen before. The best factor is the vertex of a parabola, in the factor's logarithm, "
        f"through the lowest and its two neighbours; as good: less than {_AS_GOOD:g} above it"
        + (" with every seed." if len(seeds) > 1 else ".")
    )
    yield ""
    for name, (words, _, _) in SWEEPS.items():
        yield f"## {words}"
        yield ""
        cells = []
        for width, rows in found.items():
            row = rows[name]
            cells.append([width, f"{row['rule']:g}"])
            for factor in sorted(arguments.factors):
                values = [losses.get(f"{factor:g}") for losses in row["losses"].values()]
                known = [value for value in values if value is not None]
                cells[-1].append(f"{statistics.fmean(known):.4f}" if len(known) == len(values) else "–")
            cost = price(row)
            cells[-1] += [best_of(row), as_good(row), "" if cost is None else f"{cost:.4f}"]
        factors = [f"× {factor:g}" for factor in sorted(arguments.factors)]
        yield from table(["width", "the rule's rate", *factors, "best factor", "as good", "the rule costs"], cells)
        yield moved({width: rows[name] for width, rows in found.items()})
        yield ""


def moved(rows: Mapping[str, Row]) -> str:
    """What the best factor does from the narrowest to the widest, in a sentence."""
    bests = {width: list(row["best"].values()) for width, row in rows.items()}
    if len(bests) < 2:
        return "One width says nothing about the rule."
    if any("at" in best for found in bests.values() for best in found):
        return "Where the lowest stands at the end of what was tried (≤, ≥), nothing can be said about the rule."
    middles = {
        width: 2 ** statistics.fmean(math.log2(best["factor"]) for best in found) for width, found in bests.items()
    }
    first, last = min(middles, key=int), max(middles, key=int)
    exponent = math.log(middles[last] / middles[first]) / math.log(int(last) / int(first))
    return (
        f"From width {first} to {last} the best factor goes from {middles[first]:.2g} to {middles[last]:.2g}: by these runs "
        f"the rule's exponent of the width is off by {exponent:+.2f} (0: the rule holds)."
    )


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, tokens=400_000, seeds="1")
    parser.add_argument("--widths", type=lambda text: [int(width) for width in text.split(",")], default="128,256")
    parser.add_argument(
        "--factors", type=lambda text: [float(factor) for factor in text.split(",")], default=list(FACTORS)
    )
    parser.add_argument("--every", action="store_true", help="all factors, also those beyond a rise")
    arguments = parser.parse_args(given)
    if 1.0 not in arguments.factors or min(arguments.factors) <= 0:
        raise UserError("not factors around 1", where="--factors", mend="give positive numbers, 1 among them")
    return arguments


def main() -> None:
    arguments = parsed()
    with folder_of(arguments.out) as folder:
        base = base_recipe(arguments, "rates-sweep")
        data = prepared(base, folder)
        kept = Kept(folder, data)
        found = swept(arguments, base, data, kept)
        if arguments.page:
            write_text(arguments.page, "\n".join(page(arguments, data, kept, found)))
    print(json.dumps({"seeds": len(arguments.seeds), "widths": found}))


if __name__ == "__main__":
    users_mistakes(main, Path(__file__).stem)
