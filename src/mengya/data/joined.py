"""Examples of several kinds in one training: some documents of a source, and examples one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mengya.data.packing import Examples
from mengya.data.token_source import TokenSource
from mengya.files import sha256_of


class Chosen:
    """Documents of a source by number, as examples (`data.packing.Examples`)."""

    def __init__(self, source: TokenSource, numbers: np.ndarray) -> None:
        self._source, self._numbers = source, numbers

    @classmethod
    def at_random(cls, source: TokenSource, num_tokens: float, seed: int) -> Chosen:
        """As many documents as hold `num_tokens` inputs, the last one beyond; all where the source has fewer."""
        order = np.random.default_rng(seed).permutation(len(source))
        inputs_N = source.lengths_N[order] - 1
        return cls(source, order[np.cumsum(inputs_N) - inputs_N < num_tokens])

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self._source.lengths_N[self._numbers] - 1

    @property
    def fingerprint(self) -> str:
        return sha256_of([self._source.fingerprint, self._numbers.tolist()])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        return self._source.piece(int(self._numbers[document]), start, length)

    def origin_of(self, index: int) -> str:
        return self._source.origin_of(int(self._numbers[index]))


class Joined:
    """The examples of all `parts`, numbered through, as examples of one training."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self._parts = parts
        self._inputs = [np.asarray(part.num_inputs_N) for part in parts]
        self._firsts = np.cumsum([0, *map(len, self._inputs)])

    @property
    def num_inputs_N(self) -> np.ndarray:
        return np.concatenate(self._inputs)

    @property
    def fingerprint(self) -> str:
        return sha256_of([part.fingerprint for part in self._parts])

    def _place(self, index: int) -> tuple[Examples, int]:
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._parts[part], index - int(self._firsts[part])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        part, number = self._place(document)
        return part.piece(number, start, length)

    def origin_of(self, index: int) -> str:
        part, number = self._place(index)
        return part.origin_of(number)
