"""Where each document of a shard came from, beside the shard: "FILE:LINE" by number, to name what spoilt a step.

    .NAME-SOURCE-00000.origins.zst     one JSON string a document, in order, in zstd frames of 1,024 documents; before
                                       them int64: documents a frame, where each frame begins, where the last one ends

The name begins with a dot: origins are no part of what training reads, so a corpus whose files were merely moved keeps
its stages' hashes (`files.sha256` leaves hidden files out).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zstandard

from mengya.files import atomic_path

_FRAME = 1024


def origins_file(directory: Path, shard: str) -> Path:
    return Path(directory) / f".{shard}.origins.zst"


def write_origins(directory: Path, shard: str, origins: Iterable[str]) -> None:
    """The file of a shard's origins; none, and none left of old, when no document has any."""
    held = list(origins)
    file = origins_file(directory, shard)
    if not any(held):
        file.unlink(missing_ok=True)
        return
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    # ASCII: a file's name may hold bytes that are no UTF-8, which JSON writes as lone surrogates.
    lines = [json.dumps(origin).encode("ascii") for origin in held]
    frames = [compress(b"\n".join(lines[first : first + _FRAME])) for first in range(0, len(lines), _FRAME)]
    places = np.cumsum([8 * (len(frames) + 2), *map(len, frames)])
    raw = np.array([_FRAME, *places], "<i8").tobytes() + b"".join(frames)
    if file.is_file() and file.read_bytes() == raw:
        return
    with atomic_path(file) as temporary:
        temporary.write_bytes(raw)


def read_origin(directory: Path, shard: str, index: int) -> str:
    """The origin of a shard's document, "" where none was kept."""
    file = origins_file(directory, shard)
    if not file.is_file():
        return ""
    with open(file, "rb") as handle:
        (frame,) = np.frombuffer(handle.read(8), "<i8").tolist()
        handle.seek(8 * (1 + index // frame))
        begin, end = np.frombuffer(handle.read(16), "<i8").tolist()
        handle.seek(begin)
        lines = zstandard.ZstdDecompressor().decompress(handle.read(end - begin)).split(b"\n")
    origin: str = json.loads(lines[index % frame])
    return origin


def named(source: str, origin: str, index: int) -> str:
    """ "SOURCE FILE:LINE", or "SOURCE, document N" (counted from 0) where no origin is known."""
    return f"{source} {origin}" if origin else f"{source}, document {index}"
