"""Each default of pretraining, taken away one at a time: validation bits per byte at equal wall time, over seeds.

    python benchmarks/defaults.py --data ../shared/data/pretrain --out FOLDER [--variants adamw,cosine] [--page docs/results/defaults.md]

Equal wall time without a clock over the training: what a variant's step costs is measured beforehand, a step of each in turn; a
variant then trains on as many tokens as it could have read in the time that the default takes, with a schedule of that length. So
nothing that the machine does during the training matters. Finished runs are kept under --out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignment_numbers import MOST_SEEDS, difference, over_seeds
from mengya.errors import UserError
from mengya.files import write_text
from mengya.model.attention import AttentionMask
from mengya.model.presets import describe
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import Terms
from mengya.run import Run
from mengya.settings import Recipe
from mengya.stages.check import model_config, vocab_size
from mengya.stages.dial import rates
from mengya.train.step import Objective
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
    paired_speeds,
    prepared,
    shape_of,
    stepper,
    trained,
    users_mistakes,
    varied,
)
from results_page import table
from time_to_loss import RATES

Z_COEFFICIENT = 1e-4
"""Of PaLM's z-loss (Chowdhery et al. 2022, §5)."""


def z_loss(model: Any, batch: Any) -> Terms:
    """`next_token_loss` + 1e-4 · (log of the softmax's normaliser)², a target; plain, and so slower than it need be."""
    attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
    x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    logits_NV = model.logits(x_BTC.flatten(0, 1)[batch.trained_N]).float()
    targets_N = batch.targets_BT.flatten()[batch.trained_N]
    normaliser_N = logits_NV.logsumexp(-1)
    losses_N = normaliser_N - logits_NV.gather(1, targets_N[:, None]).squeeze(1)
    return Terms((losses_N + Z_COEFFICIENT * normaliser_N**2).sum(), len(targets_N))


@torch.no_grad()
def flat_initialisation(model: nn.Module) -> None:
    """Undo the factor 1/√(2 · layers) of the matrices that add into the residual stream."""
    layers: int = model.config.num_layers  # type: ignore[assignment, union-attr]
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_((2 * layers) ** 0.5)


@dataclass(frozen=True)
class Variant:
    """One thing that is otherwise than by default; `costs`: whether its step may take another time (or is taken to)."""

    words: str
    costs: bool = False
    model: Row = field(default_factory=dict)
    pretrain: Row = field(default_factory=dict)
    objective: Objective = next_token_loss
    change: Callable[[nn.Module], None] | None = None


DEFAULT = "default"
VARIANTS = {
    "adamw": Variant("AdamW for all, in place of Muon for the matrices", True, pretrain={"optimizer": "adamw"}),
    "cosine": Variant("cosine, in place of warm-up, stable, decay", pretrain={"schedule": "cosine"}),
    "no-decay": Variant("no weight decay", pretrain={"weight_decay": 0.0}),
    "flat-init": Variant("initialisation not scaled by depth", change=flat_initialisation),
    "untied": Variant("embeddings not tied to the head", True, model={"tie_embeddings": False}),
    "qk-norm": Variant("QK-norm", True, model={"qk_norm": True}),
    "z-loss": Variant(f"z-loss, coefficient {Z_COEFFICIENT:g}", objective=z_loss),
}


def recipes(base: Row, width: int, variants: dict[str, Variant], seed: int) -> dict[str, Recipe]:
    """{name: recipe} of the default and the variants, each with as many tokens; AdamW's rate is chosen later."""
    ruled = rates("pretrain", "muon", width)
    return {
        name: varied(base, seed, shape_of(width) | variant.model, ruled | variant.pretrain)
        for name, variant in variants.items()
    }


def with_pretrain(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=changes)})


