"""A model over many processes: `parallelize` returns the same object, replicated or sharded, and the loop need not know.

Replicated: every rank holds all of the model; gradients are summed once a step. Sharded (FSDP2, after Rajbhandari et
al. 2020, ZeRO, and Zhao et al. 2023): parameters, gradients and optimizer state are divided over `shard` ranks, a layer
is gathered when it is used; over `replicate` such groups the gradients are summed as well. Either way the loop gets sums
over all ranks, never means: it divides once by the global count.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mengya.errors import UserError
from mengya.train.compiled import compile_layers, is_compiled
from mengya.train.parallel import World

if TYPE_CHECKING:
    from mengya.settings import ParallelSettings

Model = TypeVar("Model", bound=nn.Module)

STATE_BYTES_A_PARAMETER = 16
"""fp32 weight, its gradient and two moments."""


def num_shards(
    settings: ParallelSettings, size: int, local_size: int, state_bytes: int, device_bytes: int | None
) -> int:
    """Over how many ranks one copy of the training state is divided; `size / num_shards` copies there are.

    auto: 1 where the state takes at most half of a device's memory (the rest is for activations) or on CPUs
    (`device_bytes` None), whose ranks share their memory anyhow; else the ranks of one host, whose links are fast; else
    all ranks. UserError when the recipe's numbers do not multiply to `size`.
    """
    shard, replicate = settings.shard, settings.replicate
    if shard == "auto" and replicate is not None:
        shard = size // replicate if size % replicate == 0 else 0
    elif shard == "auto":
        fits = [
            n
            for n in (1, local_size)
            if device_bytes is None or (state_bytes / n <= device_bytes / 2 and size % n == 0)
        ]
        shard = fits[0] if fits else size
    if shard == 0 or size % shard or (replicate is not None and shard * replicate != size):
        said = f"shard {settings.shard}" + (f" × replicate {replicate}" if replicate is not None else "")
        raise UserError(
            f"{said} does not make {size} ranks", where="parallel", mend="set parallel.shard: auto and no replicate"
        )
    return shard


def parallelize(model: Model, world: World, settings: ParallelSettings, *, flops: float = 0.0) -> Model:
    """`model` itself, ready to be trained on all ranks; with activation checkpointing where the recipe asks for it.

    Before an optimizer is made, and with the same weights on every rank. `flops` of a training on rows of one length say
    whether its layers are compiled (`train.compiled`); 0 where the length changes at every step, which would compile on and on.
    """
    if flops and is_compiled(settings.compile, world.device, flops / world.size):
        compile_layers(model)
    layers: Sequence[nn.Module] = model.get_submodule("model.layers")  # type: ignore[assignment]
    if settings.activation_checkpointing:
        for layer in layers:
            _recompute_in_backward(layer)
    if world.size == 1:
        return model
    state_bytes = STATE_BYTES_A_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    memory = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else None
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    shard = num_shards(settings, world.size, local_size, state_bytes, memory)
    if shard > 1:
        _shard(model, layers, world, shard)
    return model


@cache
def _mesh(kind: str, replicate: int, shard: int) -> torch.distributed.DeviceMesh:
    """Neighbouring ranks, which torchrun puts on one host, share a copy."""
    from torch.distributed.device_mesh import init_device_mesh

    if replicate == 1:
        return init_device_mesh(kind, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (replicate, shard), mesh_dim_names=("replicate", "shard"))


def _shard(model: nn.Module, layers: Sequence[nn.Module], world: World, shard: int) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    # The scores are a view; nothing changes them in place, which is what the warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = _mesh(world.device.type, world.size // shard, shard)
    # Gathered in float32, cast where they are used: the same arithmetic as on one rank.
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("hidden", "scores"):  # what objectives call instead of forward
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums: the loop divides by the count of all ranks. (FSDP2 would divide by the number of ranks.)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _recompute_in_backward(layer: nn.Module) -> None:
    """Keep only the layer's input for the backward pass, and compute the rest again there (Chen et al. 2016).

    The layer stays the same object under the same name. Nothing in it draws random numbers, so none are kept.
    """
    forward = layer.forward

    def recomputed(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    layer.forward = recomputed


# ------------------------------------------------------------------------------------------------- gradients


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def shards_of(model: nn.Module) -> int:
    """Over how many ranks the model is divided; 1 where every rank has all of it."""
    meshes = (parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh"))
    return next((int(mesh.size(mesh.ndim - 1)) for mesh in meshes), 1)


def synchronise_gradients(model: nn.Module, now: bool) -> None:
    """Before a backward: whether its gradients are summed over the ranks. Only a step's last need be."""
    if is_sharded(model):
        model.set_requires_gradient_sync(now)  # type: ignore[operator]


def summed_gradients(parameters: Sequence[Tensor], totals: Tensor, world: World) -> list[Tensor]:
    """The gradients, and in place `totals`, summed over all ranks; sharded ones were summed by their backward."""
    if world.size > 1:
        for parameter in parameters:
            if parameter.grad is None:  # the same list on every rank, or they would sum different things
                parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    world.sum_([*(g for g in gradients if not hasattr(g, "full_tensor")), totals])
    return gradients


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """The norm over all gradients, of all shards, before they were scaled down to at most `max_norm`; a scalar."""
    norm = full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


# -------------------------------------------------------------------------------------------- whole and shards


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank of its mesh (they all call this); others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """The whole `value` where `tensor` is, and sharded as it is; no rank sends anything. It may be `value` itself."""
    if not hasattr(tensor, "full_tensor"):
        return value.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    assert hasattr(tensor, "device_mesh")
    assert hasattr(tensor, "placements")
    local = value.to(tensor.device)
    return distribute_tensor(local, tensor.device_mesh, tensor.placements, src_data_rank=None)


def whole(model: Model) -> Model:
    """A model with all its weights on this rank, for measuring, generating and saving; an unsharded one is its own.

    All ranks call this. Of a sharded one it is a copy, without gradients, that later steps do not change.
    """
    if not is_sharded(model):
        return model
    with torch.device("meta"):
        copy: Model = type(model)(model.config, model.compute_dtype)
    weights = {name: full(tensor.detach()) for name, tensor in model.state_dict().items()}
    copy.load_state_dict(weights, strict=True, assign=True)
    return copy.requires_grad_(False).eval()


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """The whole tensors on rank 0, one by one in CPU memory where they were sharded; nothing on the others."""
    found = {}
    for name, tensor in tensors.items():
        sharded = hasattr(tensor, "full_tensor")
        value = full(tensor.detach())
        if world.is_main:
            found[name] = value.cpu() if sharded else value
    return found


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Whole `weights` into a model that may be sharded; names and shapes are those of its state_dict."""
    own = model.state_dict()
    assert own.keys() == weights.keys(), sorted(own.keys() ^ weights.keys())[:3]
    for name, tensor in own.items():
        tensor.copy_(like(weights[name], tensor))


def agreed(steps: Iterable[int | None]) -> None:
    """UserError unless every rank found the same checkpoint."""
    if len(set(steps)) > 1:
        raise UserError(
            "the ranks see different checkpoints",
            where="--out",
            mend="put the run directory on storage that all hosts share",
        )
