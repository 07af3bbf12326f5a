"""Documents → token shards on disk, and the memory-mapped reader of them.

    NAME-00000.bin          tokens, raw little-endian uint16 (uint32 when the vocabulary needs it)
    NAME-00000.idx.npy      int64 (documents + 1): where each document begins, in tokens
    NAME-00000.doc.npy      int64 (documents, 2): source id within this shard, UTF-8 bytes of the text
    NAME-00000.json         written last of a shard: its input's hash, counts, source names, SHA-256 of the files
    NAME.index.json         written last of all: dtype, totals, the shards

A document is stored as [<|endoftext|> t1 … tn <|endoftext|>], so that its inputs are doc[:-1] and its targets doc[1:].
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mengya.corpus import records
from mengya.corpus.records import Document
from mengya.errors import UserError
from mengya.files import atomic_path, read_json, read_jsonl, remove_partials, sha256, sha256_of, write_json
from mengya.tokenizer.encode import ChatTokenizer

_FORMAT = 1
_BATCH_DOCUMENTS = 256
_PROBE_DOCUMENTS = 512
_FILES = ("bin", "idx.npy", "doc.npy")


@dataclass(frozen=True)
class _Job:
    """What one worker turns into one shard."""

    stem: Path
    documents: list[Document]
    key: str
    dtype: str


def write_shards(
    documents: Iterable[Document] | Path,
    tokenizer: ChatTokenizer,
    directory: Path,
    *,
    name: str = "train",
    shard_tokens: int = 16_777_216,
    num_workers: int = 1,
) -> dict[str, Any]:
    """The index of the shards written: {"documents", "tokens", "bytes", "sources": {name: documents}, "shards", ...}.

    `documents` may be a JSONL file of Document rows. A shard holds about `shard_tokens` tokens: it is cut by bytes of
    text, at the rate of the first documents, so that its contents do not depend on the number of workers (processes).
    After a kill, the same call redoes only the shards that were not finished.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    index_file = directory / f"{name}.index.json"
    index_file.unlink(missing_ok=True)  # until the last shard is there, a reader must find nothing
    remove_partials(directory)
    if isinstance(documents, Path):
        documents = (records.document(row) for row in read_jsonl(documents))
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"

    finished: dict[int, dict[str, Any]] = {}
    running: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    with _workers(num_workers, tokenizer) as submit:
        for number, group in enumerate(_groups(iter(documents), tokenizer, shard_tokens)):
            stem = directory / f"{name}-{number:05d}"
            key = _key(group, tokenizer, dtype)
            done = _finished(stem, key)
            if done is not None:
                finished[number] = done
            else:
                running.append((number, submit(_Job(stem, group, key, dtype))))
            while len(running) >= 2 * max(1, num_workers):  # bounds the documents in memory
                oldest, future = running.popleft()
                finished[oldest] = future.result()
        for number, future in running:
            finished[number] = future.result()

    shards = [finished[number] for number in sorted(finished)]
    if not shards:
        raise UserError("no document to write", where=directory, mend="see the corpus stage's funnel for what was kept")
    for file in directory.glob(f"{name}-[0-9]*"):  # a longer run's leftovers
        if file.name.split(".")[0] not in {shard["name"] for shard in shards}:
            file.unlink()
    sources: dict[str, int] = {}
    for shard in shards:
        for source, count in shard["sources"].items():
            sources[source] = sources.get(source, 0) + count
    index = {
        "format": _FORMAT,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "end_of_text_id": tokenizer.end_of_text_id,
        **{total: sum(shard[total] for shard in shards) for total in ("documents", "tokens", "bytes")},
        "sources": dict(sorted(sources.items())),
        "shards": shards,
    }
    write_json(index_file, index)
    return index


