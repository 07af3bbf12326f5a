"""Which of many texts are copies of others: exactly, but for white space, punctuation and case; or nearly.

Near duplicates: MinHash-LSH on character 5-grams proposes pairs (`lsh`), exact Jaccard decides (`copies`). 20 bands of 6
rows propose 99.8% of the pairs of Jaccard 0.8, so recall is near 1 and precision is that of the exact test. For a list
of texts: `exact_duplicates`, `near_duplicates`. For more than fits in memory: `write_signatures` for every
part of the documents, in any order and process, then `find_duplicates` over all parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mengya.corpus import copies, lsh
from mengya.corpus.copies import Clusters, Dropped, Families, Indices, ShingleCache, prove
from mengya.corpus.journal import Journal
from mengya.corpus.lsh import all_pairs, candidate_pairs, merged, write_candidates
from mengya.corpus.minhash import (
    NUM_BANDS,
    NUM_ROWS,
    SETTINGS,
    SignatureFiles,
    band_keys,
    signatures_in_memory,
    write_signatures,
)
from mengya.corpus.shingles import NGRAM, Hashes, canonical, exact_key, jaccard, shingles

__all__ = [
    "NGRAM",
    "NUM_BANDS",
    "NUM_ROWS",
    "Duplicate",
    "band_keys",
    "candidate_pairs",
    "canonical",
    "exact_duplicates",
    "exact_key",
    "find_duplicates",
    "jaccard",
    "near_duplicates",
    "shingles",
    "write_signatures",
]

Keep = Literal["longest", "first"]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Text `index` is dropped as a copy of text `of`, which is kept."""

    index: int
    of: int
    kind: Literal["exact_duplicate", "near_duplicate"]
    similarity: float


def exact_duplicates(texts: Sequence[str]) -> list[Duplicate]:
    """Every text whose canonical form stood before it; the first is kept."""
    first: dict[bytes, int] = {}
    found: list[Duplicate] = []
    for index, text in enumerate(texts):
        of = first.setdefault(exact_key(text), index)
        if of != index:
            found.append(Duplicate(index, of, "exact_duplicate", 1.0))
    return found


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, seed: int = 1) -> list[Duplicate]:
    """Every text that is nearly a copy of a longer one (of an earlier one of equal length), which is kept.

    Pairs of Jaccard ≥ `threshold` are joined into clusters; the longest member is kept. A member that only a chain of
    others joins to it is dropped when its Jaccard with the kept text is at least 2·threshold - 1, which by the
    triangle inequality of the Jaccard distance every two copies of one original reach; else it is kept, and others
    of the cluster may be its copies.
    """
    found = signatures_in_memory(texts, seed)
    cache = ShingleCache(lambda index: texts[index])
    clusters = Clusters(len(texts))
    for _ in prove([all_pairs(found.bands)], clusters, found.num_shingles, cache, threshold):
        pass
    families = Families(clusters, (-found.lengths.astype(np.int64),))
    dropped = [families.twos, *families.drop(found.num_shingles, cache, threshold, [])]
    return list(_near(Dropped.join(dropped)))


def _near(dropped: Dropped) -> Iterator[Duplicate]:
    for index, twin, similarity in zip(*(column.tolist() for column in dropped), strict=True):
        yield Duplicate(index, twin, "near_duplicate", round(similarity, 4))


def find_duplicates(
    stems: Sequence[Path],
    text_of: Callable[[int], str],
    *,
    threshold: float = 0.8,
    keep: Keep = "longest",
    priority: Sequence[int] | None = None,
    directory: Path,
) -> Iterator[Duplicate]:
    """Duplicates over all parts: exact ones in ascending order, then near ones among what they leave, ascending.

    Documents are numbered through the parts in the order of `stems`, whose signatures `write_signatures` has written.
    `text_of(number)` fetches the text of a candidate, mostly in ascending order. Of copies the longest is kept (with
    keep="first": whatever its length), the one from the part of the lower `priority[part]` among equals, then the lower
    number. Clusters are those of `near_duplicates`; the twin of an exact copy is what that step kept, and may be a near copy
    of another text itself. Deterministic. Memory: about 100 bytes a document and 0.5 GB.

    `directory`/finding holds what is finished until the last duplicate was taken (candidates of 8 bytes a pair and group of
    bands, joined pairs, what was dropped): the same call after a kill does at most one step of 64 MB of shingles, or one group
    of bands, a second time, and finds the same.
    UserError where signatures are absent or of other settings.
    """
    files = SignatureFiles(stems)
    assert priority is None or len(priority) == len(stems), "one priority for each part"
    assert 0 < threshold <= 1
    of_part = np.zeros(len(stems), dtype=np.int32) if priority is None else np.array(priority, dtype=np.int32)
    return _find(files, text_of, threshold, keep, np.repeat(of_part, files.counts), directory)


