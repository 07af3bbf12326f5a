"""What a GPU computes, as far as a CPU can tell: the same numbers as the CPU's own path, and nothing that a GPU waits for."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from mengya.data.packing import IGNORE, PADDING, PackedBatch
from mengya.data.prefetch import Prefetch
from mengya.errors import UserError
from mengya.model import attention, functions, texts
from mengya.model.attention import AttentionMask, attend, document_blocks, has_flex_kernel
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives import terms
from mengya.objectives.language_model import next_token_loss
from mengya.settings import TrainSettings
from mengya.train import compiled
from mengya.train.compiled import compile_layers, is_compiled
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.step import optimizer_step

torch.set_num_threads(1)
ONE = World(0, 1, torch.device("cpu"), torch.float32)
GPU = torch.device("cuda", 0)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Formulas and attention as a GPU gets them, on CPU tensors."""
    for module in (functions, attention, texts):
        monkeypatch.setattr(module, "by_hand", lambda x: False)


def _documents(lengths: list[int], num_tokens: int) -> Tensor:
    """One row; the numbers are not in order, and the last place or more is padding."""
    row = [number * 7 % 5 + 10 * number for number, length in enumerate(lengths) for _ in range(length)]
    row = row[: num_tokens - 1]
    return torch.tensor([row + [PADDING] * (num_tokens - len(row))])


def _model(seed: int = 2, num_layers: int = 2) -> Transformer:
    torch.manual_seed(seed)
    shape = {"width": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 64, "max_positions": 140}
    return Transformer(ModelConfig(vocab_size=50, num_layers=num_layers, initializer_range=0.2, **shape))


