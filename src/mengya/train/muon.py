"""Muon with the matrices of one shape orthogonalised together: PyTorch's own, to the last bit, in six tenths of the time.

A small model has many small matrices, and a product of 192 × 192 costs as much in calls as in arithmetic: at 2.8 M parameters
(35 matrices, 2 cores) a step takes 45 ms instead of 73, of 400 that the gradient takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mengya.train.sharding import full, like


def orthogonalised(
    matrices_NIO: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, in bfloat16: Newton–Schulz by a quintic (Jordan et al. 2024, Muon).

    The singular values end between about 0.7 and 1.2, which is all that an update needs.
    """
    a, b, c = coefficients
    tall = matrices_NIO.shape[1] > matrices_NIO.shape[2]
    x = matrices_NIO.bfloat16()
    x = x.mT if tall else x
    # One by one: a norm over a batch adds up in another order, and the last bit is promised.
    norms_N = torch.stack([matrix.norm() for matrix in x])
    x = x / norms_N.clamp(min=epsilon)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with another order of work: momentum, then all matrices of a shape at once, then the update."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop computes gradients before it steps"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] is None, "only the rule of Jordan et al. is here: rate · √(rows / columns)"
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            by_shape: defaultdict[torch.Size, list[int]] = defaultdict(list)
            for i, (gradient, momentum) in enumerate(zip(gradients, momenta, strict=True)):
                momentum.lerp_(gradient, 1 - group["momentum"])
                by_shape[gradient.shape].append(i)
            for shape, members in by_shape.items():
                directions = [
                    gradients[i].lerp(momenta[i], group["momentum"]) if group["nesterov"] else momenta[i]
                    for i in members
                ]
                updates = orthogonalised(
                    torch.stack([full(direction) for direction in directions]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                for i, update in zip(members, updates, strict=True):
                    parameters[i].mul_(1 - group["lr"] * group["weight_decay"])
                    parameters[i].add_(like(update, parameters[i]), alpha=-rate)
