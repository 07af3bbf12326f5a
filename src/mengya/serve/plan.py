"""`mengya plan`: parameters, tokens, FLOPs, memory, time and cost of a recipe, before spending any.

The speed is this machine's, from a short probe of matrix products of the recipe's own shape; the share of it that
training reaches is an assumption, printed with the result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from mengya.console import duration
from mengya.model.config import ModelConfig
from mengya.model.presets import describe
from mengya.settings import Recipe
from mengya.stages.check import check_recipe, model_config, vocab_size

UTILISATION = 0.45
"""Share of the probed matrix speed that a training step reaches: measured on the quickstart's model, 2 CPU cores."""

_TOKENS_OF_EXCHANGE = 30.0
"""Tokens of a playground conversation, or of a prompt with one answer, at a vocabulary of 3,000: 410,106 / 13,650."""

_BYTES_OF_STATE = {"muon": 12, "adamw": 16}
"""Bytes a parameter while training: fp32 weight, gradient, and one (Muon) or two (AdamW) moments."""


@dataclass(frozen=True)
class StagePlan:
    """Estimates of one stage; tokens are those that pass through a model, forward-only passes counted as a third."""

    stage: str
    tokens: float
    flops: float
    memory_bytes: float
    seconds: float


def probe_flops(recipe: Recipe, config: ModelConfig, seconds: float = 2.0) -> float:
    """FLOP/s of matrix products of this model's shape and precision on this machine."""
    import torch

    from mengya.train.parallel import open_world

    world = open_world(recipe.device, recipe.precision, recipe.threads)
    rows = recipe.pretrain.micro_batch_tokens
    a = torch.randn(rows, config.width, device=world.device, dtype=world.dtype)
    b = torch.randn(config.ffn_width, config.width, device=world.device, dtype=world.dtype)
    for _ in range(3):
        torch.nn.functional.linear(a, b)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        product = torch.nn.functional.linear(a, b)
        count += 1
        if count % 8 == 0:
            product.sum().item()  # a device may run ahead of the host
    return 2.0 * rows * config.width * config.ffn_width * count / elapsed


def plan_recipe(recipe: Recipe, flops_per_second: float) -> tuple[ModelConfig, list[StagePlan]]:
    """The model's shape and an estimate for each training stage that the recipe names.

    What depends on data that is not there yet is taken from the sizes of the playground; stages on files of unknown
    length are left out, and the caller says so.
    """
    config = model_config(recipe, vocab_size(recipe))
    world = recipe.playground
    uses = {
        kind: any(source.playground for source in getattr(recipe.corpus, kind))
        for kind in ("conversations", "preferences")
    }
    tokens: dict[str, float] = {"pretrain": float(recipe.pretrain.tokens)}
    if uses["conversations"]:
        tokens["sft"] = recipe.sft.epochs * world.num_conversations * _TOKENS_OF_EXCHANGE
    if uses["preferences"]:
        tokens["reward"] = recipe.reward.epochs * world.num_preferences * 2 * _TOKENS_OF_EXCHANGE
        tokens["dpo"] = recipe.dpo.epochs * world.num_preferences * 2 * _TOKENS_OF_EXCHANGE
    ppo = recipe.ppo
    answered = ppo.steps * ppo.batch_prompts * min(_TOKENS_OF_EXCHANGE, ppo.sequence_length)
    # A rollout is read by four models once (forward), and trained on by two for some epochs.
    tokens["ppo"] = answered * (4 / 3 + 2 * ppo.epochs)
    plans = []
    for stage, count in tokens.items():
        if stage not in recipe.stages:
            continue
        settings = getattr(recipe, stage)
        flops = count * config.flops_per_token(settings.sequence_length)
        models = {"dpo": 1, "ppo": 4}.get(stage, 1)
        state = _BYTES_OF_STATE[settings.optimizer] * config.num_parameters * (2 if stage == "ppo" else 1)
        frozen = 4 * config.num_parameters * (models - 2 if models > 2 else 0)
        rows = getattr(settings, "micro_batch_tokens", 64 * settings.sequence_length)
        # Kept for the backward pass: about 34 numbers of the width a token and layer (Korthikanti et al. 2022, eq. 2,
        # without attention scores) and the logits in fp32, twice.
        activations = rows * (2 * 34 * config.width * config.num_layers / 2 + 8 * config.vocab_size)
        seconds = flops / (flops_per_second * UTILISATION)
        plans.append(StagePlan(stage, count, flops, state + frozen + activations, seconds))
    return config, plans


def print_plan(recipe: Recipe, price: float | None) -> None:
    """Print the plan of `recipe` as a table; `price` is that of an hour of this machine."""
    from rich.console import Console
    from rich.table import Table

    check_recipe(recipe)
    speed = probe_flops(recipe, model_config(recipe, vocab_size(recipe)))
    config, plans = plan_recipe(recipe, speed)
    table = Table(title=f"{recipe.name}: {describe(config)}")
    columns = ["stage", "tokens", "FLOPs", "memory", "time", *(["cost"] if price is not None else [])]
    for name in columns:
        table.add_column(name, justify="left" if name == "stage" else "right")
    memory = max((plan.memory_bytes for plan in plans), default=0.0)
    tokens, flops, seconds = (sum(getattr(plan, key) for plan in plans) for key in ("tokens", "flops", "seconds"))
    for plan in [*plans, StagePlan("all", tokens, flops, memory, seconds)]:
        cells = [plan.stage, f"{plan.tokens:,.0f}", f"{plan.flops:.2e}", f"{plan.memory_bytes / 2**30:.2f} GiB"]
        cells.append(duration(plan.seconds))
        if price is not None:
            cells.append(f"{plan.seconds / 3600 * price:.2f}")
        table.add_row(*cells)
    planned = {plan.stage for plan in plans}
    console = Console()
    console.print(table)
    console.print(
        f"This machine multiplies at {speed / 1e9:,.0f} GFLOP/s (measured now); training is assumed to reach "
        f"{UTILISATION:.0%} of it. Data preparation and evaluation are not counted."
    )
    unknown = [stage for stage in ("sft", "reward", "dpo") if stage in recipe.stages and stage not in planned]
    if unknown:
        console.print(f"Not planned, since their data has not been read yet: {', '.join(unknown)}.")
    if recipe.pretrain.tokens < 10 * config.num_parameters:
        console.print(
            f"{recipe.pretrain.tokens / config.num_parameters:.1f} tokens a parameter is far below the 20 of "
            "compute-optimal training (Hoffmann et al. 2022): a smaller model would learn more in this time."
        )
