"""From candidates to what is dropped: exact Jaccard joins texts into clusters, and of each cluster one is kept."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mengya.corpus.lsh import Pairs
from mengya.corpus.minhash import Counts
from mengya.corpus.shingles import Hashes, batches, canonical_codes, jaccards, sorted_shingles

_CACHE_BYTES = 1 << 28
STEP_SHINGLES = 1 << 23  # shingles that one step of work asks for: 64 MiB
_PAIRS = 64  # that are compared at once
_FEW = 32  # kept texts that are compared one by one
_COUNTED = 0.99  # counts of shingles are too low by less than 1% (`count_shingles`)

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
                own = hashes[start:end].copy()
                self._held[next(places)] = own
                self._bytes += own.nbytes
        found = {}
        for index in wanted:
            self._held.move_to_end(index)
            found[index] = self._held[index]
        while self._bytes > self._capacity:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes
        return found


class Clusters:
    """Disjoint sets of the numbers below `count`: 8 bytes each; the smallest member is a set's root."""

    def __init__(self, count: int) -> None:
        assert count < 2**31
        self._parents = np.arange(count, dtype=np.int32)
        self._parent = self._parents.data  # its elements are read three times as fast as an array's
        self.likeness = np.zeros(count, dtype=np.float32)
        """Of the larger number of the pair that was joined last: clusters of two need no more."""

    def root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, a: int, b: int, similarity: float) -> None:
        self.likeness[max(a, b)] = similarity
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> npt.NDArray[np.int32]:
        """The root of every number."""
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents[:] = above
        return self._parents


def _steps(sizes: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Successive slices over things of these sizes, in shingles: each below 2²³, or of one thing."""
    place = np.cumsum(sizes) // STEP_SHINGLES
    borders = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(sizes)]
    yield from (slice(start, end) for start, end in pairwise(borders) if end > start)


class Joined(NamedTuple):
    """What one step of `prove` found: the last candidate that it looked at, and the pairs that joined two clusters."""

    last: int
    pairs: list[tuple[int, int, float]]


def prove(
    candidates: Iterable[Pairs], clusters: Clusters, num_shingles: Counts, cache: ShingleCache, threshold: float
) -> Iterator[Joined]:
    """Pairs of Jaccard ≥ `threshold` come into one of `clusters`, a step of candidates at a time.

    A pair whose numbers of shingles differ too much to reach the threshold, or that others have joined already, is
    passed over without a look at its texts; so where a step ends changes nothing.
    """
    root = clusters.root
    for block in candidates:
        i, j = np.divmod(block, len(num_shingles))
        a, b = num_shingles[i].astype(np.int64), num_shingles[j].astype(np.int64)
        fits = np.minimum(a, b) >= _COUNTED * threshold * np.maximum(a, b)
        block, i, j, sizes = block[fits], i[fits], j[fits], (a + b)[fits]
        for step in _steps(sizes):
            pairs = zip(i[step].tolist(), j[step].tolist(), strict=True)
            open_pairs = [(one, other) for one, other in pairs if root(one) != root(other)]
            hashes = cache.many(index for pair in open_pairs for index in pair)
            joined = []
            for start in range(0, len(open_pairs), _PAIRS):
                few = [pair for pair in open_pairs[start : start + _PAIRS] if root(pair[0]) != root(pair[1])]
                similarities = jaccards([(hashes[one], hashes[other]) for one, other in few])
                for (one, other), similarity in zip(few, similarities, strict=True):
                    if similarity >= threshold and root(one) != root(other):
                        clusters.join(one, other, similarity)
                        joined.append((one, other, similarity))
            yield Joined(int(block[step][-1]), joined)


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
        recent = jaccards([(hashes, own) for _, own in self._recent])
        best = max(zip(recent, (-index for index, _ in self._recent), strict=True), default=(0.0, 1))
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


class Dropped(NamedTuple):
    """Numbers of texts, of the kept texts that they are copies of, and their Jaccard."""

    indices: Indices
    of: Indices
    similarities: npt.NDArray[np.float64]

    @classmethod
    def join(cls, several: Sequence[Dropped]) -> Dropped:
        """All of them, ascending."""
        columns = [np.concatenate(column) for column in zip(*several, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return cls(*(column[order] for column in columns))


class Families:
    """The clusters of more than one text, of each the members in the order of `ranks`: the first is kept.

    `ranks` are sort keys over all texts, the first decides; the number decides last.
    """

    def __init__(self, clusters: Clusters, ranks: Sequence[npt.NDArray[np.signedinteger]]) -> None:
        roots = clusters.roots()
        members = np.flatnonzero(roots != np.arange(len(roots), dtype=np.int32))
        members = np.union1d(members, roots[members]).astype(np.int64)
        keys = [rank[members] for rank in ranks]
        members = members[np.lexsort((members, *reversed(keys), roots[members]))]
        starts = np.flatnonzero(np.diff(roots[members], prepend=-1))
        sizes = np.diff(starts, append=len(members))
        twos = starts[sizes == 2]
        first, second = members[twos], members[twos + 1]
        self.twos = Dropped(second, first, clusters.likeness[np.maximum(first, second)].astype(np.float64))
        """Of the clusters of two the second text."""
        self._members = members[np.repeat(sizes > 2, sizes)]
        self._roots = roots[self._members]

    def drop(
        self, num_shingles: Counts, cache: ShingleCache, threshold: float, found: Sequence[Dropped]
    ) -> Iterator[Dropped]:
        """What is dropped of the larger clusters, a step of members at a time, after the steps that `found` this.

        A member that only a chain of others joins to what is kept is dropped when its Jaccard with a kept text is at
        least 2·threshold - 1, which by the triangle inequality of the Jaccard distance every two copies of one original
        reach; else it is kept too, and others of the cluster may be its copies.
        """
        sizes = num_shingles[self._members].astype(np.int64)
        steps = list(_steps(sizes))[len(found) :]
        if not steps:
            return
        kept, of_root = _Kept(), int(self._roots[steps[0].start])
        for index, hashes in self._kept_before(steps[0].start, sizes, cache, found):
            kept.add(index, hashes)
        for step in steps:
            indices, of, similarities = array("q"), array("q"), array("d")
            members, roots = self._members[step].tolist(), self._roots[step].tolist()
            shingles = cache.many(members)
            for index, root in zip(members, roots, strict=True):
                if root != of_root:
                    kept, of_root = _Kept(), root
                similarity, twin = kept.closest(shingles[index])
                if twin >= 0 and similarity >= max(2 * threshold - 1, 0.0):
                    indices.append(index)
                    of.append(twin)
                    similarities.append(similarity)
                else:
                    kept.add(index, shingles[index])
            yield Dropped(np.array(indices, np.int64), np.array(of, np.int64), np.array(similarities, np.float64))

    def _kept_before(
        self, place: int, sizes: npt.NDArray[np.int64], cache: ShingleCache, found: Sequence[Dropped]
    ) -> Iterator[tuple[int, Hashes]]:
        """The kept members, with their shingles, of the cluster of the member at `place` that stand before it."""
        first = int(np.searchsorted(self._roots, self._roots[place]))
        before = np.arange(first, place)
        if found:
            before = before[~np.isin(self._members[before], np.concatenate([each.indices for each in found]))]
        for step in _steps(sizes[before]):
            members = self._members[before[step]].tolist()
            hashes = cache.many(members)
            yield from ((index, hashes[index]) for index in members)
