"""A token source for the loader that needs no tokenizer: rows of random ids, the same in every process."""

from __future__ import annotations

import random

import numpy as np

from mengya.data.packing import IGNORE


class RandomRows:
    """`count` rows of 4 to 19 ids; with `unlearnt`, up to four first targets of a row carry no loss, so that ranks' counts differ."""

    fingerprint = "random rows"

    def __init__(self, count: int = 40, *, unlearnt: bool = False) -> None:
        rng = random.Random("numbers")
        self.rows = [[rng.randrange(1, 50) for _ in range(rng.randrange(4, 20))] for _ in range(count)]
        self.unlearnt = unlearnt

    def origin_of(self, index: int) -> str:
        return f"numbers numbers.jsonl:{index + 1}"

    @property
    def num_inputs_N(self) -> np.ndarray:
        return np.array([len(row) - 1 for row in self.rows])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        row = np.array(self.rows[document], dtype=np.int64)
        targets = row[start + 1 : start + length + 1].copy()
        if self.unlearnt:
            targets[: document % 5] = IGNORE
        return row[start : start + length], targets
