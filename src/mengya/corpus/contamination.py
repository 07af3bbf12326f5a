"""Which training texts hold passages of an evaluation set: 13-grams of characters that stand in both.

Brown et al. 2020 (GPT-3, arXiv:2005.14165, appendix C) compare 13-grams of words. Here a unit is one Han character, or a
whole word or number of other scripts: thirteen Latin letters are one long word, and meet everywhere by chance. Neither
case, full width, punctuation nor line breaks count, so the layout of a question hides no copy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mengya.files import atomic_path, read_json, write_json

NGRAM = 13
MIN_GRAMS = 8
"""Distinct grams that a text shares with a set before it counts as contaminated: a passage of 20 characters.

Measured on 15,339 documents of 13 kinds (news, novels, poetry, manuals …; statutes apart) against 16 public sets. Up to 7
grams they shared what everybody writes: names of laws, slogans, 1 2 3 … 16. From 8 on copied passages begin, and from 13
on there is little else. Of the sets' own texts, those of 12 + MIN_GRAMS units can be found inside of a longer text:

    MIN_GRAMS                     1      4      6      8     10     13
    documents contaminated       83     46     30     25     21     16
    texts that can be found    100%    83%    73%    66%    59%    51%
"""

_BATCH_CHARACTERS = 1 << 19  # 4 MiB of hashes at a time: arrays that stay in the processor's cache
_MULTIPLIER = 0x9E3779B97F4A7C15
_FIRST_OF_EAST_ASIA = 0x2E80  # from here on (Han, kana, hangul) each character is a unit
_SHORT_CHARACTERS = 1000
_NUM_EXAMPLES = 5  # texts shown a set
_QUOTE_CHARACTERS = 80

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def _letters() -> npt.NDArray[np.uint32]:
    """[0x110000] code point → that of its letter or digit in lower case and half width; 0 for everything else."""
    table = np.zeros(0x110000, dtype=np.uint32)
    for code in range(0x40000):  # the planes above hold no letters
        character = chr(code)
        folded = unicodedata.normalize("NFKC", character).lower()
        if len(folded) == 1 and folded.isalnum():
            table[code] = ord(folded)
        elif character.isalnum():
            table[code] = code
    return table


def _mixed(values: Hashes) -> Hashes:
    """64 bits of which every one depends on all of the value's (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _units(text: str, borders: Indices) -> tuple[Hashes, Indices, Indices]:
    """(hash, first character, last character) of each unit of `text`; none goes over a border (a character's place)."""
    codes = _letters()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
    kept = np.flatnonzero(codes)
    letters = codes[kept].astype(np.uint64)
    starts = np.ones(len(kept), dtype=bool)
    in_word = letters < _FIRST_OF_EAST_ASIA
    starts[1:] = ~(in_word[1:] & in_word[:-1] & (np.diff(kept) == 1))
    at_border = np.searchsorted(kept, borders)
    starts[at_border[at_border < len(kept)]] = True
    first = np.flatnonzero(starts)
    if len(first) == len(kept):
        return _mixed(letters), kept, kept
    offset = np.arange(len(kept)) - np.repeat(first, np.diff(first, append=len(kept)))
    hashes = np.add.reduceat(_mixed(letters | (offset.astype(np.uint64) << np.uint64(32))), first)
    last = np.append(first[1:], len(kept)) - 1
    return hashes, kept[first], kept[last]


def num_units(text: str) -> int:
    """Han characters, words and numbers of `text`: what is compared."""
    return len(_units(text, np.zeros(0, dtype=np.int64))[0])


def _distinct(hashes: Hashes) -> Hashes:
    """As np.unique, which is ten times slower on millions of 64-bit hashes (numpy 2.3 and later hash them first)."""
    ordered = np.sort(hashes)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _rolling_hashes(units: Hashes, n: int) -> Hashes:
    """A 64-bit hash of every n-gram of `units`, in order; none where there are fewer than n."""
    if len(units) < n:
        return np.zeros(0, dtype=np.uint64)

    def joined(left: Hashes, right: Hashes, left_width: int, right_width: int) -> Hashes:
        # The hash is a polynomial, so that of ab is hash(a) * multiplier ** len(b) + hash(b).
        both = left[: len(units) - left_width - right_width + 1] * np.uint64(pow(_MULTIPLIER, right_width, 1 << 64))
        both += right[left_width:]
        return both

    hashes, width, power, power_width = units, 0, units, 1
    while True:  # by doubling: 13 = 8 + 4 + 1 takes five joins instead of twelve
        if n & power_width:
            hashes = joined(hashes, power, width, power_width) if width else power
            width += power_width
        if width == n:
            break
        power, power_width = joined(power, power, power_width, power_width), 2 * power_width
    return _mixed(hashes)  # the high bits choose a place in the sieve: every bit of the gram must reach them


