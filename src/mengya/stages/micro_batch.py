"""`micro_batch: auto`: the split of a step that fits this machine; the effective batch, and so the gradient, stays.

First by the estimate of `train.memory`. On CUDA, where an estimate that is wrong ends the run, a step's backward is tried on
the longest sequences before training, and the micro-batch is halved until it fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from mengya.console import say
from mengya.data.packing import PackedBatch
from mengya.data.pairs import TokenPair, pair_batch
from mengya.errors import UserError
from mengya.model.config import ModelConfig
from mengya.rl.rollout import Rollout
from mengya.settings import (
    ParallelSettings,
    PretrainSettings,
    RolloutSettings,
    SFTSettings,
    TrainSettings,
    micro_batch_key,
    micro_batch_of,
)
from mengya.train.memory import GIB, largest_micro_batch, machine_memory, micro_batch_choices, training_memory
from mengya.train.parallel import World
from mengya.train.sharding import shards_of
from mengya.train.step import Objective

S = TypeVar("S", bound=TrainSettings)

SHARE_OF_MEMORY = {"cpu": 0.7, "cuda": 0.9}
"""Of the whole that training may plan with; evaluation, data and the system take the rest on a CPU."""
FAST_ON_CPU = {"micro_batch_tokens": 4096, "micro_batch_pairs": 32, "micro_batch_rows": 64}
"""No larger on a CPU, however much fits: beyond the caches a larger split is slower (12.1 thousand tokens/s with 4,096 tokens,
10.9 with 8,192; docs/LOG.md)."""


def available_memory(world: World) -> float:
    """Bytes for this process's training. Of what is installed, not of what is free now: a resumed run must choose again
    what it chose before."""
    if world.device.type == "cuda":
        return SHARE_OF_MEMORY["cuda"] * torch.cuda.mem_get_info(world.device)[1]
    return SHARE_OF_MEMORY["cpu"] * machine_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


def estimated(
    settings: S,
    config: ModelConfig,
    available: float,
    *,
    dtype_bytes: int,
    device: str,
    shards: int = 1,
    checkpointing: bool = False,
    ranks: int = 1,
) -> S:
    """`settings` with a number for `auto`; UserError when even one sequence a backward does not fit.

    A step is divided among `ranks`, of which `shards` share a model.
    """
    key = micro_batch_key(settings)
    if getattr(settings, key) != "auto":
        return settings
    chosen = largest_micro_batch(
        settings,
        config,
        available,
        dtype_bytes=dtype_bytes,
        device=device,
        shards=shards,
        checkpointing=checkpointing,
        ranks=ranks,
    )
    if chosen is None:
        raise UserError(
            f"training needs more than the {available / GIB:.1f} GiB at hand, with one sequence a backward",
            where=key,
            mend="`mengya plan` says what would fit: a shorter sequence_length, a smaller model, or more memory",
        )
    if device == "cpu":
        fast = [choice for choice in micro_batch_choices(settings, ranks) if choice <= FAST_ON_CPU[key]]
        chosen = min(chosen, max(fast, default=chosen))
    return settings.model_copy(update={key: chosen})


def fitted(settings: S, model: nn.Module, objective: Objective, world: World, parallel: ParallelSettings) -> S:
    """`settings` with a micro-batch that fits every rank in the place of `auto`, the same on all; else as they are.

    `model` as `parallelize` gave it back. One that is divided is not tried: a rank that ran out of memory would leave
    the others waiting in a collective.
    """
    key = micro_batch_key(settings)
    if getattr(settings, key) != "auto":
        return settings
    config = model.config
    assert isinstance(config, ModelConfig)
    device = world.device.type
    shards, available = shards_of(model), available_memory(world)
    found = estimated(
        settings,
        config,
        available,
        dtype_bytes=world.dtype.itemsize,
        device=device,
        shards=shards,
        checkpointing=parallel.activation_checkpointing,
        ranks=world.size,
    )
    chosen = micro_batch_of(found)
    if device == "cuda" and shards == 1:
        free = available - training_memory(settings, config, chosen, device=device).optimizer
        choices = [choice for choice in micro_batch_choices(settings, world.size) if choice <= chosen]
        chosen = first_that_fits(choices, lambda size: _try(model, objective, settings, size, free, world), say)
    chosen = min(world.gather(chosen))
    if world.is_main:
        say(f"{key}: auto is {chosen:,} here")
    return settings.model_copy(update={key: chosen})


def first_that_fits(choices: list[int], attempt: Callable[[int], None], tell: Callable[[str], None]) -> int:
    """The first of `choices` (falling) that does not run out of memory, at most half of the one that did; UserError
    when none is left."""
    failures = 0
    size: int | None = choices[0]
    while size is not None:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            failures += 1
            torch.cuda.empty_cache()
            smaller = next((choice for choice in choices if choice <= size // 2), None)
            if smaller is not None:
                tell(f"micro-batch {size:,}: out of memory (try {failures}); trying {smaller:,}")
            size = smaller
        else:
            return size
    raise UserError(
        f"out of memory with the smallest micro-batch ({failures} tries)",
        where="micro_batch",
        mend="`mengya plan` says what would fit",
    )


def _try(model: nn.Module, objective: Objective, settings: TrainSettings, size: int, free: float, world: World) -> None:
    """One backward on the longest sequences; OutOfMemoryError also where no room would be left for the optimizer."""
    torch.cuda.reset_peak_memory_stats(world.device)
    try:
        terms = objective(model, longest_batch(settings, size, world.device))
        terms.loss_sum.backward()
    finally:
        model.zero_grad(set_to_none=True)
    if torch.cuda.max_memory_allocated(world.device) > free:
        raise torch.OutOfMemoryError("no room for the optimizer's state")


def longest_batch(settings: TrainSettings, size: int, device: torch.device) -> Any:
    """A micro-batch of `size` in the stage's unit, every sequence as long as allowed; its content is token 0."""
    length: int = settings.sequence_length  # type: ignore[attr-defined]
    if isinstance(settings, PretrainSettings | SFTSettings):
        shape = (max(1, size // length), length)
        zeros_BT = torch.zeros(shape, dtype=torch.long)
        return PackedBatch(zeros_BT, zeros_BT, torch.arange(length).expand(shape), zeros_BT).to(device)
    if isinstance(settings, RolloutSettings):
        return _longest_rollout(size, length, settings.max_new_tokens).to(device)
    zeros_T = np.zeros(length, dtype=np.int64)
    return pair_batch([TokenPair(1, zeros_T, zeros_T)], [0] * size, 0).to(device)


def _longest_rollout(rows: int, length: int, answer: int) -> Rollout:
    zeros_BA = torch.zeros(rows, answer)
    return Rollout(
        torch.zeros((rows, length), dtype=torch.long),
        torch.full((rows,), length - answer),
        torch.zeros((rows, answer), dtype=torch.long),
        torch.ones((rows, answer), dtype=torch.bool),
        *[zeros_BA] * 5,
    )
