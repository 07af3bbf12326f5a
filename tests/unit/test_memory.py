"""The memory estimate against what autograd and the allocator really keep, and `micro_batch: auto` that goes by it."""

import subprocess
import sys

import pytest
import torch

from mengya.errors import UserError
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.presets import preset
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.preference import dpo_loss
from mengya.objectives.reward import reward_loss
from mengya.rl.grpo import grpo_objective
from mengya.rl.ppo import policy_objective
from mengya.settings import DPOSettings, GRPOSettings, PPOSettings, PretrainSettings, RewardSettings, SFTSettings
from mengya.stages.micro_batch import estimated, first_that_fits, longest_batch
from mengya.train import memory
from mengya.train.loop import optimizer_step
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World

GIB = 2**30


def kept_by_autograd(config, rows, length):
    """Bytes that autograd saves in one forward pass of the loss, each storage once, parameters left out."""
    model = Transformer(config, torch.float32)
    settings = PretrainSettings(sequence_length=length, batch_tokens=rows * length, micro_batch_tokens=rows * length)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        next_token_loss(model, longest_batch(settings, rows * length, torch.device("cpu")))
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 128, "num_layers": 3, "num_heads": 2, "vocab_size": 500},
        {"width": 192, "num_layers": 6, "num_heads": 3, "vocab_size": 300},
        {"width": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 1, "vocab_size": 1000},
        {"width": 192, "num_layers": 3, "num_heads": 3, "qk_norm": True, "vocab_size": 300},
    ],
)
def test_activations_are_what_autograd_keeps(shape):
    config = ModelConfig(**shape)
    rows, length = 2, 256
    estimate = memory.activation_bytes(config, rows, length, dtype_bytes=4, device="cpu")
    logits = 4 * rows * length * config.vocab_size  # of all that the loss makes, the log-softmax alone is kept
    assert kept_by_autograd(config, rows, length) == pytest.approx(estimate + logits, rel=0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_what_the_optimizers_remember(optimizer):
    config = ModelConfig(vocab_size=300, width=64, num_layers=2, num_heads=1)
    model = Transformer(config)
    settings = PretrainSettings(optimizer=optimizer, sequence_length=32, batch_tokens=64, micro_batch_tokens=64)
    kept = Optimizer(model, settings)
    batch = longest_batch(settings, 64, torch.device("cpu"))
    world = World(0, 1, torch.device("cpu"), torch.float32)
    optimizer_step(model, kept, [batch], next_token_loss, rate=1e-3, gradient_clip=1.0, world=world)
    state = sum(tensor.nbytes for tensor in kept.state_tensors().values())
    assert memory.optimizer_bytes(settings, config) == pytest.approx(state, rel=0.02)


def test_memory_grows_with_the_micro_batch_and_only_there():
    config = preset("26m", 6400)
    one, two = (memory.training_memory(PretrainSettings(), config, tokens) for tokens in (2048, 4096))
    assert two.fixed == one.fixed
    assert two.activations == 2 * one.activations
    assert two.logits == 2 * one.logits


def test_checkpointing_and_sharding_save_memory():
    config, settings = (
        preset("1.1b", 32000),
        PretrainSettings(optimizer="adamw", sequence_length=2048, batch_tokens=8192),
    )
    plain = memory.training_memory(settings, config, 4096, device="cuda")
    kept = memory.training_memory(settings, config, 4096, device="cuda", checkpointing=True)
    divided = memory.training_memory(settings, config, 4096, device="cuda", shards=8)
    assert kept.activations < plain.activations / 4
    assert divided.fixed < plain.fixed / 3
    # fp32 weights and bf16 copies, gradients and two moments: 18 bytes a parameter.
    assert plain.fixed == pytest.approx(18 * config.num_parameters + memory.BYTES_OF_PROCESS["cuda"])


def test_a_26m_model_trains_in_2_gib_of_ram_and_a_02b_one_in_8_gib_of_gpu_memory():
    small = memory.largest_micro_batch(PretrainSettings(), preset("26m", 6400), 2 * GIB)
    assert small is not None
    assert small >= 1024
    long = PretrainSettings(sequence_length=1024, batch_tokens=65536)
    large = memory.largest_micro_batch(long, preset("0.2b", 32000), 8 * 0.9 * GIB, device="cuda")
    assert large is not None
    assert large >= 2048


_STEP = """
import resource, sys, torch
from mengya.model.presets import preset
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.settings import PretrainSettings
from mengya.stages.micro_batch import longest_batch
from mengya.train.loop import optimizer_step
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import open_world

tokens = int(sys.argv[1])
settings = PretrainSettings(batch_tokens=2 * tokens, micro_batch_tokens=tokens)
world = open_world("cpu", sys.argv[2])
model = Transformer(preset("26m", 6400), world.dtype)
optimizer = Optimizer(model, settings)
batch = longest_batch(settings, tokens, world.device)
for _ in range(2):
    optimizer_step(model, optimizer, [batch, batch], next_token_loss, rate=0.1, gradient_clip=1.0, world=world)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_two_steps_of_a_26m_model_stay_within_2_gib_resident():
    settings = PretrainSettings(micro_batch_tokens="auto")
    config = preset("26m", 6400)
    chosen = estimated(settings, config, 2 * GIB, dtype_bytes=4, device="cpu").micro_batch_tokens
    done = subprocess.run(
        [sys.executable, "-c", _STEP, str(chosen), "fp32"], capture_output=True, text=True, check=True, timeout=240
    )
    resident = int(done.stdout)
    estimate = memory.training_memory(settings, config, chosen, dtype_bytes=4).total
    assert resident < 2 * GIB, f"micro-batch {chosen}: {resident / GIB:.2f} GiB, estimated {estimate / GIB:.2f}"
    assert resident == pytest.approx(estimate, rel=0.25)


# ---------------------------------------------------------------------------------------------- micro_batch: auto


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (PretrainSettings(micro_batch="auto", batch_tokens=12_288), "micro_batch_tokens"),
        (SFTSettings(micro_batch="auto"), "micro_batch_tokens"),
        (RewardSettings(micro_batch="auto", batch_pairs=48), "micro_batch_pairs"),
        (DPOSettings(micro_batch="auto"), "micro_batch_pairs"),
        (PPOSettings(micro_batch="auto"), "micro_batch_rows"),
        (GRPOSettings(micro_batch="auto"), "micro_batch_rows"),
    ],
)
def test_auto_splits_a_step_evenly_and_shrinks_with_memory(settings, key):
    config = preset("26m", 6400)
    sizes = []
    for available in (64, 3, 2.2):
        found = estimated(settings, config, available * GIB, dtype_bytes=2, device="cuda")
        sizes.append(getattr(found, key))
        assert memory.training_memory(found, config, sizes[-1], device="cuda").total <= available * GIB
        whole = memory.micro_batch_choices(settings)[0]
        assert whole % sizes[-1] == 0
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_auto_splits_the_share_of_each_rank():
    whole, config = PretrainSettings(micro_batch="auto", batch_tokens=65_536), preset("3m", 3000)
    one, four = (
        estimated(whole, config, 64 * GIB, dtype_bytes=2, device="cuda", ranks=ranks).micro_batch_tokens
        for ranks in (1, 4)
    )
    assert (one, four) == (65_536, 16_384)


def test_sharding_and_checkpointing_leave_room_for_a_larger_micro_batch():
    settings = PretrainSettings(micro_batch="auto", optimizer="adamw", sequence_length=2048, batch_tokens=262_144)
    config = preset("1.1b", 32000)
    alone, shared, recomputed = (
        estimated(settings, config, 32 * GIB, dtype_bytes=2, device="cuda", **how).micro_batch_tokens
        for how in ({}, {"shards": 8}, {"shards": 8, "checkpointing": True})
    )
    assert alone < shared < recomputed


@pytest.mark.parametrize("settings", [RewardSettings(), DPOSettings(), PPOSettings(), GRPOSettings()])
def test_the_longest_micro_batch_can_be_trained_on(settings):
    """Each stage's objective takes it, and it holds as many positions as the estimate counts."""
    config = ModelConfig(vocab_size=50, width=32, num_layers=1, num_heads=1, max_positions=256)
    model = Transformer(config)
    objective = {
        DPOSettings: lambda: dpo_loss(torch.zeros(1, 2), 0.1, 0.0),
        PPOSettings: lambda: policy_objective(settings),
        GRPOSettings: lambda: grpo_objective(settings),
    }.get(type(settings), lambda: reward_loss())()
    if isinstance(settings, RewardSettings):
        model = RewardModel.from_language_model(model)
    batch = longest_batch(settings, 3, torch.device("cpu"))
    rows, _ = memory.rows_of_micro_batch(settings, 3)
    assert batch.ids_BT.shape == (rows, settings.sequence_length)
    assert objective(model, batch).loss_sum.isfinite()


def test_auto_says_when_nothing_fits():
    with pytest.raises(UserError, match=r"more than the 0\.5 GiB"):
        estimated(PretrainSettings(micro_batch="auto"), preset("26m", 6400), GIB / 2, dtype_bytes=2, device="cpu")


def test_a_number_is_left_alone():
    settings = PretrainSettings(micro_batch_tokens=2048)
    assert estimated(settings, preset("26m", 6400), GIB, dtype_bytes=2, device="cpu") is settings


def test_out_of_memory_halves_and_counts():
    tried, said = [], []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("full")

    assert first_that_fits([24, 12, 8, 6, 4, 3, 2, 1], attempt, said.append) == 3
    assert tried == [24, 12, 6, 3]
    assert len(said) == 3
    assert "try 3" in said[-1]


def test_out_of_memory_to_the_end_is_said():
    def attempt(size):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(UserError, match="smallest micro-batch"):
        first_that_fits([4, 2, 1], attempt, lambda text: None)


def test_the_gradient_does_not_depend_on_what_auto_chooses():
    config = ModelConfig(vocab_size=50, width=32, num_layers=2, num_heads=1)
    torch.manual_seed(0)
    model = Transformer(config)
    settings = PretrainSettings(sequence_length=16, batch_tokens=64, micro_batch_tokens=64)
    whole = longest_batch(settings, 64, torch.device("cpu"))
    torch.manual_seed(1)
    whole.ids_BT.random_(0, 50)
    gradients = []
    for size in (64, 16):
        model.zero_grad()
        for start in range(0, 4, size // 16):
            rows = slice(start, start + size // 16)
            part = type(whole)(
                *(getattr(whole, name)[rows] for name in ("ids_BT", "targets_BT", "positions_BT", "documents_BT"))
            )
            next_token_loss(model, part).loss_sum.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
