"""Many texts → their ids in one array, by `fastokens` where it is installed and agrees with `tokenizers`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mengya.console import say

_COMPARED_TEXTS = 64
"""Texts of each shard that both encode: a difference costs speed, never an id."""


class BulkEncoder:
    """Texts → ids for one tokenizer, special tokens in a text being plain text; `name` says who encodes."""

    def __init__(self, backend: Tokenizer) -> None:
        assert backend.encode_special_tokens, "a text could forge special tokens"
        self._backend = backend
        self._fast = _fastokens(backend)

    @property
    def name(self) -> str:
        return "tokenizers" if self._fast is None else "fastokens"

    def check(self, texts: Sequence[str]) -> None:
        """Compare the two on the first of `texts`; where they differ, `tokenizers` it is from now on."""
        if self._fast is None:
            return
        head = list(texts[:_COMPARED_TEXTS])
        fast, slow = self._encode_fast(head), self._encode(head)
        if not all(map(np.array_equal, fast, slow)):
            say("fastokens gives other ids than tokenizers on this tokenizer: not used")
            self._fast = None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(all ids one text after another, uint32; ids of each text, int64)."""
        return self._encode(texts) if self._fast is None else self._encode_fast(texts)

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return np.concatenate([np.zeros(0, np.uint32), *found]), np.array([len(ids) for ids in found], dtype=np.int64)

    def _encode_fast(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))


def _fastokens(backend: Tokenizer) -> Any:
    """fastokens' tokenizer of the same file; None where it is not installed, or has no such model."""
    if importlib.util.find_spec("fastokens") is None:
        return None
    import fastokens

    try:
        return fastokens.Tokenizer.from_json_str(backend.to_str())
    except ValueError as error:
        say(f"fastokens cannot take this tokenizer ({error}): not used")
        return None
