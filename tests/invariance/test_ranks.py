"""Two and four ranks, replicated or sharded, compute what one computes: gradients, weights, resumed runs.

The ranks are processes of their own on the CPU; they are started once for all tests of this file and leave what they
found in files. The reference is one process without any process group.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mengya.corpus.records import Message, Question
from mengya.data.conversations import TokenExamples
from mengya.data.loader import PackedLoader
from mengya.data.pairs import PairLoader, TokenPair
from mengya.errors import UserError
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.preference import dpo_loss
from mengya.objectives.reward import reward_loss
from mengya.rl import grpo, ppo
from mengya.rl.align import align
from mengya.rl.guard import Look
from mengya.rl.replay import Replay
from mengya.rl.terms import RewardTerms
from mengya.settings import GRPOSettings, ParallelSettings, PPOSettings, RewardTerm, SFTSettings
from mengya.stages.dpo import reference_logps
from mengya.stages.ranks import end_process
from mengya.tokenizer.encode import ChatTokenizer
from mengya.tokenizer.train import train_tokenizer
from mengya.train.compiled import compile_layers
from mengya.train.loop import fit, optimizer_step
from mengya.train.muon import Muon
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World, join_group, open_world
from mengya.train.sharding import agreed, full, is_sharded, like, num_shards, parallelize, whole
from random_rows import RandomRows

ONE = World(0, 1, torch.device("cpu"), torch.float32)
STEPS = 5
SHAPE = {"width": 24, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "ffn_width": 40, "max_positions": 64}


@dataclass(frozen=True)
class Case:
    """A training of a few steps: `stage`'s objective, divided over `shard` ranks a copy."""

    stage: str
    shard: int = 1
    optimizer: str = "adamw"
    recompute: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        return (
            f"{self.stage}-{self.optimizer}-{self.shard}" + "-recompute" * self.recompute + "-compiled" * self.compiled
        )

    @property
    def parallel(self) -> ParallelSettings:
        return ParallelSettings(shard=self.shard, activation_checkpointing=self.recompute)


ROLLOUTS = ("ppo", "grpo")
STAGES = ("language", "reward", "dpo", *ROLLOUTS)
ON_TWO = [
    *(Case(stage, shard) for stage in STAGES for shard in (1, 2)),
    *(Case("language", shard, "muon") for shard in (1, 2)),
    Case("language", 2, recompute=True),
    Case("language", 2, recompute=True, compiled=True),
]
ON_FOUR = [Case("language", 2), Case("ppo", 4)]


class Stop(Exception):
    """What ends a training early."""


def _pairs():
    rng = np.random.default_rng(1)

    def tokens(prompt):
        return np.concatenate([prompt, rng.integers(1, 50, rng.integers(2, 9))])

    prompts = [rng.integers(1, 50, rng.integers(3, 9)) for _ in range(24)]
    return [TokenPair(len(prompt), tokens(prompt), tokens(prompt)) for prompt in prompts]


def _world():
    return open_world("cpu", "fp32", 1, 60) if "RANK" in os.environ else ONE


