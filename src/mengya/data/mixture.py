"""Sources in proportion: how often a document comes in an epoch, as a function of (seed, epoch) like all of the order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mengya.data.token_files import TokenSource
from mengya.errors import UserError
from mengya.files import sha256_of


def source_weights(tokens: TokenSource, weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Epochs of each source in one epoch of the mixture: weights[source], 1 where it is not named.

    A temperature T > 1 also lifts the smaller sources: shares of the mixture become ∝ tokens^(1/T) (Xue et al. 2021,
    mT5, §3.2, with α = 1/T), the largest source keeping its weight. UserError for a source that is not there.
    """
    for name in weights:
        if name not in tokens.source_names:
            raise UserError(
                f"no source {name!r} in the shards",
                where="pretrain.weights",
                mend=f"sources: {', '.join(tokens.source_names)}",
            )
    counts = np.bincount(tokens.source_ids_N, weights=tokens.lengths_N, minlength=len(tokens.source_names))
    lift = (counts.max() / np.maximum(counts, 1.0)) ** (1.0 - 1.0 / temperature)
    return {name: float(weights.get(name, 1.0) * lift[index]) for index, name in enumerate(tokens.source_names)}


class Mixture:
    """Token sources to be packed with each document as often as its source's weight says.

    Weight 2 gives a document twice an epoch, 1.5 once or twice: the fraction is drawn anew for each epoch. Copy c of
    document d is example c·N + d: a row may hold two copies, and they must not see each other.
    """

    def __init__(self, tokens: TokenSource, weights: Mapping[str, float]) -> None:
        self._tokens = tokens
        self._weights = {name: float(weights[name]) for name in tokens.source_names}
        self._weight_N = np.array([self._weights[name] for name in tokens.source_names])[tokens.source_ids_N]
        if not self._weight_N.any():
            raise UserError("every source has weight 0", where="pretrain.weights", mend="give one of them more")

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self._tokens.num_inputs_N

    @property
    def fingerprint(self) -> str:
        return sha256_of([self._tokens.fingerprint, self._weights])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        return self._tokens.piece(document % len(self._weight_N), start, length)

    def examples_of_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """The examples of an epoch."""
        whole = np.floor(self._weight_N)
        copies_N = (whole + (rng.random(len(whole)) < self._weight_N - whole)).astype(np.int64)
        documents = np.repeat(np.arange(len(copies_N)), copies_N)
        copy = np.arange(len(documents)) - np.repeat(np.cumsum(copies_N) - copies_N, copies_N)
        return copy * len(copies_N) + documents
