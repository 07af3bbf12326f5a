"""Rows of any file, read once: how many, how long, a random sample, the longest and the shortest; and what they are."""

from __future__ import annotations

import heapq
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mengya.corpus.formats import FORMATS, FormatError, convert, guess_format
from mengya.corpus.records import to_row
from mengya.corpus.sources import Rejects, read_rows

Row = dict[str, Any]

NUM_EXTREMES = 3
_ROWS_TO_GUESS_FROM = 50
_HEAD_DOCUMENTS, _HEAD_CHARACTERS = 2000, 4_000_000  # among these, thresholds and duplicates are looked at


def split_files(directory: Path, split: str) -> list[Path]:
    """The files of a split in a directory of the corpus stage: one `train.jsonl`, or parts `train-00000.jsonl.zst` …"""
    names = (f"{split}.jsonl", f"{split}.jsonl.zst", f"{split}-*.jsonl", f"{split}-*.jsonl.zst")
    return sorted({file for name in names for file in directory.glob(name)})


def run_of(path: Path) -> Path | None:
    """The run directory that `path` lies in, if it lies in one."""
    resolved = path.resolve()
    return next((place for place in (resolved, *resolved.parents) if (place / "recipe.yaml").is_file()), None)


def kind_of(row: Row) -> str:
    """What a row of ours is: "drop", "pair", "cloze", "conversation" or "document"; "" for anything else."""
    if "reason" in row and "excerpt" in row:
        return "drop"
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str) and _are_messages(row.get("prompt")):
        return "pair"
    if "prefix" in row and isinstance(row.get("choices"), list):
        return "cloze"
    if _are_messages(row.get("messages")):
        return "conversation"
    return "document" if isinstance(row.get("text"), str) else ""


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )


def num_characters(row: Row) -> int:
    """Characters of text in a row of ours; of its JSON elsewhere."""
    kind = kind_of(row)
    if kind == "document":
        return len(row["text"])
    if kind in ("conversation", "pair"):
        turns = row["messages"] if kind == "conversation" else row["prompt"]
        answers = (row["chosen"], row["rejected"]) if kind == "pair" else ()
        return sum(len(turn["content"]) for turn in turns) + sum(map(len, answers))
    return len(json.dumps(row, ensure_ascii=False))


def read(files: Sequence[Path], rejects: Rejects) -> Iterator[Row]:
    """The rows of the files, those in a public layout as our own records; a row that no layout fits as it is."""
    for file in files:
        rows = read_rows(file, rejects)
        head = list(islice(rows, _ROWS_TO_GUESS_FROM))
        layout = None
        if head and not any(kind_of(row) for _, row in head):
            layout = guess_format([row for _, row in head])
        for origin, row in chain(head, rows):
            if layout is None or kind_of(row):
                yield row
                continue
            try:
                records = convert(layout, row, origin=origin)
            except FormatError as error:
                rejects.add_at(error.reason, origin, str(row)[:200])
                continue
            for record in records:
                yield to_row(record)


def layout_of(file: Path) -> str | None:
    """The public layout that a file's first rows look like; None for rows of ours, and for unknown ones."""
    head = [row for _, row in islice(read_rows(file, Rejects()), _ROWS_TO_GUESS_FROM)]
    if not head or any(kind_of(row) for row in head):
        return None
    name = guess_format(head)
    return None if name is None else f"{name} ({FORMATS[name].kind})"


@dataclass
class Look:
    """What one pass over rows found. `sample`, `longest` and `shortest` hold (row's number from 1, row)."""

    num_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    sample: list[tuple[int, Row]] = field(default_factory=list)
    longest: list[tuple[int, Row]] = field(default_factory=list)
    shortest: list[tuple[int, Row]] = field(default_factory=list)
    head: list[Row] = field(default_factory=list)
    rejects: Rejects = field(default_factory=Rejects)

    @property
    def kind(self) -> str:
        """What most rows are."""
        return self.kinds.most_common(1)[0][0] if self.kinds else ""

    def quantile(self, share: float) -> int:
        """The length in characters that this share of the rows does not exceed."""
        ordered = sorted(self.lengths)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def look_at(files: Sequence[Path], num_sample: int, seed: int) -> Look:
    """One pass over all rows of the files: memory holds the sample, the extremes and the lengths.

    The sample is Vitter's reservoir (1985, algorithm R), in the order of the file: every row has the same chance, and a
    seed gives the same rows every time.
    """
    look = Look()
    rng = random.Random(seed)
    longest: list[tuple[int, int, Row]] = []
    shortest: list[tuple[int, int, Row]] = []
    head_characters = 0
    for number, row in enumerate(read(files, look.rejects), start=1):
        look.num_rows = number
        size = num_characters(row)
        look.lengths.append(size)
        look.kinds[kind_of(row)] += 1
        if isinstance(row.get("source"), str):
            look.sources[row["source"]] += 1
        if len(look.sample) < num_sample:
            look.sample.append((number, row))
        elif (place := rng.randrange(number)) < num_sample:
            look.sample[place] = (number, row)
        for heap, key in ((longest, size), (shortest, -size)):
            # -number: of equal lengths the first row is shown; it also keeps rows from being compared.
            item = (key, -number, row)
            if len(heap) < NUM_EXTREMES:
                heapq.heappush(heap, item)
            elif item[:2] > heap[0][:2]:
                heapq.heapreplace(heap, item)
        if len(look.head) < _HEAD_DOCUMENTS and head_characters < _HEAD_CHARACTERS:
            look.head.append(row)
            head_characters += size
    look.sample.sort(key=lambda item: item[0])
    look.longest = [(-number, row) for _, number, row in sorted(longest, key=lambda item: item[:2], reverse=True)]
    look.shortest = [(-number, row) for _, number, row in sorted(shortest, key=lambda item: item[:2], reverse=True)]
    return look