def _grams(texts: Sequence[str], n: int) -> tuple[Hashes, Indices]:
    """(hash, index of its text) of every n-gram of the texts, hashed in one sweep; windows over a border cut out."""
    borders = np.cumsum([len(text) for text in texts])
    units, first, _ = _units("".join(texts), borders)
    ends = np.searchsorted(first, borders)
    owner = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0))
    hashes = _rolling_hashes(units, n)
    owner = owner[: len(hashes)]
    inside = np.arange(n, n + len(hashes)) <= ends[owner]
    return hashes[inside], owner[inside]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def evaluation_grams(texts: Iterable[str], n: int = NGRAM) -> Hashes:
    """The sorted distinct 64-bit hashes of the texts' character n-grams."""
    found = [_distinct(_grams(batch, n)[0]) for batch in _batches(texts)]
    return _distinct(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)


def _contains(ordered: Hashes, wanted: Hashes) -> tuple[npt.NDArray[np.bool_], Indices]:
    """Whether each of `wanted` stands in `ordered`, and where."""
    if not len(ordered):
        return np.zeros(len(wanted), dtype=bool), np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[place] == wanted, place


class EvaluationIndex:
    """The grams of several evaluation sets, ready to be looked up in by texts: `grams` as `evaluation_grams` gives.

    A table of bits by the leading bits of a hash turns away nearly every gram of an innocent text; only what passes is
    searched for. It takes 8 bytes a gram of the sets, and at most 256 MiB.
    """

    def __init__(self, grams: Mapping[str, Hashes], n: int = NGRAM) -> None:
        self.n = n
        self.grams = dict(grams)
        self._all = _distinct(np.concatenate([np.zeros(0, dtype=np.uint64), *self.grams.values()]))
        num_bits = min(max(16, (8 * len(self._all)).bit_length()), 28)
        self._shift = np.uint64(64 - num_bits)
        self._sieve = np.zeros(1 << num_bits, dtype=bool)
        self._sieve[self._all >> self._shift] = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.grams)

    def hits(self, texts: Sequence[str]) -> tuple[Indices, Hashes]:
        """(index of the text, gram), each pair once and in order, of the grams that stand in any set."""
        owner_parts, hash_parts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
        start = 0
        for batch in _batches(texts):
            hashes, owner = _grams(batch, self.n)
            passed = np.flatnonzero(self._sieve[hashes >> self._shift])
            found, place = _contains(self._all, hashes[passed])
            pairs = np.unique(np.stack([owner[passed][found], place[found]]), axis=1)
            owner_parts.append(pairs[0] + start)
            hash_parts.append(self._all[pairs[1]])
            start += len(batch)
        return np.concatenate(owner_parts), np.concatenate(hash_parts)

    def overlap(self, texts: Sequence[str]) -> Indices:
        """[num_texts, num_sets]: how many distinct n-grams of each text stand in each set."""
        owner, hashes = self.hits(texts)
        return np.stack(
            [self._counts(owner, hashes, name, len(texts))[0] for name in self.names] or [owner[:0]], axis=1
        )

    def _counts(self, owner: Indices, hashes: Hashes, name: str, num_texts: int) -> tuple[Indices, Indices]:
        """Per text the hits that stand in one set, and the places in that set that were hit."""
        found, place = _contains(self.grams[name], hashes)
        return np.bincount(owner[found], minlength=num_texts), place[found]

    def passages(self, text: str, name: str) -> list[str]:
        """The stretches of `text` all of whose n-grams stand in one set, the longest first."""
        units, first, last = _units(text, np.zeros(0, dtype=np.int64))
        hashes = _rolling_hashes(units, self.n)
        starts = np.flatnonzero(_contains(self.grams[name], hashes)[0])
        found = []
        for _, run in groupby(enumerate(starts.tolist()), lambda pair: pair[1] - pair[0]):
            stretch = [start for _, start in run]
            found.append(text[first[stretch[0]] : last[stretch[-1] + self.n - 1] + 1])
        return sorted(found, key=lambda passage: -len(passage))


def save_index(grams: Mapping[str, Hashes], file: Path) -> None:
    """The sets' grams as an npz, an array a set, for `load_index`."""
    with atomic_path(file) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **grams)  # type: ignore[arg-type]


def load_index(file: Path) -> EvaluationIndex:
    with np.load(file) as sets:
        return EvaluationIndex({name: sets[name] for name in sets.files})


