"""Gradients by hand equal autograd over the plain formula; a compiled step equals an eager one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from mengya.data.packing import IGNORE, PackedBatch
from mengya.model.attention import AttentionMask, attend
from mengya.model.config import ModelConfig
from mengya.model.documents import Documents, attend_documents, rotate
from mengya.model.functions import projections, residual_norm, swiglu
from mengya.model.transformer import Transformer, rotary_angles
from mengya.objectives import terms
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import linear_cross_entropy, token_logps

torch.set_num_threads(1)
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 6e-2, "rtol": 4e-2}}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that bf16 holds exactly, so that only what is computed with them is rounded."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().to(dtype).requires_grad_()


def _compare(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    """Value and gradients of `ours` in `dtype` against the plain formula in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, found = plain(*exact), ours(*inputs)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    weights = weights.bfloat16().double()
    torch.testing.assert_close(found.double(), expected, **TOLERANCE[dtype])
    gradients = torch.autograd.grad(found, inputs, weights.to(found.dtype))
    for one, other, x in zip(gradients, torch.autograd.grad(expected, exact, weights), inputs, strict=True):
        assert one.dtype == x.dtype
        scale = other.abs().max().clamp(min=1e-3)  # of a single token: all zero
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCE[dtype])


def _rms(s: Tensor, w: Tensor) -> Tensor:
    return s * (s.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w


@DTYPES
@pytest.mark.parametrize("has_delta", [True, False])
def test_norm_and_the_sum_that_goes_on(dtype, has_delta):
    x, delta = _random(3, 5, 16, seed=1, dtype=dtype), _random(3, 5, 16, seed=2, dtype=dtype)
    weight = _random(16, seed=3)
    inputs = [x, delta, weight] if has_delta else [x, weight]

    def ours(x: Tensor, *rest: Tensor) -> Tensor:
        return torch.cat(residual_norm(x, rest[0] if has_delta else None, rest[-1], 1e-6), -1)

    def plain(x: Tensor, *rest: Tensor) -> Tensor:
        s = x + rest[0] if has_delta else x
        return torch.cat((_rms(s, rest[-1]), s), -1)

    _compare(ours, plain, inputs, dtype)


@DTYPES
def test_projections_of_one_input(dtype):
    x = _random(2, 7, 12, seed=1, dtype=dtype)
    weights = [_random(out, 12, seed=out) for out in (8, 4, 20)]
    _compare(
        lambda *a: torch.cat(projections(*a), -1),
        lambda x, *w: torch.cat([F.linear(x, one) for one in w], -1),
        [x, *weights],
        dtype,
    )


@DTYPES
def test_swiglu(dtype):
    gate, up = (_random(2, 7, 12, seed=seed, dtype=dtype) for seed in (1, 2))
    _compare(swiglu, lambda g, u: F.silu(g) * u, [gate, up], dtype)


@DTYPES
@pytest.mark.parametrize("num_tokens", [1, 5, 128, 129, 300])
def test_attention_with_rotation(dtype, num_tokens):
    config = ModelConfig(vocab_size=9, width=32, num_layers=1, num_heads=4, num_kv_heads=2)
    B, T = 2, num_tokens
    documents_BT = torch.stack([torch.arange(T) // 50, torch.arange(T) // 90])
    positions_BT = torch.stack([torch.arange(T) % 50, torch.arange(T) % 90])
    q = _random(B, T, 4, 8, seed=1, dtype=dtype)
    k, v = (_random(B, T, 2, 8, seed=seed, dtype=dtype) for seed in (2, 3))
    allowed_BTS = AttentionMask.dense(documents_BT, dtype).allowed_BTS

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angles = rotary_angles(positions_BT, config, torch.float64)
        q, k = (rotate(x.transpose(1, 2), *angles) for x in (q, k))
        allowed = AttentionMask(allowed_BTS, None, causal=True, plain=False)  # takes SDPA
        return attend(q, k, v.transpose(1, 2), allowed)

    angles = rotary_angles(positions_BT, config, dtype)
    documents = Documents.packed(documents_BT)
    _compare(lambda q, k, v: attend_documents(q, k, v, angles, documents), plain, [q, k, v], dtype)


@pytest.mark.parametrize("block", [2**26, 97 * 8, 1], ids=["one block", "blocks of 8 rows", "row by row"])
def test_linear_cross_entropy(monkeypatch, block):
    monkeypatch.setattr(terms, "_BLOCK_VALUES", block)
    monkeypatch.setattr(terms, "_CHUNK_VALUES", 97 * 3)
    x, weight = _random(20, 16, seed=1), _random(97, 16, seed=2)
    targets = torch.randint(0, 97, (20,), generator=torch.Generator().manual_seed(3))
    _compare(
        lambda x, w: linear_cross_entropy(x, w, targets),
        lambda x, w: F.cross_entropy(x @ w.T, targets, reduction="sum"),
        [x, weight],
        torch.float32,
    )
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, targets) == linear_cross_entropy(x, weight, targets).item() > 0


def test_linear_cross_entropy_of_a_target_that_is_out_of_the_question():
    """exp(-400) is 0 in float32: the loss is 400 all the same, not infinite."""
    x, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [400.0]])
    loss = linear_cross_entropy(x, weight, torch.tensor([0]))
    assert loss.item() == pytest.approx(400.0)
    loss.backward()
    assert x.grad.item() == pytest.approx(400.0)


