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
at every step). On a CPU the eager product below is used, in blocks of
query rows that skip the keys no query of the block can see: forward and backward of (16, 3, 256, 64) in bfloat16 on one
thread take 44 ms with SDPA, 22 ms in one block, 17 ms in two. `attend_rotated` is that product for training, its gradient
written by hand; `attend` serves the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    allowed_BTS: Tensor | None  # bool; B is 1 when all rows are alike; None where `blocks` says it
    bias_BTS: Tensor | None  # 0 or the dtype's lowest number, for the eager product; None on a GPU
    causal: bool  # no query sees a later key, and queries and keys are the same tokens
    plain: bool  # nothing but causality
    blocks: BlockMask | None = None  # for flex attention

    @staticmethod
    def causal_only(num_tokens: int, dtype: torch.dtype, device: torch.device) -> AttentionMask:
        """Each token sees itself and all before it."""
        allowed_TS = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
        return _mask(allowed_TS[None], dtype, causal=True, plain=True)

    @staticmethod
    def packed(documents_BT: Tensor, dtype: torch.dtype, *, blocks: bool = False) -> AttentionMask:
        """Each token sees itself and those before it that bear the same document number.

        Any number will do for padding, as long as no document bears it. `blocks` asks for a mask for flex attention:
        `has_flex_kernel` must be true, and the tokens of a document stand side by side.
        """
        if blocks:
            return AttentionMask(None, None, causal=True, plain=False, blocks=document_blocks(documents_BT))
        num_tokens = documents_BT.shape[1]
        causal_TS = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=documents_BT.device).tril()
        allowed_BTS = (documents_BT[:, :, None] == documents_BT[:, None, :]) & causal_TS
        return _mask(allowed_BTS, dtype, causal=True, plain=False)

    @staticmethod
    def cached(positions_BT: Tensor, num_keys: int, dtype: torch.dtype) -> AttentionMask:
        """Each query at position p sees the cache slots 0 ... p of its row."""
        slots_S = torch.arange(num_keys, device=positions_BT.device)
        return _mask(slots_S <= positions_BT[:, :, None], dtype, causal=False, plain=False)


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


def rotate(x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
    """x with feature pairs (i, i + D/2) turned by their angle: the half-split pairing of transformers.

    Rolling by D/2 swaps the halves; the minus of the rotation is in the sign of the first half of the sine.
    """
    return torch.addcmul(x_BHTD * cos_B1TD, x_BHTD.roll(x_BHTD.shape[-1] // 2, -1), sin_B1TD)


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: AttentionMask) -> Tensor:
    """y_BTHD = softmax(q kᵀ / √D over the allowed keys) v, each KV head serving H / K heads."""
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


class _AttendRotated(torch.autograd.Function):
    """Rotary positions, causal attention in blocks of rows and its gradient, with few copies and no padding with zeros.

    Autograd over the same products fills a gradient of full size for each slice of keys: 7% of a step at width 256.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, cos: Tensor, sin: Tensor, bias_BTS: Tensor
    ) -> Tensor:
        B, T, H, D = q_BTHD.shape
        K = k_BTKD.shape[2]
        q_BTHD = rotate(q_BTHD, cos, sin)
        k_NTD = _heads_first(rotate(k_BTKD, cos[:, :, :K], sin[:, :, :K]).mul_(D**-0.5))
        v_NTD = _heads_first(v_BTKD)
        y_BTHD = torch.empty_like(q_BTHD)
        saved = []
        for start in range(0, T, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, T)
            q_NRD = _query_rows(q_BTHD[:, start:stop], K)
            scores_NRS = q_NRD @ k_NTD[:, :stop].mT
            scores_NRS.view(B, -1, stop - start, stop).add_(bias_BTS[:, None, start:stop, :stop])
            weights_NRS = scores_NRS.softmax(-1)
            y_NRD = weights_NRS @ v_NTD[:, :stop]
            _query_view(y_BTHD[:, start:stop], K).copy_(y_NRD.view(B, K, H // K, stop - start, D))
            saved += [q_NRD, weights_NRS]
        ctx.save_for_backward(k_NTD, v_NTD, cos, sin, *saved)
        return y_BTHD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_y_BTHD = gradients[0]
        k_NTD, v_NTD, cos, sin, *saved = ctx.saved_tensors
        B, T, H, D = d_y_BTHD.shape
        K = k_NTD.shape[0] // B
        d_q_BTHD = torch.empty_like(d_y_BTHD, memory_format=torch.contiguous_format)
        d_k_NTD, d_v_NTD = torch.empty_like(k_NTD), torch.empty_like(v_NTD)
        # From the last block, whose rows see all keys: it fills the sums that the others add to.
        for block in reversed(range(len(saved) // 2)):
            start, stop = block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, T)
            q_NRD, weights_NRS = saved[2 * block : 2 * block + 2]
            d_y_NRD = _query_rows(d_y_BTHD[:, start:stop], K)
            d_weights_NRS = d_y_NRD @ v_NTD[:, :stop].mT
            d_scores_NRS = torch._softmax_backward_data(d_weights_NRS, weights_NRS, -1, weights_NRS.dtype)
            d_q_NRD = d_scores_NRS @ k_NTD[:, :stop]
            _query_view(d_q_BTHD[:, start:stop], K).copy_(d_q_NRD.view(B, K, H // K, stop - start, D))
            for total_NTD, left, right in ((d_v_NTD, weights_NRS, d_y_NRD), (d_k_NTD, d_scores_NRS, q_NRD)):
                if stop == T:
                    torch.bmm(left.mT, right, out=total_NTD)
                else:
                    total_NTD[:, :stop] += left.mT @ right
        d_k_BTKD = d_k_NTD.view(B, K, T, D).transpose(1, 2) * D**-0.5
        d_k_BTKD = rotate(d_k_BTKD, cos[:, :, :K], -sin[:, :, :K])
        return rotate(d_q_BTHD, cos, -sin), d_k_BTKD, d_v_NTD.view(B, K, T, D).transpose(1, 2), None, None, None


def _heads_first(x_BTKD: Tensor) -> Tensor:
    """(B·K, T, D), contiguous: a batch of matrices."""
    return x_BTKD.transpose(1, 2).flatten(0, 1).contiguous()


def _query_view(x_BRHD: Tensor, num_kv_heads: int) -> Tensor:
    """(B, K, G, R, D), a view: the G heads that share keys stand together."""
    B, R, H, D = x_BRHD.shape
    return x_BRHD.view(B, R, num_kv_heads, H // num_kv_heads, D).permute(0, 2, 3, 1, 4)


def _query_rows(x_BRHD: Tensor, num_kv_heads: int) -> Tensor:
    """(B·K, G·R, D), contiguous: heads that share keys become rows of one product."""
    return _query_view(x_BRHD, num_kv_heads).reshape(x_BRHD.shape[0] * num_kv_heads, -1, x_BRHD.shape[3])


def attend_rotated(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, angles: tuple[Tensor, Tensor], bias_BTS: Tensor
) -> Tensor:
    """y_BTHD of causal self-attention on a CPU; q and k are turned by their angles inside."""
    cos_BTHD, sin_BTHD = (angle_B1TD.transpose(1, 2) for angle_B1TD in angles)
    y_BTHD: Tensor = _AttendRotated.apply(q_BTHD, k_BTKD, v_BTKD, cos_BTHD, sin_BTHD, bias_BTS)
    return y_BTHD
