"""Final hidden states of texts of many lengths that stand in rows padded on the right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mengya.model.attention import AttentionMask
from mengya.model.functions import by_hand


def hidden_at(model: Any, ids_BT: Tensor, lengths_B: Tensor, rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """x_NC at the places (rows_N, columns_N), all of them before the end of their text of `lengths_B` (≥ 1) tokens.

    `model` is a language or a reward model. Causal attention cannot look at what stands behind a text, so padding needs no
    mask; on a CPU it is not computed at all: the texts stand one after the other in a single row.
    """
    if not by_hand(ids_BT):
        x_NC: Tensor = model.hidden(ids_BT)[rows_N, columns_N]
        return x_NC
    text_M, place_M = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).nonzero(as_tuple=True)
    attention = AttentionMask.packed(text_M[None], model.compute_dtype)
    x_1MC = model.hidden(ids_BT[text_M, place_M][None], positions_BT=place_M[None], attention=attention)
    starts_B = lengths_B.cumsum(0) - lengths_B
    found_NC: Tensor = x_1MC[0, starts_B[rows_N] + columns_N]
    return found_NC
