"""Everything about training and generating on a GPU in one call: is it right, how fast is it, how much memory does it take.

    PYTHONPATH=src python3 benchmarks/gpu.py [--only attention,0.2b] [--seconds 540]

Needs torch; transformers for the peer; no network and no file. Tokens are random, rows hold three documents.
    attention   the kernel over packed documents and its gradient against the eager product in float32
    waits       how often a step makes the host wait for the GPU (PyTorch's own debug mode tells)
    curves      20 losses on the CPU in fp32, on the GPU in bf16
    resume      a training that was stopped and resumed ends with the bits of the one that was not
    0.2b, 1.1b  tokens/s, share of the bf16 peak, peak memory; transformers' LlamaForCausalLM (bf16 autocast, torch.compile,
                fused AdamW) beside it, the sides in turns, medians
    8gb         a step of the 0.2 B model with no more than 8 GiB
    generation  tokens/s of 16 and 64 answers; transformers' `generate` beside it
Shares count what a side's attention may see: its own document here, the whole row for the peer. A part that fails is
reported and the rest goes on; parts that `--seconds` leave no time for are left out. The last line is one JSON object.
`--tiny --device cpu` proves the script where no GPU is.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gpu_checks
import train_peers as peers
from gpu_checks import Machine
from mengya.generate.engine import generate
from mengya.generate.sampling import Sampling
from mengya.model.transformer import Transformer
from mengya.train.parallel import open_world
from train_throughput import Shape, mengya_step, peak_flops, seconds

NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12, "3090": 71e12}
"""bf16 FLOP/s of the makers' data sheets, dense."""


def throughput(machine: Machine, shape: Shape, *, eager: bool = True) -> dict[str, Any]:
    config, batch = shape.config, machine.batch(shape)
    sides: dict[str, Callable[[], tuple[peers.Step, int]]] = {
        "mengya": lambda: mengya_step(config, [batch], machine.world, compiled=True, backend=machine.backend),
        "transformers": lambda: peers.transformers_step(
            config, batch.ids_BT, batch.targets_BT, compiled=not machine.tiny
        ),
    }
    if eager:
        sides["mengya eager"] = lambda: mengya_step(config, [batch], machine.world)
    steps, found, times = {}, {}, {}
    for name, make in sides.items():
        before = _memory(machine, reset=True)
        try:
            steps[name], _ = make()
            first = seconds(steps[name], machine.device)
            for _ in range(2):
                seconds(steps[name], machine.device)
        except torch.OutOfMemoryError:
            steps.pop(name, None)
            found[name] = {"failed": "out of memory"}
            continue
        found[name] = {"first_step_seconds": round(first, 1), "peak_bytes": _memory(machine) - before}
        times[name] = []
    peaks = [peak_flops(machine.world)]
    for _ in range(machine.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, machine.device))
        peaks.append(peak_flops(machine.world))
    peak, nominal = statistics.median(peaks), _nominal(machine)
    seen = int(2 * (batch.positions_BT.float().mean().item() + 1))  # positions of a full row with as much attention
    for name, taken in times.items():
        speed = batch.ids_BT.numel() / statistics.median(taken)
        flops = speed * config.flops_per_token(seen if name != "transformers" else shape.row_length)
        found[name] |= {"tokens_per_second": round(speed), "of_measured_peak": round(flops / peak, 3)}
        found[name]["of_nominal_peak"] = nominal and round(flops / nominal, 3)
    result: dict[str, Any] = {"parameters": config.num_parameters, "measured_peak": peak, **found}
    if "mengya" in times and "transformers" in times:
        ratio = found["mengya"]["tokens_per_second"] / found["transformers"]["tokens_per_second"]
        result["vs_transformers"] = round(ratio, 3)
    return result


