"""Bradley–Terry: the probability that one answer is preferred is the logistic of the difference of their rewards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mengya.model.attention import AttentionMask
from mengya.objectives.terms import Terms


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """−log σ(r_chosen − r_rejected), shape (B) (Ouyang et al. 2022, eq. 1)."""
    return -logsigmoid(chosen_B - rejected_B)


def reward_loss(model: Any, batch: Any) -> Terms:
    """Bradley–Terry summed over the pairs of a `data.pairs.PairBatch`, each times its weight.

    Each text is scored at its last token. The weights make a ranked list of K answers, which gives K (K − 1) / 2 pairs,
    count as one pair does (Ouyang et al. 2022, eq. 1).
    """
    attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
    scores_BT = model.scores(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    chosen_B, rejected_B = scores_BT.flatten()[batch.last_S].chunk(2)
    losses_B = bradley_terry(chosen_B, rejected_B) * batch.weights_B
    with torch.no_grad():
        sums = {"accuracy": (chosen_B > rejected_B).float().sum(), "margin": (chosen_B - rejected_B).sum()}
    return Terms(losses_B.sum(), len(losses_B), sums)
