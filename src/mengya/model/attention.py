"""Attention over packed documents or a cache: which keys a query may see, and the kernel that suits the device.

Isolation: in a packed row a query sees a key when the key is not later and belongs to the same document. The mask is
built once per batch and shared by all layers; positions restart in each document, so a packed document is computed
exactly as if it stood alone.

On CUDA, packed documents of a compiled training go through flex attention (Dong et al. 2024, arXiv 2412.05496), with a mask
of blocks of 128 × 128: whole blocks that no query sees are skipped, and nothing of the size T × T is made. Of PyTorch's
two kernels for packed rows the other, `varlen_attn`, adds up the gradient of the queries with atomics: two runs, or a run and a
resumed one, differ in their last bits unless all of PyTorch is put into its deterministic mode; and its signature
is a different one in 2.10 and 2.12. Flex attention's backward writes each block once, in order. Everything else on
CUDA is scaled_dot_product_attention: plain causality selects the flash kernel, a boolean mask the memory-efficient
one (short trainings, which compiling would not pay for; shapes without a flex kernel; pairs, whose rows change their length
at every step). On a CPU training goes document by document (`model.documents`), and generation through the eager product
below: forward and backward of (16, 3, 256, 64) in bfloat16 on one thread take 44 ms with SDPA, 22 ms as products, 17 ms in
blocks of query rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.model.documents import Documents
from mengya.model.functions import by_hand

# B rows, T queries, S keys, H heads, K KV heads, G = H / K heads sharing one KV head, D head width

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK_ROWS = 128
_FLEX_BLOCK = 128
_FLEX_WIDTHS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class AttentionMask:
    """Which of S keys each of T queries may see. Every query sees at least one key (itself), so no softmax is empty."""

    allowed_BTS: Tensor | None  # bool; B is 1 when all rows are alike; None where `blocks` or `documents` say it
    bias_BTS: Tensor | None  # 0 or the dtype's lowest number, for the eager product; None on a GPU
    causal: bool  # no query sees a later key, and queries and keys are the same tokens
    plain: bool  # nothing but causality
    blocks: BlockMask | None = None  # for flex attention
    documents: Documents | None = None  # for a CPU that reads whole texts

    @staticmethod
    def causal_only(num_tokens: int, dtype: torch.dtype, device: torch.device) -> AttentionMask:
        """Each token sees itself and all before it."""
        return _mask(_causal_TS(num_tokens, device)[None], dtype, causal=True, plain=True)

    @staticmethod
    def whole_rows(ids_BT: Tensor, dtype: torch.dtype) -> AttentionMask:
        """`causal_only` for the tokens of these rows, each of which is one document."""
        if by_hand(ids_BT):
            return AttentionMask(None, None, causal=True, plain=True, documents=Documents.rows(*ids_BT.shape))
        return AttentionMask.causal_only(ids_BT.shape[1], dtype, ids_BT.device)

    @staticmethod
    def packed(documents_BT: Tensor, dtype: torch.dtype, *, blocks: bool = False) -> AttentionMask:
        """Each token sees itself and those before it of the same document.

        The tokens of a document stand side by side and bear one number. Any number will do for padding, as long as no
        document bears it. `blocks` asks for a mask for flex attention: `has_flex_kernel` must be true.
        """
        if blocks:
            return AttentionMask(None, None, causal=True, plain=False, blocks=document_blocks(documents_BT))
        if by_hand(documents_BT):
            return AttentionMask(None, None, causal=True, plain=False, documents=Documents.packed(documents_BT))
        return AttentionMask.dense(documents_BT, dtype)

    @staticmethod
    def dense(documents_BT: Tensor, dtype: torch.dtype) -> AttentionMask:
        """`packed` as a mask of T × T, whatever the device."""
        causal_TS = _causal_TS(documents_BT.shape[1], documents_BT.device)
        allowed_BTS = (documents_BT[:, :, None] == documents_BT[:, None, :]) & causal_TS
        return _mask(allowed_BTS, dtype, causal=True, plain=False)

    @staticmethod
    def cached(positions_BT: Tensor, num_keys: int, dtype: torch.dtype) -> AttentionMask:
        """Each query at position p sees the cache slots 0 ... p of its row."""
        slots_S = torch.arange(num_keys, device=positions_BT.device)
        return _mask(slots_S <= positions_BT[:, :, None], dtype, causal=False, plain=False)


def _causal_TS(num_tokens: int, device: torch.device) -> Tensor:
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()


def _mask(allowed_BTS: Tensor, dtype: torch.dtype, *, causal: bool, plain: bool) -> AttentionMask:
    bias_BTS = None
    if by_hand(allowed_BTS):
        # The lowest finite number, not -inf: a score plus it is a finite weight of exactly 0, whatever the score.
        bias_BTS = torch.zeros(allowed_BTS.shape, dtype=dtype, device=allowed_BTS.device)
        bias_BTS.masked_fill_(~allowed_BTS, torch.finfo(dtype).min / 2)
    return AttentionMask(allowed_BTS, bias_BTS, causal, plain)


@cache
def _writes_kernels() -> bool:
    """Whether flex attention can be compiled for the GPU: Triton is there, and the GPU is of 2020 or later."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability() >= (8, 0)


