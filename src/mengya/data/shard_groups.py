"""Which documents make up which shard: source by source, so that another source beside one changes nothing in it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice

from mengya.corpus.records import Document
from mengya.tokenizer.encode import ChatTokenizer

_PROBE_DOCUMENTS = 512


def shard_groups(
    documents: Iterable[Document], tokenizer: ChatTokenizer, shard_tokens: int
) -> Iterator[tuple[str, list[Document]]]:
    """("SOURCE-00000", documents) of each shard in turn. The documents of a source should stand together.

    Where they do not, each run of them begins a shard of its own; no more than a shard's documents are held.
    """
    slugs: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for source, own in groupby(documents, key=lambda document: document.source):
        if source not in slugs:
            slug = re.sub(r"[^\w-]+", "_", source)[:60] or "_"
            slugs[source] = slug + (
                "-" + hashlib.sha256(source.encode()).hexdigest()[:8] if slug in slugs.values() else ""
            )
        for group in _groups(own, tokenizer, shard_tokens):
            yield f"{slugs[source]}-{numbers[source]:05d}", group
            numbers[source] += 1


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