def measured_speeds(base: Row, width: int, variants: dict[str, Variant], data: Run, kept: Kept, rounds: int) -> Row:
    """{name: speed over the default's}: 1 where the work of a step is the same."""
    found = dict.fromkeys(variants, 1.0)
    costly = {name: variant for name, variant in variants.items() if variant.costs}
    if not costly:
        return found
    asked = recipes(base, width, {DEFAULT: variants[DEFAULT], **costly}, 1)

    def make() -> Row:
        steppers = {
            name: stepper(recipe, data, variants[name].objective, variants[name].change)
            for name, recipe in asked.items()
        }
        return {"speeds": paired_speeds(steppers, DEFAULT, rounds)}

    settings = [rounds, {name: decides(recipe) for name, recipe in asked.items()}]
    speeds: Row = kept.get("speeds", settings, make)["speeds"]
    return found | speeds


def compared(arguments: argparse.Namespace, base: Row, data: Run, kept: Kept) -> Row:
    """Numbers of all variants and seeds: {"variants": {name: row}, "adamw_rates": {rate: bits}}."""
    variants = {DEFAULT: Variant("the default"), **{name: VARIANTS[name] for name in arguments.variants}}
    speeds = measured_speeds(base, arguments.width, variants, data, kept, arguments.rounds)
    batch = arguments.batch_tokens
    steps = {name: max(1, round(arguments.tokens / batch * speed)) for name, speed in speeds.items()}

    def bits(name: str, seed: int, **changes: Any) -> float:
        recipe = recipes(base, arguments.width, {name: variants[name]}, seed)[name]
        recipe = with_pretrain(recipe, tokens=steps[name] * batch, **changes)
        label = "-".join([name, str(seed), *(f"{value:g}" for value in changes.values())])
        variant = variants[name]
        found = kept.get(label, decides(recipe), lambda: trained(recipe, data, variant.objective, variant.change))
        print(f"{label}: {steps[name]} steps, {found['bits_per_byte']:.4f} bits per byte", flush=True)
        return float(found["bits_per_byte"])

    tried: dict[str, float] = {}
    chosen: dict[str, Row] = {name: {} for name in variants}
    if "adamw" in variants:
        tried = {f"{rate:g}": bits("adamw", arguments.seeds[0], learning_rate=rate) for rate in arguments.adamw_rates}
        chosen["adamw"] = {"learning_rate": float(min(tried, key=tried.__getitem__))}
    # Seed by seed, so that what is stopped early has whole pairs.
    found = {name: dict[int, float]() for name in variants}
    for seed in arguments.seeds:
        for name in variants:
            found[name][seed] = bits(name, seed, **chosen[name])
    rows = {
        name: {
            "words": variants[name].words,
            "costs": variants[name].costs,
            "speed": round(speeds[name], 4),
            "tokens": steps[name] * batch,
            "bits_per_byte": {str(seed): value for seed, value in found[name].items()},
        }
        for name in variants
    }
    for name, row in rows.items():
        if name != DEFAULT:
            row |= judged([found[name][seed] - found[DEFAULT][seed] for seed in arguments.seeds])
    return {"variants": rows, "adamw_rates": tried}


def judged(differences: Sequence[float]) -> Row:
    """{"difference", "low", "high", "verdict"} of what a variant has more bits per byte than the default, seed by seed.

    The interval is of 95%, Student's t over the seeds; a single seed has none, and so no verdict.
    """
    found = over_seeds([difference(value, value, value) for value in differences])
    low, high = found["seeds_low"], found["seeds_high"]
    better = sum(value > 0 for value in differences)
    if low is None:
        verdict = "one seed says nothing"
    elif low > 0:
        verdict = "default kept"
    elif high < 0:
        verdict = "default worse"
    else:
        verdict = f"no difference seen (default lower in {better} of {len(differences)} seeds)"
    return {"difference": statistics.fmean(differences), "low": low, "high": high, "verdict": verdict}


