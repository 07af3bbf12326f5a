"""What two texts are compared by: their canonical form, its exact key, and the hashes of its character 5-grams.

Characters, not words: Chinese has no spaces, and a segmenter would cost more than everything else here. Many texts are
hashed in one numpy sweep over their code points, end to end; a window over a border between two texts is cut out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

NGRAM = 5
_BATCH_CHARACTERS = 1 << 17  # 1 MiB of hashes at a time: they stay in the processor's cache
_BATCH_TEXTS = 4096
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SQUARE = np.uint64(0x9E3779B97F4A7C15**2 % 2**64)

# In the table of canonical code points, beyond all code points:
_NOTHING, _SPECIAL = np.uint32(0xFFFFFFFE), np.uint32(0xFFFFFFFF)

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

# What may differ between copies. Signs that carry meaning in short texts (3-1, 3+1, 50%, a=b) are not punctuation here.
_IGNORED = re.compile(r"[\s，。！？；：、“”‘’（）《》〈〉【】「」『』…—～·,.!?;:\"'()\[\]<>_`|\\~]+")


def canonical(text: str) -> str:
    """`text` without white space and punctuation, in lower case: equal for exact duplicates."""
    return _IGNORED.sub("", text).lower()


@cache
def _canonical_table() -> Codes:
    """For every code point what `canonical` makes of it: nothing, its lower case, or what depends on its neighbours."""
    table = np.arange(0x110000, dtype=np.uint32)
    for start in range(0, 0x110000, 0x1000):  # not all at once: a string a code point is 80 MB
        characters = [chr(code) for code in range(start, start + 0x1000)]
        lower = [character.lower() for character in characters]
        table[start : start + 0x1000] = [ord(each) if len(each) == 1 else _SPECIAL for each in lower]
        for match in _IGNORED.finditer("".join(characters)):
            table[start + match.start() : start + match.end()] = _NOTHING
    table[ord("Σ")] = _SPECIAL  # ς at the end of a word
    return table


def _offsets(texts: Iterable[str]) -> Offsets:
    """Where each of `texts` begins when they stand end to end, and where the last one ends."""
    return np.cumsum([0, *map(len, texts)], dtype=np.int64)


def _code_points(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def canonical_codes(texts: Sequence[str]) -> tuple[Codes, Offsets]:
    """(code points of the `canonical` texts end to end, their offsets), in one sweep over all texts."""
    offsets = _offsets(texts)
    codes = _canonical_table().take(_code_points("".join(texts)))
    highest = codes.max(initial=0)
    if highest == _SPECIAL:
        special = _texts_of(np.flatnonzero(codes == _SPECIAL), offsets)
        return canonical_codes([canonical(text) if place in special else text for place, text in enumerate(texts)])
    if highest < _NOTHING:
        return codes, offsets
    kept = np.flatnonzero(codes != _NOTHING)
    return codes.take(kept), kept.searchsorted(offsets)


def _texts_of(places: npt.NDArray[np.intp], offsets: Offsets) -> set[int]:
    """The texts in which these places lie."""
    return set((offsets.searchsorted(places, side="right") - 1).tolist())


def exact_key(text: str) -> bytes:
    """128 bits of the canonical text; a text of punctuation alone stands for itself."""
    return hashlib.blake2b((canonical(text) or text).encode(), digest_size=16).digest()


def exact_keys(texts: Sequence[str], codes: Codes, offsets: Offsets) -> bytes:
    """128 bits of each text, end to end, from their canonical code points: equal where `exact_key` is equal.

    They are of the code points in two bytes each, which is had without a string for each text; of a text that has one
    beyond these, in four bytes each and one byte more, which no other text's bytes can be.
    """
    joined = codes.astype("<u2").tobytes()  # slices of a memoryview cost three times as much
    forms = [joined[start:end] for start, end in pairwise((2 * offsets).tolist())]
    if codes.max(initial=0) >= 0x10000:
        for place in _texts_of(np.flatnonzero(codes >= 0x10000), offsets):
            forms[place] = codes[offsets[place] : offsets[place + 1]].tobytes() + b"4"
    blake2b = hashlib.blake2b
    return b"".join(
        [
            blake2b(form or text.encode("utf-16-le"), digest_size=16).digest()
            for form, text in zip(forms, texts, strict=True)
        ]
    )


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """`texts` in order in batches of 2¹⁷ characters (or of one longer text), 4,096 texts at most."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rolling_hashes(codes: Codes) -> Hashes:
    """A 64-bit hash of every 5-gram of a text, in order; of the whole text where it is shorter."""
    values = np.zeros(max(len(codes), NGRAM), dtype=np.uint64)
    np.add(codes, 1, out=values[len(values) - len(codes) :], dtype=np.uint64)
    # The polynomial of five values, from those of two and of four: half the passes over memory of Horner's rule.
    twos = values[:-1] * _MULTIPLIER
    twos += values[1:]
    fours = twos[:-2] * _SQUARE
    fours += twos[2:]
    hashes = fours[:-1] * _MULTIPLIER
    hashes += values[4:]
    # A polynomial of neighbouring code points differs little in its low bits; rensa's permutations want them mixed.
    scratch = twos[: len(hashes)]
    hashes ^= np.right_shift(hashes, np.uint64(29), out=scratch)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= np.right_shift(hashes, np.uint64(32), out=scratch)
    return hashes


