"""Files of raw token ids that others made (no header, one id after another) as pretraining documents, not copied.

    NAME.files.json     the files (path, size, SHA-256), counts, the id that ends a document
    NAME.files.npy      int64 (documents, 2): where the boundary before a document stands in its file, stored tokens

A document is [end t1 … tn end] as in `data.shards`: the end of one is the boundary before the next, and the first of a
file, which has none before it (position -1), gets one when it is read. All files are read, whole: reading only the first
of several is how a well-known trainer lost most of its data.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mengya.data.shards import TokenShards
from mengya.data.slices import FileReader, npy_start
from mengya.data.token_source import JoinedTokens, TokenSource
from mengya.errors import UserError
from mengya.files import atomic_path, read_json, sha256_of, write_json

_CHUNK_TOKENS = 1 << 24
_MEND = "run the shards stage again"
_INT64 = np.dtype("<i8")


def _ends_of(file: Path, dtype: str, end_id: int, vocab_size: int) -> tuple[np.ndarray, int, str]:
    """(positions of the end id, number of tokens, SHA-256) of a file, in one pass and bounded memory."""
    size = np.dtype(dtype).itemsize
    digest = hashlib.sha256()
    ends: list[np.ndarray] = []
    num_tokens = 0
    with open(file, "rb") as handle:
        while raw := handle.read(_CHUNK_TOKENS * size):
            if len(raw) % size:
                raise UserError(f"its bytes are not whole {dtype} numbers", where=file, mend="copy the file again")
            digest.update(raw)
            ids = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
            if ids.max() >= vocab_size:
                raise UserError(
                    f"token {ids.max()} at {num_tokens + int(ids.argmax())} is beyond the tokenizer's {vocab_size:,}",
                    where=file,
                    mend="set tokenizer.path to the tokenizer that these files were made with",
                )
            ends.append(np.flatnonzero(ids == end_id) + num_tokens)
            num_tokens += len(ids)
    return np.concatenate([np.zeros(0, np.int64), *ends]), num_tokens, digest.hexdigest()


def index_token_files(
    files: Sequence[Path],
    directory: Path,
    *,
    end_id: int,
    vocab_size: int,
    name: str = "train",
    num_held_out: int = 0,
    source: str = "token_files",
) -> dict[str, Any]:
    """The index written to `directory`: where the documents of `files` stand; the files themselves stay as they are.

    Numbers are little-endian uint16, uint32 where the vocabulary needs it. `num_held_out` documents, evenly over all,
    are left out of training and listed under "held_out" as (file, position, stored tokens); never more than a tenth.
    Counted: "empty" documents (two ends in a row, left out), and "unended" ones (a file that stops in the middle).
    """
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    rows: list[np.ndarray] = []
    listed: list[dict[str, Any]] = []
    empty = unended = 0
    for file in files:
        ends, num_tokens, digest = _ends_of(file, dtype, end_id, vocab_size)
        starts = np.concatenate([[-1], ends])
        stops = np.concatenate([ends, [num_tokens - 1]])  # the last: what stands behind the last end, if anything
        lengths = stops - starts + 1
        unended += int(lengths[-1] > 1)
        # [end end] holds nothing; the last entry is one token long when the file ends with its last document.
        kept = lengths > 2
        kept[-1] = lengths[-1] > 1
        empty += int((lengths[:-1] == 2).sum())
        rows.append(np.stack([starts[kept], lengths[kept]], axis=1))
        listed.append({
            "path": str(file.resolve()), "bytes": file.stat().st_size, "sha256": digest,
            "tokens": num_tokens, "documents": int(kept.sum()),
        })  # fmt: skip
    places = np.concatenate([np.zeros((0, 2), np.int64), *rows]).astype("<i8")
    if not len(places):
        raise UserError("no document in the token files", where=str(files[0]) if files else "shards.token_files")
    file_of = np.repeat(np.arange(len(listed)), [entry["documents"] for entry in listed])
    num_held_out = min(num_held_out, len(places) // 10)
    held = np.array([k * len(places) // num_held_out for k in range(num_held_out)], dtype=np.int64)
    held_out = [(int(file_of[i]), int(places[i, 0]), int(places[i, 1])) for i in held]
    for i in held:
        listed[file_of[i]]["documents"] -= 1
    places = np.delete(places, held, axis=0)
    array_file = Path(directory) / f"{name}.files.npy"
    with atomic_path(array_file) as temporary, open(temporary, "wb") as handle:
        np.save(handle, places)
    index = {
        "dtype": dtype,
        "vocab_size": vocab_size,
        "end_id": end_id,
        "source": source,
        "documents": len(places),
        "tokens": int(places[:, 1].sum()),
        "empty": empty,
        "unended": unended,
        "held_out": held_out,
        "files": listed,
    }
    write_json(Path(directory) / f"{name}.files.json", index)
    return index


class TokenFiles(TokenSource):
    """All documents of all token files, read where they lie; the interface of `TokenShards` but for the texts' bytes.

    A file that is missing, or has another size than when it was indexed, is a UserError that names it.
    """

    def __init__(self, directory: Path, name: str = "train") -> None:
        self.index: dict[str, Any] = read_json(Path(directory) / f"{name}.files.json")
        self._end_id: int = self.index["end_id"]
        self._dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self.vocab_size: int = self.index["vocab_size"]
        self.source_names = [self.index["source"]]
        self._files = [Path(entry["path"]) for entry in self.index["files"]]
        for file, entry in zip(self._files, self.index["files"], strict=True):
            if not file.is_file():
                raise UserError("this token file is no longer there", where=file, mend=f"bring it back, or {_MEND}")
            if file.stat().st_size != entry["bytes"]:
                raise UserError("this token file has changed since it was indexed", where=file, mend=_MEND)
        self._first = [0, *accumulate(entry["documents"] for entry in self.index["files"])]
        places = Path(directory) / f"{name}.files.npy"
        self._places_start = npy_start(places, (self._first[-1], 2), _MEND)
        self._reader = FileReader([*self._files, places], _MEND)

    def __len__(self) -> int:
        return self._first[-1]

    def _places(self, first: int, stop: int) -> np.ndarray:
        """(documents, 2): position in its file, stored tokens."""
        numbers = self._reader.numbers(len(self._files), _INT64, self._places_start, 2 * first, 2 * stop)
        return numbers.reshape(-1, 2)

    def lengths(self, first: int, stop: int) -> np.ndarray:
        return self._places(first, stop)[:, 1]

    def stored(self, document: int, start: int, length: int) -> np.ndarray:
        ((begin, stored),) = self._places(document, document + 1).tolist()
        return self._read(self._file_of(document), begin + start, min(length, stored - start))

    def _file_of(self, document: int) -> int:
        return bisect_right(self._first, document) - 1

    def _read(self, file: int, start: int, length: int) -> np.ndarray:
        if start >= 0:
            return self._reader.numbers(file, self._dtype, 0, start, start + length)
        boundary = np.array([self._end_id], self._dtype)
        return np.concatenate([boundary, self._reader.numbers(file, self._dtype, 0, 0, start + length)])

    def held_out(self) -> list[np.ndarray]:
        """The documents that are kept from training, without their boundaries."""
        found = [self._read(*place) for place in self.index["held_out"]]
        return [ids[1:-1] if ids[-1] == self._end_id else ids[1:] for ids in found]

    def runs(self) -> list[tuple[int, int]]:
        return [(0, len(self))]

    def tokens_by_source(self) -> dict[str, int]:
        return {self.index["source"]: self.index["tokens"]}

    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE, token N": such files have no lines; N is the document's first own token."""
        position = int(self._places(index, index + 1)[0, 0])
        return f"{self.index['source']} {self._files[self._file_of(index)]}, token {position + 1}"

    @property
    def fingerprint(self) -> str:
        facts = [self.index["end_id"], self.index["dtype"], self.index["held_out"]]
        return sha256_of([*facts, *(entry["sha256"] for entry in self.index["files"])])


def open_tokens(directory: Path, name: str = "train") -> TokenSource:
    """What the shards stage left to train on: shards, token files, or both together."""
    directory = Path(directory)
    parts: list[TokenSource] = []
    if (directory / f"{name}.files.json").is_file():
        parts.append(TokenFiles(directory, name))
    if (directory / f"{name}.index.json").is_file() or not parts:
        parts.append(TokenShards(directory, name))
    return parts[0] if len(parts) == 1 else JoinedTokens(parts)
