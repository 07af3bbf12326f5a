"""The processes and the device a stage trains on: one, or as many as torchrun started, and what they say to each other.

Tensors meet in collectives (gloo between CPUs, NCCL between GPUs); words are JSON, never pickle: through a collective
where all ranks are at the same place, through the group's key-value store where some would wait longer than a
collective may.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mengya.errors import UserError

Value = TypeVar("Value")

_BUCKET_ELEMENTS = 2**25
"""Numbers a reduction carries at once, 128 MiB in float32: enough that its start costs nothing, little to copy."""


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes, each with its `device`; activations are computed in `dtype`.

    Every method is called by all ranks, in the same order. With one process they do nothing.
    """

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add up each tensor over all ranks, in place: in few large reductions, not one for each."""
        if self.size == 1:
            return
        alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            alike[tensor.device, tensor.dtype].append(tensor)
        for members in alike.values():
            for bucket in _buckets(members):
                if len(bucket) == 1 and bucket[0].is_contiguous():
                    dist.all_reduce(bucket[0])
                    continue
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                pieces = flat.split([tensor.numel() for tensor in bucket])
                torch._foreach_copy_(bucket, [p.view(t.shape) for p, t in zip(pieces, bucket, strict=True)])

    def total(self, number: int) -> int:
        """The sum of a whole number over the ranks."""
        if self.size == 1:
            return number
        counted = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(counted)
        return int(counted)

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank; the same answer on all."""
        return self.total(int(flag)) > 0

    def barrier(self) -> None:
        self.total(0)

    def gather(self, value: Any) -> list[Any]:
        """The JSON value of every rank, in their order, on all of them."""
        if self.size == 1:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(mine)
        dist.all_reduce(lengths)
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(mine)] = mine
        all_padded = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(all_padded, padded)
        return [
            json.loads(text[:length].numpy().tobytes())
            for text, length in zip(all_padded, lengths.tolist(), strict=True)
        ]

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on rank 0, which alone calls it, as JSON gives it back; the others wait however long."""
        if self.size == 1:
            return make()
        assert _group is not None
        return _group.from_main(make)


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and filled + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.numel()
    if bucket:
        yield bucket


_MEETING_SECONDS, _STORE_SECONDS = 300.0, 10.0


def _meet(store: dist.Store, rank: int, size: int) -> str:
    """A name for this start of the group, the same on all ranks and no other start's.

    torchrun keeps its store over restarts, with the addresses of processes that are gone. So the ranks first make sure
    that all of them live: each follower leaves a fresh id, rank 0 repeats the ids that it sees beside one of its own, and
    a follower that finds its id repeated acknowledges rank 0's.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + _MEETING_SECONDS
    if rank > 0:
        store.set(f"mengya/hello/{rank}", mine)
    while time.monotonic() < deadline:
        if rank == 0:
            keys = [f"mengya/hello/{follower}" for follower in range(1, size)]
            ids = [store.get(key).decode() if store.check([key]) else "" for key in keys]
            store.set("mengya/met", json.dumps([mine, *ids]))
            if all(store.check([f"mengya/{mine}/{follower}"]) for follower in range(1, size)):
                return mine
        elif store.check(["mengya/met"]):
            met = json.loads(store.get("mengya/met"))
            if len(met) == size and met[rank] == mine:
                store.set(f"mengya/{met[0]}/{rank}", "")
                return str(met[0])
        time.sleep(0.02)
    raise dist.DistNetworkError(f"rank {rank} of {size} did not meet the others in {_MEETING_SECONDS:.0f} s")


class Failed(Exception):
    """Another rank ended with this exit code, and has said why."""

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(f"rank {rank} ended with exit code {code}")
        self.rank, self.code = rank, code


class Group:
    """The processes that torchrun started together: one store of keys, and the collectives' process group.

    Rank 0 may work alone for hours (cleaning a corpus, measuring a model). No collective waits that long, so the others
    look at a key of the store from time to time, and at the key that says that a rank has failed.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        base, _, _ = next(iter(dist.rendezvous("env://", self.rank, self.size)))
        self._store = dist.PrefixStore(f"mengya/{_meet(base, self.rank, self.size)}", base)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            backend = "cpu:gloo,cuda:nccl"  # words and counts travel between CPUs also there
        store = dist.PrefixStore("c10d", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        self._number = 0

    def set_timeout(self, seconds: float) -> None:
        """How long a collective waits for the slowest rank before it is given up."""
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), dist.group.WORLD)

    def say(self, value: Any) -> None:
        """Publish the next JSON value, for the others' `hear`."""
        self._store.set(f"word/{self._number}", json.dumps(value))
        self._number += 1

    def hear(self) -> Any:
        """The next value that rank 0 publishes, however long that takes; Failed when a rank has failed meanwhile."""
        key = f"word/{self._number}"
        began = time.monotonic()
        while not self._store.check([key]):
            if self._store.check(["failed"]):
                raise self._failure(self._store.get("failed"))
            time.sleep(0.01 if time.monotonic() - began < 2 else 0.25)
        self._number += 1
        return json.loads(self._store.get(key))

    def from_main(self, make: Callable[[], Value]) -> Value:
        if self.rank == 0:
            self.say(make())
            self._number -= 1
        heard: Value = self.hear()
        return heard

    def fail(self, code: int) -> Failed | None:
        """Record that this rank ends with `code`; the record of the rank that failed first, if that is another."""
        first: list[bytes] = []

        def ask() -> None:
            with suppress(RuntimeError):
                first.append(self._store.compare_set("failed", "", json.dumps([self.rank, code])))

        # In a thread: over a dead link the store's answer may never come.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_STORE_SECONDS)
        if not first:
            raise dist.DistNetworkError("the group's store does not answer")
        failure = self._failure(first[0])
        return None if failure.rank == self.rank else failure

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(()))

    def _failure(self, record: bytes) -> Failed:
        rank, code = json.loads(record)
        return Failed(rank, code)

    def leave(self) -> None:
        """The end, for all ranks: rank 0, which may hold the store, goes last."""
        self.barrier()
        if self.rank == 0:
            while self._store.add("left", 0) < self.size - 1:
                time.sleep(0.01)
            dist.destroy_process_group()
        else:
            dist.destroy_process_group()
            self._store.add("left", 1)


_group: Group | None = None


def join_group() -> Group:
    """This process's group, joined once."""
    global _group
    if _group is None:
        _group = Group()
    return _group


def bf16_is_native(device: torch.device) -> bool:
    """Whether bf16 matrix products have hardware of their own; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
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


def open_world(
    device: str = "auto", precision: str = "auto", threads: int | None = None, timeout: float | None = None
) -> World:
    """The world of this process; joins the group that torchrun describes in the environment, once.

    `timeout`: seconds that a collective may wait for the slowest rank.
    """
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
    if size > 1:
        group = join_group()
        if timeout is not None:
            group.set_timeout(timeout)
    if precision == "bf16" and not bf16_is_native(place):
        raise UserError("this hardware has no native bf16", where="precision", mend="set precision: fp32, or auto")
    if precision == "fp16":
        if kind != "cuda":
            raise UserError("fp16 is for CUDA devices", where="precision", mend="set precision: auto on a CPU")
        return World(rank, size, place, torch.float16)
    use_bf16 = precision == "bf16" or (precision == "auto" and bf16_is_native(place))
    return World(rank, size, place, torch.bfloat16 if use_bf16 else torch.float32)