def overlap(texts: Sequence[str], grams: Mapping[str, Hashes], n: int = NGRAM) -> Indices:
    """[num_texts, num_sets]: `EvaluationIndex.overlap` for one call; for many calls make the index once."""
    return EvaluationIndex(grams, n).overlap(texts)


class Contamination:
    """What training texts share with evaluation sets, counted as the texts go by.

    A text is contaminated by a set when it shares `min_grams` of its distinct grams. A short one (up to 1000 characters)
    is, too, when it shares all that it has: a leaked question of fifteen characters that stands alone has three.
    """

    def __init__(self, index: EvaluationIndex, min_grams: int = MIN_GRAMS) -> None:
        self.index, self.min_grams = index, min_grams
        self.num_texts = 0
        self._touched = dict.fromkeys(index.names, 0)
        self._contaminated = dict.fromkeys(index.names, 0)
        self._met = {name: np.zeros(len(grams), dtype=bool) for name, grams in index.grams.items()}
        self._examples: dict[str, list[dict[str, Any]]] = {name: [] for name in index.names}

    def check(self, texts: Sequence[str], origins: Sequence[str]) -> list[tuple[str, ...]]:
        """The sets that contaminate each text: none for nearly every one. `origins` name the texts in the examples."""
        owner, hashes = self.index.hits(texts)
        self.num_texts += len(texts)
        found: list[list[str]] = [[] for _ in texts]
        if len(owner) == 0:
            return [()] * len(texts)
        # Only of short texts that were hit at all is it asked how many grams they have.
        needed = np.full(len(texts), self.min_grams)
        for text in (hit for hit in np.unique(owner) if len(texts[hit]) <= _SHORT_CHARACTERS):
            needed[text] = min(self.min_grams, max(1, len(_distinct(_grams([texts[text]], self.index.n)[0]))))
        for name in self.index.names:
            counts, places = self.index._counts(owner, hashes, name, len(texts))
            self._touched[name] += int((counts > 0).sum())
            self._met[name][places] = True
            for text in np.flatnonzero(counts >= needed).tolist():
                self._contaminated[name] += 1
                found[text].append(name)
                self._remember(name, texts[text], origins[text], int(counts[text]))
        return [tuple(names) for names in found]

    def _remember(self, name: str, text: str, origin: str, num_grams: int) -> None:
        examples = self._examples[name]
        if len(examples) < _NUM_EXAMPLES or num_grams > examples[-1]["grams"]:
            passage = self.index.passages(text, name)[0]
            examples.append({"origin": origin, "grams": num_grams, "passage": passage[:_QUOTE_CHARACTERS]})
            examples.sort(key=lambda example: (-example["grams"], example["origin"]))
            del examples[_NUM_EXAMPLES:]

    def merge(self, other: Contamination) -> None:
        """Add what another process counted with the same sets."""
        assert other.index.names == self.index.names
        assert other.min_grams == self.min_grams
        self.num_texts += other.num_texts
        for name in self.index.names:
            self._touched[name] += other._touched[name]
            self._contaminated[name] += other._contaminated[name]
            self._met[name] |= other._met[name]
            merged = [*self._examples[name], *other._examples[name]]
            merged.sort(key=lambda example: (-example["grams"], example["origin"]))
            self._examples[name] = merged[:_NUM_EXAMPLES]

    def save(self, stem: Path) -> None:
        """Leave the counts in STEM.json and STEM.npz, for `absorb` in another process."""
        np.savez(stem.with_suffix(".npz"), *self._met.values())
        counts = (self.num_texts, self._touched, self._contaminated, self._examples)
        write_json(stem.with_suffix(".json"), counts)

    def absorb(self, stem: Path) -> None:
        """Add what `save` left there."""
        other = Contamination(self.index, self.min_grams)
        other.num_texts, other._touched, other._contaminated, other._examples = read_json(stem.with_suffix(".json"))
        with np.load(stem.with_suffix(".npz")) as met:
            other._met = {name: met[f"arr_{number}"] for number, name in enumerate(self.index.names)}
        self.merge(other)

    def summary(self) -> dict[str, Any]:
        """For the manifest: per set the texts contaminated, those that share any gram, and the share of it met."""
        return {
            "ngram": self.index.n,
            "min_grams": self.min_grams,
            "texts": self.num_texts,
            "sets": {
                name: {
                    "grams": len(grams),
                    "grams_met": int(self._met[name].sum()),
                    "touched": self._touched[name],
                    "contaminated": self._contaminated[name],
                    "examples": self._examples[name],
                }
                for name, grams in self.index.grams.items()
            },
        }
