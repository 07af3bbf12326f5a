"""Next-token prediction on packed rows; pretraining and instruction tuning differ in their targets only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mengya.model.attention import AttentionMask
from mengya.objectives.terms import Terms, linear_cross_entropy

if TYPE_CHECKING:
    from mengya.model.transformer import Transformer

IGNORED = -100
"""A target that carries no loss (padding, prompts, the other speakers), PyTorch's own convention."""


def next_token_loss(model: Transformer, batch: Any) -> Terms:
    """−Σ log p(target | its document so far) over the targets that are not IGNORED.

    `batch` is a `data.packing.PackedBatch`: ids, targets (already shifted), positions and documents, each (B, T).
    Logits are made for trained positions only: in instruction tuning that is about half of them.
    """
    attention = AttentionMask.packed(batch.documents_BT, model.compute_dtype)
    x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    trained_BT = batch.targets_BT != IGNORED
    targets_N = batch.targets_BT[trained_BT]
    loss_sum = linear_cross_entropy(x_BTC[trained_BT], model.output_weight_VC, targets_N)
    return Terms(loss_sum, targets_N.numel())
