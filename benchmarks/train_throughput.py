"""Training steps side by side: Mengya, transformers and, from checkouts, minimind and nanochat; table and JSON.

    python benchmarks/train_throughput.py [--shapes A,B] [--minimind DIR] [--nanochat DIR] [--device cuda]

A step is forward, loss, backward, clip and optimizer on 4,096 tokens (more on CUDA), all of which carry loss. Every side gets
the same tokens; Mengya's rows hold several documents that do not see each other, which the peers cannot do. All use
AdamW, but for the two rows that say Muon. On a CPU the sides take turns, step by step, so that a slow minute of the machine
hits all of them; on CUDA one follows the other, so that each has the memory for itself. Figures are medians; the
last line is one JSON object: {"A": {"tokens_per_second", "vs_best_peer", "vs_minimind", "peak_fraction", …}, …}.

Peaks are those of a bf16 matrix product, measured between the steps. "mengya" is the headline: heads 64 wide, as its presets
have them (half as many heads of twice the width: the same parameters); `vs_same_heads` compares with transformers in that
shape too. `--compile` adds Mengya with compiled layers, which is then the headline where it is faster. What is compiled is
ready after its first step, whose seconds the table shows: on two cores a minute or two for transformers, minutes for nanochat
(`--sides` leaves it out, or the rest).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does; before torch

import torch

import train_peers as peers
from mengya.data.packing import PackedBatch
from mengya.model.config import ModelConfig
from mengya.model.presets import preset
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.train.compiled import compile_layers
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World, open_world
from mengya.train.step import optimizer_step

MENGYA = ("mengya", "mengya compiled")
BEST_PEERS = (
    "transformers bf16 compiled",
    "transformers fp32",
    "minimind",
    "minimind bf16",
    "nanochat bf16",
    "nanochat bf16 compiled",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """`config` has the peers' heads; ours may be half as many of twice the width."""

    config: ModelConfig
    rows: int
    row_length: int

    @property
    def wide_heads(self) -> ModelConfig:
        """The same number of parameters in heads 64 wide or wider."""
        c = self.config
        if c.head_width >= 64 or c.num_heads % 2 or c.num_kv_heads % 2:
            return c
        return dataclasses.replace(
            c, num_heads=c.num_heads // 2, num_kv_heads=c.num_kv_heads // 2, head_width=c.head_width * 2
        )


def shapes(device: str) -> dict[str, Shape]:
    small = {"num_heads": 8, "num_kv_heads": 4}
    a = ModelConfig(vocab_size=6400, width=256, num_layers=6, ffn_width=832, max_positions=256, **small)
    b = ModelConfig(vocab_size=8192, width=512, num_layers=8, ffn_width=1664, max_positions=512, **small)
    if device == "cpu":
        return {"A": Shape(a, 16, 256), "B": Shape(b, 8, 512)}
    return {"0.2b": Shape(preset("0.2b", 32000), 32, 1024), "1.1b": Shape(preset("1.1b", 32000), 4, 2048)}


def packed_batch(shape: Shape, documents_a_row: int, device: torch.device, seed: int = 0) -> PackedBatch:
    """Random tokens; every position carries loss, as the last one of a document has the end token to predict."""
    B, T = shape.rows, shape.row_length
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, shape.config.vocab_size, (B, T), generator=generator)
    targets_BT = ids_BT.roll(-1, 1)
    ends_BN = torch.rand(B, T - 1, generator=generator).argsort(1)[:, : documents_a_row - 1] + 1
    is_start_BT = torch.zeros(B, T, dtype=torch.long).scatter_(1, ends_BN, 1)
    documents_BT = is_start_BT.cumsum(1)
    places_BT = torch.arange(T).expand(B, T)
    positions_BT = places_BT - (places_BT * is_start_BT).cummax(1).values
    batch = PackedBatch(ids_BT, targets_BT, positions_BT, documents_BT)
    return batch.to(device)


def train_settings(optimizer: str = "adamw") -> Any:
    """The defaults of `mengya.settings.TrainSettings`, without pydantic: a machine lent for measuring may have torch alone."""
    rates = {"learning_rate": 1e-3, "matrix_learning_rate": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    return SimpleNamespace(optimizer=optimizer, gradient_clip=1.0, **rates)


def mengya_step(
    config: ModelConfig,
    batches: Sequence[PackedBatch],
    world: World,
    *,
    optimizer: str = "adamw",
    compiled: bool = False,
    backend: str = "inductor",
) -> tuple[peers.Step, int]:
    """Our own step (`train.step.optimizer_step`) over these micro-batches, and the number of parameters."""
    torch.manual_seed(0)
    model = Transformer(config, world.dtype).to(world.device)
    model.train()
    if compiled:
        compile_layers(model, backend=backend)
    settings = train_settings(optimizer)
    stepper = Optimizer(model, settings)

    def step() -> tuple[float, int]:
        result = optimizer_step(
            model, stepper, batches, next_token_loss, rate=1.0, gradient_clip=settings.gradient_clip, world=world
        )
        return result.loss, result.count

    return step, config.num_parameters


def sides(
    shape: Shape, batch: PackedBatch, world: World, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], tuple[peers.Step, int]]]]:
    """(name, maker of its step) of all that are compared."""
    config, wide = shape.config, shape.wide_heads
    ids_BT, targets_BT, device = batch.ids_BT, batch.targets_BT, world.device
    yield "mengya", lambda: mengya_step(wide, [batch], world)
    if options.compile:
        yield "mengya compiled", lambda: mengya_step(wide, [batch], world, compiled=True)
    yield "mengya, Muon", lambda: mengya_step(wide, [batch], world, optimizer="muon")
    if wide != config:
        yield "mengya, the peers' heads", lambda: mengya_step(config, [batch], world)
    yield "transformers fp32", lambda: peers.transformers_step(config, ids_BT, targets_BT, bf16=False, compiled=False)
    yield "transformers bf16 compiled", lambda: peers.transformers_step(config, ids_BT, targets_BT)
    if wide != config:
        yield "transformers bf16 compiled, our heads", lambda: peers.transformers_step(wide, ids_BT, targets_BT)
    if options.minimind is not None:
        yield "minimind", lambda: peers.minimind_step(options.minimind, config, ids_BT, bf16=device.type == "cuda")
        if device.type == "cpu":
            yield "minimind bf16", lambda: peers.minimind_step(options.minimind, config, ids_BT, bf16=True)
    if options.nanochat is not None:
        arguments = (options.nanochat, config, ids_BT, targets_BT)
        yield "nanochat bf16", lambda: peers.nanochat_step(*arguments, compiled=False)
        yield "nanochat bf16 compiled", lambda: peers.nanochat_step(*arguments)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(world: World) -> float:
    """FLOP/s of one large product in the dtype that training computes in."""
    size = 2048 if world.device.type == "cpu" else 8192
    a = torch.randn(size, size, device=world.device).to(world.dtype)
    return 2 * size**3 / min(seconds(lambda: a @ a, world.device) for _ in range(3))


