"""Which documents make up which shard: source by source, so that another source beside one changes nothing in it."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from mengya.corpus import records
from mengya.corpus.records import Document
from mengya.tokenizer.encode import ChatTokenizer

_PROBE_DOCUMENTS = 512


def _by_source(documents: Iterable[Document] | Path) -> Iterator[tuple[str, Iterator[Document]]]:
    """(source, its documents in their order) for each source, in the order in which they first come."""
    if not isinstance(documents, Path):
        held: dict[str, list[Document]] = {}
        for document in documents:
            held.setdefault(document.source, []).append(document)
        yield from ((source, iter(found)) for source, found in held.items())
        return
    # Eight bytes a document tell where its row stands: a source's rows need not stand together.
    rows: dict[str, array[int]] = {}
    position = 0
    with open(documents, "rb") as file:
        for line in file:
            rows.setdefault(json.loads(line)["source"], array("q")).append(position)
            position += len(line)

        def read(positions: array[int]) -> Iterator[Document]:
            for start in positions:
                file.seek(start)
                yield records.document(json.loads(file.readline()))

        for source, positions in rows.items():
            yield source, read(positions)


def shard_groups(
    documents: Iterable[Document] | Path, tokenizer: ChatTokenizer, shard_tokens: int
) -> Iterator[tuple[str, list[Document]]]:
    """("SOURCE-00000", documents) of each shard in turn."""
    taken: set[str] = set()
    for source, own in _by_source(documents):
        slug = re.sub(r"[^\w-]+", "_", source)[:60] or "_"
        if slug in taken:
            slug += "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
        taken.add(slug)
        for number, group in enumerate(_groups(own, tokenizer, shard_tokens)):
            yield f"{slug}-{number:05d}", group


def _groups(documents: Iterator[Document], tokenizer: ChatTokenizer, shard_tokens: int) -> Iterator[list[Document]]:
    """The documents of each shard of a source in turn."""
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
