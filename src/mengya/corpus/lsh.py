"""Pairs of texts that share a band key: of one band, sorted; of all bands together, through files of bounded memory.

A pair i < j of n texts is the number i·n + j. Two texts of Jaccard s share one of b bands of r rows with probability
1 - (1 - sʳ)ᵇ: 0.998 at 0.8, 0.9999 at 0.85, 0.27 at 0.5 for 20 bands of 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mengya.corpus.minhash import NUM_BANDS, NUM_ROWS
from mengya.corpus.shingles import Hashes
from mengya.files import atomic_path

_ALL_PAIRS = 32  # a bucket up to this size proposes all its pairs, a larger one a chain and a star
KEYS = 1 << 22  # keys of some bands that are sorted in memory: 32 MiB
_SLOT_BITS = 20  # counters of upper bits: up to 8 MiB, which stay in the processor's cache
_BLOCK = 1 << 16  # pairs of a file that are read at a time

Pairs = npt.NDArray[np.int64]


def proposal_probability(similarity: float, num_bands: int = NUM_BANDS, num_rows: int = NUM_ROWS) -> float:
    """The probability that two texts of this Jaccard similarity become candidates: the S-curve of the bands."""
    return 1 - (1 - similarity**num_rows) ** num_bands


def bucket_pairs(keys: Hashes) -> Pairs:
    """Sorted distinct pairs of texts with equal keys; a text of key 0 is in no pair.

    The lower bits of a key, as many as the texts' numbers need, are not looked at: 24 of 64 for ten million texts, which
    costs 23 pairs a band that share no key, and proof rejects. The numbers stand there instead, and a plain sort of one
    array does what would take the slower sort of an index, twice the memory, and buckets that are out of order.
    """
    num_texts = len(keys)
    numbers = np.uint64((1 << num_texts.bit_length()) - 1)
    present = np.flatnonzero(keys)
    if (bits := num_texts.bit_length() + 3) <= _SLOT_BITS:
        # Most keys share not even their upper bits: to count these costs a quarter of sorting all keys.
        slots = (keys[present] >> np.uint64(64 - bits)).astype(np.int64)
        present = present[np.bincount(slots)[slots] > 1]
    ordered = keys[present] & ~numbers
    ordered |= present.astype(np.uint64)
    ordered.sort()
    alike = np.zeros(len(ordered) + 1, dtype=np.int8)  # [k]: whether the k - 1st and the k-th are in one bucket
    alike[1:-1] = ordered[1:] ^ ordered[:-1] <= numbers
    ordered &= numbers
    order = ordered.view(np.int64)
    borders = np.flatnonzero(np.diff(alike))
    starts, sizes = borders[::2], borders[1::2] - borders[::2] + 1
    found: list[Pairs] = [np.zeros(0, dtype=np.int64)]
    for size in np.flatnonzero(np.bincount(sizes[sizes <= _ALL_PAIRS])).tolist():
        bucket = order[starts[sizes == size][:, None] + np.arange(size)]
        i, j = np.triu_indices(size, 1)
        found.append((bucket[:, i] * num_texts + bucket[:, j]).ravel())
    large = sizes > _ALL_PAIRS
    for start, size in zip(starts[large].tolist(), sizes[large].tolist(), strict=True):
        bucket = order[start : start + size]
        found.append(bucket[0] * num_texts + bucket[1:])
        found.append(bucket[1:-1] * num_texts + bucket[2:])
    pairs = np.concatenate(found)
    pairs.sort()
    return pairs


def _union(several: Sequence[Pairs]) -> Pairs:
    """The distinct ones of sorted arrays, in order."""
    pairs = np.concatenate(several)
    pairs.sort(kind="stable")  # timsort: it merges the runs
    fresh = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=fresh[1:])
    return pairs[fresh]


def all_pairs(bands: Hashes) -> Pairs:
    """Sorted distinct pairs of texts that share a key in any row of [num_bands, num_texts]."""
    return _union([bucket_pairs(keys) for keys in bands])


def candidate_pairs(keys: Hashes) -> Pairs:
    """[num_pairs, 2] distinct pairs i < j that share a key in any column of [num_texts, num_bands], in order."""
    return np.stack(np.divmod(all_pairs(keys.T), max(len(keys), 1)), axis=1)


def write_candidates(bands_of: Callable[[range], Hashes], num_texts: int, directory: Path) -> list[Path]:
    """Files of sorted pairs, each of so many bands as have 2²² keys (at least one), which are in memory together.

    `bands_of(range)` gives the keys [num_bands, num_texts] of successive bands. A file that is there already was
    finished by an earlier run, and is not written again.
    """
    together = min(max(KEYS // max(num_texts, 1), 1), NUM_BANDS)
    files: list[Path] = []
    for first in range(0, NUM_BANDS, together):
        files.append(directory / f"candidates-{first:02d}.npy")
        if not files[-1].exists():
            pairs = all_pairs(bands_of(range(first, min(first + together, NUM_BANDS))))
            with atomic_path(files[-1]) as temporary, open(temporary, "wb") as file:
                np.save(file, pairs)
    return files


def merged(files: Iterable[Path], after: int = -1) -> Iterator[Pairs]:
    """The distinct pairs above `after` of sorted files, in order, in blocks: at most 2¹⁶ of a file in memory."""
    left: list[Pairs] = [np.load(file, mmap_mode="r") for file in files]
    left = [pairs[np.searchsorted(pairs, after, side="right") :] for pairs in left]
    while left := [pairs for pairs in left if len(pairs)]:
        # No file's next block ends before this pair, so that all pairs up to it are in the blocks.
        bound = min(int(pairs[min(_BLOCK, len(pairs)) - 1]) for pairs in left)
        taken = [int(np.searchsorted(pairs[:_BLOCK], bound, side="right")) for pairs in left]
        yield _union([pairs[:count] for pairs, count in zip(left, taken, strict=True)])
        left = [pairs[count:] for pairs, count in zip(left, taken, strict=True)]
