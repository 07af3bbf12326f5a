"""Functions whose gradient is written by hand, where autograd walks through more memory than the formula needs.

On a CPU a training step of a small model is bound by passes over memory as soon as its products are in bf16. Every function
here works in the dtype of its input and keeps in float32 what is reduced; in float32 it is exact to rounding. Shares in the
comments are of a bf16 step of 4,096 tokens, width 256, 6 layers, on one thread (docs/LOG.md has the table).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def by_hand(x: Tensor) -> bool:
    """Whether the gradients of this module are the faster ones for x: on a CPU.

    A GPU gets the plain formulas, for which PyTorch has fused kernels (`rms_norm`), and out of which torch.compile makes
    kernels of its own, choosing what to keep and what to compute again; a gradient by hand would choose for it.
    """
    return x.device.type == "cpu"


class _ResidualNorm(torch.autograd.Function):
    """(s / rms(s) · weight, s) with s = x + delta. Gradients in bf16 and the sum inside: 7%."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor | None, weight_C: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        s = x.view_as(x) if delta is None else x + delta
        # vector_norm reads bf16 and adds up in float32 without a copy of s.
        rms = torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(s.shape[-1])
        inverse_rms = rms.add_(epsilon).rsqrt_()
        normal = (s * inverse_rms).to(s.dtype)
        weight_C = weight_C.to(s.dtype)
        ctx.save_for_backward(normal, inverse_rms.to(s.dtype), weight_C)
        ctx.has_delta = delta is not None
        return normal * weight_C, s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        d_y, d_s = gradients
        n, inverse_rms, w = ctx.saved_tensors
        d_y_n = d_y * n
        # With u = d_y · w:  d_s += (u - n · mean(u · n)) / rms.
        mean = (d_y_n @ w).unsqueeze(-1).div_(n.shape[-1])
        u = (d_y * w).addcmul_(n, mean, value=-1)
        d_x = torch.addcmul(d_s, u, inverse_rms)
        return d_x, d_x if ctx.has_delta else None, d_y_n.flatten(0, -2).sum(0).float(), None


def residual_norm(x: Tensor, delta: Tensor | None, weight_C: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(normalised, s): s = x + delta (x itself without delta), normalised = s / rms(s) · weight, the mean in float32."""
    if not by_hand(x):
        s = x if delta is None else x + delta
        return F.rms_norm(s, weight_C.shape, weight_C.to(s.dtype), epsilon), s
    normalised, s = _ResidualNorm.apply(x, delta, weight_C, epsilon)
    return normalised, s


class _Projections(torch.autograd.Function):
    """x W₁ᵀ, x W₂ᵀ, …: the gradients for x are added up inside the products, not in passes of their own: 4%."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        cast = [weight.to(x.dtype) for weight in weights]
        ctx.save_for_backward(x, *cast)
        ctx.dtypes = [weight.dtype for weight in weights]
        return tuple(F.linear(x, weight) for weight in cast)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        x_NI = x.flatten(0, -2)
        d_x_NI: Tensor | None = None
        d_weights = []
        for gradient, weight, dtype in zip(gradients, weights, ctx.dtypes, strict=True):
            d_y_NO = gradient.flatten(0, -2)
            d_x_NI = d_y_NO @ weight if d_x_NI is None else d_x_NI.addmm_(d_y_NO, weight)
            d_weights.append((d_y_NO.mT @ x_NI).to(dtype))
        assert d_x_NI is not None
        return d_x_NI.view_as(x), *d_weights


def projections(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x Wᵀ for each of the weights (out, in), in the dtype of x."""
    # Decoding: a token's products cost less than the function around them.
    if not torch.is_grad_enabled() or not by_hand(x):
        return tuple(F.linear(x, weight.to(x.dtype)) for weight in weights)
    products: tuple[Tensor, ...] = _Projections.apply(x, *weights)
    return products


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up alone: a tensor less a layer. silu(gate) is made again for its gradient, which costs no time."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (d_y,) = gradients
        d_up = F.silu(gate).mul_(d_y)
        return torch.ops.aten.silu_backward(d_y * up, gate), d_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    if not by_hand(gate):
        return F.silu(gate) * up
    y: Tensor = _SwiGLU.apply(gate, up)
    return y
