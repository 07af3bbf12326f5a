"""Which texts a tokenizer is trained on: a seeded sample of whole texts, by source, within characters and memory."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping

from mengya.errors import UserError

MEMORY_BYTES_PER_CHARACTER = 200
"""Peak memory of BPE training for each character of the sample: 150 to 180 measured on 2 and 8 M characters of real
Chinese at vocabularies of 6,400 and 32,000."""
MEMORY_BYTES_BESIDE = 256 << 20
"""What the process holds beside: the interpreter, its libraries and the merges."""


def characters_within(max_characters: int, max_memory_gib: float | None) -> int:
    """The characters to sample: at most `max_characters`, and at most what trains in `max_memory_gib` GiB."""
    if max_memory_gib is None:
        return max_characters
    room = int((max_memory_gib * (1 << 30) - MEMORY_BYTES_BESIDE) / MEMORY_BYTES_PER_CHARACTER)
    if room < 1:
        raise UserError(
            f"{max_memory_gib} GiB cannot hold the trainer itself",
            where="tokenizer.max_memory_gib",
            mend=f"set it above {MEMORY_BYTES_BESIDE / (1 << 30):.1f}",
        )
    return min(max_characters, room)


class Reservoir:
    """A uniform sample of whole texts with at most `max_characters` in all, in one pass and bounded memory.

    Each text draws a key; those of the smallest keys stay. A text is cut only if it is longer than the bound alone.
    """

    def __init__(self, max_characters: int, rng: random.Random) -> None:
        self._max_characters, self._rng = max_characters, rng
        self._kept: list[tuple[float, int, str]] = []  # a heap with the largest key on top
        self.total = 0

    def add(self, index: int, text: str) -> None:
        text = text[: self._max_characters]
        heapq.heappush(self._kept, (-self._rng.random(), index, text))
        self.total += len(text)
        while self.total > self._max_characters:
            self.total -= len(heapq.heappop(self._kept)[2])

    def texts(self) -> list[tuple[int, str]]:
        return [(index, text) for _, index, text in self._kept if text]


def sample_mixture(
    texts: Iterable[tuple[str, str]], max_characters: int, *, seed: int, shares: Mapping[str, float] | None = None
) -> tuple[list[str], dict[str, int]]:
    """(the sample in the order of its texts, characters of each source in it) of (source, text) pairs, in one pass.

    A source of `shares` gets that share of `max_characters`, or all that it has if it has less; the other sources
    together fill what the shares leave, uniformly. The shares may not exceed 1 together.
    """
    shares = dict(shares or {})
    if sum(shares.values()) > 1 + 1e-9:
        raise UserError(
            f"the shares add up to {sum(shares.values()):g}", where="tokenizer.shares", mend="keep them within 1"
        )
    rest = Reservoir(round(max_characters * max(0.0, 1 - sum(shares.values()))), random.Random(f"{seed}:tokenizer"))
    own = {
        source: Reservoir(round(max_characters * share), random.Random(f"{seed}:tokenizer:{source}"))
        for source, share in shares.items()
    }
    source_of: list[str] = []
    names: dict[str, str] = {}  # one string object a source, however many documents
    for index, (source, text) in enumerate(texts):
        source_of.append(names.setdefault(source, source))
        own.get(source, rest).add(index, text)
    chosen = sorted(pair for reservoir in (rest, *own.values()) for pair in reservoir.texts())
    counts: dict[str, int] = dict.fromkeys(names, 0)
    for index, text in chosen:
        counts[source_of[index]] += len(text)
    return [text for _, text in chosen], counts
