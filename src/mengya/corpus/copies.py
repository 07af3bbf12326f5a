"""From candidates to what is dropped: exact Jaccard joins texts into clusters, and of each cluster one is kept."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mengya.corpus.lsh import Pairs
from mengya.corpus.minhash import Counts
from mengya.corpus.shingles import Hashes, batches, canonical_codes, jaccard, sorted_shingles

_CACHE_BYTES = 1 << 28
_STEP_SHINGLES = 1 << 23  # shingles that one step of work asks for: 64 MiB
_FEW = 32  # kept texts that are compared one by one

Indices = npt.NDArray[np.int64]


class ShingleCache:
    """Sorted shingles of texts by number: the texts fetched and hashed many at once, the last 256 MiB of them held."""

    def __init__(self, text_of: Callable[[int], str], capacity: int = _CACHE_BYTES) -> None:
        self._text_of, self._capacity = text_of, capacity
        self._held: OrderedDict[int, Hashes] = OrderedDict()
        self._bytes = 0

    def many(self, indices: Iterable[int]) -> dict[int, Hashes]:
        """The shingles of each of `indices`; missing texts are fetched in ascending order, so that reading is local."""
        wanted = sorted(set(indices))
        missing = [index for index in wanted if index not in self._held]
        places = iter(missing)
        for batch in batches(map(self._text_of, missing)):
            hashes, offsets = sorted_shingles(*canonical_codes(batch))
            for start, end in pairwise(offsets.tolist()):
                index = next(places)
                self._held[index] = hashes[start:end].copy()
                self._bytes += self._held[index].nbytes
        found = {}
        for index in wanted:
            self._held.move_to_end(index)
            found[index] = self._held[index]
        while self._bytes > self._capacity:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes
        return found


class _Clusters:
    """Disjoint sets of the numbers below `count`: 4 bytes each; the smallest member is a set's root."""

    def __init__(self, count: int) -> None:
        assert count < 2**31
        self._parents = np.arange(count, dtype=np.int32)
        self._parent = self._parents.data  # its elements are read three times as fast as an array's

    def root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> npt.NDArray[np.int32]:
        """The root of every number."""
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents[:] = above
        return self._parents