def _batch(rows: int = 2) -> PackedBatch:
    ids = torch.randint(0, 50, (rows, 140), generator=torch.Generator().manual_seed(4))
    targets = ids.roll(-1, 1)
    targets[:, -9:] = IGNORE
    targets[0, 30:50] = IGNORE
    places = torch.arange(140).expand(rows, -1)
    return PackedBatch(ids, targets, places % 60, places // 60)


def _gradients(model: Transformer, batch: PackedBatch) -> tuple[float, dict[str, Tensor]]:
    loss = next_token_loss(model, batch).loss_sum
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def _assert_close(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, gradient in expected[1].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[1][name] / scale, gradient / scale, atol=1e-5, rtol=1e-4, msg=name)


# ---------------------------------------------------------------------------------------------------- attention


@given(st.lists(st.integers(1, 400), max_size=8), st.sampled_from([128, 512, 640]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_those_that_hold_something_to_see(lengths, num_tokens):
    documents = _documents(lengths, num_tokens)
    allowed = AttentionMask.dense(documents, torch.float32).allowed_BTS
    squares = allowed.view(1, num_tokens // 128, 128, num_tokens // 128, 128)
    mask = document_blocks(documents)
    full = torch.zeros_like(mask.to_dense()[0, 0], dtype=torch.bool)
    part = full.clone()
    for n in range(len(full)):
        full[n, mask.full_kv_indices[0, 0, n, : mask.full_kv_num_blocks[0, 0, n]].long()] = True
        part[n, mask.kv_indices[0, 0, n, : mask.kv_num_blocks[0, 0, n]].long()] = True
    assert torch.equal(full | part, squares.any(4).any(2)[0])
    assert torch.equal(full, squares.all(4).all(2)[0])
    assert not (full & part).any()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_flex_attention_equals_the_eager_product(num_kv_heads):
    """Flex attention has no backward on a CPU; `benchmarks/gpu.py` holds its gradient against the product's on a GPU."""
    generator = torch.Generator().manual_seed(1)
    documents = torch.cat([_documents(lengths, 384) for lengths in ([60, 200, 90], [384], [5, 5, 5, 250])])
    q = torch.randn(3, 4, 384, 16, generator=generator)
    k, v = torch.randn(2, 3, num_kv_heads, 384, 16, generator=generator).unbind(0)
    expected = attend(q, k, v, AttentionMask.dense(documents, torch.float32))
    found = attend(q, k, v, AttentionMask.packed(documents, torch.float32, blocks=True))
    torch.testing.assert_close(found, expected)


def test_new_documents_need_no_new_code():
    torch._dynamo.reset()
    counters.clear()
    q = k = v = torch.randn(1, 2, 256, 16)
    traced = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for lengths in ([100, 50], [256], [10, 20, 30, 190]):
        documents = _documents(lengths, 256)
        with torch.no_grad():
            found = traced(q, k, v, AttentionMask.packed(documents, torch.float32, blocks=True))
        torch.testing.assert_close(found, attend(q, k, v, AttentionMask.dense(documents, torch.float32)))
    assert counters["stats"]["unique_graphs"] == 1


def test_flex_attention_is_chosen_where_it_has_a_kernel(monkeypatch):
    monkeypatch.setattr(attention, "_writes_kernels", lambda: True)
    assert has_flex_kernel(GPU, 1024, 64)
    assert not has_flex_kernel(torch.device("cpu"), 1024, 64)
    assert not has_flex_kernel(GPU, 1000, 64)
    assert not has_flex_kernel(GPU, 1024, 24)
    monkeypatch.setattr(attention, "_writes_kernels", lambda: False)
    assert not has_flex_kernel(GPU, 1024, 64)


# ------------------------------------------------------------------------------------------------------ formulas


def test_the_plain_formulas_of_a_gpu_equal_the_gradients_by_hand(request):
    expected = _gradients(_model(), _batch())
    request.getfixturevalue("as_on_a_gpu")
    mask = AttentionMask.packed(_batch().documents_BT, torch.float32)
    assert mask.allowed_BTS is not None
    assert mask.bias_BTS is None
    _assert_close(_gradients(_model(), _batch()), expected)


def test_the_loss_for_the_compiler_equals_the_other():
    logits = torch.randn(7, 97, generator=torch.Generator().manual_seed(1)) * 5
    logits[0, 3], targets = 90.0, torch.arange(7) + 3  # a sure token
    ours, other = logits.clone(), logits.clone()
    found = terms._losses_to_gradients_in_one_pass(ours, targets)
    torch.testing.assert_close(found, terms._losses_to_gradients(other, targets), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, other, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))


# ---------------------------------------------------------------------------------------------------- no waiting

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}


class NoWaiting(TorchDispatchMode):
    """Fails on operators whose result the host must read from a GPU, or whose shape depends on values there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert func not in WAITING, f"{func} waits for the GPU"
        assert not by_mask, f"{func} by a boolean mask waits for the GPU"
        return func(*args, **(kwargs or {}))


def test_this_test_sees_what_a_gpu_waits_for():
    x = torch.arange(4.0)
    for wait in (lambda: x[x > 1], lambda: x.sum().item(), lambda: bool(x[0] > 1), lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            wait()


def test_a_training_step_waits_for_the_gpu_once(as_on_a_gpu, monkeypatch):
    model, batches = _model(), [_batch(), _batch(1)]
    optimizer = Optimizer(model, TrainSettings(optimizer="muon"))
    reads = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or tolist(tensor))
    before = model.output_weight_VC.detach().clone()
    with NoWaiting():
        result = optimizer_step(model, optimizer, batches, next_token_loss, rate=1.0, gradient_clip=1.0, world=ONE)
    assert len(reads) == 1
    assert result.skipped is None
    assert result.count == sum(int((batch.targets_BT != IGNORE).sum()) for batch in batches)
    assert not torch.equal(model.output_weight_VC, before)


def test_places_with_loss_are_found_where_the_batch_is_made():
    batch = _batch()
    assert torch.equal(batch.targets_BT.flatten()[batch.trained_N], batch.targets_BT[batch.targets_BT != IGNORE])
    with NoWaiting():
        assert batch.to("cpu").num_targets == len(batch.trained_N) == 2 * 131 - 20
        assert batch.to("meta").trained_N.device.type == "meta"


class _Pins:
    """A loader of batches that note being pinned."""

    def __init__(self) -> None:
        self.pinned = False

    def __next__(self) -> list[_Pins]:
        return [_Pins()]

    def state_dict(self) -> dict[str, int]:
        return {}

    def pin_memory(self) -> _Pins:
        self.pinned = True
        return self


@pytest.mark.parametrize("pin", [True, False])
def test_batches_made_ahead_for_a_gpu_are_pinned(pin):
    ahead = Prefetch(_Pins(), pin=pin)  # type: ignore[arg-type]
    steps = deque(next(ahead) for _ in range(3))
    ahead.close()
    assert all(batch.pinned is pin for step in steps for batch in step)


# ------------------------------------------------------------------------------------------------------ compiling


def test_compiled_layers_share_one_piece_of_code_and_equal_eager_ones(request):
    expected = _gradients(_model(num_layers=3), _batch())
    request.getfixturevalue("as_on_a_gpu")
    torch._dynamo.reset()
    counters.clear()
    model = _model(num_layers=3)
    names = list(model.state_dict())
    compile_layers(model, backend="aot_eager", fullgraph=True)
    _assert_close(_gradients(model, _batch()), expected)
    with torch.no_grad():  # rows of another length, as evaluation has them
        model(torch.zeros(1, 17, dtype=torch.long))
    assert counters["stats"]["unique_graphs"] == 1
    assert model.compiled
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("heads", [True, False])
def test_the_plain_formulas_compile_in_one_piece(as_on_a_gpu, heads):
    """With QK-norm and without, in bf16, as a GPU gets them."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=50, width=32, num_layers=2, num_heads=4, num_kv_heads=2, qk_norm=heads)
    model = Transformer(config, torch.bfloat16)
    expected = _gradients(model, _batch())[0]
    model.zero_grad()
    compile_layers(model, backend="aot_eager", fullgraph=True)
    assert _gradients(model, _batch())[0] == pytest.approx(expected, rel=1e-3)


def test_long_trainings_on_a_gpu_are_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "_missing", lambda device: None)
    cpu = torch.device("cpu")
    assert is_compiled("auto", GPU, 1e18)
    assert not is_compiled("auto", GPU, 1e15)
    assert not is_compiled("auto", cpu, 1e18)
    assert not is_compiled(False, GPU, 1e18)
    assert is_compiled(True, cpu, 1e12)


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no C compiler"):
        is_compiled(True, torch.device("cpu"), 1e18)
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert not is_compiled("auto", GPU, 1e18)
