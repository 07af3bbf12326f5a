"""Rows of any file a user has: JSON lines, JSON, CSV, TSV, Parquet, YAML, text; plain, .gz, .zst or .zip; UTF-8,
GB18030, UTF-16.

Nothing is lost in silence: a row that cannot be read is counted in `Rejects` with its reason, file and line. Memory is
bounded by one line or one element (MAX_LINE_BYTES), whatever the size of the file.
"""

from __future__ import annotations

import csv
import glob
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mengya.corpus.json_rows import Row, json_layout, json_line_rows, json_rows
from mengya.corpus.streams import COMPRESSIONS, MAX_LINE_BYTES, BrokenFile, Rejects, TextStream
from mengya.corpus.yaml_rows import yaml_rows
from mengya.errors import UserError

__all__ = ["Rejects", "container_of", "is_readable", "list_files", "read_rows"]

TEXT_DOCUMENT_CHARACTERS = 1 << 20
SOURCE_FILE = "SOURCE.json"
"""What a download leaves beside its files; it is about the data and no data."""
_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".yml", ".yaml", ".parquet", ".zip")
_ZIP_CHUNK_BYTES = 1 << 16
_NAMES = {".csv": "CSV", ".tsv": "TSV", ".txt": "text", ".yml": "YAML", ".yaml": "YAML", ".parquet": "Parquet"}

csv.field_size_limit(MAX_LINE_BYTES)


def list_files(path: Path | str) -> list[Path]:
    """The files that `path` means: itself, the readable files under a directory, or a glob's matches; sorted."""
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        files = [file for file in files if _kind(file) is not None and file.name != SOURCE_FILE]
        if not files:
            raise UserError(
                "no readable file in this directory", where=path, mend=f"put {', '.join(_KINDS)} files there"
            )
    elif path.is_file():
        return [path]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
        if not files:
            raise UserError("no such file", where=path, mend="give an existing file, directory or glob")
    return sorted(files)


