"""How well rewards order pairs, beside what an answer's length alone could tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from mengya.corpus.records import PreferencePair
from mengya.data.pairs import render_pairs
from mengya.evaluate.score import Estimate, proportion
from mengya.model.heads import RewardModel
from mengya.tokenizer.encode import ChatTokenizer


@torch.inference_mode()
def score_texts(model: RewardModel, sequences: Sequence[Sequence[int]], *, tokens_a_batch: int = 16_384) -> list[float]:
    """The reward of each token sequence, read at its last token."""
    device = model.score.weight.device
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


def pair_accuracy(
    model: RewardModel, tokenizer: ChatTokenizer, pairs: Sequence[PreferencePair], max_tokens: int
) -> tuple[Estimate, dict[str, Estimate]]:
    """Share of pairs whose chosen answer is rewarded more; over all, and by reason (by source where none is known).

    Pairs too long for the model are left out, as in training.
    """
    groups: list[str] = []
    sequences: list[Sequence[int]] = []
    for pair in pairs:
        rendered, _ = render_pairs([pair], tokenizer, max_tokens=max_tokens)
        for token_pair in rendered:
            groups.append(pair.reason or pair.source)
            sequences += [token_pair.chosen.tolist(), token_pair.rejected.tolist()]
    scores = score_texts(model, sequences)
    hits: dict[str, list[bool]] = defaultdict(list)
    for group, chosen, rejected in zip(groups, scores[::2], scores[1::2], strict=True):
        hits[group].append(chosen > rejected)
    total = [hit for group in hits.values() for hit in group]
    return proportion(sum(total), len(total)), {name: proportion(sum(h), len(h)) for name, h in sorted(hits.items())}


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
