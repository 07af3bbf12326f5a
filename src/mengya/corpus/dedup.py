"""Which of many texts are copies of others: exactly, but for white space, punctuation and case; or nearly.

Near duplicates: MinHash-LSH (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.3–3.4) on
character 5-grams proposes pairs, exact Jaccard decides. 20 bands of 6 rows propose a pair of Jaccard s with probability
1 - (1 - s⁶)²⁰: 0.998 at 0.8, 0.9999 at 0.85, 0.27 at 0.5, so recall is near 1 and precision is that of the exact test.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import rensa

NGRAM = 5
NUM_BANDS, NUM_ROWS = 20, 6
_BATCH_CHARACTERS = 1 << 21  # 16 MiB of hashes at a time
_ALL_PAIRS = 32  # a bucket up to this size proposes all its pairs, a larger one a chain and a star
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]

# What may differ between copies. Signs that carry meaning in short texts (3-1, 3+1, 50%, a=b) are not punctuation here.
_IGNORED = re.compile(r"[\s，。！？；：、“”‘’（）《》〈〉【】「」『』…—～·,.!?;:\"'()\[\]<>_`|\\~]+")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Text `index` is dropped as a copy of text `of`, which is kept."""

    index: int
    of: int
    kind: Literal["exact_duplicate", "near_duplicate"]
    similarity: float


def canonical(text: str) -> str:
    """`text` without white space and punctuation, in lower case: equal for exact duplicates."""
    return _IGNORED.sub("", text).lower()


def exact_key(text: str) -> bytes:
    """128 bits of the canonical text; a text of punctuation alone stands for itself."""
    return hashlib.blake2b((canonical(text) or text).encode(), digest_size=16).digest()


def exact_duplicates(texts: Sequence[str]) -> list[Duplicate]:
    """Every text whose canonical form stood before it; the first is kept."""
    first: dict[bytes, int] = {}
    found: list[Duplicate] = []
    for index, text in enumerate(texts):
        of = first.setdefault(exact_key(text), index)
        if of != index:
            found.append(Duplicate(index, of, "exact_duplicate", 1.0))
    return found


def _rolling_hashes(text: str) -> Hashes:
    """A 64-bit hash of every 5-gram of `text`, in order; of the whole text where it is shorter."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    width = min(NGRAM, len(codes))
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + len(hashes)] + np.uint64(1)
    # A polynomial of neighbouring code points differs little in its low bits; rensa's permutations want them mixed.
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(32))


def shingles(text: str) -> Hashes:
    """The sorted distinct 5-gram hashes of a text's canonical form."""
    return np.unique(_rolling_hashes(canonical(text)))


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a ∩ b| / |a ∪ b| of two arrays of `shingles`; 0 for two empty ones."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    batch: list[str] = []
    start = size = 0
    for index, text in enumerate(texts):
        batch.append(canonical(text))
        size += len(batch[-1])
        if size >= _BATCH_CHARACTERS:
            yield start, batch
            batch, start, size = [], index + 1, 0
    if batch:
        yield start, batch


def _batch_hashes(batch: list[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """(5-gram hashes of all texts end to end, row offsets): hashed in one sweep, windows over a border cut out."""
    joined = _rolling_hashes("".join(batch))
    lengths = np.array([len(text) for text in batch], dtype=np.int64)
    ends = np.cumsum(lengths)
    window = np.arange(len(joined))
    document = np.searchsorted(ends, window, side="right")
    inside = window + NGRAM <= ends[document]
    counts = np.bincount(document[inside], minlength=len(batch))
    assert (counts == np.maximum(lengths - NGRAM + 1, 0)).all()
    return joined[inside], np.concatenate([[0], np.cumsum(counts)])


def band_keys(texts: Sequence[str], seed: int = 1) -> npt.NDArray[np.uint64]:
    """[num_texts, NUM_BANDS] hashes of MinHash bands: texts that share a key in any column are candidates.

    Texts under 5 characters have no 5-gram; their row is 0 and they are candidates of nothing.
    """
    keys = np.zeros((len(texts), NUM_BANDS), dtype=np.uint64)
    for start, batch in _batches(texts):
        if sum(map(len, batch)) < NGRAM:
            continue
        hashes, offsets = _batch_hashes(batch)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), NUM_BANDS * NUM_ROWS, seed
        )
        signature = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(batch), NUM_BANDS, NUM_ROWS)
        band = np.zeros((len(batch), NUM_BANDS), dtype=np.uint64)
        for row in range(NUM_ROWS):
            band = (band + signature[:, :, row] + np.uint64(1)) * _MULTIPLIER
            band ^= band >> np.uint64(31)
        band[np.diff(offsets) == 0] = 0
        keys[start : start + len(batch)] = band
    return keys


