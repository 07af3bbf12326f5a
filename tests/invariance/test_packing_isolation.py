"""Documents packed into one row never see each other, nor the future."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mengya.model.attention import AttentionMask, _attend_eager, attend
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(
            vocab_size=50, width=32, num_layers=2, num_heads=4, num_kv_heads=2, initializer_range=0.3, max_positions=200
        )
    )


def _packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return documents[None], positions[None]


@torch.no_grad()
def test_a_change_in_one_document_changes_no_logit_of_its_neighbours(model):
    documents, positions = _packed([60, 75, 45])
    ids = torch.randint(0, 50, (1, 180))
    changed = ids.clone()
    changed[documents == 1] = (changed[documents == 1] + 1) % 50
    mask = AttentionMask.packed(documents, torch.float32)
    before, after = (model(x, positions_BT=positions, attention=mask) for x in (ids, changed))
    assert torch.equal(before[documents != 1], after[documents != 1])
    assert (before[documents == 1] != after[documents == 1]).any(-1).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_packed_equals_separate(model, lengths, seed):
    documents, positions = _packed(lengths)
    ids = torch.randint(0, 50, documents.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        packed = model(ids, positions_BT=positions, attention=AttentionMask.packed(documents, torch.float32))
        separate = torch.cat([model(ids[:, documents[0] == number]) for number in range(len(lengths))], dim=1)
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_change_of_a_token_changes_no_earlier_logit(model):
    ids = torch.randint(0, 50, (2, 160))
    changed = ids.clone()
    changed[:, 140] = (changed[:, 140] + 1) % 50
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :140], after[:, :140])
    assert (before[:, 140:] != after[:, 140:]).any()


def test_gradients_of_one_document_do_not_reach_its_neighbours_embeddings(model):
    documents, positions = _packed([20, 20])
    ids = torch.cat((torch.arange(20), torch.arange(20, 40)))[None]  # no token in both
    x = model.hidden(ids, positions_BT=positions, attention=AttentionMask.packed(documents, torch.float32))
    (gradient,) = torch.autograd.grad(x[documents == 1].square().sum(), model.model.embed_tokens.weight)
    assert not gradient[:20].any()
    assert gradient[20:40].any(-1).all()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_tokens", [1, 5, 128, 129, 200])
def test_eager_blocks_equal_scaled_dot_product_attention(num_kv_heads, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    q = torch.randn(2, 4, num_tokens, 16, generator=generator)
    k, v = torch.randn(2, 2, num_kv_heads, num_tokens, 16, generator=generator).unbind(0)
    documents = torch.arange(num_tokens).div(50, rounding_mode="floor").expand(2, -1)
    mask = AttentionMask.dense(documents, torch.float32)
    on_gpu = AttentionMask(mask.allowed_BTS, None, causal=True, plain=False)
    expected = attend(q, k, v, on_gpu)
    assert mask.bias_BTS is not None
    for causal in (True, False):
        torch.testing.assert_close(_attend_eager(q, k, v, mask.bias_BTS, causal=causal), expected)
