"""What every objective returns: a loss *sum* and its count, so that splitting a batch cannot change the gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Terms:
    """`loss_sum` is differentiable, in nats; `count` is how many tokens, pairs or rows it sums over.

    The loop adds up gradients of sums over micro-batches and ranks and divides once by the global count: the mean over
    a step's batch, however it was split. `sums` are further numbers to report, each also divided by the count.
    """

    loss_sum: Tensor
    count: int
    sums: dict[str, Tensor] = field(default_factory=dict)


def token_logps(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log p of each token, in nats, shape (N); computed in fp32 whatever the logits' type."""
    return -torch.nn.functional.cross_entropy(logits_NV.float(), tokens_N, reduction="none")
