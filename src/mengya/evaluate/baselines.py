"""What can be told of a pair without reading it as an answer: from its characters alone, or without its prompt.

A reward model that does no better has learnt a habit of the data, such as who wrote the answer, not what is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mengya.corpus.records import Message, PreferencePair
from mengya.evaluate.pairs import PairScores, score_pairs
from mengya.evaluate.score import Estimate, proportion
from mengya.model.heads import Scorer
from mengya.tokenizer.encode import ChatTokenizer

_BUCKETS = 1 << 18
_MOST_PAIRS = 20_000
"""Training pairs that the baseline learns from, spread over all: more change its accuracy little and cost memory."""


def character_features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(buckets, values): the text's characters and pairs of neighbours, hashed; 1 + log of the count, in all of norm 1.

    The norm takes the length away, which has a baseline of its own (`evaluate.pairs.length_only_accuracy`).
    """
    codes = np.array([ord(character) for character in text], dtype=np.uint64)
    # Multiplicative hashing (Knuth, TAOCP 3, 6.4) with odd 64-bit constants; the high bits are the well-mixed ones.
    mixed = codes * np.uint64(0x9E3779B97F4A7C15)
    both = (mixed[:-1] ^ (mixed[:-1] >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + mixed[1:]
    grams = np.concatenate([mixed, both * np.uint64(0x94D049BB133111EB)]) >> np.uint64(64 - 18)
    buckets, counts = np.unique(grams, return_counts=True)
    values = 1.0 + np.log(counts)
    return buckets.astype(np.int64), values / max(float(np.linalg.norm(values)), 1e-12)


def _differences(pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor, Tensor]:
    """The sparse matrix of features of chosen − rejected, a row a pair: (rows, buckets, values)."""
    rows, buckets, values = [], [], []
    for row, pair in enumerate(pairs):
        for text, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            found, weights = character_features(text)
            rows.append(np.full(len(found), row))
            buckets.append(found)
            values.append(sign * weights)
    if not rows:
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty, torch.zeros(0, dtype=torch.float64)
    return (
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate(buckets)),
        torch.from_numpy(np.concatenate(values)),
    )


def _times(matrix: tuple[Tensor, Tensor, Tensor], weights_V: Tensor, num_rows: int) -> Tensor:
    rows, buckets, values = matrix
    return torch.zeros(num_rows, dtype=torch.float64).index_add_(0, rows, values * weights_V[buckets])


def fit_characters(pairs: Sequence[PreferencePair]) -> Tensor:
    """Weights of a logistic regression on `character_features` that tells the chosen side from the rejected one.

    No intercept (the sides have no order), ½|w|² beside the summed loss (scikit-learn's default, C = 1), minimised by
    L-BFGS. All in float64 and one order of summation: the same pairs give the same weights.
    """
    if len(pairs) > _MOST_PAIRS:
        pairs = [pairs[i * len(pairs) // _MOST_PAIRS] for i in range(_MOST_PAIRS)]
    matrix, N = _differences(pairs), len(pairs)
    rows, buckets, values = matrix
    weights_V = torch.zeros(_BUCKETS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_V], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        with torch.no_grad():
            logits_N = _times(matrix, weights_V, N)
            loss = torch.nn.functional.softplus(-logits_N).sum() + 0.5 * weights_V.square().sum()
            slopes_N = -torch.sigmoid(-logits_N)
            gradient_V = torch.zeros_like(weights_V).index_add_(0, buckets, values * slopes_N[rows])
            weights_V.grad = (gradient_V + weights_V) / max(1, N)
            return loss / max(1, N)

    if N:
        optimizer.step(closure)
    return weights_V.detach()


def characters_only_accuracy(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> Estimate:
    """What an answer's characters and pairs of characters alone tell of held-out pairs; a tie counts half.

    It knows the style and the source of an answer and nothing of the question, nor of what the characters say together.
    """
    logits_N = _times(_differences(held_out), fit_characters(train), len(held_out))
    hits = float((logits_N > 0).sum()) + 0.5 * float((logits_N == 0).sum())
    return proportion(hits, len(held_out))


def score_without_prompts(
    model: Scorer, tokenizer: ChatTokenizer, pairs: Sequence[PreferencePair], max_tokens: int
) -> PairScores:
    """Rewards of both sides of every pair with an empty question in the place of the prompt.

    An accuracy as high as with the prompts proves that the model need not read the question: the pairs betray the better
    answer by itself. A low one proves less: the model never saw an empty question in training, and one trained without
    prompts might do better. So this is a lower bound of what the answer alone tells.
    """
    bare = [replace(pair, prompt=(Message("user", ""),)) for pair in pairs]
    return score_pairs(model, tokenizer, bare, max_tokens)
