"""Loss of unigram and trigram models on the same tokens: what a network must beat to have learnt more than counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


def _contexts(documents: list[Tokens], order: int, vocab_size: int) -> tuple[Tokens, Tokens]:
    """(context, token) of every token but the first of each document, contexts of order−1 tokens as one integer.

    Contexts never cross documents: before a document's start stand copies of its first (boundary) token.
    """
    contexts, tokens = [], []
    for document in documents:
        padded = np.concatenate([np.repeat(document[:1], order - 2), document]) if order > 1 else document
        target = document[1:]
        context = np.zeros(len(target), dtype=np.int64)
        for back in range(order - 1, 0, -1):
            start = (order - 2 if order > 1 else 0) + 1 - back
            context = context * vocab_size + padded[start : start + len(target)]
        contexts.append(context)
        tokens.append(target)
    return np.concatenate(contexts), np.concatenate(tokens)


def _lookup(keys: Tokens, counts: Tokens, wanted: Tokens) -> NDArray[np.float64]:
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0).astype(np.float64)


def ngram_losses(train: list[Tokens], validation: list[Tokens], vocab_size: int) -> dict[str, float]:
    """{"unigram_loss", "bigram_loss", "trigram_loss"}: mean −log p of validation targets, in nats a token.

    Interpolated Witten–Bell smoothing (Witten and Bell 1991): p_n(w|h) = (c(hw) + T(h) p_{n−1}(w|h')) / (c(h) + T(h)),
    T(h) the number of distinct tokens seen after h; the unigram backs off to the uniform distribution. Documents are
    arrays that begin with their boundary token, which is context only.
    """
    assert vocab_size**3 < 2**62, "n-grams are packed into 64-bit integers"
    _, target = _contexts(validation, 1, vocab_size)
    p = np.full(len(target), 1.0 / vocab_size)
    losses = {}
    for order, name in ((1, "unigram_loss"), (2, "bigram_loss"), (3, "trigram_loss")):
        context, token = _contexts(train, order, vocab_size)
        seen_grams, gram_counts = np.unique(context * vocab_size + token, return_counts=True)
        gram_contexts = seen_grams // vocab_size
        seen_contexts, types = np.unique(gram_contexts, return_counts=True)
        totals = np.add.reduceat(gram_counts, np.searchsorted(gram_contexts, seen_contexts))
        held_context, _ = _contexts(validation, order, vocab_size)
        c_gram = _lookup(seen_grams, gram_counts, held_context * vocab_size + target)
        c_context, t_context = _lookup(seen_contexts, totals, held_context), _lookup(seen_contexts, types, held_context)
        known = c_context > 0
        p = np.where(known, (c_gram + t_context * p) / np.where(known, c_context + t_context, 1.0), p)
        losses[name] = float(-np.log(p).mean())
    return losses
