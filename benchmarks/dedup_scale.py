"""Deduplication of many documents: speed, peak memory, bytes a document on disk, and recall of planted copies.

    python benchmarks/dedup_scale.py [--documents 1000000] [--directory FOLDER] [--repeat TIMES]

Documents are made when asked for (`dedup_documents.Synthetic`): one in twenty an exact copy, three near copies. Signatures
are written part by part, 50,000 documents each; a part that is there already is not written again, and the search goes on
where it was, so a run in --directory that was stopped continues. One core (RAYON_NUM_THREADS=1). The last line is one
JSON object; seconds are CPU seconds of this run, and those of making the documents are measured apart and taken off.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dedup_documents import Synthetic
from mengya.corpus.dedup import find_duplicates, jaccard, shingles, write_signatures
from mengya.corpus.minhash import signature_path

PART = 50_000
SAMPLE = 5_000  # planted near copies whose exact Jaccard is computed


class Timed:
    """Documents by number, and the CPU seconds that it took to make them."""

    def __init__(self) -> None:
        self.make, self.seconds, self.calls = Synthetic(), 0.0, 0
        self.make(0)

    def __call__(self, number: int) -> str:
        before = time.process_time()
        text = self.make(number)
        self.seconds += time.process_time() - before
        self.calls += 1
        return text

    def range(self, start: int, end: int) -> Iterator[str]:
        yield from map(self, range(start, end))


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(count: int, directory: Path, repeat: int) -> dict[str, float | int]:
    text_of = Timed()
    stems = [directory / f"part-{number:05d}" for number in range(-(-count // PART))]
    start, written = time.process_time(), 0
    for number, stem in enumerate(stems):
        if not signature_path(stem).exists():
            first, last = number * PART, min(number * PART + PART, count)
            written += write_signatures(text_of.range(first, last), stem)
    signature_seconds = time.process_time() - start - text_of.seconds
    figures: dict[str, float | int] = {"documents": count * repeat, "written": written}
    if written:
        figures |= {
            "signatures_per_second": round(written / signature_seconds),
            "peak_bytes_signatures": peak(),
        }
        print(json.dumps(figures), flush=True)
    figures["bytes_a_document"] = round(
        sum(file.stat().st_size for stem in stems for file in signature_path(stem).iterdir()) / count, 1
    )

    start, text_of.seconds, text_of.calls = time.process_time(), 0.0, 0
    found = bytearray(count * repeat)
    for duplicate in find_duplicates(stems * repeat, lambda number: text_of(number % count), directory=directory):
        found[duplicate.index] = 1
    seconds = time.process_time() - start - text_of.seconds
    figures |= {
        "find_seconds": round(seconds, 1),
        "find_documents_per_second": round(count * repeat / seconds),
        "texts_fetched": text_of.calls,
        "peak_bytes": peak(),
        "dropped": found.count(1),
    }
    if written == count and repeat == 1:
        figures["documents_per_second"] = round(count / (signature_seconds + seconds))

    exact = [
        number for number in range(count) if number % 20 in Synthetic.exact and text_of.make.original(number) < number
    ]
    near = [
        number for number in range(count) if number % 20 in Synthetic.near and text_of.make.original(number) < number
    ]
    figures["exact_recall"] = sum(found[number] for number in exact) / len(exact)
    alike = resolved = 0
    for number in near[:: max(1, len(near) // SAMPLE)]:
        original = text_of.make.original(number)
        if jaccard(shingles(text_of.make(number)), shingles(text_of.make(original))) >= 0.8:
            alike += 1
            resolved += found[number] | found[original]
    figures |= {"near_sampled": alike, "near_recall": round(resolved / alike, 5)}
    planted = {*exact, *near, *(text_of.make.original(number) for number in [*exact, *near])}
    figures["dropped_but_not_planted"] = sum(number not in planted for number in range(count) if found[number])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="for the signatures; a temporary folder without it")
    parser.add_argument(
        "--repeat", type=int, default=1, help="take all parts so many times: the memory of so many more"
    )
    arguments = parser.parse_args()
    if arguments.directory:
        print(json.dumps(run(arguments.documents, arguments.directory, arguments.repeat)))
        return
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(run(arguments.documents, Path(name), arguments.repeat)))


if __name__ == "__main__":
    main()
