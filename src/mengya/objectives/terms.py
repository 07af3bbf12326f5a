"""What every objective returns: a loss *sum* and its count, so that splitting a batch cannot change the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

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


_CHUNK_VALUES = 2**19
"""Logits handled together on a CPU: as float32 they stay in the second-level cache (2 MB)."""
_BLOCK_VALUES = 2**26
"""Logits in memory together in `linear_cross_entropy`: 128 MB in bf16."""


def _chunks(logits_NV: Tensor) -> list[slice]:
    """Rows to handle together: few on a CPU, where a pass over memory costs more than a call; all on a GPU."""
    num_rows, V = logits_NV.shape
    size = max(1, _CHUNK_VALUES // V) if logits_NV.device.type == "cpu" else max(1, num_rows)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _TokenLogps(torch.autograd.Function):
    """log p of a token a row; no float32 tensor of the logits' size is ever whole in memory."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
        normaliser_N = torch.empty(len(tokens_N), device=logits_NV.device)
        for rows in _chunks(logits_NV):
            normaliser_N[rows] = logits_NV[rows].float().logsumexp(-1)
        ctx.save_for_backward(logits_NV, tokens_N, normaliser_N)
        return logits_NV.gather(1, tokens_N[:, None]).squeeze(1).float() - normaliser_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits_NV, tokens_N, normaliser_N = ctx.saved_tensors
        (gradient_N,) = gradients
        d_logits_NV = torch.empty_like(logits_NV)
        for rows in _chunks(logits_NV):
            p = (logits_NV[rows].float() - normaliser_N[rows, None]).exp_().mul_(-gradient_N[rows, None])
            p.scatter_add_(1, tokens_N[rows, None], gradient_N[rows, None])
            d_logits_NV[rows] = p.to(d_logits_NV.dtype)
        return d_logits_NV, None


def token_logps(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log p of each token, in nats, shape (N); computed in fp32 whatever the logits' type."""
    logps_N: Tensor = _TokenLogps.apply(logits_NV, tokens_N)
    return logps_N


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is made with the loss, while a block's logits are at hand: they are computed once and never kept.

    Beside the products, (4,096, 6,400) logits in bf16 take about 25 ms of a step on two cores; log_softmax in float32,
    its gradient and the zeros and casts around them took 88.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, needs_gradient: bool, compiled: bool
    ) -> Tensor:
        losses_to_gradients = _compiled_losses_to_gradients() if compiled else _losses_to_gradients
        w_VC = weight_VC.to(x_NC.dtype)
        num_rows, V = len(targets_N), len(w_VC)
        loss = torch.zeros((), device=x_NC.device)
        d_x_NC = torch.empty_like(x_NC) if needs_gradient else None
        d_w_VC: Tensor | None = None
        size = max(1, _BLOCK_VALUES // V)
        for start in range(0, num_rows, size):
            block = slice(start, min(start + size, num_rows))
            x, targets = x_NC[block], targets_N[block]
            logits = x @ w_VC.mT
            for rows in _chunks(logits):
                loss += losses_to_gradients(logits[rows], targets[rows]).sum()
            if d_x_NC is not None:
                torch.mm(logits, w_VC, out=d_x_NC[block])
                d_w = (logits.mT @ x).float()
                d_w_VC = d_w if d_w_VC is None else d_w_VC.add_(d_w)
        if d_x_NC is not None:
            ctx.save_for_backward(d_x_NC, torch.zeros_like(weight_VC) if d_w_VC is None else d_w_VC)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_x_NC, d_w_VC = ctx.saved_tensors
        return d_x_NC * gradients[0].to(d_x_NC.dtype), d_w_VC * gradients[0], None, None, None


def _losses_to_gradients(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """−log p of the targets in float32; the logits become, in place, the gradient p − [is target]."""
    target_R1 = targets_R[:, None]
    logit_R, highest_R = logits_RV.gather(1, target_R1).squeeze(1).float(), logits_RV.amax(-1).float()
    p_RV = logits_RV.float().softmax(-1)
    # Through the largest probability, at least 1 / V, and not the target's own, which may underflow to 0.
    losses_R = highest_R - p_RV.amax(-1).log() - logit_R
    logits_RV.copy_(p_RV)
    # In float32 before it is rounded: p − 1 of a sure token has no digits left in bf16.
    logits_RV.scatter_(1, target_R1, torch.expm1(-losses_R)[:, None].to(logits_RV.dtype))
    return losses_R


def _losses_to_gradients_in_one_pass(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """`_losses_to_gradients` for the compiler of a GPU: two readings of the logits and one writing, no float32 copy.

    A difference of 1e-6 nats in the loss of a sure token, for which the other takes care, is below bf16's.
    """
    normaliser_R = logits_RV.float().logsumexp(-1)
    losses_R = normaliser_R - logits_RV.gather(1, targets_R[:, None]).squeeze(1).float()
    is_target_RV = torch.arange(logits_RV.shape[1], device=logits_RV.device) == targets_R[:, None]
    p_RV = (logits_RV.float() - normaliser_R[:, None]).exp()
    logits_RV.copy_(torch.where(is_target_RV, torch.expm1(-losses_R)[:, None], p_RV))
    return losses_R


@cache
def _compiled_losses_to_gradients() -> Callable[[Tensor, Tensor], Tensor]:
    # For any number of rows: a batch's last block has what is left.
    return torch.compile(_losses_to_gradients_in_one_pass, dynamic=True)


def linear_cross_entropy(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, compiled: bool = False) -> Tensor:
    """−Σ log p(target) in nats where the logits are x Wᵀ, in the dtype of x; softmax and sum in float32.

    `compiled`: with a kernel made by torch.compile, on a GPU. (torch 2.13's own `linear_cross_entropy` keeps what ours
    does not, and is not in 2.11.)
    """
    compiled = compiled and x_NC.device.type != "cpu"
    needs_gradient = torch.is_grad_enabled() and (x_NC.requires_grad or weight_VC.requires_grad)
    loss: Tensor = _LinearCrossEntropy.apply(x_NC, weight_VC, targets_N, needs_gradient, compiled)
    return loss