@dataclasses.dataclass
class Times:
    """What was measured of one side."""

    parameters: int
    first_seconds: float  # the first step, compilation included
    seconds: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    loss: float = 0.0

    def take(self, step: peers.Step, device: torch.device) -> None:
        def work() -> None:
            self.loss, self.tokens = step()

        self.seconds.append(seconds(work, device))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / statistics.median(self.seconds)


def measure(shape: Shape, world: World, options: argparse.Namespace) -> tuple[dict[str, Times], float]:
    """{side: times} and the peak FLOP/s."""
    batch = packed_batch(shape, options.documents, world.device)
    times: dict[str, Times] = {}
    steps: dict[str, peers.Step] = {}
    peaks = [peak_flops(world)]
    for name, make in sides(shape, batch, world, options):
        if not re.search(options.sides, name):
            continue
        step, parameters = make()
        times[name] = Times(parameters, seconds(step, world.device))
        seconds(step, world.device)  # the second one: allocations of the optimizer are done, code is warm
        if world.device.type == "cpu":
            steps[name] = step
            continue
        for _ in range(options.rounds):
            times[name].take(step, world.device)
        peaks.append(peak_flops(world))
        del step
        gc.collect()
        torch.cuda.empty_cache()
    for _ in range(options.rounds if steps else 0):
        for name, step in steps.items():
            times[name].take(step, world.device)
        peaks.append(peak_flops(world))
    return times, statistics.median(peaks)


def figures(times: dict[str, Times], shape: Shape, peak: float) -> dict[str, Any]:
    speed = {name: found.tokens_per_second for name, found in times.items()}
    ours = max(speed[name] for name in MENGYA if name in speed)
    best = max((speed[name] for name in BEST_PEERS if name in speed), default=None)
    same = speed.get("transformers bf16 compiled, our heads", speed.get("transformers bf16 compiled"))

    def ratio(peer: float | None) -> float | None:
        return None if peer is None else round(ours / peer, 3)

    return {
        "tokens_per_second": round(ours),
        "vs_best_peer": ratio(best),
        "vs_minimind": ratio(speed.get("minimind")),
        "vs_same_heads": ratio(same),
        "peak_fraction": round(ours * shape.config.flops_per_token(shape.row_length) / peak, 3),
        "sides": {name: round(value) for name, value in speed.items()},
    }


def print_table(name: str, shape: Shape, times: dict[str, Times], peak: float) -> None:
    c = shape.config
    print(
        f"\n{name}: width {c.width}, {c.num_layers} layers, vocabulary {c.vocab_size}, {shape.rows} rows of "
        f"{shape.row_length}; peak {peak / 1e9:,.0f} GFLOP/s",
        f"{'':40}{'parameters':>12}{'tokens/s':>10}{'spread':>14}{'of peak':>9}{'first step':>12}{'loss':>8}",
        sep="\n",
    )
    for side, found in times.items():
        slow, fast = (found.tokens / edge for edge in (max(found.seconds), min(found.seconds)))
        # The count of FLOPs is the model's own; nanochat's has other parts, so its share would be another thing.
        share = found.tokens_per_second * c.flops_per_token(shape.row_length) / peak
        shown = f"{share:9.0%}" if "nanochat" not in side else f"{'':9}"
        print(
            f"{side:40}{found.parameters / 1e6:10.2f} M{found.tokens_per_second:10,.0f}"
            f"{f'{slow:,.0f}–{fast:,.0f}':>14}{shown}{found.first_seconds:10.1f} s{found.loss:8.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", help="A,B; on CUDA 0.2b,1.1b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--documents", type=int, default=3, help="documents in each of Mengya's rows")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minimind", type=Path, metavar="DIR")
    parser.add_argument("--nanochat", type=Path, metavar="DIR")
    parser.add_argument("--compile", action="store_true", help="Mengya with compiled layers too")
    parser.add_argument("--sides", default="", metavar="REGEX", help="only the rows whose names match")
    options = parser.parse_args()
    world = open_world(options.device)
    known = shapes(options.device)
    results: dict[str, Any] = {}
    for name in (options.shapes or ",".join(known)).split(","):
        if name not in known:
            parser.error(f"unknown shape {name}; known: {', '.join(known)}")
        times, peak = measure(known[name], world, options)
        print_table(name, known[name], times, peak)
        results[name] = figures(times, known[name], peak)
        torch._dynamo.reset()
        gc.collect()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
