"""One optimizer step over micro-batches and ranks: all that RL needs of the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mengya.objectives.terms import Terms
from mengya.train.loss_scale import LossScale
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.sharding import clip_gradients, summed_gradients, synchronise_gradients
from mengya.train.stability import why_not_finite

Objective = Callable[[Any, Any], Terms]


@dataclass
class StepResult:
    """`loss` is the mean over the step's whole batch on all ranks; `micro_losses` are those of this rank's micro-batches.

    `skipped` says why nothing was changed, None where the step was taken; `overflow` that only fp16's loss scale, which
    has been lowered, was to blame.
    """

    loss: float
    count: int
    grad_norm: float
    skipped: str | None
    overflow: bool = False
    means: dict[str, float] = field(default_factory=dict)
    micro_losses: list[Tensor] = field(default_factory=list)


def optimizer_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: Sequence[Any],
    objective: Objective,
    *,
    rate: float,
    gradient_clip: float,
    world: World,
    why_bad: Callable[[float, float], str | None] = why_not_finite,
) -> StepResult:
    """One optimizer step over `micro_batches`: the gradient of Σ loss / Σ count, over micro-batches and ranks.

    Gradients of sums are added up and divided once by the global count, so the result does not depend on the split.
    A step that `why_bad(loss, gradient norm)` objects to changes nothing, on all ranks together. In fp16 the loss is
    scaled for the backward pass.

    A GPU is waited for once, when loss and norm are read to decide that; by several ranks twice, as the global count is
    known to none of them before it is summed.
    """
    if world.dtype == torch.float16 and optimizer.loss_scale is None:
        optimizer.loss_scale = LossScale()
    scale = optimizer.loss_scale
    loss_sum = torch.zeros((), device=world.device)
    sums: dict[str, Tensor] = {}
    micro_losses = []
    count = 0
    for number, batch in enumerate(micro_batches):
        synchronise_gradients(model, now=number == len(micro_batches) - 1)
        terms = objective(model, batch.to(world.device))
        (terms.loss_sum if scale is None else terms.loss_sum * scale.value).backward()
        loss_sum += terms.loss_sum.detach()
        count += terms.count
        micro_losses.append(terms.loss_sum.detach() / max(terms.count, 1))
        for name, value in terms.sums.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value.detach()
    totals = torch.stack([loss_sum.float(), torch.full((), float(count), device=world.device), *sums.values()])
    gradients = summed_gradients(optimizer.parameters, totals, world)
    total = float(count) if world.size == 1 else totals[1].item()
    torch._foreach_mul_(gradients, 1.0 / (max(total, 1.0) * (1.0 if scale is None else scale.value)))
    norm_scalar = clip_gradients(optimizer.parameters, gradient_clip)
    all_loss, _, *all_sums, norm = torch.cat([totals, norm_scalar.reshape(1).to(totals)]).tolist()
    loss = all_loss / max(total, 1.0)
    means = {name: value / max(total, 1.0) for name, value in zip(sums, all_sums, strict=True)}
    skipped = why_bad(loss, norm)
    if world.any(skipped is not None):
        skipped = skipped or "another rank skips it"
    else:
        optimizer.step(rate)
    optimizer.zero_grad()
    overflow = scale is not None and scale.update(not math.isfinite(norm)) and math.isfinite(loss)
    return StepResult(loss, int(total), norm, skipped, overflow, means, micro_losses)
