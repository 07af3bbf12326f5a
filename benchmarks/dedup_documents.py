"""Documents to deduplicate: read from a folder, or made; with near copies planted among them."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import zstandard

HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
_SENTENCES = 200_000
_IN_DOCUMENT = 15


def edited(text: str, num_edits: int, rng: random.Random) -> str:
    """`text` with so many of its characters replaced."""
    characters = list(text)
    for place in rng.sample(range(len(characters)), num_edits):
        characters[place] = rng.choice(HAN)
    return "".join(characters)


class Synthetic:
    """Documents by number, made when asked for: 15 of 200,000 sentences of 16 to 23 Han characters, some 300 in all.

    Of twenty, the last is an exact copy of an earlier document, and the three before it are near copies of earlier
    ones, with 1 to 6 characters replaced, so that nearly all are of Jaccard ≥ 0.8.
    """

    exact, near = (19,), (16, 17, 18)  # of each twenty

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed

    @cached_property
    def _sentences(self) -> list[str]:
        rng = np.random.default_rng(self.seed)
        lengths = rng.integers(16, 24, _SENTENCES)
        codes = (0x4E00 + 3000 * rng.random(int(lengths.sum())) ** 2).astype("<u4")  # common and rare characters
        joined, ends = codes.tobytes().decode("utf-32-le"), np.cumsum(lengths)
        return [joined[end - length : end] + "，" for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]

    def original(self, number: int) -> int:
        """The number of the document that document `number` is a copy of: itself when it is none."""
        block, place = divmod(number, 20)
        if place < 16:
            return number
        return 20 * ((number * 0x9E3779B97F4A7C15 >> 20) % (block + 1)) + number * 7 % 16

    def __call__(self, number: int) -> str:
        rng = random.Random(self.original(number) * 1_000_003 + self.seed)
        text = "".join([self._sentences[int(rng.random() * _SENTENCES)] for _ in range(_IN_DOCUMENT)])
        if number % 20 in self.near:
            own = random.Random(f"{self.seed}:{number}")
            text = edited(text, own.randrange(1, 7), own)
        return text


def real(folder: Path, most_characters: int) -> Iterator[str]:
    """The beginnings of the documents of `folder`'s `pretrain/*.jsonl.zst`, one of each file in turn."""
    files = sorted((folder / "pretrain").glob("*.jsonl.zst"))
    left = [io.TextIOWrapper(zstandard.open(file, "rb"), encoding="utf-8") for file in files]
    while left:
        for file in list(left):
            line = file.readline()
            if not line:
                left.remove(file)
            elif len(text := json.loads(line)["text"][:most_characters]) >= 50:
                yield text


def data_folder() -> Path | None:
    """`$MENGYA_DATA` where it is set and holds documents to pretrain on."""
    folder = Path(os.environ.get("MENGYA_DATA", ""))
    return folder if os.environ.get("MENGYA_DATA") and (folder / "pretrain").is_dir() else None


def with_near_copies(texts: list[str], seed: int = 1) -> list[str]:
    """`texts` and, for every third, a copy of a Jaccard similarity between 0.6 and 1; shuffled."""
    rng = random.Random(seed)
    copies = []
    for text in texts[::3]:
        # Every edit, alone, changes five of n 5-grams: e edits leave (n - 5e) / (n + 5e) of the union.
        similarity = rng.uniform(0.6, 1.0)
        copies.append(edited(text, round(len(text) * (1 - similarity) / (1 + similarity) / 5), rng))
    mixed = texts + copies
    rng.shuffle(mixed)
    return mixed
