"""What training reads, wherever the tokens lie: documents of stored tokens, by number.

A document of n stored tokens is [end t1 … tn-2 end]: n - 1 inputs, each with the token after it as its target. Nothing
of the size of the corpus is held in memory; what asks for a whole column (`lengths_N`) pays eight bytes a document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mengya.data.slices import Column
from mengya.files import sha256_of


class TokenSource(ABC):
    """Token shards, token files, or both: `source[i]` is document i's stored tokens."""

    source_names: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Stored tokens of the documents first … stop - 1, int64."""

    @abstractmethod
    def stored(self, document: int, start: int, length: int) -> np.ndarray:
        """Stored tokens start … start + length - 1 of a document."""

    @abstractmethod
    def runs(self) -> list[tuple[int, int]]:
        """(source id, documents) of each run of documents of one source, in order; few, or the reader was misused."""

    @abstractmethod
    def tokens_by_source(self) -> dict[str, int]:
        """Stored tokens of every source."""

    @abstractmethod
    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE:LINE" of a document, as far as it is known; else "SOURCE, document N"."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that decides what is read and in which order."""

    def __getitem__(self, document: int) -> np.ndarray:
        return self.stored(document, 0, int(self.lengths(document, document + 1)[0]))

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_source().values())

    @cached_property
    def lengths_N(self) -> np.ndarray:
        return self.lengths(0, len(self))

    @cached_property
    def source_ids_N(self) -> np.ndarray:
        """Points into `source_names`."""
        ids, counts = zip(*self.runs(), strict=True)
        return np.repeat(np.array(ids, dtype=np.int64), counts)

    # What the packed loader asks of its examples (data.packing.Examples).

    @property
    def num_inputs_N(self) -> Column:
        return Column(len(self), lambda first, stop: self.lengths(first, stop) - 1)

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a piece of a document: every token is learnt but the first."""
        tokens = self.stored(document, start, length + 1).astype(np.int64)
        return tokens[:-1], tokens[1:]

    def documents_within(self, max_tokens: int) -> int:
        """How many of the first documents hold at most `max_tokens` stored tokens together."""
        documents = tokens = 0
        while documents < len(self):
            sums = tokens + np.cumsum(self.lengths(documents, min(len(self), documents + 65_536)))
            within = int(np.searchsorted(sums, max_tokens, side="right"))
            documents += within
            if within < len(sums):
                break
            tokens = int(sums[-1])
        return documents


class JoinedTokens(TokenSource):
    """Several token sources as one, documents in the order given."""

    def __init__(self, parts: Sequence[TokenSource]) -> None:
        self._parts = list(parts)
        self._first = np.cumsum([0, *(len(part) for part in parts)])
        self.source_names = [name for part in parts for name in part.source_names]

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, document: int) -> tuple[TokenSource, int]:
        part = int(np.searchsorted(self._first, document, side="right")) - 1
        return self._parts[part], document - int(self._first[part])

    def lengths(self, first: int, stop: int) -> np.ndarray:
        found = [
            part.lengths(max(0, first - begin), min(len(part), stop - begin))
            for part, begin in zip(self._parts, self._first[:-1].tolist(), strict=True)
            if first < begin + len(part) and stop > begin
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def stored(self, document: int, start: int, length: int) -> np.ndarray:
        part, own = self._locate(document)
        return part.stored(own, start, length)

    def runs(self) -> list[tuple[int, int]]:
        before = np.cumsum([0, *(len(part.source_names) for part in self._parts)]).tolist()
        shifted = zip(self._parts, before, strict=False)
        return [(source + shift, count) for part, shift in shifted for source, count in part.runs()]

    def tokens_by_source(self) -> dict[str, int]:
        totals = dict.fromkeys(self.source_names, 0)
        for part in self._parts:
            for name, tokens in part.tokens_by_source().items():
                totals[name] += tokens
        return totals

    def origin_of(self, index: int) -> str:
        part, own = self._locate(index)
        return part.origin_of(own)

    @property
    def fingerprint(self) -> str:
        return sha256_of([part.fingerprint for part in self._parts])
