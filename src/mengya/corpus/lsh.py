"""Pairs of texts that share a band key: of one band, sorted; of all bands together, through files of bounded memory.

A pair i < j of n texts is the number i·n + j. Two texts of Jaccard s share one of b bands of r rows with probability
1 - (1 - sʳ)ᵇ: 0.998 at 0.8, 0.9999 at 0.85, 0.27 at 0.5 for 20 bands of 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mengya.corpus.minhash import NUM_BANDS, NUM_ROWS
from mengya.corpus.shingles import Hashes

_ALL_PAIRS = 32  # a bucket up to this size proposes all its pairs, a larger one a chain and a star
_BLOCK = 1 << 16  # pairs of a file that are read at a time

Pairs = npt.NDArray[np.int64]


def proposal_probability(similarity: float, num_bands: int = NUM_BANDS, num_rows: int = NUM_ROWS) -> float:
    """The probability that two texts of this Jaccard similarity become candidates: the S-curve of the bands."""
    return 1 - (1 - similarity**num_rows) ** num_bands


def bucket_pairs(keys: Hashes) -> Pairs:
    """Sorted distinct pairs of texts with equal keys; a text of key 0 is in no pair."""
    num_texts = len(keys)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    alike = np.zeros(num_texts + 1, dtype=np.int8)  # [k]: whether k - 1 and k, in the order of keys, are in one bucket
    alike[1:-1] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    borders = np.flatnonzero(np.diff(alike))
    starts, sizes = borders[::2], borders[1::2] - borders[::2] + 1
    found: list[Pairs] = [np.zeros(0, dtype=np.int64)]
    for size in np.unique(sizes[sizes <= _ALL_PAIRS]).tolist():
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


def candidate_pairs(keys: Hashes) -> Pairs:
    """[num_pairs, 2] distinct pairs i < j that share a key in any column of [num_texts, num_bands], in order."""
    numbers = np.unique(np.concatenate([bucket_pairs(column) for column in keys.T]))
    return np.stack(np.divmod(numbers, max(len(keys), 1)), axis=1)


def write_candidates(bands: Iterable[Hashes], directory: Path) -> list[Path]:
    """One file of pairs a band; only one band's keys are in memory at a time."""
    files: list[Path] = []
    for band, keys in enumerate(bands):
        files.append(directory / f"candidates-{band:02d}.npy")
        np.save(files[-1], bucket_pairs(keys))
    return files


def merged(files: Iterable[Path]) -> Iterator[Pairs]:
    """The distinct pairs of sorted files, in order, in blocks: a merge that holds 2¹⁶ pairs of a file at most."""
    left: list[Pairs] = [np.load(file, mmap_mode="r") for file in files]
    while left := [pairs for pairs in left if len(pairs)]:
        # No file's next block ends before this pair, so that all pairs up to it are in the blocks.
        bound = min(int(pairs[min(_BLOCK, len(pairs)) - 1]) for pairs in left)
        taken = [int(np.searchsorted(pairs[:_BLOCK], bound, side="right")) for pairs in left]
        yield np.unique(np.concatenate([pairs[:count] for pairs, count in zip(left, taken, strict=True)]))
        left = [pairs[count:] for pairs, count in zip(left, taken, strict=True)]