def _training(case, world, micro_batch_rows=2):
    """(model, loader, objective) of a case."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=50, **SHAPE)
    if case.stage == "language":
        model = Transformer(config)
        if case.compiled:
            compile_layers(model, backend="aot_eager")  # traced alone, or the test would take a minute
        model = parallelize(model, world, case.parallel)
        how = {"row_length": 20, "rows_per_step": 8, "micro_batch_rows": micro_batch_rows, "seed": 1, "pad_id": 0}
        return model, PackedLoader(RandomRows(unlearnt=True), **how, rank=world.rank, world=world.size), next_token_loss
    pairs = _pairs()
    loader = PairLoader(
        pairs, pairs_per_step=8, micro_batch_pairs=2, seed=1, pad_id=0, rank=world.rank, world=world.size
    )
    if case.stage == "reward":
        model = RewardModel(config)
        return parallelize(model, world, case.parallel), loader, reward_loss()
    model = Transformer(config)
    logps_N2 = reference_logps(model, pairs, world)
    with torch.no_grad():  # else policy and reference agree, and the loss is log 2 whatever is summed
        model.model.layers[0].mlp.up_proj.weight *= 1.5
    return parallelize(model, world, case.parallel), loader, dpo_loss(logps_N2, 0.5, 0.0, 0.1)


def _settings(case, **changes):
    return SFTSettings(optimizer=case.optimizer, learning_rate=1e-3, checkpoint_every=2, log_every=1, **changes)


def _gradients(case, world):
    """The summed, divided and clipped gradients of the first step, whole."""
    model, loader, objective = _training(case, world)
    optimizer = Optimizer(model, _settings(case))
    seen = {}
    optimizer.step = lambda rate: seen.update({n: full(p.grad).clone() for n, p in model.named_parameters()})
    result = optimizer_step(model, optimizer, next(loader), objective, rate=1.0, gradient_clip=0.5, world=world)
    return seen, {"loss": result.loss, "count": result.count, "norm": result.grad_norm, **result.means}


def _curve(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    skipped = ("seconds", "_per_second")
    return [{key: value for key, value in row.items() if not key.endswith(skipped)} for row in rows]


def _fit(case, world, directory, stop_after=None, micro_batch_rows=2):
    """Weights after the training; with `stop_after` steps, it ends there as if killed."""
    model, loader, objective = _training(case, world, micro_batch_rows)
    steps = iter(loader)
    if stop_after is not None:

        class Stopping:
            state_dict, load_state_dict = loader.state_dict, loader.load_state_dict

            def __iter__(self):
                for _ in range(stop_after):
                    yield next(steps)
                raise Stop

        loader = Stopping()
    unit = "tokens" if case.stage == "language" else "pairs"
    fit(model, loader, objective, _settings(case), num_steps=STEPS, directory=directory, world=world, unit=unit)
    return dict(whole(model).state_dict())


PPO = PPOSettings(
    steps=3, batch_prompts=8, epochs=2, minibatches=2, micro_batch_rows=1, max_new_tokens=6, sequence_length=64,
    value_warmup_steps=1, checkpoint_every=1, evaluate_every=2, learning_rate=1e-3,
)  # fmt: skip
GRPO = GRPOSettings(
    steps=3, batch_prompts=3, group_size=4, epochs=2, minibatches=2, micro_batch_rows=1, max_new_tokens=6,
    sequence_length=64, checkpoint_every=1, evaluate_every=2, learning_rate=1e-3,
    rewards=[RewardTerm(kind="model"), RewardTerm(kind="function", weight=0.1)],
)  # fmt: skip
PROMPTS = [Question((Message("user", f"小明有{count}只小船吗？"),), "open") for count in range(10)]


class Length:
    """In the place of the user's process, which rank 0 alone has."""

    def __call__(self, questions, texts):
        return [float(len(text)) for text in texts]


def _texts(tokenizer):
    texts = (tokenizer.encode("小船在河边" * count) for count in range(2, 10))
    examples = TokenExamples((ids, [True] * len(ids)) for ids in texts)
    return PackedLoader(examples, row_length=32, rows_per_step=4, micro_batch_rows=1, seed=1, pad_id=0)


def _rollouts(case, world, directory):
    """Weights after three rollouts of PPO or GRPO."""
    tokenizer = ChatTokenizer(
        train_tokenizer(["小明在河边看见一只小船，很高兴。"] * 4, 300, max_characters=1000, seed=0)
    )
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE)
    torch.manual_seed(0)
    policy, reference = Transformer(config), Transformer(config)
    reference.load_state_dict(policy.state_dict())
    reference.requires_grad_(False)
    rewards, values = RewardModel(config), RewardModel(config)
    with torch.no_grad():
        rewards.score.weight.normal_(std=1.0)
    values.load_state_dict(rewards.state_dict())
    rewards.requires_grad_(False)
    policy, values = parallelize(policy, world, case.parallel), parallelize(values, world, case.parallel)
    scores = iter(range(10))

    def look(policy, step):
        assert not is_sharded(policy)
        return Look(step, float(next(scores)), 0.0, 0.5, 0.0)  # always better: the last policy is handed over

    if case.stage == "ppo":
        actors = ppo.Actors(policy, values, reference)
        terms = RewardTerms.of(PPO, rewards, world, "ppo")
        algorithm, settings = ppo.PPO(actors, tokenizer, PROMPTS, terms, PPO, world=world, seed=1), PPO
    else:
        terms = RewardTerms(GRPO.rewards, rewards, {1: Length()} if world.is_main else {})
        replay, settings = Replay([(_texts(tokenizer), 0.5)], world), GRPO
        algorithm = grpo.GRPO(policy, reference, tokenizer, PROMPTS, terms, GRPO, world=world, seed=1, replay=replay)
    align(algorithm, settings, look=look, directory=directory, world=world)
    found = {f"policy/{name}": value for name, value in whole(policy).state_dict().items()}
    return found | {f"values/{name}": value for name, value in whole(values).state_dict().items()}