def test_no_target_gives_no_loss_and_no_gradient():
    x, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.long)).backward()
    assert x.grad.shape == (0, 4)
    assert not weight.grad.any()


def test_token_logps_in_chunks(monkeypatch):
    monkeypatch.setattr(terms, "_CHUNK_VALUES", 97 * 3)
    tokens = torch.randint(0, 97, (20,), generator=torch.Generator().manual_seed(3))
    _compare(
        lambda x: token_logps(x, tokens),
        lambda x: x.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1),
        [_random(20, 97, seed=1)],
        torch.float32,
    )


def _batch(vocab_size: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, vocab_size, (2, 140), generator=generator)
    targets = ids.roll(-1, 1)
    targets[:, -9:] = IGNORE
    places = torch.arange(140).expand(2, -1)
    return PackedBatch(ids, targets, places % 60, places // 60)


def _gradients(model: Transformer, batch: PackedBatch) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = next_token_loss(model, batch).loss_sum
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def _model() -> Transformer:
    torch.manual_seed(2)
    shape = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 64, "max_positions": 140}
    return Transformer(ModelConfig(vocab_size=50, initializer_range=0.2, **shape))


def test_a_step_in_bf16_is_deterministic_and_near_the_one_in_fp32():
    model, batch = _model(), _batch(50)
    loss, exact = _gradients(model, batch)
    model.compute_dtype = torch.bfloat16
    (first_loss, first), (second_loss, second) = (_gradients(model, batch) for _ in range(2))
    assert first_loss == second_loss == pytest.approx(loss, rel=1e-2)
    for name, gradient in exact.items():
        assert torch.equal(first[name], second[name]), name
        assert F.cosine_similarity(first[name].flatten(), gradient.flatten(), dim=0) > 0.995, name


def test_layers_traced_by_the_compiler_equal_eager_ones():
    """The graphs that torch.compile would turn into code, run as they are: that takes seconds, and no C++ compiler.

    Attention by document stays outside of them: every batch has other groups, and would be compiled anew.
    """
    batch = _batch(50)
    loss, expected = _gradients(_model(), batch)
    model = _model()
    torch._dynamo.reset()
    counters.clear()
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    traced_loss, found = _gradients(model, batch)
    (why,) = counters["graph_break"]
    assert "attend_documents" in why, "all else is in one piece"
    assert traced_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