def page(arguments: argparse.Namespace, recipe: Recipe, data: Run, kept: Kept, result: Row) -> Iterator[str]:
    """docs/results/defaults.md."""
    command = command_of("defaults", arguments, ["width", "variants", "adamw_rates", "rounds"])
    yield from head("The defaults of pretraining, one at a time", command, data_line(arguments, data), kept)
    rows, seeds, config = result["variants"], arguments.seeds, model_config(recipe, vocab_size(recipe))
    yield (
        f"Model: {describe(config)}; {arguments.batch_tokens:,} tokens a step, the default's rates by the dial "
        f"({recipe.pretrain.matrix_learning_rate:g} for Muon, {recipe.pretrain.learning_rate:g} beside it). In each row one thing "
        "is otherwise. Equal wall time: where a variant's step costs otherwise, its speed is the median of "
        f"{arguments.rounds} rounds of a step of each in turn, and it trains on tokens in proportion, with a schedule of that "
        "length; nothing that happens to the machine during a training matters. Where the work of a step is the same, so are the "
        "tokens. A seed decides the first weights and the order of the data."
    )
    yield ""
    cells = []
    for row in rows.values():
        bits = [f"{row['bits_per_byte'][str(seed)]:.4f}" for seed in seeds]
        apart = ""
        if "difference" in row:
            interval = "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
            apart = f"{row['difference']:+.4f}{interval}"
        speed = f"{row['speed']:.3f}" if row["costs"] else "1"
        cells.append([row["words"], speed, f"{row['tokens']:,}", *bits, apart, row.get("verdict", "")])
    names = ["", "tokens/s, default = 1", "tokens", *(f"seed {seed}" for seed in seeds), "more than the default"]
    yield from table([*names, "verdict"], cells)
    shards = data.manifest("shards")
    assert shards is not None
    documents = min(recipe.evaluate.num_documents, shards["counts"]["validation"]["documents"])
    yield (
        f"Validation bits per byte of {documents:,} documents, less is better. The difference is paired by seed, with the 95% "
        f"interval of Student's t over the seeds: kept where all of it lies above 0, worse where all of it lies below."
    )
    if result["adamw_rates"]:
        tried = ", ".join(f"{value:.4f} at {rate}" for rate, value in result["adamw_rates"].items())
        yield ""
        yield (
            f"AdamW has a rate of its own, the best by the first seed: {tried}. That seed's figure is so the best of "
            "these, which favours AdamW."
        )
    if "z-loss" in rows:
        yield ""
        yield (
            "The z-loss is no setting of the package; it is tried here with as many tokens as the default, as if it cost nothing. "
            "Logit soft-capping is not tried: no Llama or Qwen3 checkpoint can say it, so it would break export."
        )
    yield ""
    tokens = rows[DEFAULT]["tokens"]
    yield (
        f"It says nothing of longer trainings or larger models: {tokens:,} tokens are {tokens / config.num_parameters:.2g} a "
        "parameter."
    )


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, tokens=400_000, seeds="1,2,3")
    parser.add_argument("--width", type=int, default=128, help="of the model; its depth is the dial's")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument(
        "--adamw-rates", type=lambda text: [float(rate) for rate in text.split(",")], default=list(RATES)
    )
    parser.add_argument("--rounds", type=int, default=15, help="of the measurement of speed")
    arguments = parser.parse_args(given)
    if unknown := set(arguments.variants) - set(VARIANTS):
        raise UserError(
            f"no variant {', '.join(sorted(unknown))}", where="--variants", mend=f"known: {', '.join(VARIANTS)}"
        )
    if not 1 <= len(set(arguments.seeds)) == len(arguments.seeds) <= MOST_SEEDS:
        raise UserError("not a list of seeds", where="--seeds", mend=f"give 1 to {MOST_SEEDS} different ones")
    return arguments


def main() -> None:
    arguments = parsed()
    with folder_of(arguments.out) as folder:
        base = base_recipe(arguments, "defaults")
        data = prepared(base, folder)
        kept = Kept(folder, data)
        result = compared(arguments, base, data, kept)
        if arguments.page:
            recipe = recipes(base, arguments.width, {DEFAULT: Variant("")}, arguments.seeds[0])[DEFAULT]
            write_text(arguments.page, "\n".join(page(arguments, recipe, data, kept, result)) + "\n")
    print(json.dumps({"seeds": len(arguments.seeds), **result}, ensure_ascii=False))


if __name__ == "__main__":
    users_mistakes(main, Path(__file__).stem)