def _train(case, world, directory):
    return (_rollouts if case.stage in ROLLOUTS else _fit)(case, world, directory)


# ---------------------------------------------------------------------------------------------- what the ranks do


def _muon_step(mesh):
    """The weights after a step of Muon on given gradients, whole."""
    generator = torch.Generator().manual_seed(5)
    matrices, gradients = (
        [torch.randn(shape, generator=generator) for shape in ((24, 40), (40, 24), (25, 24), (24, 40))] for _ in "wg"
    )
    if mesh is not None:
        matrices = [like(matrix, mesh) for matrix in matrices]
    parameters = [torch.nn.Parameter(matrix) for matrix in matrices]
    optimizer = Muon(parameters, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = like(gradient.clone(), parameter)
        optimizer.step()
    return {str(i): full(parameter.detach()).contiguous() for i, parameter in enumerate(parameters)}


def _work(rank, size, port, base):
    """One rank: every case of its group."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    world = _world()
    place = base / str(size)

    def keep(name, tensors):
        if world.is_main:
            save_file({n: t.contiguous() for n, t in tensors.items()}, place / f"{name}.safetensors")

    for case in ON_TWO if size == 2 else ON_FOUR:
        if case.stage not in ROLLOUTS:
            gradients, numbers = _gradients(case, world)
            keep(f"{case.name}.gradients", gradients)
            if world.is_main:
                (place / f"{case.name}.json").write_text(json.dumps(numbers))
        keep(case.name, _train(case, world, place / case.name))
    if size == 2:
        model = parallelize(Transformer(ModelConfig(vocab_size=50, **SHAPE)), world, ParallelSettings(shard=2))
        keep("muon-step", _muon_step(model.get_parameter("model.layers.0.mlp.up_proj.weight")))
        assert world.total(rank + 1) == 3
        assert world.any(rank == 1)
        assert not world.any(False)
        assert world.gather({"rank": rank, "文": "字" * rank}) == [{"rank": 0, "文": ""}, {"rank": 1, "文": "字"}]
        assert world.from_main(lambda: {"by": rank}) == {"by": 0}
        many = [torch.full((3, 2), float(rank)), torch.arange(4.0) * rank, torch.tensor([rank]), torch.ones(2, 3).mT]
        world.sum_(many)
        assert [t.flatten().tolist() for t in many] == [[1.0] * 6, [0.0, 1.0, 2.0, 3.0], [1], [2.0] * 6]
        for shard in (1, 2):  # stopped after three steps; then one process and four go on
            with pytest.raises(Stop):
                _fit(Case("language", shard), world, base / f"stopped-{shard}", stop_after=3)
            world.barrier()
        with pytest.raises(UserError, match="different checkpoints"):
            agreed(world.gather(rank))
    else:
        for shard in (1, 2):
            directory = base / f"stopped-{shard}-on-4"
            keep(f"resumed-{shard}", _fit(Case("language", 2), world, directory))
    join_group().leave()
    end_process(0)


def _start(size, base):
    (base / str(size)).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_work, args=(rank, size, port, base)) for rank in range(size)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(240)
        assert [process.exitcode for process in ranks] == [0] * size
    finally:
        for process in ranks:
            process.kill()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    base = tmp_path_factory.mktemp("ranks")
    _start(2, base)
    return base


@pytest.fixture(scope="module")
def four(two):
    for shard in (1, 2):
        shutil.copytree(two / f"stopped-{shard}", two / f"stopped-{shard}-on-4")
    _start(4, two)
    return two


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------- the facts


def _near(found, expected, rtol, atol):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def _distance(one, other):
    return sum((one[name] - value).norm() for name, value in other.items())


def _check(case, place, tmp_path):
    if case.stage not in ROLLOUTS:
        gradients, numbers = _gradients(Case(case.stage, 1, case.optimizer), ONE)
        assert all(value.abs().max() > 0 for value in gradients.values())
        _near(load_file(place / f"{case.name}.gradients.safetensors"), gradients, 1e-4, 1e-7)
        assert json.loads((place / f"{case.name}.json").read_text()) == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    start = _train(Case(case.stage, 1, case.optimizer), ONE, tmp_path)
    found = load_file(place / f"{case.name}.safetensors")
    if case.optimizer == "muon":
        # Its iteration, in bfloat16, makes much of a gradient's last bit: also one rank ends elsewhere when it splits its
        # batch otherwise. The ranks may not differ by more. (Of the same gradients it makes the same bits, see below.)
        split = _fit(case, ONE, tmp_path / "split", micro_batch_rows=3)
        assert _distance(found, start) < 3 * _distance(split, start)
    else:
        _near(found, start, 1e-3, 2e-5)  # Adam divides by the gradient's own size, however small
    for row, expected in zip(_curve(place / case.name), _curve(tmp_path), strict=True):
        assert row == pytest.approx(expected, rel=1e-2 if case.optimizer == "muon" else 1e-3, abs=1e-4)


@pytest.mark.parametrize("case", ON_TWO, ids=lambda case: case.name)
def test_two_ranks_learn_what_one_learns(case, two, tmp_path):
    _check(case, two / "2", tmp_path)


@pytest.mark.parametrize("case", ON_FOUR, ids=lambda case: case.name)
def test_four_ranks_as_well_also_with_two_copies_of_two_shards(case, four, tmp_path):
    _check(case, four / "4", tmp_path)


@pytest.mark.parametrize("shard", [1, 2])
def test_saved_on_two_ranks_it_goes_on_with_one_or_four(shard, four, tmp_path):
    undisturbed = _fit(Case("language"), ONE, tmp_path / "undisturbed")
    shutil.copytree(four / f"stopped-{shard}", tmp_path / "stopped")
    on_one = _fit(Case("language"), ONE, tmp_path / "stopped")
    on_four = load_file(four / "4" / f"resumed-{shard}.safetensors")
    for found in (on_one, on_four):
        _near(found, undisturbed, 1e-3, 2e-5)
    for directory in (tmp_path / "stopped", four / f"stopped-{shard}-on-4"):
        for row, expected in zip(_curve(directory), _curve(tmp_path / "undisturbed"), strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


def test_muon_on_shards_takes_the_same_step_to_the_last_bit(two):
    found, expected = load_file(two / "2" / "muon-step.safetensors"), _muon_step(None)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_recomputing_activations_changes_no_bit(tmp_path):
    kept = _fit(Case("language"), ONE, tmp_path / "kept")
    recomputed = _fit(Case("language", recompute=True), ONE, tmp_path / "recomputed")
    assert all(torch.equal(recomputed[name], value) for name, value in kept.items())


def test_recomputing_keeps_fewer_activations():
    def kept_bytes(recompute):
        model, loader, objective = _training(Case("language", recompute=recompute), ONE)
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            objective(model, next(loader)[0])
        return kept

    assert kept_bytes(True) < kept_bytes(False) / 2


GIB = 2**30


@pytest.mark.parametrize(
    ("settings", "size", "state", "device", "expected"),
    [
        ({}, 8, 100 * GIB, None, 1),  # CPUs
        ({}, 8, 3 * GIB, 80 * GIB, 1),  # fits
        ({}, 32, 100 * GIB, 80 * GIB, 8),  # a host holds a copy
        ({}, 32, 900 * GIB, 80 * GIB, 32),  # all of them do
        ({"shard": 4}, 8, 3 * GIB, 80 * GIB, 4),
        ({"replicate": 2}, 8, 3 * GIB, 80 * GIB, 4),
        ({"shard": 4, "replicate": 2}, 8, 3 * GIB, 80 * GIB, 4),
    ],
)
def test_how_many_ranks_share_a_copy(settings, size, state, device, expected):
    assert num_shards(ParallelSettings(**settings), size, 8, state, device) == expected


@pytest.mark.parametrize("settings", [{"shard": 3}, {"replicate": 3}, {"shard": 4, "replicate": 4}])
def test_numbers_that_do_not_make_the_ranks_are_refused(settings):
    with pytest.raises(UserError, match=r"parallel: shard .* does not make 8 ranks"):
        num_shards(ParallelSettings(**settings), 8, 8, GIB, None)


def test_prompts_that_do_not_divide_among_the_ranks_are_refused():
    world = World(0, 3, torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"ppo\.batch_prompts: 8 does not divide .* 3 ranks — use a multiple of 6"):
        ppo.check_divisible("ppo.batch_prompts", PPO.batch_prompts, PPO.minibatches, world)
