"""`fit` and `train_ppo` stopped after any step and started again end with the bits of an undisturbed training."""

from __future__ import annotations

import itertools

import pytest
import torch

from mengya.corpus.records import Message, Question
from mengya.data.loader import PackedLoader
from mengya.data.packing import PackedBatch
from mengya.errors import UserError
from mengya.evaluate.answers import answer
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import Terms
from mengya.rl import ppo
from mengya.rl.align import align
from mengya.rl.guard import Look
from mengya.rl.terms import RewardTerms
from mengya.settings import PPOSettings, SFTSettings
from mengya.tokenizer.encode import ChatTokenizer
from mengya.tokenizer.train import train_tokenizer
from mengya.train.loop import fit, optimizer_step
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World
from mengya.train.state import Checkpoints, TrainState
from random_rows import RandomRows

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
STEPS = 7
CONFIG = ModelConfig(vocab_size=50, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=24)


class Stop(Exception):
    """What a test kills a training with."""


def _settings(optimizer, **changes):
    return SFTSettings(optimizer=optimizer, learning_rate=1e-2, checkpoint_every=2, log_every=1, **changes)


def _loader(micro_batch_rows=2):
    # Six rows a step of 22 an epoch, seven steps: they cross the end of an epoch.
    return PackedLoader(
        RandomRows(), row_length=20, rows_per_step=6, micro_batch_rows=micro_batch_rows, seed=1, pad_id=0
    )


def _noisy_loss(model, batch):
    """Next-token loss under noise from the global generator: resuming must restore that too."""
    terms = next_token_loss(model, batch)
    return Terms(terms.loss_sum * (1 + 0.1 * torch.rand(())), terms.count)


def _train(directory, optimizer, stop_after=None):
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    looks = []

    def look():
        looks.append(None)
        return {}

    class Stopping:
        """The loader, which kills the training when step `stop_after` + 1 asks for its data."""

        def __init__(self):
            self.loader = _loader()
            self.state_dict, self.load_state_dict = self.loader.state_dict, self.loader.load_state_dict

        def __iter__(self):
            for number, step in enumerate(self.loader):
                if number == stop_after:
                    raise Stop
                yield step

    totals = fit(
        model,
        Stopping(),
        _noisy_loss,
        _settings(optimizer),
        num_steps=STEPS,
        directory=directory,
        world=WORLD,
        evaluate=look,
        evaluate_every=3,
    )
    return model.state_dict(), totals


def _assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_after_any_step_training_ends_with_the_same_bits(tmp_path, optimizer):
    undisturbed, totals = _train(tmp_path / "undisturbed", optimizer)
    for stop_after in range(STEPS):
        directory = tmp_path / str(stop_after)
        with pytest.raises(Stop):
            _train(directory, optimizer, stop_after)
        resumed, resumed_totals = _train(directory, optimizer)
        _assert_same_bits(resumed, undisturbed)
        assert resumed_totals["tokens"] == totals["tokens"]
        rows = (directory / "metrics.jsonl").read_text().splitlines()
        assert [int(row.split(",")[0].removeprefix('{"step": ')) for row in rows] == list(range(1, STEPS + 1))


def test_stopped_after_every_step_in_turn_it_gets_there_all_the_same(tmp_path):
    undisturbed, _ = _train(tmp_path / "undisturbed", "muon")
    for _ in range(2):  # two steps further each time: just enough for a checkpoint
        with pytest.raises(Stop):
            _train(tmp_path / "disturbed", "muon", stop_after=3)
    resumed, _ = _train(tmp_path / "disturbed", "muon")
    _assert_same_bits(resumed, undisturbed)


def test_finished_training_trains_no_further(tmp_path):
    first, _ = _train(tmp_path, "adamw")
    again, totals = _train(tmp_path, "adamw", stop_after=0)
    _assert_same_bits(again, first)
    assert totals["step"] == STEPS


