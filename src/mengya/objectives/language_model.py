"""Next-token prediction on packed rows; pretraining and instruction tuning differ in their targets only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mengya.model.attention import AttentionMask, has_flex_kernel
from mengya.objectives.terms import Terms, linear_cross_entropy

if TYPE_CHECKING:
    from mengya.model.transformer import Transformer


def next_token_loss(model: Transformer, batch: Any) -> Terms:
    """−Σ log p(target | its document so far) over the targets that carry loss.

    `batch` is a `data.packing.PackedBatch`: ids, targets (already shifted), positions and documents, each (B, T), and the
    places that carry loss. Logits are made for those only: in instruction tuning that is about half of them. Nothing
    here waits for a GPU: where they are, and how many, was counted before the batch went there.
    """
    documents_BT = batch.documents_BT
    trains = model.compiled and torch.is_grad_enabled()
    blocks = trains and has_flex_kernel(documents_BT.device, documents_BT.shape[1], model.config.head_width)
    attention = AttentionMask.packed(documents_BT, model.compute_dtype, blocks=blocks)
    x_BTC = model.hidden(batch.ids_BT, positions_BT=batch.positions_BT, attention=attention)
    x_NC, targets_N = x_BTC.flatten(0, 1)[batch.trained_N], batch.targets_BT.flatten()[batch.trained_N]
    loss_sum = linear_cross_entropy(x_NC, model.output_weight_VC, targets_N, compiled=trains)
    return Terms(loss_sum, len(targets_N))
