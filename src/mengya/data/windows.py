"""An epoch's examples a window at a time, each window packed by itself: memory and start do not grow with the corpus.

The examples are cut into blocks of neighbours, the blocks are shuffled over the whole corpus, a window takes the next
few thousand of them, and its examples are shuffled among themselves. Which blocks a window takes is a function of
(seed, epoch), so going to any window costs that window alone. A corpus of one window is shuffled whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mengya.data.mixture import Mixture
from mengya.data.packing import Examples, PackPlan, pack
from mengya.data.token_source import TokenSource

WINDOW_EXAMPLES = 262_144
"""Examples packed together: 0.4 s of packing, and some 130 M tokens of ordinary documents."""
WINDOW_TOKENS = 1 << 28
"""Tokens packed together, where documents are long: a plan is ten numbers of eight bytes a piece while it is made."""
_WINDOW_BLOCKS = 4096
"""Blocks a window is made of; fewer, larger ones are faster to read, more mix better."""
_MOST_BLOCKS = 1 << 21
"""Blocks of a corpus: their order is a table of eight bytes each. From 134 M documents on, blocks grow instead."""


@dataclass(frozen=True)
class Windows:
    """How a corpus of `num_candidates` examples falls into windows of `blocks` blocks of `block_size` neighbours."""

    num_candidates: int
    num_windows: int
    block_size: int
    blocks: int

    @classmethod
    def of(cls, num_candidates: int, num_tokens: int, window_examples: int = WINDOW_EXAMPLES) -> Windows:
        num_windows = max(1, -(-num_candidates // window_examples), -(-num_tokens // WINDOW_TOKENS))
        if num_windows == 1:
            return cls(num_candidates, 1, num_candidates, 1)
        size = -(-num_candidates // num_windows)
        block_size = max(1, size // _WINDOW_BLOCKS, -(-num_candidates // _MOST_BLOCKS))
        num_blocks = -(-num_candidates // block_size)
        blocks = -(-num_blocks // num_windows)
        return cls(num_candidates, -(-num_blocks // blocks), block_size, blocks)

    def ranges(self, seed: int, epoch: int, window: int) -> Iterator[tuple[int, int]]:
        """(first, stop) of each of a window's blocks, in order of their numbers."""
        num_blocks = -(-self.num_candidates // self.block_size)
        order = np.random.default_rng([seed, epoch]).permutation(num_blocks)
        for block in np.sort(order[window * self.blocks : (window + 1) * self.blocks]).tolist():
            first = block * self.block_size
            yield first, min(first + self.block_size, self.num_candidates)


def windows_of(examples: Examples, window_examples: int = WINDOW_EXAMPLES) -> Windows:
    if isinstance(examples, Mixture):
        return Windows.of(examples.num_candidates, examples.num_tokens, window_examples)
    lengths = examples.num_inputs_N
    num_tokens = examples.num_tokens if isinstance(examples, TokenSource) else int(np.sum(np.asarray(lengths)))
    return Windows.of(len(lengths), num_tokens, window_examples)


def plan_of(examples: Examples, windows: Windows, row_length: int, seed: int, epoch: int, window: int) -> PackPlan:
    """The rows of one window of an epoch."""
    lengths = examples.num_inputs_N
    if windows.num_windows == 1:
        rng = np.random.default_rng([seed, epoch])
        if not isinstance(examples, Mixture):
            return pack(np.asarray(lengths), row_length, rng)
        chosen = examples.examples_of_epoch(rng)
        plan = pack(np.asarray(lengths)[chosen % len(lengths)], row_length, rng)
        return replace(plan, documents=chosen[plan.documents])
    rng = np.random.default_rng([seed, epoch, 1 + window])
    ranges = windows.ranges(seed, epoch, window)
    if isinstance(examples, Mixture):
        drawn = [examples.drawn(first, stop, rng) for first, stop in ranges]
    else:
        drawn = [(np.arange(first, stop), lengths[first:stop]) for first, stop in ranges]
    chosen = np.concatenate([part for part, _ in drawn])
    plan = pack(np.concatenate([inputs for _, inputs in drawn]), row_length, rng)
    return replace(plan, documents=chosen[plan.documents])
