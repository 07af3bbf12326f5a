"""A plan on the terminal: its stages, their memory, other machines, and what is unwise about it. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mengya.console import duration
from mengya.serve.plan_machines import LAYER_SECONDS, SEVERAL, SHOWN, UTILISATION, Claim

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_DATA_STAGES = ("corpus", "tokenizer", "shards")
_MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "process", "total")
_PIPE_WIDTH = 120


def claim_lines(claim: Claim) -> str:
    """The arithmetic of a claim, and the verdict on it."""
    return (
        f"{claim.tokens:.3g} tokens × {claim.parameters:.3g} parameters × 6 = {claim.flops:.2e} FLOPs; "
        f"{claim.gpus:g} × {claim.gpu.name} at {claim.gpu.flops / 1e12:.0f} TFLOP/s (dense bf16 peak) in {claim.hours:g} h "
        f"make {claim.flops / claim.share:.2e}\n{claim.verdict()}"
    )


def print_plan(plan: dict[str, Any], prices: Mapping[str, float]) -> None:
    """The tables and remarks of a plan on stdout; costs where `prices` {machine: of an hour} knows them."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(f"{plan['recipe']}: {plan['model']}", soft_wrap=True)
    console.print(_time_table(plan, prices))
    read = ", ".join(f"{source} {_count(tokens)}" for source, tokens in plan["data_tokens"].items())
    console.print(f"Tokens to train on, judged by a sample: {read}.", soft_wrap=True)
    if plan["here"] is not None:
        _print_here(console, plan)
    if plan["machines"]:
        _print_machines(console, plan, prices)
    for warning in plan["warnings"]:
        console.print(f"Warning: {warning}.", soft_wrap=True)


def _table(title: str, columns: list[str], left: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] or name in left else "right")
    return table


def _time_table(plan: dict[str, Any], prices: Mapping[str, float]) -> Table:
    priced = "here" in prices
    columns = ["stage", "steps", "tokens", "FLOPs", "training", "the rest", "time"]
    table = _table("here", [*columns, *(["cost"] if priced else [])])

    def row(name: str, steps: int, tokens: float, flops: float, training: float, seconds: float) -> None:
        cells = [name, f"{steps:,}" if steps else "", _count(tokens), f"{flops:.1e}" if flops else ""]
        cells += [duration(training) if training else "", duration(seconds - training), duration(seconds)]
        table.add_row(*cells, *([f"{seconds / 3600 * prices['here']:.2f}"] if priced else []))

    flops = training = 0.0
    for name, stage in plan["stages"].items():
        row(
            name, stage["steps"], stage["tokens"], stage["flops"], stage["parts"].get("training", 0.0), stage["seconds"]
        )
        flops, training = flops + stage["flops"], training + stage["parts"].get("training", 0.0)
    table.add_section()
    row("all", 0, 0.0, flops, training, plan["seconds"])
    return table


def _print_here(console: Console, plan: dict[str, Any]) -> None:
    here = plan["here"]
    whole = "" if here["layers_timed"] == here["layers"] else f", by {here['layers_timed']} of {here['layers']} layers"
    console.print(
        f"This machine multiplies at {here['flops_per_second'] / 1e9:,.0f} GFLOP/s in {here['precision']}; the steps timed now reach "
        f"{here['utilisation']:.0%} of it{whole}. Probed in {plan['probe_seconds']:.0f} s.",
        soft_wrap=True,
    )
    table = _table("memory of training here, GiB", ["stage", "micro-batch", *_MEMORY])
    for name, stage in plan["stages"].items():
        if stage["memory"] is not None:
            sizes = ", ".join(
                f"{size:,} {key.rpartition('_')[2]}" for key, size in (stage["micro_batch"] or {}).items()
            )
            table.add_row(name, sizes, *(f"{stage['memory'][part] / 2**30:.2f}" for part in _MEMORY))
    console.print(table)
    for stage, mend in here["does_not_fit"].items():
        console.print(
            f"{stage} does not fit into the {here['memory_bytes'] / 2**30:.1f} GiB for it here; it would with {mend}.",
            soft_wrap=True,
        )


def _print_machines(console: Console, plan: dict[str, Any], prices: Mapping[str, float]) -> None:
    priced = any(name in prices for name in SHOWN)
    columns = [
        "machine",
        "bf16 peak, TFLOP/s",
        "memory, GB",
        "data",
        "models",
        "all",
        *(["cost"] if priced else []),
        "fits",
    ]
    table = _table("on other machines", columns, left=("fits",))
    remedies: dict[str, str] = {}
    for machine in plan["machines"]:
        label = f"{machine['count']}× {machine['name']}" if machine["count"] > 1 else machine["name"]
        total = sum(machine["seconds"].values())
        data = sum(machine["seconds"].get(stage, 0.0) for stage in _DATA_STAGES)
        cells = [
            label,
            f"{machine['flops'] * machine['count'] / 1e12:,.0f}",
            f"{machine['memory_gib'] * machine['count']:,.0f}",
        ]
        cells += [duration(data), duration(total - data), duration(total)]
        if priced:
            price = prices.get(machine["name"])
            cells.append("" if price is None else f"{total / 3600 * price * machine['count']:.2f}")
        for stage, mend in machine["does_not_fit"].items():
            remedies[label] = f"{stage} would with {mend}"
        table.add_row(*cells, "no" if label in remedies else "yes")
    console.print(table)
    for label, remedy in remedies.items():
        console.print(f"{label}: does not fit; {remedy}.", soft_wrap=True)
    console.print(
        f"Assumed there, not measured: {UTILISATION:.0%} of the dense bf16 peak, {SEVERAL:.0%} of that for each of eight GPUs, "
        f"no layer faster than {LAYER_SECONDS * 1e6:.0f} µs; data preparation as here.",
        soft_wrap=True,
    )


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}" if number else ""
