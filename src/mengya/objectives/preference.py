"""Direct preference optimisation: the reward model's job done by the policy's own log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mengya.model.attention import AttentionMask
from mengya.model.texts import hidden_at
from mengya.objectives.terms import Terms, token_logps


def dpo(policy_margin_B: Tensor, reference_margin_B: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β (Δπ − Δref)), shape (B), where Δ = log p(chosen) − log p(rejected) in nats.

    Rafailov et al. 2023, eq. 7; `label_smoothing` is the share of labels believed to be flipped (Mitchell 2023, cDPO).
    """
    h_B = beta * (policy_margin_B - reference_margin_B)
    return -(1 - label_smoothing) * logsigmoid(h_B) - label_smoothing * logsigmoid(-h_B)


def ipo(policy_margin_B: Tensor, reference_margin_B: Tensor, beta: float) -> Tensor:
    """(Δπ − Δref − 1/(2β))², shape (B): the margin is led to a finite value, not ever onwards.

    Azar et al. 2023, eq. 17, with β for the paper's τ. Where every pair has but one label, DPO's loss is lowest at an
    infinite margin whatever β is; this one at 1/(2β).
    """
    return (policy_margin_B - reference_margin_B - 1 / (2 * beta)) ** 2


def simpo(mean_margin_B: Tensor, beta: float, margin: float, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(β Δ − γ), shape (B), where Δ is the difference of log p *a token* of the two answers; no reference.

    Meng et al. 2024, eq. 6, γ being `margin`: how much likelier, in units of the reward β log p a token, the chosen answer
    is to become.
    """
    h_B = beta * mean_margin_B - margin
    return -(1 - label_smoothing) * logsigmoid(h_B) - label_smoothing * logsigmoid(-h_B)


def lengths_to_read(completion_BT: Tensor) -> Tensor:
    """How many tokens of each row say all of its completion: those before its last one; at least one."""
    places_T = torch.arange(completion_BT.shape[1], device=completion_BT.device)
    return (completion_BT * places_T).amax(1).clamp_min(1)


def completion_logps(model: Any, ids_BT: Tensor, completion_BT: Tensor) -> Tensor:
    """Σ log p over each row's completion tokens, shape (B).

    `completion_BT[b, t]` says that token t of row b belongs to the answer. Rows are padded on the right.
    """
    rows_N, columns_N = completion_BT[:, 1:].nonzero(as_tuple=True)
    x_NC = hidden_at(model, ids_BT, lengths_to_read(completion_BT), rows_N, columns_N)
    logps_N = token_logps(model.logits(x_NC), ids_BT[rows_N, columns_N + 1])
    return torch.zeros(len(ids_BT), device=ids_BT.device).index_add(0, rows_N, logps_N)


def packed_logps(model: Any, batch: Any) -> Tensor:
    """Σ log p over the completion of each sequence of a `data.pairs.PairBatch`, shape (S), the chosen ones first."""
    attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
    x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    return answer_logps(model, x_BTC, batch)


def answer_logps(model: Any, x_BTC: Tensor, batch: Any) -> Tensor:
    """The same from final hidden states."""
    # No row begins with an answer, so the token before one is of its own sequence.
    rows_N, columns_N = batch.completion_BT[:, 1:].nonzero(as_tuple=True)
    logps_N = token_logps(model.logits(x_BTC[rows_N, columns_N]), batch.ids_BT[rows_N, columns_N + 1])
    sequences_N = batch.documents_BT[rows_N, columns_N]
    return torch.zeros(len(batch.last_S), device=logps_N.device).index_add(0, sequences_N, logps_N)


def dpo_loss(
    reference_logps_N2: Tensor | None,
    beta: float,
    label_smoothing: float,
    nll_coefficient: float = 0.0,
    *,
    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid",
    margin: float = 0.0,
    length_normalised: bool = False,
) -> Callable[[Any, Any], Terms]:
    """The objective over `data.pairs.PairBatch`es: `loss` plus `nll_coefficient` × −log p(chosen) a token.

    `reference_logps_N2[n]` are the frozen reference's log p of pair n's chosen and rejected answer. They never change,
    so they are computed once, and the reference needs no memory here; None for SimPO, which knows no reference. The
    second term (Pang et al. 2024, eq. 2) keeps the chosen answers likely: DPO alone is content when both fall, the
    rejected one faster. `length_normalised` divides each answer's log p by its tokens, the reference's as well (Lambert et
    al. 2024, "Tülu 3"), so that no answer wins by its length; SimPO always does.
    """
    assert (reference_logps_N2 is None) == (loss == "simpo"), "SimPO has no reference, the others need one"
    normalised = length_normalised or loss == "simpo"

    def objective(model: Any, batch: Any) -> Terms:
        chosen_B, rejected_B = packed_logps(model, batch).chunk(2)
        chosen_lengths_B, rejected_lengths_B = batch.completion_lengths_S.chunk(2)
        nll_B = nll_coefficient * chosen_B / chosen_lengths_B
        if reference_logps_N2 is None:
            reference_chosen_B = reference_rejected_B = torch.zeros_like(chosen_B)
        else:
            reference_chosen_B, reference_rejected_B = reference_logps_N2[batch.indices_B].unbind(1)
        if normalised:
            chosen_B, reference_chosen_B = chosen_B / chosen_lengths_B, reference_chosen_B / chosen_lengths_B
            rejected_B, reference_rejected_B = (
                rejected_B / rejected_lengths_B,
                reference_rejected_B / rejected_lengths_B,
            )
        policy_B, reference_B = chosen_B - rejected_B, reference_chosen_B - reference_rejected_B
        if loss == "sigmoid":
            losses_B = dpo(policy_B, reference_B, beta, label_smoothing)
        elif loss == "ipo":
            losses_B = ipo(policy_B, reference_B, beta)
        else:
            losses_B = simpo(policy_B, beta, margin, label_smoothing)
        losses_B = losses_B - nll_B
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
