"""The one dial: `model: {size: 40m}` sets what follows from a size, wherever the recipe does not say it itself.

The rules, with their sources. The rates were swept on real text by `benchmarks/rates_sweep.py` (docs/results/rates.md: short
runs at two widths) and in the quickstart (docs/LOG.md); the other rules are the literature's.

- Shape: `model.presets.sized`.
- Tokens of pretraining: 20 a parameter, compute-optimal (Hoffmann et al. 2022, Chinchilla, table 3).
- Tokens a step: 0.292 · C^0.3271 of the training compute C in FLOPs (Bi et al. 2024, DeepSeek LLM, eq. 1, fitted between 1e17 and
  2e19), to the nearest power of two. At the quickstart's 2e13 it gives 8,192, which is what the quickstart was tuned with.
- Rates: reference values at width 192, the quickstart's. AdamW on hidden matrices ∝ 1/width (Yang et al. 2022, muP).
  Muon's constant: its updates have the same spectral norm at every width (Jordan et al. 2024; Bernstein and Newhouse
  2024). Of the AdamW beside Muon, which moves embeddings and the head, ∝ 1/√width: muP says constant for the input and
  1/width for the output, and tied embeddings are both. Runs of a hundred steps want more of it and less of Muon's; the
  quickstart gains nothing by twice the one and loses by half the other. How longer runs move them was not measured.
- Sequences: 256 tokens below 20 M parameters, all the model's positions above.
- Micro-batch: auto.
"""

from __future__ import annotations

import math
from typing import Any

from mengya.model.config import ModelConfig
from mengya.settings import Recipe, TrainSettings, micro_batch_key
from mengya.stages.check import model_config, vocab_size

TOKENS_A_PARAMETER = 20.0
REFERENCE_WIDTH = 192
# {stage: (AdamW alone, AdamW beside Muon, Muon)}: the quickstart's, or the settings' defaults where it says none.
_RATES = {
    "pretrain": (3e-3, 1.2e-2, 0.02),
    "sft": (5e-4, 1e-3, 0.01),
    "reward": (3e-4, 1e-3, 0.01),
    "dpo": (1e-4, 1e-4, 0.01),
    "ppo": (5e-5, 5e-5, 0.01),
    "grpo": (1e-4, 1e-4, 0.01),
}
_VALUE_RATE = 1e-4
_LONG_FROM = 2e7
_LEAST_BATCH, _MOST_BATCH = 4096, 1 << 22


def rates(stage: str, optimizer: str, width: int) -> dict[str, float]:
    """{"learning_rate", "matrix_learning_rate"} of a training stage at a width, to three digits."""
    alone, beside, muon = _RATES[stage]
    ratio = REFERENCE_WIDTH / width
    rate = beside * ratio**0.5 if optimizer == "muon" else alone * ratio
    found = {"learning_rate": rate, "matrix_learning_rate": muon}
    if stage == "ppo":
        found["value_learning_rate"] = _VALUE_RATE * (ratio**0.5 if optimizer == "muon" else ratio)
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def batch_tokens(compute: float) -> int:
    """Tokens a step for a training compute in FLOPs: a power of two between 4,096 and 4 M."""
    wanted = 0.2920 * compute**0.3271
    return min(_MOST_BATCH, max(_LEAST_BATCH, 1 << round(math.log2(wanted))))


def with_dial(recipe: Recipe) -> Recipe:
    """The recipe with everything said that `model.size` decides; itself where it names no size. What a recipe says, stays."""
    if recipe.model.size is None:
        return recipe
    config = model_config(recipe, vocab_size(recipe))
    ruled: dict[str, dict[str, Any]] = {}
    for stage in _RATES:
        settings: TrainSettings = getattr(recipe, stage)
        ruled[stage] = {**rates(stage, settings.optimizer, config.width), micro_batch_key(settings): "auto"}
        if stage in ("pretrain", "sft"):
            ruled[stage]["sequence_length"] = _sequence_length(config)
    tokens = recipe.pretrain.tokens if "tokens" in recipe.pretrain.model_fields_set else _horizon(config)
    length = _said(recipe.pretrain, ruled["pretrain"], "sequence_length")
    ruled["pretrain"] |= {"tokens": tokens, "batch_tokens": batch_tokens(config.flops_per_token(length) * tokens)}
    update = {}
    for stage, values in ruled.items():
        settings = getattr(recipe, stage)
        unsaid = {key: value for key, value in values.items() if key not in settings.model_fields_set}
        update[stage] = settings.model_copy(update=unsaid)
    return recipe.model_copy(update=update)


def _said(settings: TrainSettings, ruled: dict[str, Any], key: str) -> Any:
    return getattr(settings, key) if key in settings.model_fields_set else ruled[key]


def _horizon(config: ModelConfig) -> int:
    return int(TOKENS_A_PARAMETER * config.num_parameters)


def _sequence_length(config: ModelConfig) -> int:
    return config.max_positions if config.num_parameters >= _LONG_FROM else min(256, config.max_positions)
