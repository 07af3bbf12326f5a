"""Sources in proportion: how often a document comes in an epoch, as a function of (seed, epoch) like all of the order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mengya.data.slices import Column
from mengya.data.token_source import TokenSource
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
    held = tokens.tokens_by_source()
    counts = np.array([held[name] for name in tokens.source_names], dtype=np.float64)
    lift = (counts.max() / np.maximum(counts, 1.0)) ** (1.0 - 1.0 / temperature)
    return {name: float(weights.get(name, 1.0) * lift[index]) for index, name in enumerate(tokens.source_names)}


class Mixture:
    """Token sources to be packed with each document as often as its source's weight says.

    Weight 2 gives a document twice an epoch, 1.5 once or twice: the fraction is drawn anew for each epoch. Copy c of
    document d is example c·N + d: a row may hold two copies, and they must not see each other. The examples that an
    epoch may hold are numbered through as candidates 0 … `num_candidates` - 1, run by run, copy by copy.
    """

    def __init__(self, tokens: TokenSource, weights: Mapping[str, float]) -> None:
        self._tokens = tokens
        self._weights = {name: float(weights[name]) for name in tokens.source_names}
        runs = tokens.runs()
        self._run_sizes = np.array([count for _, count in runs], dtype=np.int64)
        self._run_firsts = np.cumsum(self._run_sizes) - self._run_sizes
        self._run_weights = np.array([self._weights[tokens.source_names[source]] for source, _ in runs])
        if not self._run_weights.any():
            raise UserError("every source has weight 0", where="pretrain.weights", mend="give one of them more")
        held = tokens.tokens_by_source()
        self.num_tokens = sum(int(self._weights[name] * held[name]) for name in tokens.source_names)
        copies = np.ceil(self._run_weights).astype(np.int64)
        self._copies = np.repeat(np.arange(len(runs)), copies)  # the run of each copy of a run
        sizes = self._run_sizes[self._copies]
        self._copy_numbers = np.arange(len(sizes)) - np.repeat(np.cumsum(copies) - copies, copies)
        self._copy_firsts = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def num_inputs_N(self) -> Column:
        return self._tokens.num_inputs_N

    @property
    def fingerprint(self) -> str:
        return sha256_of([self._tokens.fingerprint, self._weights])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        return self._tokens.piece(document % len(self._tokens), start, length)

    def origin_of(self, index: int) -> str:
        return self._tokens.origin_of(index % len(self._tokens))

    @property
    def num_candidates(self) -> int:
        return int(self._copy_firsts[-1])

    def drawn(self, first: int, stop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(examples, inputs of each) that an epoch holds of the candidates first … stop - 1."""
        examples: list[np.ndarray] = [np.zeros(0, np.int64)]
        lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        while first < stop:
            copy = int(np.searchsorted(self._copy_firsts, first, side="right")) - 1
            run = self._copies[copy]
            end = min(stop, int(self._copy_firsts[copy + 1]))
            begin = int(self._run_firsts[run] + first - self._copy_firsts[copy])
            documents = np.arange(begin, begin + end - first)
            inputs = self.num_inputs_N[begin : begin + end - first]
            share = self._run_weights[run] - self._copy_numbers[copy]
            if share < 1.0:
                kept = rng.random(len(documents)) < share
                documents, inputs = documents[kept], inputs[kept]
            examples.append(self._copy_numbers[copy] * len(self._tokens) + documents)
            lengths.append(inputs)
            first = end
        return np.concatenate(examples), np.concatenate(lengths)

    def examples_of_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """The examples of a whole epoch, for a corpus small enough: one draw a document, copies side by side."""
        weight_N = np.repeat(self._run_weights, self._run_sizes)
        whole = np.floor(weight_N)
        copies_N = (whole + (rng.random(len(whole)) < weight_N - whole)).astype(np.int64)
        documents = np.repeat(np.arange(len(copies_N)), copies_N)
        copy = np.arange(len(documents)) - np.repeat(np.cumsum(copies_N) - copies_N, copies_N)
        return copy * len(copies_N) + documents