def eight_gigabytes(machine: Machine) -> dict[str, Any]:
    if machine.device.type != "cuda":
        return {"skipped": "no GPU"}
    shape = machine.shape("0.2b", 4, 1024)
    limit = 8 * 2**30 - 0.6 * 2**30  # CUDA's own context is not PyTorch's to count
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, limit / torch.cuda.get_device_properties(machine.device).total_memory)
    )
    try:
        batches = [machine.batch(shape)] * 8
        step, _ = mengya_step(shape.config, batches, machine.world, compiled=True, backend=machine.backend)
        _memory(machine, reset=True)
        taken = [seconds(step, machine.device) for _ in range(4)][1:]
        speed = sum(batch.ids_BT.numel() for batch in batches) / statistics.median(taken)
        return {"peak_bytes": _memory(machine), "tokens_per_second": round(speed), "ok": True}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def generation(machine: Machine) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = machine.shape("0.2b", 1, 1024)
    length, answer, sizes = (8, 4, (2,)) if machine.tiny else (64, 128, (16, 64))
    torch.manual_seed(0)
    ours = Transformer(shape.config, machine.world.dtype).to(machine.device).eval()
    theirs = (
        LlamaForCausalLM(LlamaConfig(**shape.config.to_huggingface())).to(machine.device, machine.world.dtype).eval()
    )
    found = {}
    for size in sizes:
        ids_BT = torch.randint(3, shape.config.vocab_size, (size, length))
        prompts, on_device = ids_BT.tolist(), ids_BT.to(machine.device)

        def mengya(prompts: list[list[int]] = prompts, size: int = size) -> None:
            generate(ours, prompts, max_new_tokens=answer, stop_ids=(), sampling=Sampling(), batch_size=size)

        def transformers(ids: Tensor = on_device) -> None:
            limits = {"max_new_tokens": answer, "min_new_tokens": answer, "eos_token_id": None, "pad_token_id": 0}
            with torch.inference_mode():
                theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, **limits)

        taken: dict[str, list[float]] = {"mengya": [], "transformers": []}
        for _ in range(machine.rounds):
            taken["mengya"].append(seconds(mengya, machine.device))
            taken["transformers"].append(seconds(transformers, machine.device))
        speeds = {name: round(size * answer / statistics.median(times)) for name, times in taken.items()}
        found[str(size)] = {**speeds, "vs_transformers": round(speeds["mengya"] / speeds["transformers"], 2)}
    return found


def _memory(machine: Machine, *, reset: bool = False) -> int:
    """Bytes: allocated now when `reset`, else the most since then; 0 on a CPU."""
    if machine.device.type != "cuda":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats(machine.device)
        return torch.cuda.memory_allocated(machine.device)
    return torch.cuda.max_memory_allocated(machine.device)


def _nominal(machine: Machine) -> float | None:
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else ""
    return next((flops for part, flops in NOMINAL.items() if part in name), None)


PARTS: dict[str, Callable[[Machine], dict[str, Any]]] = {
    "attention": gpu_checks.attention,
    "waits": gpu_checks.waits,
    "curves": gpu_checks.curves,
    "resume": gpu_checks.resume,
    "0.2b": lambda machine: throughput(machine, machine.shape("0.2b", 32, 1024)),
    "generation": generation,
    "8gb": eight_gigabytes,
    "1.1b": lambda machine: throughput(machine, machine.shape("1.1b", 8, 2048), eager=False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default="", help="parts, with commas between them; all when absent")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=540.0, help="no part is begun after three quarters of it")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few thousand parameters, nothing compiled")
    options = parser.parse_args()
    start = time.perf_counter()
    machine = Machine(open_world(options.device), options.tiny, 2 if options.tiny else options.rounds)
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    name = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else "cpu"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "dtype": str(machine.world.dtype)}
    for part in chosen:
        begun = time.perf_counter()
        if begun - start > 0.75 * options.seconds:
            results[part] = {"skipped": "no time left"}
        else:
            try:
                results[part] = PARTS[part](machine)
            except Exception as error:  # one part must not cost the others: the machine is lent by the minute
                traceback.print_exc()
                results[part] = {"failed": f"{type(error).__name__}: {error}"[:300], "ok": False}
            results[part]["seconds"] = round(time.perf_counter() - begun, 1)
        print(f"{part}: {json.dumps(results[part])}", flush=True)
        gc.collect()
        torch._dynamo.reset()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(results))
    verdicts = [
        v.get("ok", True)
        for r in results.values()
        if isinstance(r, dict)
        for v in (r, *r.values())
        if isinstance(v, dict)
    ]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
