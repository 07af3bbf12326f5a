"""The texts of an evaluation set, whatever its layout: every string of its rows that is long enough to be recognised."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from mengya.corpus.contamination import NGRAM, num_units
from mengya.corpus.sources import Rejects, list_files, read_rows
from mengya.corpus.streams import COMPRESSIONS
from mengya.errors import UserError

ARCHIVES = (".tar", ".tar.zst", ".tar.gz", ".tgz")
MAX_ARCHIVE_BYTES = 8 << 30  # decompressed; no public benchmark comes near, a bomb does

_DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
# Beside the questions of a public set stand its readme and the text of its licence, which training data may well hold.
_NOT_DATA = ("readme", "license", "licence", "notice", "changelog", "citation", "requirements")


def read_evaluation(path: Path | str, n: int = NGRAM, tally: Counter[str] | None = None) -> Iterator[str]:
    """Every string of at least `n` units in the rows of a file, folder, glob or tar archive, however deep it lies.

    A unit is a Han character, a word or a number, as in `contamination`. Keys of objects are no texts. An archive's
    members are read one after the other from a temporary file with a name of ours: no name in it becomes a path, and
    links in it lead nowhere.
    `tally` counts texts, rows, short_texts (under `n` units), rows_without_text (nothing in them can be recognised),
    members_not_data (readmes, licences, other kinds of file) and unreadable rows as "rejected: REASON".
    UserError: nothing there, a broken or too large archive, a set without one text.
    """
    tally = Counter() if tally is None else tally
    found = False
    for text in _texts(Path(path), n, tally):
        found = True
        yield text
    if not found:
        raise UserError(
            f"no text of {n} characters in this evaluation set",
            where=path,
            mend="give its questions: jsonl, json, csv, tsv, parquet or txt, or a .tar.zst of them",
        )


def _texts(path: Path, n: int, tally: Counter[str]) -> Iterator[str]:
    if path.is_file() and _is_archive(path):
        yield from _archive_texts(path, n, tally)
    elif path.is_dir():
        archives = sorted(file for file in path.rglob("*") if file.is_file() and _is_archive(file))
        for archive in archives:
            yield from _archive_texts(archive, n, tally)
        if not archives or any(_is_data(file.name) for file in path.rglob("*") if file.is_file()):
            yield from _folder_texts(list_files(path), n, tally)
    else:
        yield from _folder_texts(list_files(path), n, tally)


def _folder_texts(files: list[Path], n: int, tally: Counter[str]) -> Iterator[str]:
    for file in files:
        if len(files) == 1 or _is_data(file.name):
            yield from _file_texts(file, n, tally)
        else:
            tally["members_not_data"] += 1


def _is_archive(file: Path) -> bool:
    return file.name.lower().endswith(ARCHIVES)


def _is_data(name: str) -> bool:
    lowered = name.lower()
    for compression in COMPRESSIONS:
        lowered = lowered.removesuffix(compression)
    return lowered.endswith(_DATA) and not lowered.startswith((*_NOT_DATA, "."))


def _file_texts(file: Path, n: int, tally: Counter[str]) -> Iterator[str]:
    rejects = Rejects(max_samples=0)
    for _, row in read_rows(file, rejects):
        tally["rows"] += 1
        texts = [text for text in strings(row) if (len(text) >= n and num_units(text) >= n) or _too_short(tally)]
        tally["texts"] += len(texts)
        tally["rows_without_text"] += not texts
        yield from texts
    for reason, count in rejects.counts.items():
        tally[f"rejected: {reason}"] += count


def _too_short(tally: Counter[str]) -> bool:
    tally["short_texts"] += 1
    return False


def strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value, in order; keys left out."""
    waiting = [value]
    while waiting:  # no recursion: a hostile file may nest deeper than Python's stack
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += reversed(list(value.values()))
        elif isinstance(value, list):
            waiting += reversed(value)


def _archive_texts(path: Path, n: int, tally: Counter[str]) -> Iterator[str]:
    size = 0
    with tempfile.TemporaryDirectory(prefix="mengya-") as directory, open(path, "rb") as packed:
        try:
            with tarfile.open(fileobj=_unpacked(path, packed), mode="r|") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    name = Path(member.name).name
                    size += member.size
                    if size > MAX_ARCHIVE_BYTES:
                        raise UserError(
                            f"more than {MAX_ARCHIVE_BYTES >> 30} GiB when unpacked",
                            where=path,
                            mend="unpack it and name the files that hold the questions",
                        )
                    if not _is_data(name):
                        tally["members_not_data"] += 1
                        continue
                    handle = archive.extractfile(member)
                    if handle is None or member.size == 0:
                        tally["members_not_data"] += 1
                        continue
                    file = Path(directory) / ("member" + _suffix(name))
                    with open(file, "wb") as unpacked:
                        shutil.copyfileobj(handle, unpacked)
                    yield from _file_texts(file, n, tally)
                    file.unlink()
        except (tarfile.TarError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise UserError(f"a broken archive ({error})", where=path, mend="download it again") from error


def _unpacked(path: Path, packed: IO[bytes]) -> IO[bytes]:
    name = path.name.lower()
    stream: Any = packed
    if name.endswith(".zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    elif name.endswith((".gz", ".tgz")):
        stream = gzip.GzipFile(fileobj=packed)
    return cast("IO[bytes]", stream)


def _suffix(name: str) -> str:
    """The kind of file that a member says it is, and nothing else of its name."""
    lowered = name.lower()
    compression = next((ending for ending in COMPRESSIONS if lowered.endswith(ending)), "")
    kind = next(kind for kind in _DATA if lowered.removesuffix(compression).endswith(kind))
    return kind + compression
