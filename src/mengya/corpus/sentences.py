"""Sentences that many documents share, whatever their sources: counted over what is left of a corpus, kept once.

Boilerplate is a line that recurs within one source and is removed from all of it. A sentence that is copied from text to
text (a product's description, a press agency's paragraph) stands in the midst of paragraphs and in several sources: the
first document keeps it.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mengya.corpus.normalise import BLANK_LINES, HAN

MIN_CHARACTERS = 20
"""Shorter ones recur because people say the same."""

_ANY_HAN = re.compile(f"[{HAN}]")
_SENTENCE = re.compile(r"[^。！？]*[。！？]+[”’」』）》]*|[^。！？]+")
_SLICE_KEYS = 1 << 21  # added up at a time: some 200 MB

TABLE = np.dtype([("key", "<u8"), ("count", "<u4"), ("first", "<i8")])
"""A sentence's hash, in how many documents it stands, and the number of the first of these."""
Table = npt.NDArray[np.void]


def _counts(span: str) -> bool:
    return len(span) >= MIN_CHARACTERS and 2 * len(_ANY_HAN.findall(span)) >= len(span)  # not code


def sentence_key(span: str) -> int:
    return int.from_bytes(hashlib.blake2b(span.encode(), digest_size=8).digest(), "little")


def _sentences(line: str) -> list[str]:
    """The sentences of a line, end to end."""
    return [match[0] for match in _SENTENCE.finditer(line)]


def spans(text: str) -> Iterator[str]:
    """The lines and sentences of `text` that can recur: of 20 characters and more, at least half of them Han."""
    for line in text.split("\n"):
        pieces = _sentences(line)
        if len(pieces) > 1 and _counts(line.strip()):
            yield line.strip()
        yield from (piece.strip() for piece in pieces if _counts(piece.strip()))


class SentenceCounter:
    """In how many documents each sentence stands; 16 bytes a sentence until it is asked."""

    def __init__(self) -> None:
        self._keys, self._documents = array("Q"), array("q")

    def count(self, number: int, text: str) -> None:
        """Count the document of this number; numbers ascend."""
        keys = {sentence_key(span) for span in spans(text)}
        self._keys.extend(keys)
        self._documents.extend([number] * len(keys))

    def table(self) -> Table:
        """A row a sentence, in the order of the keys."""
        found = np.array(self._keys, dtype=np.uint64)
        keys, first, counts = np.unique(found, return_index=True, return_counts=True)
        table = np.zeros(len(keys), dtype=TABLE)
        table["key"], table["count"] = keys, counts
        table["first"] = np.array(self._documents, dtype=np.int64)[first]
        return table


def add_up(tables: Sequence[Path], more_than: int) -> Table:
    """The sentences that stand in more than `more_than` documents of all `tables` (.npy files of TABLE), by key.

    A slice of the keys at a time, so that the sentences of a corpus need not fit in memory together.
    """
    opened = [np.load(file, mmap_mode="r") for file in tables]
    num_slices = 1 + sum(map(len, opened)) // _SLICE_KEYS
    borders = [number * 2**64 // num_slices for number in range(1, num_slices)]
    places = [[0, *(bisect_left(table["key"], border) for border in borders), len(table)] for table in opened]
    kept = [np.zeros(0, dtype=TABLE)]
    for number in range(num_slices):
        rows = np.concatenate(
            [
                np.zeros(0, dtype=TABLE),
                *(table[place[number] : place[number + 1]] for table, place in zip(opened, places, strict=True)),
            ]
        )
        order = np.argsort(rows["key"], kind="stable")
        keys, starts = np.unique(rows["key"][order], return_index=True)
        if not len(keys):
            continue
        summed = np.zeros(len(keys), dtype=TABLE)
        summed["key"] = keys
        summed["count"] = np.add.reduceat(rows["count"][order], starts)
        summed["first"] = np.minimum.reduceat(rows["first"][order], starts)
        kept.append(summed[summed["count"] > more_than])
    return np.concatenate(kept)


class RecurringSentences:
    """Takes sentences of such a table out of documents, the first of each excepted."""

    def __init__(self, table: Table) -> None:
        self._keys = np.ascontiguousarray(table["key"])
        self._first = np.ascontiguousarray(table["first"])

    def strip(self, number: int, text: str) -> tuple[str, list[str]]:
        """(text of document `number` without what another has, or it has itself, before; what was taken out)."""
        found = {span: sentence_key(span) for span in spans(text)}
        if not found or not len(self._keys):
            return text, []
        keys = np.array(list(found.values()), dtype=np.uint64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        recurs = self._keys[place] == keys
        if not recurs.any():
            return text, []
        # True: the first of all is in this document, and not met yet.
        open_ = dict(zip(found, (recurs & (self._first[place] == number)).tolist(), strict=True))
        recurring = {span for span, does in zip(found, recurs.tolist(), strict=True) if does}
        removed: list[str] = []

        def goes(span: str) -> bool:
            if span not in recurring:
                return False
            if open_[span]:
                open_[span] = False
                return False
            removed.append(span)
            return True

        lines: list[str] = []
        for line in text.split("\n"):
            pieces = _sentences(line)
            if len(pieces) > 1 and goes(line.strip()):
                continue
            kept = [piece for piece in pieces if not goes(piece.strip())]
            if len(kept) == len(pieces):
                lines.append(line)
            elif rest := "".join(kept).rstrip():
                lines.append(rest)
        return (BLANK_LINES.sub("\n\n", "\n".join(lines)).strip(), removed) if removed else (text, [])
