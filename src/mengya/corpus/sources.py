"""Rows of any file a user has: JSON lines, JSON, CSV, TSV, Parquet, text; plain, .gz, .zst; UTF-8, GB18030, UTF-16.

Nothing is lost in silence: a row that cannot be read is counted in `Rejects` with its reason, file and line. Memory is
bounded by one line or one element (MAX_LINE_BYTES), whatever the size of the file.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mengya.corpus.streams import (
    COMPRESSIONS,
    LONE_SURROGATE,
    MAX_LINE_BYTES,
    SNIFF_BYTES,
    BrokenFile,
    Rejects,
    TextStream,
)
from mengya.errors import UserError

__all__ = ["Rejects", "is_readable", "list_files", "read_rows"]

Row = dict[str, Any]

TEXT_DOCUMENT_CHARACTERS = 1 << 20
_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

csv.field_size_limit(MAX_LINE_BYTES)


def list_files(path: Path | str) -> list[Path]:
    """The files that `path` means: itself, the readable files under a directory, or a glob's matches; sorted."""
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        files = [file for file in files if _kind(file) is not None]
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
    JSON lines and JSON arrays of objects give one row an object. An element that is a list gives {"items": list}; a
    list of one object gives that object (lawyer-llama). `.json` files of JSON lines are recognised by their content; a
    `.json` file with one object is one row. CSV and TSV need a header. A `.txt` file is one document, {"text": …}; one
    longer than TEXT_DOCUMENT_CHARACTERS is cut at a line end into several.
    Encoding per file: a byte order mark decides; else UTF-8, or GB18030 when more lines of the first MiB read so.

    UserError: nothing there, an empty file, an unknown suffix, a Parquet file that is none. Counted in `rejects`:
    invalid_json, not_an_object, undecodable, nul_bytes, lone_surrogate, line_too_long, wrong_number_of_fields,
    truncated_file, corrupt_file, and, inside a directory or glob, empty_file.
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
        else:
            yield from _text_rows(file, kind, rejects)


def is_readable(file: Path) -> bool:
    """Whether `read_rows` knows this kind of file, by its name."""
    return _kind(file) is not None


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None  # Parquet is compressed inside and needs random access
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


def _text_rows(file: Path, kind: str, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    stream = TextStream(file)
    rejects.encodings[stream.encoding] += 1
    readers: dict[str, Callable[[TextStream, Rejects], Iterator[tuple[int, Row]]]] = {
        ".csv": lambda stream, rejects: _csv_rows(stream, rejects, ","),
        ".tsv": lambda stream, rejects: _csv_rows(stream, rejects, "\t"),
        ".txt": _document_rows,
        ".json": _json_rows,
    }
    try:
        for line, row in readers.get(kind, _json_line_rows)(stream, rejects):
            yield f"{file}:{line}", row
    except BrokenFile as broken:
        rejects.num_rows += 1
        rejects.add(str(broken), file, stream.line)


def _as_row(value: Any) -> Row | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value:
        return value[0] if len(value) == 1 and isinstance(value[0], dict) else {"items": value}
    return None


def _parse(text: str, line: int, stream: TextStream, rejects: Rejects) -> Row | None:
    """The row of one JSON text, or None after counting why there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        rejects.num_rows += 1
        rejects.add("invalid_json", stream.file, line, text)
        return None
    return _accept(value, text, line, stream, rejects)


def _accept(value: Any, text: str, line: int, stream: TextStream, rejects: Rejects) -> Row | None:
    """The row that the JSON value of `text` is, or None after counting why it is none."""
    rejects.num_rows += 1
    row, reason = _as_row(value), None
    if LONE_SURROGATE.search(text) or ("\ufffd" in text and stream.encoding.startswith("utf-16")):
        reason = "undecodable"
    elif row is None:
        reason = "not_an_object"
    elif _SURROGATE_ESCAPE.search(text) and LONE_SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        reason = "lone_surrogate"  # it could never be written as UTF-8 again
    if reason:
        rejects.add(reason, stream.file, line, text)
        return None
    return row


def _json_line_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    for text in stream.lines(rejects):
        if text and not text.isspace() and (row := _parse(text, stream.line, stream, rejects)) is not None:
            yield stream.line, row


def _json_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    head = stream.head.decode(stream.encoding, "replace").lstrip("\ufeff \t\r\n")
    first, _, rest = head.partition("\n")
    rest = rest.lstrip()
    if head.startswith("[") and not (rest.startswith("[") and _is_json(first)):
        yield from _json_array_rows(stream, rejects)
    elif head.startswith("{") and rest and not rest.startswith("{") and not _is_json(first):
        text = "".join(_bounded(stream))  # one object over several lines
        if (row := _parse(text, 1, stream, rejects)) is not None:
            yield 1, row
    else:
        yield from _json_line_rows(stream, rejects)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _bounded(stream: TextStream) -> Iterator[str]:
    size = 0
    for text in stream.text_chunks():
        size += len(text)
        if size > MAX_LINE_BYTES:
            raise BrokenFile("line_too_long")
        yield text


_NEXT_ELEMENT = re.compile(r"\}\s*,\s*(?=\{)|\]\s*,\s*(?=\[)")
_OPENING = re.compile(r"[\s\ufeff]*\[\s*")
_SEPARATOR = re.compile(r"[\s,]*")


def _json_array_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    """Elements of one big array, read one at a time; after a broken element, reading goes on at the next "}, {"."""
    decoder = json.JSONDecoder()
    chunks = stream.text_chunks()
    buffer, position, line, ended, first = "", 0, 1, False, True
    broken: BrokenFile | None = None  # raised once all before the break has been read

    def more() -> None:
        nonlocal buffer, position, ended, broken
        # Doubling keeps a long element from being parsed over and over.
        wanted = max(SNIFF_BYTES, len(buffer) - position)
        parts, size = [buffer[position:]], 0
        position = 0
        while size < wanted and not ended:
            try:
                text = next(chunks, None)
            except BrokenFile as error:
                text, broken = None, error
            if text is None:
                ended = True
            else:
                parts.append(text)
                size += len(text)
        buffer = "".join(parts)

    more()
    while True:
        separator = (_OPENING if first else _SEPARATOR).match(buffer, position)
        assert separator is not None, "the caller has seen the opening bracket, and the separator may be empty"
        first = False
        start = separator.end()
        line += buffer.count("\n", position, start)
        position = start
        stream.line = line
        if position >= len(buffer):
            if not ended:
                more()
                continue
            if broken:
                raise broken
            return
        if buffer[position] == "]":
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError):
            if not ended and len(buffer) - position < MAX_LINE_BYTES:
                more()
                continue
            if broken:
                raise broken from None
            following = _NEXT_ELEMENT.search(buffer, position)
            end = following.end() if following else len(buffer)
            rejects.num_rows += 1
            rejects.add("invalid_json", stream.file, line, buffer[position:end])
        else:
            text = buffer[position:end]
            row = _accept(value, text, line, stream, rejects)
            if row is not None:
                yield line, row
        line += buffer.count("\n", position, end)
        position = end


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
