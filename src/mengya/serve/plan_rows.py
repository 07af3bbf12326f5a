"""The first rows of a source of any format, as a file of their own, and how many rows the whole source has."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mengya.corpus.inputs import Kind, file_inputs
from mengya.corpus.sources import Rejects, read_rows
from mengya.files import write_jsonl
from mengya.settings import Recipe, Source

_HEAD_BYTES = 1 << 18
_PACKED = 3.0
"""Times that text grows when a .zip or an unknown packing is opened."""


@dataclass
class _Taken:
    rows: list[Any] = field(default_factory=list)
    num_bytes: float = 0.0


def take_rows(
    source: Source, kind: Kind, recipe: Recipe, directory: Path, *, most_rows: int, most_bytes: float
) -> tuple[list[Source], float]:
    """(sources of the first rows, one a layout; rows of the whole / rows taken).

    A file that is read to its end has exactly its rows; another one as many as its size, decompressed by the ratio of its
    first 256 KiB, holds of rows such as those that were read. Rows of a file are few enough not to be read from its middle.
    """
    by_layout: dict[str, _Taken] = {}
    whole = unread_bytes = 0.0
    columns: dict[str, str] = {}
    for part in file_inputs(source, kind, recipe.identity):
        columns = dict(part.columns)
        for file, layout in part.files:
            num_rows = sum(len(taken.rows) for taken in by_layout.values())
            num_bytes = sum(taken.num_bytes for taken in by_layout.values())
            room = min(most_rows - num_rows, source.limit or most_rows)
            if room <= 0 or num_bytes >= most_bytes:
                unread_bytes += unpacked_bytes(file)
                continue
            taken = by_layout.setdefault(layout, _Taken())
            escaped = b"\\u" in _head(file)
            before, bytes_before = len(taken.rows), taken.num_bytes
            ended = True
            for _, row in islice(read_rows(file, Rejects()), room + 1):
                if len(taken.rows) - before == room or num_bytes + taken.num_bytes - bytes_before >= most_bytes:
                    ended = False
                    break
                taken.rows.append(row)
                taken.num_bytes += len(json.dumps(row, ensure_ascii=escaped, default=str).encode("utf-8", "replace"))
            mine, my_bytes = len(taken.rows) - before, taken.num_bytes - bytes_before
            whole += mine if ended else max(mine, mine * unpacked_bytes(file) / max(my_bytes, 1.0))
    num_rows = sum(len(taken.rows) for taken in by_layout.values())
    num_bytes = sum(taken.num_bytes for taken in by_layout.values())
    whole += unread_bytes * num_rows / max(num_bytes, 1.0)
    whole = min(whole, source.limit or whole)
    kept = source.model_copy(update={"dataset": None, "limit": None, "columns": columns, "name": source.label})
    parts = []
    for number, (layout, taken) in enumerate(by_layout.items()):
        path = directory / f"{number}.jsonl"
        write_jsonl(path, taken.rows)
        parts.append(kept.model_copy(update={"path": str(path), "format": layout}))
    return parts, max(1.0, whole / num_rows) if num_rows else 1.0


def _head(file: Path) -> bytes:
    """The first bytes of a file, decompressed where that can be done in a stream."""
    with open(file, "rb") as opened:
        head = opened.read(_HEAD_BYTES)
    if file.suffix.lower() == ".gz":
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head)
    if file.suffix.lower() == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(head)
    return head


def unpacked_bytes(file: Path) -> float:
    """Bytes of a file after decompression: its size by the ratio of its head."""
    size, suffix = file.stat().st_size, file.suffix.lower()
    if suffix in (".gz", ".zst"):
        return size * max(1.0, len(_head(file)) / max(1, min(size, _HEAD_BYTES)))
    return size * (_PACKED if suffix in (".zip", ".parquet") else 1.0)