def has_flex_kernel(device: torch.device, num_tokens: int, head_width: int) -> bool:
    """Whether flex attention can train rows of this length and heads of this width there (on a CPU it has no backward)."""
    fits = num_tokens % _FLEX_BLOCK == 0 and head_width in _FLEX_WIDTHS
    return fits and device.type == "cuda" and _writes_kernels()


def document_blocks(documents_BT: Tensor) -> BlockMask:
    """The blocks of 128 queries × 128 keys that hold something to see; T is a multiple of 128, documents are contiguous.

    From the documents' numbers at the edges of the blocks: `create_block_mask` would make all T × T. Nothing here waits
    for a GPU.
    """
    from torch.nn.attention.flex_attention import BlockMask

    documents_BT = documents_BT.to(torch.int32)  # a kernel reads them for every key
    T = documents_BT.shape[1]
    assert T % _FLEX_BLOCK == 0, f"{T} tokens a row"
    first_BN, last_BN = documents_BT[:, ::_FLEX_BLOCK], documents_BT[:, _FLEX_BLOCK - 1 :: _FLEX_BLOCK]
    numbers_N = torch.arange(first_BN.shape[1], device=documents_BT.device)
    is_earlier_NM = numbers_N[:, None] > numbers_N
    is_own_NM = numbers_N[:, None] == numbers_N
    # N blocks of queries, M of keys. The document that a key block ends with goes on in the query block …
    seen_BNM = is_own_NM | (is_earlier_NM & (last_BN[:, None, :] == first_BN[:, :, None]))
    # … and the one that it begins with fills both, and all between them: no key need be looked at one by one.
    full_BNM = is_earlier_NM & (first_BN[:, None, :] == last_BN[:, :, None])

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents_BT[b, query] == documents_BT[b, key])

    return BlockMask.from_kv_blocks(
        *_in_order(seen_BNM & ~full_BNM),
        *_in_order(full_BNM),
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(T, T),
    )


def _in_order(chosen_BNM: Tensor) -> tuple[Tensor, Tensor]:
    """(how many key blocks each query block has, their numbers first in its row), int32 with a dimension for heads."""
    indices_BNM = chosen_BNM.int().argsort(dim=-1, descending=True, stable=True)
    return chosen_BNM.sum(-1, dtype=torch.int32)[:, None], indices_BNM.int()[:, None]


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: AttentionMask) -> Tensor:
    """y_BTHD = softmax(q kᵀ / √D over the allowed keys) v, each KV head serving H / K heads."""
    assert mask.documents is None, "`attend_documents` reads those"
    if mask.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        shares_keys = q_BHTD.shape[1] != k_BKSD.shape[1]
        flexed = flex_attention(q_BHTD, k_BKSD, v_BKSD, block_mask=mask.blocks, enable_gqa=shares_keys)
        assert isinstance(flexed, Tensor)
        return flexed.transpose(1, 2)
    if mask.bias_BTS is None:
        num_shared = q_BHTD.shape[1] // k_BKSD.shape[1]
        if mask.plain:
            y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BKSD, v_BKSD, is_causal=True, enable_gqa=num_shared > 1)
            return y_BHTD.transpose(1, 2)
        assert mask.allowed_BTS is not None
        # The kernel that takes a mask takes no shared keys: enable_gqa would mean scores in memory, all of them.
        if num_shared > 1:
            k_BKSD, v_BKSD = k_BKSD.repeat_interleave(num_shared, 1), v_BKSD.repeat_interleave(num_shared, 1)
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BKSD, v_BKSD, attn_mask=mask.allowed_BTS[:, None])
        return y_BHTD.transpose(1, 2)
    return _attend_eager(q_BHTD, k_BKSD, v_BKSD, mask.bias_BTS, causal=mask.causal)


def _attend_eager(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias_BTS: Tensor, *, causal: bool) -> Tensor:
    B, H, T, D = q_BHTD.shape
    K, S = k_BKSD.shape[1:3]
    # Heads that share keys become rows of one product, so keys and values are never repeated in memory.
    q_BKGTD = (q_BHTD * D**-0.5).reshape(B, K, H // K, T, D)
    kT_BKDS = k_BKSD.mT
    bias_B11TS = bias_BTS[:, None, None]
    blocks = []
    for start in range(0, T, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, T)
        num_keys = stop if causal else S
        rows = (B, K, H // K, stop - start)
        q_BKRD = q_BKGTD[:, :, :, start:stop].reshape(B, K, -1, D)
        scores = (q_BKRD @ kT_BKDS[..., :num_keys]).view(*rows, num_keys)
        weights = scores.add_(bias_B11TS[:, :, :, start:stop, :num_keys]).softmax(-1)
        blocks.append((weights.view(B, K, -1, num_keys) @ v_BKSD[:, :, :num_keys]).view(*rows, D))
    y_BKGTD = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=3)
    return y_BKGTD.view(B, H, T, D).transpose(1, 2)