def shingles(text: str) -> Hashes:
    """The sorted distinct 5-gram hashes of a text's canonical form."""
    return np.unique(_rolling_hashes(_code_points(canonical(text))))


def padded_shingles(codes: Codes, borders: Offsets) -> Hashes:
    """As many 5-gram hashes as code points, from `canonical_codes`: those of each text in order between its borders.

    The last four of a text, where no 5-gram begins, repeat its last: as a set they are the text's, and no array need be
    made without them. What stands between the borders of a text of fewer than 5 characters means nothing.
    """
    hashes = np.zeros(len(codes), dtype=np.uint64)
    if len(codes) >= NGRAM:
        hashes[: 1 - NGRAM] = _rolling_hashes(codes)
    ends = borders[1:][np.diff(borders) >= NGRAM]
    last = hashes[ends - NGRAM]
    for back in range(1, NGRAM):
        hashes[ends - back] = last
    return hashes


def _sort_each(hashes: npt.NDArray[np.unsignedinteger], borders: Offsets) -> Offsets:
    """Where the distinct hashes of each text stand, after each text's own were sorted in place; none of a short text."""
    for start, end in pairwise(borders.tolist()):
        hashes[start:end].sort()
    fresh = np.ones(len(hashes), dtype=bool)
    np.not_equal(hashes[1:], hashes[:-1], out=fresh[1:])
    starts, sizes = borders[:-1], np.diff(borders)
    fresh[starts[sizes > 0]] = True
    if (short := sizes < NGRAM).any():
        fresh &= np.repeat(~short, sizes)
    return np.flatnonzero(fresh)


def count_shingles(hashes: Hashes, borders: Offsets) -> npt.NDArray[np.uint32]:
    """How many distinct 5-grams each text has, from `padded_shingles`; a text of fewer than 5 characters has none.

    Counted by 32 bits of their hashes, which are sorted in a third of the time of 64: too few by n²/2³³ of n, which is
    one in a text of 90,000 characters, and 1% in one of 86 million.
    """
    low = hashes.astype(np.uint32)
    return np.diff(_sort_each(low, borders).searchsorted(borders)).astype(np.uint32)


def sorted_shingles(codes: Codes, borders: Offsets) -> tuple[Hashes, Offsets]:
    """(sorted distinct 5-gram hashes of each text, end to end; their offsets), from `canonical_codes`.

    A text of fewer than 5 characters has none here: what is so short is a copy when it is equal, or not at all.
    """
    hashes = padded_shingles(codes, borders)
    places = _sort_each(hashes, borders)
    return hashes.take(places), places.searchsorted(borders)


def jaccards(pairs: Sequence[tuple[Hashes, Hashes]]) -> list[float]:
    """|a ∩ b| / |a ∪ b| of each pair of arrays of `shingles`; 0 for two empty ones. Many at once cost half as much."""
    both = np.concatenate([np.zeros(0, dtype=np.uint64), *chain.from_iterable(pairs)])
    borders = np.cumsum([0, *(len(a) + len(b) for a, b in pairs)])
    for start, end in pairwise(borders.tolist()):
        both[start:end].sort(kind="stable")  # timsort: it merges the two runs
    same = np.zeros(len(both), dtype=bool)
    np.equal(both[1:], both[:-1], out=same[1:])
    same[borders[borders < len(both)]] = False
    common = np.diff(np.flatnonzero(same).searchsorted(borders))
    likeness: list[float] = (common / np.maximum(np.diff(borders) - common, 1)).tolist()
    return likeness


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a ∩ b| / |a ∪ b| of two arrays of `shingles`; 0 for two empty ones."""
    return jaccards([(a, b)])[0]