# ------------------------------------------------------------------------------------------------------ one step


def _gradient(micro_batch_rows, monkeypatch):
    """The gradient that the optimizer gets for the first step's batch, split so."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    optimizer = Optimizer(model, _settings("adamw"))
    seen = {}
    monkeypatch.setattr(
        optimizer, "step", lambda rate: seen.update({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    result = optimizer_step(
        model, optimizer, next(_loader(micro_batch_rows)), next_token_loss, rate=1.0, gradient_clip=1e9, world=WORLD
    )
    return seen, result


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 4])
def test_how_a_batch_is_split_does_not_change_the_gradient(micro_batch_rows, monkeypatch):
    whole, at_once = _gradient(6, monkeypatch)
    split, in_parts = _gradient(micro_batch_rows, monkeypatch)
    assert in_parts.count == at_once.count
    assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-6)
    for name, value in whole.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_over_all_tokens_of_the_step(monkeypatch):
    ours, _ = _gradient(2, monkeypatch)
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    batches = next(_loader(2))
    total = sum(next_token_loss(model, batch).loss_sum for batch in batches)
    (total / sum(batch.num_targets for batch in batches)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-7)


def _poisoned(bad_steps):
    """An objective whose loss is not a number at these steps (counted from 0, one micro-batch each)."""
    calls = iter(range(1000))

    def objective(model, batch):
        terms = next_token_loss(model, batch)
        return Terms(terms.loss_sum * float("nan"), terms.count) if next(calls) in bad_steps else terms

    return objective


def _fit_poisoned(directory, bad_steps, num_steps):
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    weights = [{name: value.clone() for name, value in model.state_dict().items()}]

    def look():
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return {}

    totals = fit(
        model,
        _loader(6),
        _poisoned(bad_steps),
        _settings("adamw"),
        num_steps=num_steps,
        directory=directory,
        world=WORLD,
        evaluate=look,
        evaluate_every=1,
    )
    return totals, weights


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(tmp_path):
    totals, weights = _fit_poisoned(tmp_path, {1, 3}, num_steps=5)
    assert totals["skipped_steps"] == 2
    unchanged = [
        all(torch.equal(before[name], after[name]) for name in before) for before, after in itertools.pairwise(weights)
    ]
    assert unchanged == [False, True, False, True, False]


# --------------------------------------------------------------------------------------------------- checkpoints


def _state(step):
    return TrainState(step, {"w": torch.full((50,), float(step))}, {"totals": {"step": step}})


def _damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["gone", "truncated", "empty", "bit flipped"])
def test_a_damaged_checkpoint_is_never_taken_for_a_sound_one(tmp_path, name, how):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(_state(step))
    _damage(tmp_path / "step-2" / name, how)
    said = []
    found = checkpoints.latest(said.append)
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.tensors["w"], _state(1).tensors["w"])
    assert len(said) == 1
    assert "step-2 is damaged" in said[0]
    _damage(tmp_path / "step-1" / name, how)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoints.latest(said.append)


def test_the_last_k_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 9, 10, 11):
        checkpoints.save(_state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]
    assert checkpoints.latest(print).step == 11


def test_a_damaged_checkpoint_does_not_push_a_sound_one_out(tmp_path):
    for step in (5, 9):
        Checkpoints(tmp_path, keep=2).save(_state(step))
    _damage(tmp_path / "step-9" / "state.json", "truncated")
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest(lambda line: None).step == 5
    checkpoints.save(_state(6))  # before step 9 is reached again
    assert checkpoints.latest(lambda line: None).step == 6


# ----------------------------------------------------------------------------------------------------------- PPO


def _tokenizer():
    return ChatTokenizer(train_tokenizer(["小明在河边看见一只小船，很高兴。"] * 4, 300, max_characters=1000, seed=0))


def _actors(vocab_size):
    config = ModelConfig(
        vocab_size=vocab_size, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=64
    )
    torch.manual_seed(0)
    policy, reference = Transformer(config), Transformer(config)
    reference.load_state_dict(policy.state_dict())
    rewards = RewardModel.from_language_model(Transformer(config))
    with torch.no_grad():
        rewards.score.weight.normal_(std=1.0)
    values = RewardModel(config)
    values.load_state_dict(rewards.state_dict())
    terms = RewardTerms.of(PPO, rewards.requires_grad_(False), WORLD, "ppo")
    return ppo.Actors(policy, values, reference.requires_grad_(False)), terms


PROMPTS = [Question((Message("user", f"小明有{count}只小船吗？"),), "open") for count in range(10)]
PPO = PPOSettings(
    steps=5,
    batch_prompts=6,
    epochs=2,
    minibatches=2,
    micro_batch_rows=2,
    max_new_tokens=6,
    sequence_length=64,
    value_warmup_steps=1,
    checkpoint_every=2,
    evaluate_every=2,
    learning_rate=1e-3,
)


def _train_ppo(directory, stop_at=None):
    tokenizer = _tokenizer()
    actors, terms = _actors(tokenizer.vocab_size)

    def look(policy, step):
        if step == stop_at:
            raise Stop
        # Any number that depends on the policy will do.
        score = float(policy.state_dict()["model.norm.weight"].double().sum())
        return Look(step, score, 0.0, 0.5, 0.0)

    algorithm = ppo.PPO(actors, tokenizer, PROMPTS, terms, PPO, world=WORLD, seed=1)
    totals = align(algorithm, PPO, look=look, directory=directory, world=WORLD)
    return actors.policy.state_dict(), totals


def test_ppo_stopped_and_started_again_ends_with_the_same_bits(tmp_path):
    undisturbed, totals = _train_ppo(tmp_path / "undisturbed")
    assert totals["rollouts"] == 5
    for stop_at in (2, 4, 5):
        with pytest.raises(Stop):
            _train_ppo(tmp_path / str(stop_at), stop_at)
        resumed, resumed_totals = _train_ppo(tmp_path / str(stop_at))
        _assert_same_bits(resumed, undisturbed)
        assert resumed_totals == totals


def test_ppo_moves_the_policy(tmp_path):
    start = _actors(_tokenizer().vocab_size)[0].policy.state_dict()
    trained, _ = _train_ppo(tmp_path)
    assert any(not torch.equal(start[name], value) for name, value in trained.items())


def test_the_first_ratio_of_a_rollout_is_one():
    """log π_old comes from the forward pass that training uses, so before the first update π/π_old is 1."""
    tokenizer = _tokenizer()
    actors, terms = _actors(tokenizer.vocab_size)
    asked = [question.messages for question in PROMPTS[:6]]
    answers = answer(actors.policy, tokenizer, asked, max_new_tokens=6, sampling=ppo.SAMPLED, seed=0, batch_size=6)
    rewards, _ = terms(PROMPTS[:6], answers, WORLD)
    rollout, numbers = ppo.collect(actors, answers, rewards, PPO, 0.1, WORLD)
    assert numbers["kl"] == 0, "the policy still is the reference"
    for part in ppo.micro_batches(rollout, torch.arange(6), PPO.micro_batch_rows):
        terms = ppo.policy_objective(PPO)(actors.policy, part)
        assert terms.sums["kl_to_old"].item() == 0
        assert terms.sums["clip_share"].item() == 0
        # At ratio 1 the loss is −Σ A.
        assert terms.loss_sum.item() == pytest.approx(-part.advantages_BA[part.mask_BA].sum().item(), abs=1e-6)


def test_a_batch_carries_its_own_count():
    """`num_targets` is what the objective counts: the two may not drift apart."""
    batch = next(_loader(6))[0]
    assert isinstance(batch, PackedBatch)
    torch.manual_seed(0)
    assert next_token_loss(Transformer(CONFIG), batch).count == batch.num_targets