def _find(
    files: SignatureFiles,
    text_of: Callable[[int], str],
    threshold: float,
    keep: Keep,
    priorities: npt.NDArray[np.int32],
    directory: Path,
) -> Iterator[Duplicate]:
    if not files.num_documents:
        return
    keys = files.exact()
    identity = {
        **SETTINGS,
        "texts": hashlib.sha256(
            keys.reshape(-1).data
        ).hexdigest(),  # canonical texts, from which everything else follows
        "priorities": hashlib.sha256(priorities.data).hexdigest(),
        "threshold": threshold,
        "keep": keep,
        "steps": [copies.STEP_SHINGLES, lsh.KEYS],
    }
    journal = Journal(directory / "finding", identity)
    if not (done := list(journal.read("exact"))):
        done = [dict(zip(("dropped", "of"), _exact(keys, priorities), strict=True))]
        journal.append("exact", done[0])
    del keys
    dropped = done[0]["dropped"]
    for index, twin in zip(dropped.tolist(), done[0]["of"].tolist(), strict=True):
        yield Duplicate(index, twin, "exact_duplicate", 1.0)
    yield from _near(_find_near(files, text_of, threshold, keep, priorities, dropped, journal))
    journal.remove()


def _find_near(
    files: SignatureFiles,
    text_of: Callable[[int], str],
    threshold: float,
    keep: Keep,
    priorities: npt.NDArray[np.int32],
    dropped: Indices,
    journal: Journal,
) -> Dropped:
    def left(bands: range) -> Hashes:
        keys = files.bands(bands)
        keys[:, dropped] = 0
        return keys

    num_shingles = files.num_shingles()
    cache = ShingleCache(text_of)
    candidates = write_candidates(left, files.num_documents, journal.directory)
    clusters, last = Clusters(files.num_documents), -1
    for step in journal.read("joined"):
        last = int(step["last"])
        for one, other, similarity in zip(
            *(step[name].tolist() for name in ("one", "other", "similarity")), strict=True
        ):
            clusters.join(one, other, similarity)
    for joined in prove(merged(candidates, last), clusters, num_shingles, cache, threshold):
        one, other, similarity = zip(*joined.pairs, strict=True) if joined.pairs else ((), (), ())
        journal.append(
            "joined",
            {
                "last": np.array(joined.last, np.int64),
                "one": np.array(one, np.int64),
                "other": np.array(other, np.int64),
                "similarity": np.array(similarity, np.float64),
            },
        )
    families = Families(clusters, (priorities,) if keep == "first" else (-files.lengths().astype(np.int64), priorities))
    found = [Dropped(**step) for step in journal.read("dropped")]
    for more in families.drop(num_shingles, cache, threshold, found):
        journal.append("dropped", more._asdict())
        found.append(more)
    return Dropped.join([families.twos, *found])


def _exact(keys: Hashes, priorities: npt.NDArray[np.int32]) -> tuple[Indices, Indices]:
    """(dropped, its kept copy), ascending, of [num_texts, 2] keys. Exact copies are of one length."""
    order = np.argsort(keys[:, 0])
    # Only where the first half of a key is shared do the other half, the priority and the number matter.
    shared = np.zeros(len(order) + 1, dtype=bool)
    np.equal(keys[order[1:], 0], keys[order[:-1], 0], out=shared[1:-1])
    order = np.sort(order[shared[1:] | shared[:-1]])
    order = order[np.lexsort((priorities[order], keys[order, 1], keys[order, 0]))]  # stable: the lower number first
    ordered = keys[order]
    copy = np.zeros(len(order), dtype=bool)
    copy[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
    first = order[np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))]
    dropped, of = order[copy], first[copy]
    ascending = np.argsort(dropped)
    return dropped[ascending], of[ascending]
