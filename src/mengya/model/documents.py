"""Causal attention on a CPU, document by document: nothing is computed that a mask would throw away.

A packed row of many short documents is mostly pairs of tokens that may not see each other. So tokens are gathered by
document, documents of like lengths side by side as one batch of matrices (padded at their end, where causality hides the
padding from all that is real), and long ones in blocks of query rows that skip the keys behind them. Which row a document
stood in no longer matters, and no mask of T × T is made. A row without a mask is one document.

Legend: B rows, T tokens a row, H heads, K KV heads, G = H / K heads that share keys, D head width; n documents of a group,
L its length, N = n · K matrices; S = Σ n · L slots, into which the B · T tokens are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

_BLOCK_ROWS = 128
"""Query rows of a long document computed together: more of them look at more keys for nothing, fewer are more calls."""
_STEP = 16
"""Lengths of groups are multiples of it: products in bfloat16 read the keys in pairs, and are slow at odd sizes."""
_GROUP_COST = 40_000
"""What a further group costs, in scores: some twenty calls for a layer's forward and backward pass, about 150 µs, beside
some 12 ns for a score of three heads."""
_SLOT_COST = 30
"""What a slot costs, in scores: to gather queries, keys and values, and to put back what comes of them."""


@dataclass(frozen=True)
class Group:
    """`count` documents in slots of `length` each, the first of them being slot `start` of all."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class Documents:
    """Where the tokens of packed rows stand when gathered by document.

    token_S: the token (in the flattened rows) of each slot, a padded slot bearing the last token of its document; slot_N: the
    slot of each token; padding: which slots are padded. Built once a batch; all layers share it.
    """

    groups: tuple[Group, ...]
    token_S: Tensor
    slot_N: Tensor
    padding: Tensor
    _by_heads: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def packed(documents_BT: Tensor) -> Documents:
        """Of rows in which the tokens of a document stand side by side and bear one number, neighbours another."""
        B, T = documents_BT.shape
        starts_BT = torch.ones(B, T, dtype=torch.bool)
        starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        first_M = starts_BT.flatten().nonzero().squeeze(1)
        return Documents._grouped(first_M, torch.diff(first_M, append=first_M.new_tensor([B * T])))

    @staticmethod
    def rows(num_rows: int, num_tokens: int) -> Documents:
        """Of rows that are one document each."""
        first_M = torch.arange(num_rows) * num_tokens
        return Documents._grouped(first_M, torch.full_like(first_M, num_tokens))

    @staticmethod
    def _grouped(first_M: Tensor, length_M: Tensor) -> Documents:
        num_tokens = int(length_M.sum())
        by_length_M = torch.argsort(length_M, stable=True)
        groups, tokens, padded = [], [], []
        slot_N = torch.empty(num_tokens, dtype=torch.long)
        begin = start = 0
        for count, length in _partition(length_M[by_length_M].tolist()):
            chosen = by_length_M[begin : begin + count]
            places_L = torch.arange(length)
            is_real_nL = places_L < length_M[chosen, None]
            token_nL = first_M[chosen, None] + torch.minimum(places_L, length_M[chosen, None] - 1)
            slot_N[token_nL[is_real_nL]] = start + is_real_nL.flatten().nonzero().squeeze(1)
            groups.append(Group(start, count, length))
            tokens.append(token_nL.flatten())
            padded.append(~is_real_nL.flatten())
            begin, start = begin + count, start + count * length
        return Documents(tuple(groups), torch.cat(tokens), slot_N, torch.cat(padded))

    def by_heads(self, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """(source, target, padding) for vectors of one head each.

        source: for each slot of each head, a group's slots being ordered (document, head, place), the place of its vector among
        the tokens', ordered (token, head). target: the other way. padding: the padded slots.
        """
        if num_heads not in self._by_heads:
            heads_H = torch.arange(num_heads)
            sources = []
            target_NH = torch.empty(len(self.slot_N), num_heads, dtype=torch.long)
            padding = []
            for group in self.groups:
                shape = (group.count, group.length)
                slots = slice(group.start, group.start + group.count * group.length)
                token_nL, padding_nL = self.token_S[slots].view(shape), self.padding[slots].view(shape)
                place_nHL = torch.arange(group.count * num_heads * group.length).view(group.count, num_heads, -1)
                place_nHL = place_nHL + group.start * num_heads
                sources.append((token_nL[:, None] * num_heads + heads_H[:, None]).flatten())
                target_NH[token_nL[~padding_nL]] = place_nHL.transpose(1, 2)[~padding_nL]
                padding.append(place_nHL.transpose(1, 2)[padding_nL].flatten())
            self._by_heads[num_heads] = (torch.cat(sources), target_NH.flatten(), torch.cat(padding))
        return self._by_heads[num_heads]


def _partition(lengths: list[int]) -> list[tuple[int, int]]:
    """(count, length) of groups of these ascending lengths, chosen so that padding and calls cost the least together."""
    sizes: dict[int, int] = {}
    for length in lengths:
        rounded = -(-length // _STEP) * _STEP
        sizes[rounded] = sizes.get(rounded, 0) + 1
    candidates = list(sizes.items())
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first so many sizes: the cost, and where the last group begins
    for end in range(1, len(candidates) + 1):
        length, count, options = candidates[end - 1][0], 0, []
        for begin in range(end - 1, -1, -1):
            count += candidates[begin][1]
            options.append((best[begin][0] + _GROUP_COST + count * _cost(length), begin))
        best.append(min(options))
    groups, end = [], len(candidates)
    while end:
        begin = best[end][1]
        groups.append((sum(count for _, count in candidates[begin:end]), candidates[end - 1][0]))
        end = begin
    return groups[::-1]


def _cost(length: int) -> float:
    """Scores of a document of so many slots, and what else its slots cost."""
    full, rest = divmod(length, _BLOCK_ROWS)
    return _BLOCK_ROWS**2 * full * (full + 1) / 2 + rest * length + _SLOT_COST * length


def _gathered(x_BTHD: Tensor, source: Tensor) -> Tensor:
    return x_BTHD.reshape(-1, x_BTHD.shape[-1]).index_select(0, source)


def _matrices(rows: Tensor, group: Group, num_heads: int, num_kv_heads: int) -> Tensor:
    """(N, G, L, D) of the group: a view of the gathered vectors."""
    start, size = group.start * num_heads, group.count * group.length * num_heads
    shape = (group.count * num_kv_heads, num_heads // num_kv_heads, group.length, rows.shape[-1])
    return rows[start : start + size].view(shape)


class _AttendDocuments(torch.autograd.Function):
    """Rotary positions, causal attention of each document and its gradient, with few copies and no padding with zeros.

    Autograd over the same products fills a gradient of full size for each slice of keys: 7% of a step at width 256.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, cos: Tensor, sin: Tensor, documents: Documents
    ) -> Tensor:
        H, K, D = q_BTHD.shape[2], k_BTKD.shape[2], q_BTHD.shape[3]
        source_H, target_H, _ = documents.by_heads(H)
        source_K, _, _ = documents.by_heads(K)
        q = _gathered(rotate(q_BTHD, cos, sin), source_H)
        k = _gathered(rotate(k_BTKD, cos, sin).mul_(D**-0.5), source_K)
        v = _gathered(v_BTKD, source_K)
        y = torch.empty_like(q)
        saved = []
        for group in documents.groups:
            q_NGLD, y_NGLD = _matrices(q, group, H, K), _matrices(y, group, H, K)
            k_NLD, v_NLD = _matrices(k, group, K, K).squeeze(1), _matrices(v, group, K, K).squeeze(1)
            for start, stop in _blocks(group.length):
                q_NRD = q_NGLD[:, :, start:stop].flatten(1, 2)
                scores_NRS = q_NRD @ k_NLD[:, :stop].mT
                # Only keys from the block's first row on can be later than a query.
                scores_NRS.view(len(q_NGLD), -1, stop - start, stop)[..., start:].add_(_later(stop - start, q.dtype))
                weights_NRS = scores_NRS.softmax(-1)
                _product(weights_NRS, v_NLD[:, :stop], y_NGLD[:, :, start:stop])
                saved.append(weights_NRS)
        ctx.documents = documents
        ctx.save_for_backward(q, k, v, cos, sin, *saved)
        return y.index_select(0, target_H).view_as(q_BTHD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_y_BTHD = gradients[0]
        q, k, v, cos, sin, *saved = ctx.saved_tensors
        documents: Documents = ctx.documents
        B, T, H, D = d_y_BTHD.shape
        source_H, target_H, padding_H = documents.by_heads(H)
        K = H * len(k) // len(q)
        _, target_K, _ = documents.by_heads(K)
        # What is padded has no gradient, and so gives none to keys and values.
        d_y = _gathered(d_y_BTHD, source_H).index_fill_(0, padding_H, 0)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        place = len(saved)
        for group in reversed(documents.groups):
            q_NGLD, d_y_NGLD, d_q_NGLD = (_matrices(x, group, H, K) for x in (q, d_y, d_q))
            k_NLD, v_NLD, d_k_NLD, d_v_NLD = (_matrices(x, group, K, K).squeeze(1) for x in (k, v, d_k, d_v))
            # From the last block, whose rows see all keys: it fills the sums that the others add to.
            for start, stop in reversed(_blocks(group.length)):
                place -= 1
                weights_NRS = saved[place]
                q_NRD = q_NGLD[:, :, start:stop].flatten(1, 2)
                d_y_NRD = d_y_NGLD[:, :, start:stop].flatten(1, 2)
                d_weights_NRS = d_y_NRD @ v_NLD[:, :stop].mT
                d_scores_NRS = torch._softmax_backward_data(d_weights_NRS, weights_NRS, -1, weights_NRS.dtype)
                _product(d_scores_NRS, k_NLD[:, :stop], d_q_NGLD[:, :, start:stop])
                for total_NLD, left, right in ((d_v_NLD, weights_NRS, d_y_NRD), (d_k_NLD, d_scores_NRS, q_NRD)):
                    if stop == group.length:
                        torch.bmm(left.mT, right, out=total_NLD)
                    else:
                        total_NLD[:, :stop] += left.mT @ right
        d_k_BTKD = (d_k.index_select(0, target_K) * D**-0.5).view(B, T, K, D)
        return (
            rotate(d_q.index_select(0, target_H).view(B, T, H, D), cos, -sin),
            rotate(d_k_BTKD, cos, -sin),
            d_v.index_select(0, target_K).view(B, T, K, D),
            None,
            None,
            None,
        )


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK_ROWS, length)) for start in range(0, length, _BLOCK_ROWS)]


@cache
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): the lowest finite number where the column is later than the row, else 0.

    Not -inf: a score plus it is a finite weight of exactly 0, whatever the score.
    """
    return torch.full((size, size), torch.finfo(dtype).min / 2, dtype=dtype).triu(1)


def _product(left_NRS: Tensor, right_NSD: Tensor, into_NGRD: Tensor) -> None:
    """into = left @ right, its rows R being the G heads' rows one after the other."""
    if into_NGRD.is_contiguous():
        torch.bmm(left_NRS, right_NSD, out=into_NGRD.view(len(into_NGRD), -1, into_NGRD.shape[-1]))
    else:
        into_NGRD.copy_((left_NRS @ right_NSD).view(into_NGRD.shape))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (…, D) with feature pairs (i, i + D/2) turned by their angle: the half-split pairing of transformers.

    Rolling by D/2 swaps the halves; the minus of the rotation is in the sign of the first half of the sine.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@torch.compiler.disable
def attend_documents(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, angles: tuple[Tensor, Tensor], documents: Documents
) -> Tensor:
    """y_BTHD of causal self-attention within each document, on a CPU; q and k are turned by their angles inside.

    Outside of what torch.compile traces: every batch has other groups.
    """
    cos_BTHD, sin_BTHD = (angle_B1TD.transpose(1, 2) for angle_B1TD in angles)
    y_BTHD: Tensor = _AttendDocuments.apply(q_BTHD, k_BTKD, v_BTKD, cos_BTHD, sin_BTHD, documents)
    return y_BTHD