def _steps(sizes: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Successive slices over things of these sizes, in shingles: each below 2²³, or of one thing."""
    place = np.cumsum(sizes) // _STEP_SHINGLES
    borders = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(sizes)]
    yield from (slice(start, end) for start, end in pairwise(borders) if end > start)


def cluster(
    candidates: Iterable[Pairs], num_shingles: Counts, cache: ShingleCache, threshold: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(smallest member of each text's cluster, Jaccard that joined it): pairs of Jaccard ≥ `threshold` are in one.

    The second is kept for the larger number of a pair that was joined last; it is what clusters of two need no more.

    A pair whose numbers of shingles differ too much to reach the threshold, or that others have joined already, is
    passed over without a look at its texts.
    """
    clusters = _Clusters(len(num_shingles))
    likeness = np.zeros(len(num_shingles), dtype=np.float32)
    for block in candidates:
        i, j = np.divmod(block, len(num_shingles))
        a, b = num_shingles[i].astype(np.int64), num_shingles[j].astype(np.int64)
        fits = np.minimum(a, b) >= threshold * np.maximum(a, b)
        i, j, sizes = i[fits], j[fits], (a + b)[fits]
        for step in _steps(sizes):
            pairs = zip(i[step].tolist(), j[step].tolist(), strict=True)
            open_pairs = [(one, other) for one, other in pairs if clusters.root(one) != clusters.root(other)]
            hashes = cache.many(index for pair in open_pairs for index in pair)
            for one, other in open_pairs:
                if clusters.root(one) != clusters.root(other):
                    similarity = jaccard(hashes[one], hashes[other])
                    if similarity >= threshold:
                        clusters.join(one, other)
                        likeness[other] = similarity
    return clusters.roots(), likeness


class _Kept:
    """Texts of a cluster that are kept; the one that is most like another is found in a time that hardly grows.

    The last few are compared one by one. Older ones lie in one sorted array of (shingle, owner), where a text's shingles
    are looked up: a crowd of pages from one template has thousands of members that are no copies of each other.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[int, Hashes]] = []
        self._shingles: Hashes = np.zeros(0, dtype=np.uint64)
        self._owners: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._indices: list[int] = []
        self._sizes: list[int] = []

    def add(self, index: int, hashes: Hashes) -> None:
        self._recent.append((index, hashes))
        if len(self._recent) < _FEW:
            return
        owners = [np.full(len(own), len(self._indices) + place) for place, (_, own) in enumerate(self._recent)]
        shingles = np.concatenate([self._shingles, *(own for _, own in self._recent)])
        order = np.argsort(shingles, kind="stable")
        self._shingles, self._owners = shingles[order], np.concatenate([self._owners, *owners])[order]
        self._indices += [index for index, _ in self._recent]
        self._sizes += [len(own) for _, own in self._recent]
        self._recent = []

    def closest(self, hashes: Hashes) -> tuple[float, int]:
        """(Jaccard, number) of the most similar kept text, the smaller number among equals; (0, -1) without any."""
        best = max(((jaccard(hashes, own), -index) for index, own in self._recent), default=(0.0, 1))
        if self._indices:
            low, high = (np.searchsorted(self._shingles, hashes, side=side) for side in ("left", "right"))
            counts = high - low
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            common = np.bincount(self._owners[np.repeat(low, counts) + within], minlength=len(self._indices))
            likeness = common / (len(hashes) + np.array(self._sizes) - common)
            top = float(likeness.max())
            index = min(self._indices[place] for place in np.flatnonzero(likeness == top).tolist())
            best = max(best, (top, -index))
        return best[0], -best[1]


def drop_copies(
    roots: npt.NDArray[np.int32],
    likeness: npt.NDArray[np.float32],
    ranks: tuple[npt.NDArray[np.generic], ...],
    num_shingles: Counts,
    cache: ShingleCache,
    threshold: float,
) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """(dropped, its kept copy, their Jaccard), ascending: of every cluster the first in the order of `ranks` is kept.

    `ranks` are sort keys over all texts, the first decides; the number decides last. A member that only a chain of
    others joins to what is kept is dropped when its Jaccard with a kept text is at least 2·threshold - 1, which by the
    triangle inequality of the Jaccard distance every two copies of one original reach; else it is kept too, and
    others of the cluster may be its copies.
    """
    members = np.flatnonzero(roots != np.arange(len(roots), dtype=np.int32))
    members = np.union1d(members, roots[members]).astype(np.int64)
    keys = [rank[members] for rank in ranks]
    members = members[np.lexsort((members, *reversed(keys), roots[members]))]
    starts = np.flatnonzero(np.diff(roots[members], prepend=-1))
    sizes = np.diff(starts, append=len(members))
    twos = starts[sizes == 2]
    first, second = members[twos], members[twos + 1]
    dropped, of = array("q", second.tobytes()), array("q", first.tobytes())
    similarities = array("d", likeness[np.maximum(first, second)].astype(np.float64).tobytes())
    members = members[np.repeat(sizes > 2, sizes)]
    kept, of_root = _Kept(), -1
    for step in _steps(num_shingles[members].astype(np.int64)):
        hashes = cache.many(members[step].tolist())
        for index, root in zip(members[step].tolist(), roots[members[step]].tolist(), strict=True):
            if root != of_root:
                kept, of_root = _Kept(), root
            similarity, twin = kept.closest(hashes[index])
            if twin >= 0 and similarity >= max(2 * threshold - 1, 0.0):
                dropped.append(index)
                of.append(twin)
                similarities.append(similarity)
            else:
                kept.add(index, hashes[index])
    order = np.argsort(np.array(dropped, dtype=np.int64), kind="stable")
    return (
        np.array(dropped, dtype=np.int64)[order],
        np.array(of, dtype=np.int64)[order],
        np.array(similarities, dtype=np.float64)[order],
    )
