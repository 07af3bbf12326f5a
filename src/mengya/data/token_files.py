"""Files of raw token ids that others made (no header, one id after another) as pretraining documents, not copied.

    NAME.files.json     the files (path, size, SHA-256), counts, the id that ends a document
    NAME.files.npy      int64 (documents, 2): where the boundary before a document stands in its file, stored tokens

A document is [end t1 … tn end] as in `data.shards`: the end of one is the boundary before the next, and the first of a
file, which has none before it (position -1), gets one when it is read. All files are read, whole: reading only the first
of several is how a well-known trainer lost most of its data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mengya.data.shards import TokenShards
from mengya.errors import UserError
from mengya.files import atomic_path, read_json, sha256_of, write_json

_CHUNK_TOKENS = 1 << 24
_MEND = "run the shards stage again"


class TokenSource(Protocol):
    """What training reads: token shards, token files, or both."""

    lengths_N: np.ndarray
    source_ids_N: np.ndarray
    source_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, document: int) -> np.ndarray: ...
    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_inputs_N(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...


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


class TokenFiles:
    """All documents of all token files, memory-mapped; the interface of `TokenShards` but for the texts' bytes.

    A file that is missing, or has another size than when it was indexed, is a UserError that names it.
    """

    def __init__(self, directory: Path, name: str = "train") -> None:
        self.index: dict[str, Any] = read_json(Path(directory) / f"{name}.files.json")
        self._end_id: int = self.index["end_id"]
        self._dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self.vocab_size: int = self.index["vocab_size"]
        for entry in self.index["files"]:
            file = Path(entry["path"])
            if not file.is_file():
                raise UserError("this token file is no longer there", where=file, mend=f"bring it back, or {_MEND}")
            if file.stat().st_size != entry["bytes"]:
                raise UserError("this token file has changed since it was indexed", where=file, mend=_MEND)
        self._tokens = [
            np.memmap(entry["path"], self._dtype, "r") if entry["bytes"] else np.zeros(0, self._dtype)
            for entry in self.index["files"]
        ]
        self._file_of_N = np.repeat(
            np.arange(len(self._tokens), dtype=np.int32), [entry["documents"] for entry in self.index["files"]]
        )
        places = np.load(Path(directory) / f"{name}.files.npy", allow_pickle=False)
        self._start_N, self.lengths_N = places[:, 0], places[:, 1]
        self.source_names = [self.index["source"]]
        self.source_ids_N = np.zeros(len(places), np.int64)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, document: int) -> np.ndarray:
        return self._read(int(self._file_of_N[document]), int(self._start_N[document]), int(self.lengths_N[document]))

    def _read(self, file: int, start: int, length: int) -> np.ndarray:
        if start >= 0:
            return self._tokens[file][start : start + length]
        boundary = np.array([self._end_id], self._dtype)
        return np.concatenate([boundary, self._tokens[file][: start + length]])

    def held_out(self) -> list[np.ndarray]:
        """The documents that are kept from training, without their boundaries."""
        found = [self._read(*place) for place in self.index["held_out"]]
        return [ids[1:-1] if ids[-1] == self._end_id else ids[1:] for ids in found]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_N.sum())

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self.lengths_N - 1

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a piece of a document: every token is learnt but the first."""
        file, begin = int(self._file_of_N[document]), int(self._start_N[document]) + start
        tokens = self._read(file, begin, length + 1).astype(np.int64)
        return tokens[:-1], tokens[1:]

    @property
    def fingerprint(self) -> str:
        facts = [self.index["end_id"], self.index["dtype"], self.index["held_out"]]
        return sha256_of([*facts, *(entry["sha256"] for entry in self.index["files"])])


class JoinedTokens:
    """Several token sources as one, documents in the order given."""

    def __init__(self, parts: Sequence[TokenSource]) -> None:
        self._parts = list(parts)
        self._first = np.cumsum([0, *(len(part) for part in parts)])
        self.lengths_N = np.concatenate([part.lengths_N for part in parts])
        self.source_names = [name for part in parts for name in part.source_names]
        before = np.cumsum([0, *(len(part.source_names) for part in parts)])
        shifted = zip(parts, before[:-1], strict=True)
        self.source_ids_N = np.concatenate([part.source_ids_N + shift for part, shift in shifted])

    def __len__(self) -> int:
        return len(self.lengths_N)

    def _locate(self, document: int) -> tuple[TokenSource, int]:
        part = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._parts[part], document - int(self._first[part])

    def __getitem__(self, document: int) -> np.ndarray:
        part, own = self._locate(document)
        return part[own]

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        part, own = self._locate(document)
        return part.piece(own, start, length)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_N.sum())

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self.lengths_N - 1

    @property
    def fingerprint(self) -> str:
        return sha256_of([part.fingerprint for part in self._parts])


def open_tokens(directory: Path, name: str = "train") -> TokenSource:
    """What the shards stage left to train on: shards, token files, or both together."""
    directory = Path(directory)
    parts: list[TokenSource] = []
    if (directory / f"{name}.files.json").is_file():
        parts.append(TokenFiles(directory, name))
    if (directory / f"{name}.index.json").is_file() or not parts:
        parts.append(TokenShards(directory, name))
    return parts[0] if len(parts) == 1 else JoinedTokens(parts)
