"""The processes and the device a stage trains on: one, or as many as torchrun started."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mengya.errors import UserError


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes, each with its `device`; activations are computed in `dtype`."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add up each tensor over all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank: what all must do together is decided so."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        self.sum_([flags])
        return flags.item() > 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def bf16_is_native(device: torch.device) -> bool:
    """Whether bf16 matrix products have hardware of their own; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large activations instead of returning it to the system after every tensor.

    Each return costs a page fault a page at the next use: a fifth of a CPU training step (377 against 302 ms).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def open_world(device: str = "auto", precision: str = "auto", threads: int | None = None) -> World:
    """The world of this process; joins the group that torchrun describes in the environment, once."""
    _keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is there", where="device", mend="set device: cpu, or auto")
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    if precision == "bf16" and not bf16_is_native(place):
        raise UserError("this hardware has no native bf16", where="precision", mend="set precision: fp32, or auto")
    if precision == "fp16":
        if kind != "cuda":
            raise UserError("fp16 is for CUDA devices", where="precision", mend="set precision: auto on a CPU")
        return World(rank, size, place, torch.float16)
    use_bf16 = precision == "bf16" or (precision == "auto" and bf16_is_native(place))
    return World(rank, size, place, torch.bfloat16 if use_bf16 else torch.float32)
