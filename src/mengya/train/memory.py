"""Bytes that a training stage needs, part by part, from shapes alone: what `mengya plan` and `micro_batch: auto` go by.

No torch here. The formulas count what autograd keeps of `model.transformer`; `tests/unit/test_memory.py` holds them
against what it really keeps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from mengya.model.config import ModelConfig
from mengya.settings import (
    DPOSettings,
    GRPOSettings,
    PPOSettings,
    PretrainSettings,
    RewardSettings,
    RolloutSettings,
    SFTSettings,
    TrainSettings,
)

GIB = 2**30
BYTES_OF_PROCESS = {"cpu": 0.35 * GIB, "cuda": 0.6 * GIB}
"""Python with torch loaded (resident, measured); a CUDA context with its kernels (assumed)."""
_BLOCK_ROWS = 128
"""Query rows of a block of the CPU's attention (`model.documents`)."""
_OVER_KEPT = {"cpu": 1.6, "cuda": 1.25}
"""Peak over what autograd keeps: gradients on their way back, and holes in the allocator's memory. On a CPU, where freed memory is
kept (`train.parallel`), measured on 26m: 0.68 GiB for 1,024 tokens more in fp32, where 0.42 are kept. On CUDA assumed."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step. `weights` holds copies in the compute type and frozen models as well."""

    process: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def fixed(self) -> float:
        """What no smaller micro-batch can save."""
        return self.process + self.weights + self.gradients + self.optimizer


def matrix_parameters(config: ModelConfig) -> int:
    """Weights inside the layers that Muon moves: all but the gains of the norms."""
    norms = 2 * config.width + (2 * config.head_width if config.qk_norm else 0)
    return config.num_layers * (config.num_layer_parameters - norms)


def optimizer_bytes(settings: TrainSettings, config: ModelConfig) -> float:
    """Of state: AdamW keeps two fp32 moments, Muon one for its matrices."""
    if settings.optimizer == "adamw":
        return 8.0 * config.num_parameters
    matrices = matrix_parameters(config)
    return 4.0 * matrices + 8.0 * (config.num_parameters - matrices)


def update_bytes(settings: TrainSettings, config: ModelConfig) -> float:
    """While Muon turns the matrices of one shape together: fp32 directions and four bf16 products of them. Activations are gone
    by then. The largest shape is gate and up of every layer.
    """
    return (4.0 + 4 * 2) * 2 * config.num_layers * config.width * config.ffn_width * (settings.optimizer == "muon")


def activation_bytes(
    config: ModelConfig, rows: int, length: int, *, dtype_bytes: int, device: str, checkpointing: bool = False
) -> float:
    """Kept for the backward pass of `rows` sequences of `length` tokens, the output projection not counted.

    A layer keeps the normalised inputs and the outputs of its norms (4 widths; of q and k as well where they have norms),
    q and the attention's output, k and v, gate, up and their product, and on a CPU the softmax of every score that
    causality leaves (on CUDA the fused kernels recompute it: Dao 2023). With `checkpointing`, only each layer's input,
    and one layer at a time in full.
    """
    queries, keys = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    numbers: float = 4 * config.width + 2 * queries + 2 * keys + 3 * config.ffn_width
    numbers += (queries + keys) * config.qk_norm
    if device == "cpu":
        numbers += config.num_heads * min(length, (length + _BLOCK_ROWS) / 2)
    else:
        numbers += 2 * config.num_heads  # log-sum-exp in fp32
    layer = (numbers + 2) * dtype_bytes  # a norm keeps its factor of each token, too
    layers = config.num_layers * config.width * dtype_bytes + layer if checkpointing else config.num_layers * layer
    # On a CPU the places of every head's vectors among the documents (`model.documents`), else T × T.
    mask = 16 * (config.num_heads + config.num_kv_heads + 1) if device == "cpu" else length * (1 + dtype_bytes)
    embedding = config.width * (4 + dtype_bytes)
    return float(rows * length * (layers + mask + embedding))


def logits_bytes(config: ModelConfig, positions: float, dtype_bytes: int) -> float:
    """Of the loss at so many positions: logits, their fp32 copy and log-softmax, and the gradient, not all at once."""
    return positions * config.vocab_size * (2 * dtype_bytes + 8.0)