def read_rows(path: Path | str, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    """(origin, row) of every readable row of a file, of all files of a directory, or of a glob, in sorted order.

    `origin` is "file:line", the line being the one on which the row begins (Parquet: the row's number).
    JSON and JSON lines: `json_rows.json_rows`; YAML: `yaml_rows.yaml_rows`. CSV and TSV need a header. A `.txt` file is
    one document, {"text": …}; one longer than TEXT_DOCUMENT_CHARACTERS is cut at a line end into several. Of a .zip
    every readable file is read, in sorted order, and is called "archive.zip/name".
    Encoding per file: a byte order mark decides; else UTF-8, or GB18030 when more lines of the first MiB read so.

    UserError: nothing there, an empty file, an unknown suffix, a Parquet or zip file that is none. Counted in
    `rejects`: invalid_json, not_an_object, text_after_the_array, invalid_yaml, undecodable, nul_bytes, lone_surrogate,
    line_too_long, wrong_number_of_fields, truncated_file, corrupt_file, encrypted_file, unknown_compression,
    parquet_inside_zip, and, inside a directory or glob, empty_file.
    """
    files = list_files(path)
    for file in files:
        kind = _kind(file)
        if kind is None:
            raise UserError(
                f"unknown suffix {''.join(file.suffixes) or '(none)'}",
                where=file,
                mend=f"rename it to one of {' '.join(_KINDS)}, plain or with .gz or .zst after it",
            )
        if file.stat().st_size == 0:
            if len(files) == 1:
                raise UserError("the file is empty", where=file, mend="give a file with rows, or leave it out")
            rejects.num_rows += 1
            rejects.add("empty_file", file, 0)
            continue
        if kind == ".parquet":
            yield from _parquet_rows(file, rejects)
        elif kind == ".zip":
            yield from _zip_rows(file, rejects)
        else:
            yield from _text_rows(TextStream(file), kind, rejects)


def container_of(file: Path) -> str:
    """What a readable file is, in words: "JSON array, .zst". It reads the file's first MiB."""
    kind = _kind(file)
    if kind == ".zip":
        with _opened_zip(file) as archive:
            members = _members(archive)
            kind = _kind(Path(members[0].filename)) if members else None
            if kind in (".parquet", None):
                return "zip"
            stream = TextStream(file, _member_chunks(archive, members[0]))
            more = f" and {len(members) - 1} more" if len(members) > 1 else ""
            return f"{_container_name(stream, kind)}{more}, .zip"
    packing = f", {file.suffix.lower()}" if file.suffix.lower() in COMPRESSIONS else ""
    if kind in (".parquet", None):
        return "Parquet" if kind else "unknown"
    return _container_name(TextStream(file), kind) + packing


def _container_name(stream: TextStream, kind: str | None) -> str:
    if kind == ".json":
        return json_layout(stream)
    return _NAMES.get(kind or "", "JSON lines")


def is_readable(file: Path) -> bool:
    """Whether `read_rows` knows this kind of file, by its name."""
    return _kind(file) is not None


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        if suffixes and suffixes[-1] in (".parquet", ".zip"):
            return None  # these are compressed inside and need random access
    return suffixes[-1] if suffixes and suffixes[-1] in _KINDS else None


def _parquet_rows(file: Path, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"not a Parquet file ({error})", where=file, mend="download it again") from error
    number = 0
    for batch in table.iter_batches(batch_size=1000):
        for row in batch.to_pylist():
            number += 1
            rejects.num_rows += 1
            yield f"{file}:{number}", row


@contextmanager
def _opened_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"not a zip file, or only a part of one ({error})", where=file, mend="download it again"
        ) from error
    with archive:
        yield archive


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in it that can be read; not what macOS adds, nor archives in the archive."""
    members = [
        info
        for info in archive.infolist()
        if not info.is_dir()
        and not info.filename.startswith("__MACOSX/")
        and not Path(info.filename).name.startswith(".")
        and _kind(Path(info.filename)) not in (None, ".zip")
        and Path(info.filename).suffix.lower() not in COMPRESSIONS
    ]
    return sorted(members, key=lambda info: info.filename)


def _member_chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with archive.open(info) as handle:
            while chunk := handle.read(_ZIP_CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BrokenFile("corrupt_file") from error
    except NotImplementedError as error:  # a RuntimeError too, so it comes first
        raise BrokenFile("unknown_compression") from error
    except RuntimeError as error:
        raise BrokenFile("encrypted_file") from error


def _zip_rows(file: Path, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    with _opened_zip(file) as archive:
        members = _members(archive)
        if not members:
            raise UserError(
                "no readable file in this archive", where=file, mend=f"it may hold {', '.join(_KINDS[:-2])}"
            )
        for info in members:
            kind = _kind(Path(info.filename))
            assert kind is not None
            label = Path(f"{file}/{info.filename}")
            if kind == ".parquet":
                rejects.num_rows += 1
                rejects.add("parquet_inside_zip", label, 0)
            else:
                yield from _text_rows(TextStream(label, _member_chunks(archive, info)), kind, rejects)


def _text_rows(stream: TextStream, kind: str, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    rejects.encodings[stream.encoding] += 1
    readers: dict[str, Callable[[TextStream, Rejects], Iterator[tuple[int, Row]]]] = {
        ".csv": lambda stream, rejects: _csv_rows(stream, rejects, ","),
        ".tsv": lambda stream, rejects: _csv_rows(stream, rejects, "\t"),
        ".txt": _document_rows,
        ".json": json_rows,
        ".yml": yaml_rows,
        ".yaml": yaml_rows,
    }
    try:
        for line, row in readers.get(kind, json_line_rows)(stream, rejects):
            yield f"{stream.file}:{line}", row
    except BrokenFile as broken:
        rejects.num_rows += 1
        rejects.add(str(broken), stream.file, stream.line)


def _csv_rows(stream: TextStream, rejects: Rejects, delimiter: str) -> Iterator[tuple[int, Row]]:
    reader = csv.reader((line + "\n" for line in stream.lines(rejects)), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        begin = stream.line + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rejects.num_rows += 1
            rejects.add("invalid_csv", stream.file, begin, str(error))
            continue
        if not any(fields):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            continue
        rejects.num_rows += 1
        if len(fields) != len(header):
            rejects.add("wrong_number_of_fields", stream.file, begin, delimiter.join(fields))
        else:
            yield begin, dict(zip(header, fields, strict=True))


def _document_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    lines: list[str] = []
    size, begin = 0, 1
    for line in stream.lines(rejects):
        lines.append(line)
        size += len(line) + 1
        if size >= TEXT_DOCUMENT_CHARACTERS:
            rejects.num_rows += 1
            yield begin, {"text": "\n".join(lines)}
            lines, size, begin = [], 0, stream.line + 1
    if any(line.strip() for line in lines):
        rejects.num_rows += 1
        yield begin, {"text": "\n".join(lines)}
