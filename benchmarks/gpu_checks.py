"""Whether a GPU computes what it should: the parts of gpu.py that do not measure speed. Each gives numbers and "ok"."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mengya.data.packing import PackedBatch
from mengya.model.attention import AttentionMask, _attend_eager, attend, has_flex_kernel
from mengya.model.config import ModelConfig
from mengya.model.presets import preset
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.train.compiled import compile_layers
from mengya.train.loop import fit
from mengya.train.parallel import World
from train_throughput import Shape, mengya_step, packed_batch, train_settings

DOCUMENTS = 3
SMALL = {"vocab_size": 6400, "width": 256, "num_layers": 6, "num_heads": 4, "ffn_width": 832, "max_positions": 256}
TINY = {"vocab_size": 64, "width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96}


@dataclass(frozen=True)
class Machine:
    """What is measured, and how large the shapes are."""

    world: World
    tiny: bool
    rounds: int

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def backend(self) -> str:
        return "eager" if self.tiny else "inductor"

    def shape(self, name: str, rows: int, row_length: int) -> Shape:
        if self.tiny:
            return Shape(ModelConfig(max_positions=256, **TINY), 2, 128)
        return Shape(preset(name, 32000), rows, row_length)

    @property
    def small(self) -> Shape:
        return self.shape("", 0, 0) if self.tiny else Shape(ModelConfig(**SMALL), 16, 256)

    def batch(self, shape: Shape) -> PackedBatch:
        return packed_batch(shape, DOCUMENTS, self.device)


def attention(machine: Machine) -> dict[str, Any]:
    B, H, K, T, D = (2, 4, 2, 256, 16) if machine.tiny else (4, 16, 4, 1024, 64)
    shape = Shape(ModelConfig(**SMALL), B, T)
    documents_BT = packed_batch(shape, DOCUMENTS, machine.device).documents_BT
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(B, heads, T, D, generator=generator).to(machine.device) for heads in (H, K, K, H)]
    on_cpu = AttentionMask.dense(documents_BT.cpu(), torch.float32)
    assert on_cpu.bias_BTS is not None
    bias_BTS = on_cpu.bias_BTS.to(machine.device)
    exact = _with_gradients(lambda q, k, v: _attend_eager(q, k, v, bias_BTS, causal=True), numbers)
    dtype = machine.world.dtype
    masks = {"sdpa": AttentionMask.dense(documents_BT, dtype)}
    if has_flex_kernel(machine.device, T, D):
        masks["flex"] = AttentionMask.packed(documents_BT, dtype, blocks=True)
    found: dict[str, Any] = {}
    for name, mask in masks.items():
        attention = torch.compile(attend, dynamic=False) if name == "flex" else attend
        inputs = [x.to(dtype) for x in numbers]
        first, again = (_with_gradients(lambda q, k, v, a=attention, m=mask: a(q, k, v, m), inputs) for _ in "12")
        errors = [((a - e).abs().max() / e.abs().max()).item() for a, e in zip(first, exact, strict=True)]
        found[name] = {
            "largest_error": dict(zip(("y", "d_q", "d_k", "d_v"), (round(e, 5) for e in errors), strict=True)),
            "same_bits_twice": all(map(torch.equal, first, again)),
            "ok": max(errors) < 0.03,
        }
    return found


def _with_gradients(attention: Callable[..., Tensor], numbers: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of q, k and v in float32; the last of the numbers is the result's gradient."""
    inputs = [x.detach().clone().requires_grad_() for x in numbers[:3]]
    y_BTHD = attention(*inputs)
    gradients = torch.autograd.grad(y_BTHD, inputs, numbers[3].transpose(1, 2))
    return [x.detach().float() for x in (y_BTHD, *gradients)]


def waits(machine: Machine) -> dict[str, Any]:
    if machine.device.type != "cuda":
        return {"skipped": "no GPU"}
    shape = machine.small
    step, _ = mengya_step(
        shape.config, [machine.batch(shape)] * 2, machine.world, compiled=True, backend=machine.backend
    )
    for _ in range(2):
        step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    return {"waits_a_step": len(messages), "ok": len(messages) <= 1}


def curves(machine: Machine) -> dict[str, Any]:
    shape, steps = machine.small, 4 if machine.tiny else 20
    losses = {}
    on_cpu = World(0, 1, torch.device("cpu"), torch.float32)
    for name, world, compiled in (("cpu_fp32", on_cpu, False), ("here", machine.world, True)):
        batch = packed_batch(shape, DOCUMENTS, world.device)
        step, _ = mengya_step(shape.config, [batch], world, compiled=compiled, backend=machine.backend)
        losses[name] = [step()[0] for _ in range(steps)]
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    ends = {name: [round(curve[0], 4), round(curve[-1], 4)] for name, curve in losses.items()}
    return {"first_and_last": ends, "furthest_apart": round(apart, 4), "ok": apart < 0.05}


def resume(machine: Machine) -> dict[str, Any]:
    shape = machine.small
    with tempfile.TemporaryDirectory() as folder:
        whole = _fitted(machine, shape, Path(folder) / "whole", None)
        again = _fitted(machine, shape, Path(folder) / "again", None)
        _fitted(machine, shape, Path(folder) / "stopped", 5)
        resumed = _fitted(machine, shape, Path(folder) / "stopped", None)
    same = [torch.equal(whole[name], resumed[name]) for name in whole]
    repeatable = all(torch.equal(whole[name], again[name]) for name in whole)
    return {"same_bits": all(same), "tensors": len(same), "repeatable": repeatable, "ok": all(same)}


def _fitted(machine: Machine, shape: Shape, directory: Path, stop_after: int | None) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = Transformer(shape.config, machine.world.dtype).to(machine.device)
    compile_layers(model, backend=machine.backend)
    settings = train_settings("muon")
    vars(settings).update(checkpoint_every=3, keep_checkpoints=2, log_every=8, spike_sigmas=None, rewind_after=9)
    vars(settings).update(max_rewinds=0, rewind_rate=1.0, schedule="constant", warmup_fraction=0.0)
    try:
        fit(
            model,
            Tokens(shape, stop_after),
            next_token_loss,
            settings,
            num_steps=8,
            directory=directory,
            world=machine.world,
        )
    except Stopped:
        return {}
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class Stopped(Exception):
    """What ends a training early."""


class Tokens:
    """A loader of random steps of two micro-batches; it stops after `stop_after` of them."""

    def __init__(self, shape: Shape, stop_after: int | None) -> None:
        self.shape, self.stop_after, self.step = shape, stop_after, 0

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        while self.step != self.stop_after:
            self.step += 1
            batch = packed_batch(self.shape, DOCUMENTS, torch.device("cpu"), seed=self.step)
            yield [batch, batch]
        raise Stopped

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