def rows_of_micro_batch(settings: TrainSettings, micro_batch: int) -> tuple[int, float]:
    """(sequences, positions at which logits are made) of a micro-batch in the stage's unit, at worst."""
    length = settings.sequence_length  # type: ignore[attr-defined]
    if isinstance(settings, PretrainSettings | SFTSettings):
        rows = max(1, micro_batch // length)
        return rows, float(rows * length)
    if isinstance(settings, RolloutSettings):
        return micro_batch, float(micro_batch * settings.max_new_tokens)
    return 2 * micro_batch, float(2 * micro_batch * length) if isinstance(settings, DPOSettings) else 0.0


def _models(settings: TrainSettings) -> tuple[int, int]:
    """(models that learn, copies of one that do not) of a stage."""
    if isinstance(settings, PPOSettings):
        return 2, 3  # policy and values; reference, rewards, best policy
    if isinstance(settings, GRPOSettings):
        return 1, 2 + any(term.kind == "model" for term in settings.rewards)
    return 1, 0


def training_memory(
    settings: TrainSettings,
    config: ModelConfig,
    micro_batch: int,
    *,
    dtype_bytes: int = 2,
    device: str = "cpu",
    shards: int = 1,
    checkpointing: bool = False,
) -> Memory:
    """Memory of one process at the peak of a step with `micro_batch` (in the stage's unit) of the longest sequences.

    `shards`: processes among which weights, gradients and optimizer are divided (FSDP; Zhao et al. 2023); one layer in full is
    there besides.
    """
    parameters = config.num_parameters
    rows, positions = rows_of_micro_batch(settings, micro_batch)
    length = settings.sequence_length  # type: ignore[attr-defined]
    learning, frozen = _models(settings)
    casts = float(dtype_bytes * parameters) if dtype_bytes < 4 else 0.0
    weights = 4.0 * parameters * (learning + frozen) / shards + casts / shards
    gathered = (
        0.0 if shards == 1 else 2.0 * dtype_bytes * (config.num_layer_parameters + config.vocab_size * config.width)
    )
    logits = logits_bytes(config, positions, dtype_bytes)
    if isinstance(settings, RolloutSettings):
        logits *= 2  # the entropy of each prediction is made beside its log-probability
    if isinstance(settings, RewardSettings):
        logits = 0.0
    activations = activation_bytes(
        config, rows, length, dtype_bytes=dtype_bytes, device=device, checkpointing=checkpointing
    )
    activations, logits = activations * _OVER_KEPT[device], logits * _OVER_KEPT[device]
    return Memory(
        BYTES_OF_PROCESS[device],
        weights + gathered,
        4.0 * parameters / shards,  # one model's at a time: PPO's two take turns
        learning * optimizer_bytes(settings, config) / shards,
        max(activations, update_bytes(settings, config) - logits),
        logits,
    )


def divisors(number: int) -> list[int]:
    """Of the whole numbers that divide it, largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def micro_batch_choices(settings: TrainSettings, ranks: int = 1) -> list[int]:
    """Micro-batches that split a rank's share of a step evenly, in the stage's unit, largest first: the effective batch
    never changes. (A GRPO step has fewer rows where prompts taught nothing.)
    """
    if isinstance(settings, PretrainSettings | SFTSettings):
        length = settings.sequence_length
        return [rows * length for rows in divisors(max(1, settings.batch_tokens // length // ranks))]
    if isinstance(settings, RolloutSettings):
        answers = settings.batch_prompts * (settings.group_size if isinstance(settings, GRPOSettings) else 1)
        return divisors(-(-answers // (settings.minibatches * ranks)))
    return divisors(max(1, settings.batch_pairs // ranks))  # type: ignore[attr-defined]


def largest_micro_batch(
    settings: TrainSettings,
    config: ModelConfig,
    available: float,
    *,
    dtype_bytes: int = 2,
    device: str = "cpu",
    shards: int = 1,
    checkpointing: bool = False,
    ranks: int = 1,
) -> int | None:
    """The largest even split of a step that fits into `available` bytes, by the estimate; None when none does."""
    for choice in micro_batch_choices(settings, ranks):
        needed = training_memory(
            settings,
            config,
            choice,
            dtype_bytes=dtype_bytes,
            device=device,
            shards=shards,
            checkpointing=checkpointing,
        )
        if needed.total <= available:
            return choice
    return None


def machine_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or its control group's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total