def _groups(documents: Iterator[Document], tokenizer: ChatTokenizer, shard_tokens: int) -> Iterator[list[Document]]:
    """The documents of each shard in turn."""
    probe = list(islice(documents, _PROBE_DOCUMENTS))
    num_tokens = sum(len(ids) + 2 for ids in tokenizer.encode_batch([document.text for document in probe]))
    bytes_per_token = sum(len(document.text.encode()) for document in probe) / max(1, num_tokens)
    group: list[Document] = []
    num_bytes = 0
    for document in chain(probe, documents):
        group.append(document)
        num_bytes += len(document.text.encode())
        if num_bytes >= shard_tokens * bytes_per_token:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _key(group: list[Document], tokenizer: ChatTokenizer, dtype: str) -> str:
    """A hash of all that decides a shard's contents."""
    digest = hashlib.sha256(f"{_FORMAT}\0{tokenizer.fingerprint}\0{tokenizer.end_of_text_id}\0{dtype}".encode())
    for document in group:
        for part in (document.source.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _finished(stem: Path, key: str) -> dict[str, Any] | None:
    """The shard's own record, if it is there for this very input and its files are whole."""
    sidecar = stem.with_name(f"{stem.name}.json")
    if not sidecar.is_file():
        return None
    shard = read_json(sidecar)
    if shard["key"] != key:
        return None
    for suffix in _FILES:
        file = stem.with_name(f"{stem.name}.{suffix}")
        if not file.is_file() or sha256(file) != shard["sha256"][suffix]:
            return None
    return shard


@contextmanager
def _workers(num_workers: int, tokenizer: ChatTokenizer) -> Iterator[Callable[[_Job], Future[dict[str, Any]]]]:
    """What submits a job: to processes, or for one worker to this very process."""
    setting = (tokenizer.backend.to_str(), tokenizer.end_of_text_id)
    if num_workers > 1:
        # Forking a process whose Rust or torch threads hold locks can hang the child: spawn.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, _start_process, setting) as pool:
            yield lambda job: pool.submit(_write_shard, job)
        return

    def at_once(job: _Job) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        future.set_result(_write_shard(job))
        return future

    _start_worker(*setting)
    yield at_once


_worker: tuple[Tokenizer, int] | None = None


def _start_process(serialised: str, end_of_text_id: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A killed parent closes nothing that its workers wait on: without this they would stay for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    _start_worker(serialised, end_of_text_id)


def _start_worker(serialised: str, end_of_text_id: int) -> None:
    global _worker
    backend = Tokenizer.from_str(serialised)
    backend.encode_special_tokens = True
    _worker = (backend, end_of_text_id)


def _write_shard(job: _Job) -> dict[str, Any]:
    assert _worker is not None
    backend, end_of_text_id = _worker
    bound = np.array([end_of_text_id], dtype=job.dtype)
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    for first in range(0, len(job.documents), _BATCH_DOCUMENTS):
        texts = [document.text for document in job.documents[first : first + _BATCH_DOCUMENTS]]
        for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
            parts += [bound, np.array(encoding.ids, dtype=job.dtype), bound]
            lengths.append(len(encoding.ids) + 2)
    counts: dict[str, int] = {}
    for document in job.documents:
        counts[document.source] = counts.get(document.source, 0) + 1
    sources = dict(sorted(counts.items()))
    source_ids = {source: index for index, source in enumerate(sources)}
    facts = np.array(
        [(source_ids[document.source], len(document.text.encode())) for document in job.documents], dtype="<i8"
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")

    arrays = {"bin": np.concatenate(parts), "idx.npy": offsets, "doc.npy": facts}
    hashes = {}
    for suffix, array in arrays.items():
        file = job.stem.with_name(f"{job.stem.name}.{suffix}")
        with atomic_path(file) as temporary, open(temporary, "wb") as handle:
            if suffix == "bin":
                array.astype(array.dtype.newbyteorder("<")).tofile(handle)
            else:
                np.save(handle, array)
        hashes[suffix] = sha256(file)
    shard = {
        "name": job.stem.name,
        "key": job.key,
        "documents": len(job.documents),
        "tokens": int(offsets[-1]),
        "bytes": int(facts[:, 1].sum()),
        "sources": sources,
        "sha256": hashes,
    }
    write_json(job.stem.with_name(f"{job.stem.name}.json"), shard)
    return shard


class TokenShards:
    """All documents of all shards of one name, memory-mapped: `shards[i]` is document i's stored tokens.

    `lengths_N` counts a document's stored tokens (both boundaries in), `bytes_N` its text's UTF-8 bytes, `source_ids_N`
    points into `source_names`. A missing or truncated shard is a UserError that names the file.
    """

    def __init__(self, directory: Path, name: str = "train") -> None:
        directory = Path(directory)
        index_file = directory / f"{name}.index.json"
        mend = "run the shards stage again"
        if not index_file.is_file():
            raise UserError("no such index of token shards", where=index_file, mend=mend)
        self.index: dict[str, Any] = read_json(index_file)
        self.vocab_size: int = self.index["vocab_size"]
        self.source_names: list[str] = list(self.index["sources"])
        global_id = {source: index for index, source in enumerate(self.source_names)}
        dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self._tokens: list[np.ndarray] = []
        offsets: list[np.ndarray] = []
        shard_of: list[np.ndarray] = []
        facts: list[np.ndarray] = []
        for number, shard in enumerate(self.index["shards"]):
            files = {suffix: directory / f"{shard['name']}.{suffix}" for suffix in _FILES}
            for file in files.values():
                if not file.is_file():
                    raise UserError("this part of the token shards is missing", where=file, mend=mend)
            size, expected = files["bin"].stat().st_size, shard["tokens"] * dtype.itemsize
            if size != expected:
                raise UserError(f"{size} bytes where the index says {expected}", where=files["bin"], mend=mend)
            self._tokens.append(np.memmap(files["bin"], dtype=dtype, mode="r"))
            offsets.append(_load_npy(files["idx.npy"], (shard["documents"] + 1,), mend))
            shard_facts = _load_npy(files["doc.npy"], (shard["documents"], 2), mend).copy()
            global_ids = np.array([global_id[source] for source in shard["sources"]])
            shard_facts[:, 0] = global_ids[shard_facts[:, 0]]
            facts.append(shard_facts)
            shard_of.append(np.full(shard["documents"], number, dtype=np.int32))
        self._shard_of_N = np.concatenate(shard_of)
        self._start_N = np.concatenate([offset[:-1] for offset in offsets])
        self.lengths_N = np.concatenate([np.diff(offset) for offset in offsets])
        all_facts = np.concatenate(facts)
        self.source_ids_N, self.bytes_N = all_facts[:, 0], all_facts[:, 1]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, document: int) -> np.ndarray:
        start = self._start_N[document]
        return self._tokens[self._shard_of_N[document]][start : start + self.lengths_N[document]]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_N.sum())

    # What the packed loader asks of its examples (data.packing.Examples).

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self.lengths_N - 1

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a piece of a document: every token is learnt but the first."""
        begin = self._start_N[document] + start
        tokens = self._tokens[self._shard_of_N[document]][begin : begin + length + 1].astype(np.int64)
        return tokens[:-1], tokens[1:]

    @property
    def fingerprint(self) -> str:
        return sha256_of([shard["key"] for shard in self.index["shards"]])


def _load_npy(file: Path, shape: tuple[int, ...], mend: str) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"damaged ({error})", where=file, mend=mend) from error
    if array.shape != shape:
        raise UserError(f"shape {array.shape} where the index says {shape}", where=file, mend=mend)
    return array
