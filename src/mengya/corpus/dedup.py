"""Which of many texts are copies of others: exactly, but for white space, punctuation and case; or nearly.

Near duplicates: MinHash-LSH on character 5-grams proposes pairs (`lsh`), exact Jaccard decides (`copies`). 20 bands of 6
rows propose 99.8% of the pairs of Jaccard 0.8, so recall is near 1 and precision is that of the exact test. For a list
of texts: `exact_duplicates`, `near_duplicates`. For more than fits in memory: `write_signatures` for every
part of the documents, in any order and process, then `find_duplicates` over all parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mengya.corpus.copies import Indices, ShingleCache, cluster, drop_copies
from mengya.corpus.lsh import bucket_pairs, candidate_pairs, merged, write_candidates
from mengya.corpus.minhash import NUM_BANDS, NUM_ROWS, SignatureFiles, band_keys, signatures_in_memory, write_signatures
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
    candidates = np.unique(np.concatenate([bucket_pairs(keys) for keys in found.bands]))
    clusters = cluster([candidates], found.num_shingles, cache, threshold)
    longest_first = (-found.lengths.astype(np.int64),)
    return list(_near(*drop_copies(*clusters, longest_first, found.num_shingles, cache, threshold)))


def _near(indices: Indices, of: Indices, similarities: npt.NDArray[np.float64]) -> Iterator[Duplicate]:
    for index, twin, similarity in zip(indices.tolist(), of.tolist(), similarities.tolist(), strict=True):
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
    of another text itself. `directory` holds the candidates meanwhile (8 bytes a pair and band), and nothing afterwards.
    Memory: about 100 bytes a document and 0.5 GB. Deterministic.
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
    dropped, of = _exact(files.exact(), priorities)
    for index, twin in zip(dropped.tolist(), of.tolist(), strict=True):
        yield Duplicate(index, twin, "exact_duplicate", 1.0)

    def left(band: int) -> Hashes:
        keys = files.band(band)
        keys[dropped] = 0
        return keys

    num_shingles = files.num_shingles()
    cache = ShingleCache(text_of)
    work = directory / "candidates.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        candidates = merged(write_candidates(map(left, range(NUM_BANDS)), work))
        clusters = cluster(candidates, num_shingles, cache, threshold)
    finally:
        shutil.rmtree(work)
    ranks = (priorities,) if keep == "first" else (-files.lengths().astype(np.int64), priorities)
    yield from _near(*drop_copies(*clusters, ranks, num_shingles, cache, threshold))


def _exact(keys: Hashes, priorities: npt.NDArray[np.int32]) -> tuple[Indices, Indices]:
    """(dropped, its kept copy), ascending, of [num_texts, 2] keys. Exact copies are of one length."""
    order = np.lexsort((priorities, keys[:, 1], keys[:, 0]))  # stable: the lower number first among equals
    ordered = keys[order]
    copy = np.zeros(len(order), dtype=bool)
    copy[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
    first = order[np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))]
    dropped, of = order[copy], first[copy]
    ascending = np.argsort(dropped)
    return dropped[ascending], of[ascending]
