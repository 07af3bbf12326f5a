"""Direct preference optimisation: the reward model's job done by the policy's own log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mengya.model.attention import AttentionMask
from mengya.objectives.terms import Terms, token_logps


def dpo(policy_margin_B: Tensor, reference_margin_B: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β (Δπ − Δref)), shape (B), where Δ = log p(chosen) − log p(rejected) in nats.

    Rafailov et al. 2023, eq. 7; `label_smoothing` is the share of labels believed to be flipped (Mitchell 2023, cDPO).
    """
    h_B = beta * (policy_margin_B - reference_margin_B)
    return -(1 - label_smoothing) * logsigmoid(h_B) - label_smoothing * logsigmoid(-h_B)


def completion_logps(model: Any, ids_BT: Tensor, completion_BT: Tensor) -> Tensor:
    """Σ log p over each row's completion tokens, shape (B).

    `completion_BT[b, t]` says that token t of row b belongs to the answer. Rows are padded on the right, where causal
    attention cannot look, so padding needs no mask.
    """
    rows_N, columns_N = completion_BT[:, 1:].nonzero(as_tuple=True)
    x_BTC = model.hidden(ids_BT)
    logps_N = token_logps(model.logits(x_BTC[rows_N, columns_N]), ids_BT[rows_N, columns_N + 1])
    return torch.zeros(len(ids_BT), device=ids_BT.device).index_add(0, rows_N, logps_N)


def packed_logps(model: Any, batch: Any) -> Tensor:
    """Σ log p over the completion of each sequence of a `data.pairs.PairBatch`, shape (S), the chosen ones first."""
    attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
    # No row begins with an answer, so the token before one is of its own sequence.
    rows_N, columns_N = batch.completion_BT[:, 1:].nonzero(as_tuple=True)
    x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    logps_N = token_logps(model.logits(x_BTC[rows_N, columns_N]), batch.ids_BT[rows_N, columns_N + 1])
    sequences_N = batch.documents_BT[rows_N, columns_N]
    return torch.zeros(len(batch.last_S), device=logps_N.device).index_add(0, sequences_N, logps_N)


def dpo_loss(
    reference_logps_N2: Tensor, beta: float, label_smoothing: float, nll_coefficient: float = 0.0
) -> Callable[[Any, Any], Terms]:
    """The objective over `data.pairs.PairBatch`es: DPO plus `nll_coefficient` × −log p(chosen) a token.

    `reference_logps_N2[n]` are the frozen reference's log p of pair n's chosen and rejected answer. They never change,
    so they are computed once, and the reference needs no memory here. The second term (Pang et al. 2024, eq. 2) keeps
    the chosen answers likely: DPO alone is content when both fall, the rejected one faster.
    """

    def objective(model: Any, batch: Any) -> Terms:
        chosen_B, rejected_B = packed_logps(model, batch).chunk(2)
        reference_chosen_B, reference_rejected_B = reference_logps_N2[batch.indices_B].unbind(1)
        losses_B = dpo(chosen_B - rejected_B, reference_chosen_B - reference_rejected_B, beta, label_smoothing)
        losses_B = losses_B - nll_coefficient * chosen_B / batch.completion_lengths_S[: len(chosen_B)]
        with torch.no_grad():
            chosen_gain_B = beta * (chosen_B - reference_chosen_B)
            rejected_gain_B = beta * (rejected_B - reference_rejected_B)
            sums = {
                "accuracy": (chosen_gain_B > rejected_gain_B).float().sum(),
                "reward_chosen": chosen_gain_B.sum(),
                "reward_rejected": rejected_gain_B.sum(),
            }
        return Terms(losses_B.sum(), len(losses_B), sums)

    return objective
