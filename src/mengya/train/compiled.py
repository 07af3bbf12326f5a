"""Layers made faster by torch.compile, where a training is long enough to pay for it: in place, the model stays the same object.

One layer is compiled and all use its code ("regional" compilation): seconds instead of a minute for the whole model, and
nothing else changes, neither names nor hooks. On CUDA the attention over packed documents and the cross-entropy are
compiled with them (`model.attention`, `objectives.terms`). On a CPU the gradients by hand are as fast without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from mengya.errors import UserError

_WORTH_COMPILING = 2e16
"""FLOPs of a training: about a minute on a large GPU (H100 at 40% of its peak), minutes on a small one. Compiling takes about half
a minute when nothing is in its cache; what it saves was not measured here."""


def is_compiled(choice: Literal["auto"] | bool, device: torch.device, flops: float) -> bool:
    """Whether a training of so many FLOPs is compiled; auto: a long one on a GPU for which Triton can write kernels.

    UserError where the recipe insists and no compiler is there.
    """
    if choice is False or (choice == "auto" and (device.type != "cuda" or flops < _WORTH_COMPILING)):
        return False
    missing = _missing(device)
    if missing is not None and choice is True:
        raise UserError(f"nothing can be compiled here: {missing}", where="parallel.compile", mend="set it to auto")
    return missing is None


def _missing(device: torch.device) -> str | None:
    """What torch.compile lacks: it writes C++ for a CPU, Triton for a GPU, and C to call that."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton knows no GPU as old as this one"
    if os.environ.get("CC") is None and not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))):
        return "there is no C compiler"
    return None


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Have the layers of `model` compiled as training first calls them; `options` are those of torch.compile.

    Before activations are recomputed and before the model is sharded: both stay outside of the compiled code, where the
    hooks of FSDP2 belong. Without gradients a layer runs as it is: evaluation comes with rows of every length.
    """
    decoder = model.get_submodule("model")
    layers: Sequence[nn.Module] = model.get_submodule("model.layers")  # type: ignore[assignment]
    for layer in layers:
        # A second shape (a smaller last micro-batch) gets code of its own: what is made for any shape is slower.
        _compile_training(layer, torch.compile(layer.forward, **{"dynamic": False, **options}))
    decoder.compiled = True  # type: ignore[assignment]


def _compile_training(layer: nn.Module, compiled: Callable[..., Any]) -> None:
    plain = layer.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*arguments, **named)

    layer.forward = forward
