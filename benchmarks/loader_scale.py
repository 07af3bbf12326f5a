"""What the pretraining loader costs over a large corpus: first batch, memory, resume near the end of an epoch.

    python benchmarks/loader_scale.py --gigabytes 20

Shards of documents of log-normal lengths are made under a temporary folder and removed afterwards; their tokens are holes
in the files (no disk is needed for them) unless --dense. What is measured runs in a process of its own, started after the
shards are written. Memory is the resident set beyond what the imports take, at the end and at its highest. The system's
cache of the index files is warm, since they were just written. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mengya.data.loader import PackedLoader
from mengya.data.mixture import Mixture
from mengya.data.shards import TokenShards
from mengya.data.token_source import TokenSource
from mengya.files import write_json

SHARD_TOKENS = 16_777_216
NUM_SOURCES = 8


def make_shards(directory: Path, gigabytes: float, mean: int, dense: bool, seed: int = 0) -> dict[str, Any]:
    """The index of uint16 shards of so many gigabytes, as `data.shard_writer` leaves it."""
    rng = np.random.default_rng(seed)
    shards = []
    for number in range(round(gigabytes * 1e9 / 2 / SHARD_TOKENS)):
        lengths = np.exp(rng.normal(np.log(mean) - 0.5, 1.0, SHARD_TOKENS // mean)).astype(np.int64) + 3
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        facts = np.stack([np.zeros_like(lengths), 3 * lengths], axis=1)
        source = f"source{number % NUM_SOURCES}"
        name = f"train-{source}-{number // NUM_SOURCES:05d}"
        with open(directory / f"{name}.bin", "wb") as file:
            if dense:
                rng.integers(1, 32_000, offsets[-1], dtype=np.uint16).tofile(file)
            else:
                file.truncate(int(offsets[-1]) * 2)
        np.save(directory / f"{name}.idx.npy", offsets)
        np.save(directory / f"{name}.doc.npy", facts)
        counts = {"documents": len(lengths), "tokens": int(offsets[-1]), "bytes": int(3 * offsets[-1])}
        shards.append({"name": name, "key": f"{seed} {number}", **counts, "sources": {source: len(lengths)}})
    totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
    sources = {f"source{n}": {} for n in range(NUM_SOURCES)}
    index = {"format": 2, "dtype": "uint16", "vocab_size": 32_000, **totals, "sources": sources, "shards": shards}
    write_json(directory / "train.index.json", index)
    return totals


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process in memory; VmHWM: at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def loader_over(tokens: TokenSource, weighted: bool) -> PackedLoader:
    weights = {f"source{n}": 0.5 + n / 4 for n in range(NUM_SOURCES)}
    return PackedLoader(
        Mixture(tokens, weights) if weighted else tokens,
        row_length=1024,
        rows_per_step=512,
        micro_batch_rows=64,
        seed=1,
        pad_id=0,
    )


def measure(directory: Path, steps: int, weighted: bool) -> dict[str, Any]:
    before = resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    began = time.perf_counter()
    loader = loader_over(TokenShards(directory), weighted)
    opened = time.perf_counter()
    next(loader)
    first = time.perf_counter()
    samples = [resident()]
    for step in range(steps):
        next(loader)
        if step % max(1, steps // 8) == 0:
            samples.append(resident())
    stepped = time.perf_counter()
    plan_began = time.perf_counter()
    plan = loader.plan(0, loader.num_windows // 2)
    planned = time.perf_counter()
    state = {**loader.state_dict(), "window": int(loader.num_windows * 0.9), "row": plan.num_rows // 2}
    resumed_began = time.perf_counter()
    other = loader_over(TokenShards(directory), weighted)
    other.load_state_dict(state)
    next(other)
    resumed = time.perf_counter()
    return {
        "open_seconds": round(opened - began, 3),
        "first_batch_seconds": round(first - began, 3),
        "resume_at_90_percent_seconds": round(resumed - resumed_began, 3),
        "milliseconds_a_step": round(1000 * (stepped - first) / steps, 1),
        "tokens_a_step": 512 * 1024,
        "steps": steps,
        "windows": loader.num_windows,
        "window_seconds": round(planned - plan_began, 3),
        "window_tokens": int(plan.lengths.sum()),
        "padding_share": round(plan.padding_share, 5),
        "memory_mib": {
            "after_first_batch": (samples[0] - before) >> 20,
            "samples": [(sample - before) >> 20 for sample in samples],
            "highest": (resident("VmHWM") - before) >> 20,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--mean", type=int, default=500, help="tokens of a document")
    parser.add_argument("--steps", type=int, default=80, help="of 524,288 tokens")
    parser.add_argument("--dense", action="store_true", help="write random tokens instead of holes")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weighted", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure, arguments.steps, arguments.weighted)) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        began = time.perf_counter()
        totals = make_shards(Path(folder), arguments.gigabytes, arguments.mean, arguments.dense)
        sys.stdout.write(f"{totals['documents']:,} documents, {totals['tokens']:,} tokens in ")
        sys.stdout.write(f"{time.perf_counter() - began:.1f} s\n")
        found: dict[str, Any] = {"documents": totals["documents"], "tokens": totals["tokens"]}
        for name in ("plain", "weighted"):
            command = [sys.executable, __file__, "--measure", folder, "--steps", str(arguments.steps)]
            command += ["--weighted"] if name == "weighted" else []
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
            found[name] = json.loads(run.stdout)
            sys.stdout.write(f"{name}: {run.stdout}")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
