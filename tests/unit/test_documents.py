"""Attention document by document: every token has its slot, and groups of many lengths equal a dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mengya.model.attention import AttentionMask, attend
from mengya.model.config import ModelConfig
from mengya.model.documents import Documents, attend_documents, rotate
from mengya.model.heads import RewardModel
from mengya.model.texts import hidden_at
from mengya.model.transformer import rotary_angles

torch.set_num_threads(1)
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=12)


def _row(lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


@given(LENGTHS)
@settings(max_examples=60)
def test_every_token_has_one_slot_and_what_is_left_is_padding(lengths):
    documents = Documents.packed(_row(lengths))
    assert sum(group.count for group in documents.groups) == len(lengths)
    assert sorted(documents.slot_N.tolist()) == sorted((~documents.padding).nonzero().flatten().tolist())
    assert torch.equal(documents.token_S[documents.slot_N], torch.arange(sum(lengths)))


@given(LENGTHS, st.sampled_from([(4, 1), (4, 2), (3, 3)]))
@settings(max_examples=25)
def test_groups_of_any_lengths_equal_a_dense_mask_with_their_gradients(lengths, heads):
    num_heads, num_kv_heads = heads
    documents_BT = _row(lengths)
    T = documents_BT.shape[1]
    config = ModelConfig(vocab_size=9, width=16 * num_heads, num_layers=1, num_heads=num_heads)
    angles = rotary_angles(torch.arange(T)[None], config, torch.float32)
    generator = torch.Generator().manual_seed(T)
    q, k, v, d_y = (
        torch.randn(1, T, h, 16, generator=generator, requires_grad=True)
        for h in (num_heads, num_kv_heads, num_kv_heads, num_heads)
    )
    found = attend_documents(q, k, v, angles, Documents.packed(documents_BT))
    turned = [rotate(x.transpose(1, 2), *angles) for x in (q, k)]
    expected = attend(*turned, v.transpose(1, 2), AttentionMask.dense(documents_BT, torch.float32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    pairs = (torch.autograd.grad(y, (q, k, v), d_y) for y in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_documents_of_like_lengths_share_a_group_and_others_do_not():
    alike, mixed = Documents.packed(_row([30] * 100)), Documents.packed(_row([30] * 100 + [300] * 20))
    assert [(group.count, group.length) for group in alike.groups] == [(100, 32)]
    assert [(group.count, group.length) for group in mixed.groups] == [(100, 32), (20, 304)]


@pytest.mark.parametrize("lengths", [[1, 7, 3], [5], [4, 4, 4, 4]])
def test_texts_give_the_same_states_padded_and_one_after_the_other(lengths):
    torch.manual_seed(0)
    model = RewardModel(ModelConfig(vocab_size=50, width=32, num_layers=2, num_heads=2, initializer_range=0.3))
    ids_BT = torch.randint(0, 50, (len(lengths), max(lengths)))
    places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    rows_N, columns_N = torch.tensor(places).unbind(1)
    with torch.no_grad():
        found = hidden_at(model, ids_BT, torch.tensor(lengths), rows_N, columns_N)
        expected = torch.cat([model.hidden(ids_BT[b : b + 1, :n])[0] for b, n in enumerate(lengths)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