def candidate_pairs(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """[num_pairs, 2] distinct pairs i < j that share a band, in order."""
    found: list[npt.NDArray[np.int64]] = []
    num_texts = len(keys)
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        borders = np.flatnonzero(np.diff(column[order])) + 1
        sizes = np.diff(np.concatenate([[0], borders, [num_texts]]))
        starts = np.concatenate([[0], borders])
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            bucket = order[start : start + size]
            if column[bucket[0]] == 0:
                continue
            if size <= _ALL_PAIRS:
                i, j = np.triu_indices(size, 1)
                found.append(bucket[i] * num_texts + bucket[j])
            else:
                found.append(bucket[0] * num_texts + bucket[1:])
                found.append(bucket[1:-1] * num_texts + bucket[2:])
    if not found:
        return np.zeros((0, 2), dtype=np.int64)
    codes = np.unique(np.concatenate(found))
    return np.stack([codes // num_texts, codes % num_texts], axis=1)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, seed: int = 1) -> list[Duplicate]:
    """Every text that is nearly a copy of a longer one (of an earlier one of equal length), which is kept.

    Pairs of Jaccard ≥ `threshold` are joined into clusters; the longest member is kept. A member that only a chain of
    others joins to it is dropped when its Jaccard with the kept text is at least 2·threshold - 1, which by the
    triangle inequality of the Jaccard distance every two copies of one original reach; else it is kept, and others
    of the cluster may be its copies.
    """

    @lru_cache(maxsize=50_000)
    def hashes_of(index: int) -> Hashes:
        return shingles(texts[index])

    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for i, j in candidate_pairs(band_keys(texts, seed)).tolist():
        a, b = root(i), root(j)
        if a == b:
            continue
        short, long = sorted((len(hashes_of(i)), len(hashes_of(j))))
        if short >= threshold * long and jaccard(hashes_of(i), hashes_of(j)) >= threshold:
            parent[max(a, b)] = min(a, b)
    clusters: dict[int, list[int]] = {}
    for index in range(len(texts)):
        if root(index) != index:
            clusters.setdefault(root(index), [root(index)]).append(index)
    found: list[Duplicate] = []
    for members in clusters.values():
        members.sort(key=lambda index: (-len(canonical(texts[index])), index))
        kept: list[int] = []
        for index in members:
            likeness = [(jaccard(hashes_of(index), hashes_of(of)), -of) for of in kept]
            similarity, of = max(likeness, default=(0.0, 0))
            if likeness and similarity >= max(2 * threshold - 1, 0.0):
                found.append(Duplicate(index, -of, "near_duplicate", round(similarity, 4)))
            else:
                kept.append(index)
    return sorted(found, key=lambda duplicate: duplicate.index)


def write_signatures(texts, stem) -> int:
    texts = list(texts)
    np.save(stem.with_name(stem.name + ".sig.npy"), np.array([len(texts)]))
    return len(texts)


def find_duplicates(stems, text_of, *, threshold=0.8, keep="longest", priority=None, directory=None):
    n = sum(int(np.load(stem.with_name(stem.name + ".sig.npy"))[0]) for stem in stems)
    texts = [text_of(i) for i in range(n)]
    exact = exact_duplicates(texts)
    gone = {d.index for d in exact}
    alive = [i for i in range(n) if i not in gone]
    for d in near_duplicates([texts[i] for i in alive], threshold):
        exact.append(Duplicate(alive[d.index], alive[d.of], d.kind, d.similarity))
    return exact
