"""Files as they come from the wild, at full size: the peak memory of the corpus stage, and that every row is kept or counted.

    python benchmarks/hard_inputs.py [--megabytes 1000] [--directory FOLDER]

Made: JSON lines of so many megabytes with one broken line in a hundred; one line of 50 MB; NUL bytes; GB18030 and UTF-16 with
and without a mark; a truncated .gz and a truncated .zst; a JSON array of half as many megabytes. Each is a run of its own
(`mengya corpus`), in a process of its own, so that its peak is its own. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml
import zstandard

from dedup_documents import Synthetic

_PARAGRAPHS = 8


def rows(num_bytes: float) -> Iterator[str]:
    """JSON objects, one document of some 2,400 characters each, until they are so many bytes."""
    make, number, written = Synthetic(), 0, 0
    while written < num_bytes:
        text = "\n".join(make(20 * (number * _PARAGRAPHS + k)) for k in range(_PARAGRAPHS))
        row = json.dumps({"text": text.replace("，", "。")}, ensure_ascii=False)
        number += 1
        written += len(row.encode()) + 1
        yield row


def broken_lines(file: Path, megabytes: float) -> dict[str, int]:
    broken = 0
    with open(file, "w", encoding="utf-8") as out:
        for number, row in enumerate(rows(megabytes * 1e6)):
            if number % 100 == 99:
                row, broken = row[: len(row) // 2], broken + 1
            out.write(row + "\n")
    return {"rows": number + 1, "rejected": broken}


def one_long_line(file: Path, megabytes: float) -> dict[str, int]:
    good = list(rows(2e6))
    long = json.dumps({"text": "长" * 17_000_000}, ensure_ascii=False)
    file.write_text("\n".join([*good, long, *good[:1]]) + "\n", encoding="utf-8")
    return {"rows": len(good) + 2, "rejected": 1}


def nul_bytes(file: Path, megabytes: float) -> dict[str, int]:
    good = list(rows(2e6))
    file.write_bytes("\n".join([*good[:9], "\0" * 100, *good[9:]]).encode() + b"\n\0\0\0")
    return {"rows": len(good) + 2, "rejected": 2}


def encoded(file: Path, megabytes: float, name: str) -> dict[str, int]:
    good = list(rows(2e6))
    file.write_bytes(("\n".join(good) + "\n").encode(name))
    return {"rows": len(good), "rejected": 0}


def truncated(file: Path, megabytes: float, compress: Callable[..., bytes]) -> dict[str, int]:
    whole = compress("\n".join(rows(2e7)).encode())
    file.write_bytes(whole[: len(whole) * 2 // 3])
    return {"rejected": 1}


def array(file: Path, megabytes: float) -> dict[str, int]:
    with open(file, "w", encoding="utf-8") as out:
        for number, row in enumerate(rows(megabytes * 5e5)):
            out.write(("[" if number == 0 else ",") + "\n" + row)
        out.write("\n]\n")
    return {"rows": number + 1, "rejected": 0}


CASES: dict[str, Callable[[Path, float], dict[str, int]]] = {
    "broken_lines.jsonl": broken_lines,
    "long_line.jsonl": one_long_line,
    "nul_bytes.jsonl": nul_bytes,
    "gb18030.jsonl": partial(encoded, name="gb18030"),
    "utf16.jsonl": partial(encoded, name="utf-16"),
    "utf16_no_mark.jsonl": partial(encoded, name="utf-16-le"),
    "truncated.jsonl.gz": partial(truncated, compress=gzip.compress),
    "truncated.jsonl.zst": partial(truncated, compress=zstandard.compress),
    "array.json": array,
}


def run(file: Path, directory: Path) -> dict[str, float | int]:
    """Rows read, rows rejected, peak memory of the largest process, seconds."""
    recipe = directory / "recipe.yaml"
    corpus = {"documents": [{"path": str(file), "format": "text"}], "max_reject_share": 0.99}
    recipe.write_text(yaml.safe_dump({"name": file.name, "stages": ["corpus"], "corpus": corpus}))
    out, began = directory / "run", time.perf_counter()
    command = [sys.executable, "-m", "mengya", "corpus", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{file.name}: exit {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    manifest = json.loads((out / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]
    return {
        "rows": counts["rows"],
        "rejected": sum(counts["rejects"].values()),
        "reasons": counts["rejects"],
        "peak_mib": round(manifest["metrics"]["corpus.peak_memory_bytes"] / 2**20),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=1000, help="of the largest file; the array is half as large")
    parser.add_argument("--directory", type=Path, help="where the files are made")
    parser.add_argument("--only", help="one case")
    arguments = parser.parse_args()
    found, wrong = {}, []
    for name, make in CASES.items():
        if arguments.only and name != arguments.only:
            continue
        with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
            file = Path(temporary) / name
            # Made by another process: a child's peak begins with what its parent holds when it starts it.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                planted = pool.apply(make, (file, arguments.megabytes))
            size = file.stat().st_size
            result = {"bytes": size, **run(file, Path(temporary))}
        wrong += [
            f"{name}: {key} {result[key]}, planted {value}" for key, value in planted.items() if result[key] != value
        ]
        found[name] = result
        print(
            f"{name:22} {size / 1e6:8.1f} MB  " + "  ".join(f"{k} {v}" for k, v in result.items() if k != "bytes"),
            flush=True,
        )
    for line in wrong:
        print(line)
    print(
        json.dumps(
            {"peak_mib": max(result["peak_mib"] for result in found.values()), "as_planted": not wrong, "cases": found}
        )
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
