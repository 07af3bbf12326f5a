"""Documents → token shards on disk (the files are described in `data.shards`): parallel, resumable, by source."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mengya.corpus.records import Document
from mengya.data.origins import write_origins
from mengya.data.shard_groups import shard_groups
from mengya.data.shards import FILES
from mengya.errors import UserError
from mengya.files import atomic_path, read_json, remove_partials, sha256, write_json
from mengya.tokenizer.bulk import BulkEncoder
from mengya.tokenizer.encode import ChatTokenizer

_FORMAT = 2
_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class _Job:
    """What one worker turns into one shard."""

    stem: Path
    documents: list[Document]
    key: str
    dtype: str


def write_shards(
    documents: Iterable[Document],
    tokenizer: ChatTokenizer,
    directory: Path,
    *,
    name: str = "train",
    shard_tokens: int = 16_777_216,
    num_workers: int = 1,
    reuse: Sequence[Path] = (),
) -> dict[str, Any]:
    """The index of the shards written: {"documents", "tokens", "bytes", "sources": {name: the same three}, "shards", …}.

    The documents of a source should stand together. A shard holds about `shard_tokens` tokens of one source: it is cut
    by bytes of text, at the rate of the source's first documents, so that its contents depend on nothing but that
    source. After a kill, the same call redoes only the shards that were not finished; a shard of the same contents in a
    directory of `reuse` is linked, not made again. No more than 2 · `num_workers` shards' documents are in memory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    index_file = directory / f"{name}.index.json"
    index_file.unlink(missing_ok=True)  # until the last shard is there, a reader must find nothing
    remove_partials(directory)
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    earlier = _earlier_shards(reuse)

    finished: dict[int, dict[str, Any]] = {}
    running: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    with _workers(num_workers, tokenizer) as submit:
        for number, (stem_name, group) in enumerate(shard_groups(documents, tokenizer, shard_tokens)):
            stem = directory / f"{name}-{stem_name}"
            # Beside the shard, not of it: a document that moved to another line is the same document.
            write_origins(directory, stem.name, (document.origin for document in group))
            key = _key(group, tokenizer, dtype)
            done = _finished(stem, key)
            if done is None and key in earlier:
                done = _take(earlier[key], stem, key)
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
    written = {shard["name"] for shard in shards}
    for file in [*directory.glob(f"{name}-*"), *directory.glob(f".{name}-*")]:  # another run's leftovers
        if file.name.removeprefix(".").split(".")[0] not in written:
            file.unlink()
    totals = ("documents", "tokens", "bytes")
    sources: dict[str, dict[str, int]] = {}
    for shard in shards:
        (source,) = shard["sources"]
        held = sources.setdefault(source, dict.fromkeys(totals, 0))
        sources[source] = {total: held[total] + shard[total] for total in totals}
    index = {
        "format": _FORMAT,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "end_of_text_id": tokenizer.end_of_text_id,
        **{total: sum(shard[total] for shard in shards) for total in totals},
        "sources": dict(sorted(sources.items())),
        "shards": shards,
    }
    write_json(index_file, index)
    return index


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
    for suffix in FILES:
        file = stem.with_name(f"{stem.name}.{suffix}")
        if not file.is_file() or sha256(file) != shard["sha256"][suffix]:
            return None
    return shard


def _earlier_shards(directories: Sequence[Path]) -> dict[str, Path]:
    """{key: stem} of the shards that other directories hold."""
    found: dict[str, Path] = {}
    for directory in directories:
        for sidecar in sorted(directory.glob("*.json")):
            shard = read_json(sidecar)
            if "key" in shard:
                found[shard["key"]] = sidecar.with_suffix("")
    return found


def _take(earlier: Path, stem: Path, key: str) -> dict[str, Any] | None:
    """The record of an earlier shard that now stands at `stem` too, if its files are whole."""
    shard = _finished(earlier, key)
    if shard is None:
        return None
    for suffix in FILES:
        own = stem.with_name(f"{stem.name}.{suffix}")
        with atomic_path(own) as temporary:
            source = earlier.with_name(f"{earlier.name}.{suffix}")
            try:
                os.link(source, temporary)  # shards are never written in place, so two names may share the bytes
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, temporary)
    shard["name"] = stem.name
    write_json(stem.with_name(f"{stem.name}.json"), shard)
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


_worker: tuple[BulkEncoder, int] | None = None


def _start_process(serialised: str, end_of_text_id: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    os.environ["RAYON_NUM_THREADS"] = "1"  # fastokens' threads
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
    _worker = (BulkEncoder(backend), end_of_text_id)


def _write_shard(job: _Job) -> dict[str, Any]:
    assert _worker is not None
    encoder, end_of_text_id = _worker
    parts: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for first in range(0, len(job.documents), _BATCH_DOCUMENTS):
        texts = [document.text for document in job.documents[first : first + _BATCH_DOCUMENTS]]
        if first == 0:
            encoder.check(texts)
        ids, num_ids = encoder.encode(texts)
        ends = np.cumsum(num_ids)
        # np.insert puts each boundary before the position that it is given; a document begins where the last one ends.
        places = np.stack([ends - num_ids, ends], axis=1).ravel()
        parts.append(np.insert(ids, places, end_of_text_id).astype(job.dtype))
        lengths.append(num_ids + 2)
    counts: dict[str, int] = {}
    for document in job.documents:
        counts[document.source] = counts.get(document.source, 0) + 1
    sources = dict(sorted(counts.items()))
    source_ids = {source: index for index, source in enumerate(sources)}
    facts = np.array(
        [(source_ids[document.source], len(document.text.encode())) for document in job.documents], dtype="<i8"
    )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype("<i8")

    arrays = {"bin": np.concatenate(parts), "idx.npy": offsets, "doc.npy": facts}
    hashes = {}
    for suffix, values in arrays.items():
        file = job.stem.with_name(f"{job.stem.name}.{suffix}")
        with atomic_path(file) as temporary, open(temporary, "wb") as handle:
            if suffix == "bin":
                values.astype(values.dtype.newbyteorder("<")).tofile(handle)
            else:
                np.save(handle, values)
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
