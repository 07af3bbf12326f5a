"""Bradley–Terry: the probability that one answer is preferred is the logistic of the difference of their rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mengya.model.attention import AttentionMask
from mengya.objectives.preference import answer_logps
from mengya.objectives.terms import Terms


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """−log σ(r_chosen − r_rejected), shape (B) (Ouyang et al. 2022, eq. 1)."""
    return -logsigmoid(chosen_B - rejected_B)


def reward_loss(lm_coefficient: float = 0.0) -> Callable[[Any, Any], Terms]:
    """The objective: Bradley–Terry summed over the pairs of a `data.pairs.PairBatch`, each times its weight.

    Each text is scored at its last token. The weights make a ranked list of K answers, which gives K (K − 1) / 2 pairs,
    count as one pair does (Ouyang et al. 2022, eq. 1). `lm_coefficient` × −log p(chosen) a token keeps the trunk a language
    model, by the embeddings it is tied to (Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable
    Reward Model for LLMs", eq. 6): what a model knows it can then compare with what it reads.
    """

    def objective(model: Any, batch: Any) -> Terms:
        attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
        x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
        chosen_B, rejected_B = model.scores_of(x_BTC.flatten(0, 1)[batch.last_S]).chunk(2)
        losses_B = bradley_terry(chosen_B, rejected_B)
        with torch.no_grad():
            sums = {"accuracy": (chosen_B > rejected_B).float().sum(), "margin": (chosen_B - rejected_B).sum()}
        if lm_coefficient:
            nll_B = -answer_logps(model, x_BTC, batch).chunk(2)[0] / batch.completion_lengths_S.chunk(2)[0]
            losses_B = losses_B + lm_coefficient * nll_B
            sums["chosen_nll"] = nll_B.detach().sum()
        return Terms((losses_B * batch.weights_B).sum(), len(losses_B), sums)

    return objective
