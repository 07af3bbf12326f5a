"""Records in numbered part files: what one process writes and another reads, in order or one record at a time.

While a corpus is being built its parts are plain JSON lines with an index of line starts beside them
(`part-000.jsonl`, `part-000.idx.npy`), so that any record can be fetched for a comparison. The finished corpus is
`train-00000.jsonl.zst …` and `validation-00000.jsonl.zst …`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np
import zstandard

from mengya.corpus import records
from mengya.corpus.funnel import num_characters
from mengya.corpus.records import Document, Record, to_row

R = TypeVar("R", bound=Record)
KEY = np.dtype([("high", "<u8"), ("low", "<u8")])
_ZSTD_LEVEL = 3


class PartWriter:
    """Records → part-000.jsonl, part-001.jsonl … under `directory`, a new one every `part_characters`.

    With `key`, `part-000.key.npy` holds the 16 bytes that it gives for each record. Whether the files are whole is
    for the caller to say, who makes the directory appear at once (`atomic_directory`).
    """

    def __init__(self, directory: Path, part_characters: int, key: Callable[[Any], bytes] | None = None) -> None:
        self.directory, self.part_characters, self.key = directory, part_characters, key
        self.num_records = self.num_characters = 0
        self._file: BinaryIO | None = None
        self._starts: list[int] = []
        self._keys: list[bytes] = []
        self._size = self._number = 0

    def write(self, record: Record) -> None:
        if self._file is None:
            self._file = open(self.directory / f"part-{self._number:03d}.jsonl", "wb")  # noqa: SIM115
            self._starts, self._keys, self._size = [], [], 0
        self._starts.append(self._file.tell())
        self._file.write(json.dumps(to_row(record), ensure_ascii=False).encode() + b"\n")
        if self.key is not None:
            self._keys.append(self.key(record))
        characters = num_characters(record)
        self._size += characters
        self.num_records += 1
        self.num_characters += characters
        if self._size >= self.part_characters:
            self._end_part()

    def _end_part(self) -> None:
        if self._file is not None:
            ends = np.array([*self._starts, self._file.tell()], dtype=np.int64)
            self._file.close()
            np.save(self.directory / f"part-{self._number:03d}.idx.npy", ends)
            if self.key is not None:
                keys = np.frombuffer(b"".join(self._keys), dtype=KEY)
                np.save(self.directory / f"part-{self._number:03d}.key.npy", keys)
            self._file, self._number = None, self._number + 1

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_part()


def list_parts(directory: Path) -> list[Path]:
    """The part files under `directory` in the order of their records."""
    return sorted(directory.glob("*/part-*.jsonl"))


@overload
def read_part(part: Path) -> Iterator[Document]: ...
@overload
def read_part(part: Path, of_row: Callable[[dict[str, Any]], R]) -> Iterator[R]: ...
def read_part(part: Path, of_row: Callable[[dict[str, Any]], Any] = records.document) -> Iterator[Any]:
    """The records of a part; `of_row` makes one of its row (`records.document` and its like)."""
    with open(part, encoding="utf-8") as file:
        for line in file:
            yield of_row(json.loads(line))


@dataclass(frozen=True)
class PartIndex(Generic[R]):
    """The records of several parts, numbered through: `index[n]` is record n, `first[p]` part p's first number."""

    parts: tuple[Path, ...]
    first: tuple[int, ...]
    starts: tuple[np.ndarray, ...]
    of_row: Callable[[dict[str, Any]], R]

    @staticmethod
    def of(parts: Sequence[Path]) -> PartIndex[Document]:
        return PartIndex.of_records(parts, records.document)

    @staticmethod
    def of_records(parts: Sequence[Path], of_row: Callable[[dict[str, Any]], R]) -> PartIndex[R]:
        starts = tuple(np.load(part.with_suffix(".idx.npy"), mmap_mode="r") for part in parts)
        first = np.cumsum([0, *(len(ends) - 1 for ends in starts)])
        return PartIndex(tuple(parts), tuple(int(number) for number in first), starts, of_row)

    def __len__(self) -> int:
        return self.first[-1]

    def __getitem__(self, number: int) -> R:
        part = int(np.searchsorted(self.first, number, side="right")) - 1
        local = number - self.first[part]
        begin, end = self.starts[part][local : local + 2]
        with open(self.parts[part], "rb") as file:
            file.seek(begin)
            return self.of_row(json.loads(file.read(end - begin)))

    def slice_of(self, part: int) -> slice:
        return slice(self.first[part], self.first[part + 1])


# --- compressed files ------------------------------------------------------------------------------------------------


class RowsWriter:
    """Rows → compressed JSON lines, one zstd frame with a checksum; no file where there is no row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._stack = ExitStack()
        self._stream: Any = None

    def write(self, row: dict[str, Any]) -> None:
        if self._stream is None:
            raw = self._stack.enter_context(open(self.path, "wb"))  # noqa: SIM115
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            self._stream = self._stack.enter_context(compressor.stream_writer(raw))
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.count += 1

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def write_zst(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """The number of rows written by a RowsWriter."""
    with RowsWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return writer.count


def read_zst(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of compressed JSON lines that Mengya wrote itself, none of an absent file; `sources` is for users' files."""
    if not path.exists():
        return
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)


def document_files(directory: Path, split: str) -> list[Path]:
    """The files of a finished corpus's `split`, in order."""
    return sorted(directory.glob(f"{split}-[0-9]*.jsonl.zst"))


def read_documents(directory: Path, split: str) -> Iterator[Document]:
    """The documents of a finished corpus's `split` ("train", "validation"), in order."""
    for file in document_files(directory, split):
        for row in read_zst(file):
            yield records.document(row)
