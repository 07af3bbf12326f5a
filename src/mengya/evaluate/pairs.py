"""How well rewards order pairs, beside what an answer's length alone could tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mengya.corpus.records import PreferencePair
from mengya.data.pairs import render_pairs
from mengya.evaluate.score import Estimate, proportion
from mengya.model.heads import Scorer
from mengya.tokenizer.encode import ChatTokenizer


@torch.inference_mode()
def score_texts(model: Scorer, sequences: Sequence[Sequence[int]], *, tokens_a_batch: int = 16_384) -> list[float]:
    """The reward of each token sequence, read at its last token."""
    device = next(model.parameters()).device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found = [0.0] * len(sequences)
    while order:
        longest = len(sequences[order[-1]])
        rows = order[-max(1, tokens_a_batch // longest) :]
        del order[-len(rows) :]
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        for b, i in enumerate(rows):
            ids_BT[b, : len(sequences[i])] = torch.tensor(sequences[i])
        lengths_B = torch.tensor([len(sequences[i]) for i in rows])
        for i, value in zip(rows, model(ids_BT.to(device), lengths_B.to(device)).tolist(), strict=True):
            found[i] = value
    return found


@dataclass(frozen=True)
class PairScores:
    """The pairs that fit the model, in order, and the rewards of both sides."""

    pairs: list[PreferencePair]
    chosen: list[float]
    rejected: list[float]

    @property
    def margins(self) -> list[float]:
        return [chosen - rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)]

    @property
    def hits(self) -> list[bool]:
        """Whether the chosen side is rewarded more; equal rewards are not right: such a model prefers nothing."""
        return [margin > 0 for margin in self.margins]

    def accuracy(self) -> Estimate:
        return proportion(sum(self.hits), len(self.hits))

    def by_reason(self) -> dict[str, Estimate]:
        """Accuracy by the reason to prefer, or by source where none is known."""
        groups: dict[str, list[bool]] = defaultdict(list)
        for pair, hit in zip(self.pairs, self.hits, strict=True):
            groups[pair.reason or pair.source].append(hit)
        return {name: proportion(sum(hits), len(hits)) for name, hits in sorted(groups.items())}


def score_pairs(
    model: Scorer, tokenizer: ChatTokenizer, pairs: Sequence[PreferencePair], max_tokens: int
) -> PairScores:
    """Rewards of both sides of every pair that has at most `max_tokens` ids a side; the others are left out, as in
    training."""
    kept: list[PreferencePair] = []
    sequences: list[Sequence[int]] = []
    for pair in pairs:
        rendered, _ = render_pairs([pair], tokenizer, max_tokens=max_tokens)
        for token_pair in rendered:
            kept.append(pair)
            sequences += [token_pair.chosen.tolist(), token_pair.rejected.tolist()]
    scores = score_texts(model, sequences)
    return PairScores(kept, scores[::2], scores[1::2])


def that_fit(pairs: Sequence[PreferencePair], tokenizer: ChatTokenizer, max_tokens: int) -> list[PreferencePair]:
    """The pairs that a model of this length is trained on and asked about."""
    return [pair for pair in pairs if render_pairs([pair], tokenizer, max_tokens=max_tokens)[0]]


def length_only_accuracy(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> Estimate:
    """What "the longer is better", or "the shorter", gets on held-out pairs, whichever of them did better in training.

    No reward model that has learnt something may be near it. A tie in length counts half.
    """

    def share_longer(pairs: Sequence[PreferencePair]) -> float:
        longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
        equal = sum(len(pair.chosen) == len(pair.rejected) for pair in pairs)
        return (longer + 0.5 * equal) / max(1, len(pairs))

    longer = share_longer(held_out)
    value = longer if share_longer(train) >= 0.5 else 1.0 - longer
    return proportion(value * len(held_out), len(held_out))
