"""A plan on other machines: time, whether it fits, the settings that would; and what is unwise about the plan itself."""

from __future__ import annotations

from collections.abc import Sequence

from mengya.model.config import ModelConfig
from mengya.model.presets import PRESETS, preset
from mengya.serve.plan_machines import LAYER_SECONDS, SEVERAL, UTILISATION, Machine
from mengya.serve.plan_parts import StagePlan
from mengya.settings import Recipe, TrainSettings, micro_batch_of
from mengya.train.memory import GIB, largest_micro_batch, training_memory

_CHECKPOINTING = "parallel.activation_checkpointing: true"
_USABLE = 0.92
"""Of a GPU's memory; the rest is the driver's and the allocator's."""
_LAUNCHES_OF_TRAINING = 3
"""Forward and backward in passes over the layers' kernels."""
_LEAST_TOKENS_A_PARAMETER, _MOST_TOKENS_A_PARAMETER = 10, 200
_MOST_REPEATS = 4.0


def seconds_on(plan: StagePlan, config: ModelConfig, machine: Machine) -> float:
    """Seconds of a stage on GPUs: FLOPs at the assumed utilisation, not below the time that launching the kernels takes;
    generation by the reading of the weights; work of the CPU as on this machine."""
    several = machine.count * (SEVERAL if machine.count > 1 else 1.0)
    speed = machine.flops * UTILISATION * several
    layer = config.num_layers * LAYER_SECONDS
    training = max(plan.flops / speed, _LAUNCHES_OF_TRAINING * layer * plan.micro_batches / machine.count)
    decoding = plan.decode_steps * max(layer, 2 * config.num_parameters / machine.bandwidth)
    return plan.cpu_seconds + training + decoding + plan.forward_flops / speed


def does_not_fit(plan: StagePlan, config: ModelConfig, machine: Machine) -> str | None:
    """What would make a stage fit into one of the machine's GPUs, with its micro-batch as small as need be; None where it fits."""
    if plan.settings is None:
        return None
    return remedy(plan.settings, config, _USABLE * machine.memory * GIB, "cuda", machine.count)


def remedy(settings: TrainSettings, config: ModelConfig, available: float, device: str, count: int = 1) -> str | None:
    """None where the stage fits as it is; else the first of smaller micro-batch, activation checkpointing, sharding, smaller
    preset that makes it fit."""
    if training_memory(settings, config, micro_batch_of(settings), device=device).total <= available:
        return None
    smaller = largest_micro_batch(settings, config, available, device=device)
    if smaller is not None:
        return f"micro_batch: {smaller}"
    smaller = largest_micro_batch(settings, config, available, device=device, checkpointing=True)
    if smaller is not None:
        return f"{_CHECKPOINTING} and micro_batch: {smaller}"
    for shards in () if device == "cpu" else (8,) if count == 1 else (count, 8 * count):
        smaller = largest_micro_batch(settings, config, available, device=device, checkpointing=True, shards=shards)
        if smaller is not None:
            return f"{shards} GPUs that share the model (parallel.shard: {shards}), {_CHECKPOINTING} and micro_batch: {smaller}"
    for name in sorted(PRESETS, key=lambda name: -preset(name, config.vocab_size).num_parameters):
        shape = preset(name, config.vocab_size, max_positions=config.max_positions)
        if shape.num_parameters < config.num_parameters and largest_micro_batch(
            settings, shape, available, device=device
        ):
            return f"model.preset: {name}"
    return "a shorter sequence_length"


def warnings(recipe: Recipe, config: ModelConfig, tokens: dict[str, float]) -> list[str]:
    """What is unwise: a size far from what the tokens suit, and data read more than four times."""
    found: list[str] = []
    if "pretrain" not in recipe.stages:
        return found
    ratio = recipe.pretrain.tokens / config.num_parameters
    if ratio < _LEAST_TOKENS_A_PARAMETER:
        found.append(
            f"{ratio:.2g} tokens a parameter is far below the 20 of compute-optimal training (Hoffmann et al. 2022): "
            "a smaller model would learn more in this time"
        )
    if ratio > _MOST_TOKENS_A_PARAMETER:
        found.append(
            f"{ratio:,.0f} tokens a parameter is far above the 20 of compute-optimal training (Hoffmann et al. 2022): a larger model "
            "would learn more in this time, though it would be dearer to run"
        )
    found += _repeats(recipe, tokens)
    return found


def _repeats(recipe: Recipe, tokens: dict[str, float]) -> list[str]:
    """Sources that are read more than four times; over all of them where the mixture has no weights."""
    weights = {source: recipe.pretrain.weights.get(source, 1.0) for source in tokens}
    mixture = sum(tokens[source] * weight for source, weight in weights.items())
    if not mixture:
        return []
    epochs = recipe.pretrain.tokens / mixture
    said = []
    for source, weight in weights.items():
        if epochs * weight > _MOST_REPEATS:
            said.append((source, epochs * weight))
    if not said:
        return []
    text = (
        f"all data is read {epochs:.1f} times"
        if len(said) == len(weights) and len({round(times, 3) for _, times in said}) == 1
        else ", ".join(f"{source} is read {times:.1f} times" for source, times in said)
    )
    return [f"{text}: beyond about four, more repetition teaches little (Muennighoff et al. 2023); give more text"]


def fits_everywhere(plans: Sequence[StagePlan], config: ModelConfig, machine: Machine) -> tuple[str, str] | None:
    """(stage, remedy) of the first stage that does not fit; None where all do."""
    for plan in plans:
        found = does_not_fit(plan, config, machine)
        if found is not None:
            return plan.stage, found
    return None
