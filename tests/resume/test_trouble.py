"""What goes wrong in a training ends as promised: poisoned data, spikes, full disks, signals; each time bit for bit."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import threading

import numpy as np
import pytest
import torch

from mengya.data.loader import PackedLoader
from mengya.data.pairs import TokenPair, pair_batch
from mengya.errors import Interrupted, UserError
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import Terms
from mengya.settings import SFTSettings
from mengya.train import loop, state
from mengya.train.incidents import examples_of, origin
from mengya.train.loop import fit, optimizer_step
from mengya.train.loss_scale import LossScale
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World, open_world
from mengya.train.schedule import rate_factor
from mengya.train.stability import Course, Watch
from mengya.train.state import Checkpoints, TrainState, select
from random_rows import RandomRows

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
CONFIG = ModelConfig(vocab_size=50, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=24)
STEPS = 10


class Stop(Exception):
    """What a test kills a training with."""


def _loader():
    return PackedLoader(RandomRows(400), row_length=20, rows_per_step=6, micro_batch_rows=3, seed=1, pad_id=0)


BATCHES = list(itertools.islice(_loader(), 40))


def _documents(step):
    """Indices of the examples in the step's data (steps counted from 1)."""
    return {index for batch in BATCHES[step - 1] for index in examples_of(batch)}


def _poisoned(*steps):
    """The loss, but not a number on data of these steps: the data is bad, whenever it comes."""
    bad = torch.tensor(sorted(set().union(*map(_documents, steps))))

    def objective(model, batch):
        terms = next_token_loss(model, batch)
        return Terms(terms.loss_sum * float("nan"), terms.count) if torch.isin(batch.documents_BT, bad).any() else terms

    return objective


def _settings(**changes):
    return SFTSettings(**{"learning_rate": 1e-2, "checkpoint_every": 2, "log_every": 1} | changes)


def _model():
    torch.manual_seed(0)
    return Transformer(CONFIG)


def _train(directory, objective=next_token_loss, stop_after=None, num_steps=STEPS, world=WORLD, **options):
    """(weights, totals) of a training; `stop_after` kills it when the loader is asked for that step's successor."""
    loader, model = _loader(), _model()
    model.compute_dtype = world.dtype

    class Stopping:
        state_dict, load_state_dict = loader.state_dict, loader.load_state_dict
        origin_of = staticmethod(RandomRows().origin_of)

        def __iter__(self):
            for number, step in enumerate(loader, 1):
                if stop_after is not None and number > stop_after:
                    raise Stop
                yield step

    settings = options.pop("settings", _settings())
    totals = fit(
        model, Stopping(), objective, settings, num_steps=num_steps, directory=directory, world=world, **options
    )
    return model.state_dict(), totals


def _by_hand(data_of_steps, rates):
    """The weights after plain steps: `data_of_steps` names the data of each, None leaves the update out."""
    model, settings = _model(), _settings()
    optimizer = Optimizer(model, settings)
    for step, (data, rate) in enumerate(zip(data_of_steps, rates, strict=True)):
        if data is None:
            continue
        for batch in BATCHES[data - 1]:
            next_token_loss(model, batch).loss_sum.backward()
        count = sum(batch.num_targets for batch in BATCHES[data - 1])
        for parameter in model.parameters():
            parameter.grad.mul_(1.0 / count)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step(rate_factor(step, len(rates), settings) * rate)
        optimizer.zero_grad()
    return model.state_dict()


def _assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def _rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(loop, "say", lines.append)
    return lines


# ------------------------------------------------------------------------------------------------- poisoned data


def test_a_poisoned_batch_costs_its_own_step_and_nothing_else(tmp_path, said):
    weights, totals = _train(tmp_path, _poisoned(7))
    _assert_same_bits(weights, _by_hand([1, 2, 3, 4, 5, 6, None, 8, 9, 10], [1.0] * STEPS))
    assert (totals["skipped_steps"], totals["rewinds"]) == (1, 0)
    rows = {row["step"]: row for row in _rows(tmp_path / "metrics.jsonl")}
    assert rows[7]["loss"] is None
    assert rows[7]["skipped_steps"] == 1
    assert "skipped_steps" not in rows[8]
    (skipped,) = _rows(tmp_path / "skipped.jsonl")
    assert (skipped["step"], skipped["reason"]) == (7, "its loss is not finite")
    assert set(skipped["documents"]) == {f"numbers numbers.jsonl:{index + 1}" for index in _documents(7)}
    (line,) = said
    assert "step 7 skipped, its loss is not finite; its data: numbers numbers.jsonl:" in line


def test_too_many_in_a_row_go_back_to_the_last_checkpoint_past_their_data_at_half_the_rate(tmp_path, said):
    settings = _settings(rewind_after=3)
    weights, totals = _train(tmp_path, _poisoned(6, 7, 8), settings=settings)
    # Steps 6, 7, 8 fail; the checkpoint is of step 4, so step 5 is done again, on what comes after.
    _assert_same_bits(weights, _by_hand([1, 2, 3, 4, 9, 10, 11, 12, 13, 14], [1.0] * 4 + [0.5] * 6))
    assert {key: totals[key] for key in ("step", "skipped_steps", "rewinds", "rate_factor")} == {
        "step": STEPS, "skipped_steps": 3, "rewinds": 1, "rate_factor": 0.5,
    }  # fmt: skip
    rows = _rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "no stretch of the curve is there twice"
    assert {key: rows[4][key] for key in ("skipped_steps", "rewinds", "rate_factor")} == {
        "skipped_steps": 3, "rewinds": 1, "rate_factor": 0.5,
    }  # fmt: skip
    assert (
        "3 steps in a row were skipped, the last because its loss is not finite; goes back to step 4 of 10" in said[-1]
    )
    assert "numbers numbers.jsonl:" in said[-1]


def test_killed_anywhere_around_a_rewind_it_ends_with_the_same_bits(tmp_path):
    settings, objective = _settings(rewind_after=3), _poisoned(6, 7, 8)
    undisturbed, totals = _train(tmp_path / "undisturbed", objective, settings=settings)
    for stop_after in range(1, 14):
        directory = tmp_path / str(stop_after)
        with pytest.raises(Stop):
            _train(directory, objective, stop_after, settings=settings)
        resumed, resumed_totals = _train(directory, objective, settings=settings)
        _assert_same_bits(resumed, undisturbed)
        for key in ("skipped_steps", "rewinds", "rate_factor", "tokens"):
            assert resumed_totals[key] == totals[key]
        assert _rows(directory / "skipped.jsonl") == _rows(tmp_path / "undisturbed" / "skipped.jsonl")


def test_when_going_back_does_not_help_it_goes_further_back_and_then_ends(tmp_path, said):
    settings = _settings(rewind_after=2, max_rewinds=3)
    with pytest.raises(
        UserError, match=r"learning_rate: 2 steps in a row were skipped.*after 3 rewinds; its data: numb"
    ):
        _train(tmp_path / "run", _poisoned(*range(6, 20)), settings=settings)
    back = [line.split("goes back to ")[1].split(" of")[0] for line in said if "goes back" in line]
    assert back == ["step 4", "step 2", "step 2"]
    assert Checkpoints(tmp_path / "run" / "checkpoints", keep=2).latest(print).step == 4, "kept for who looks into it"


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    settings = _settings(rewind_after=2, checkpoint_every=100)
    with pytest.raises(UserError, match="with no checkpoint to go back to"):
        _train(tmp_path, _poisoned(*range(3, 20)), settings=settings)


def test_a_checkpoint_is_not_made_of_skipped_steps(tmp_path):
    """Five skipped steps with a checkpoint every two would push out all that can be gone back to."""
    with pytest.raises(Stop):
        _train(tmp_path, _poisoned(5, 6, 7, 8, 9), stop_after=9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4"]


class _OtherRankObjects(World):
    """One of two ranks, of which the other wants every step skipped."""

    def sum_(self, tensors):
        pass

    def any(self, flag):
        return True

    def barrier(self):
        pass


def test_a_step_that_another_rank_skips_is_skipped():
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    world = _OtherRankObjects(0, 2, torch.device("cpu"), torch.float32)
    optimizer = Optimizer(model, _settings())
    result = optimizer_step(model, optimizer, BATCHES[0], next_token_loss, rate=1.0, gradient_clip=1.0, world=world)
    assert result.skipped is not None
    _assert_same_bits(model.state_dict(), before)


# ------------------------------------------------------------------------------------------------------- spikes


def _growing(step, factor):
    """The loss, multiplied on the data of one step: finite, and far too large."""
    bad = torch.tensor(sorted(_documents(step)))

    def objective(model, batch):
        terms = next_token_loss(model, batch)
        return Terms(terms.loss_sum * factor, terms.count) if torch.isin(batch.documents_BT, bad).any() else terms

    return objective


def test_a_spike_is_skipped_once_it_is_known_what_is_usual(tmp_path, monkeypatch):
    monkeypatch.setattr("mengya.train.stability._FIRST_STEPS", 5)
    calm, _ = _train(tmp_path / "calm")
    watched, totals = _train(tmp_path / "spike", _growing(8, 40.0))
    assert totals["skipped_steps"] == 1
    _assert_same_bits(watched, _by_hand([1, 2, 3, 4, 5, 6, 7, None, 9, 10], [1.0] * STEPS))
    (skipped,) = _rows(tmp_path / "spike" / "skipped.jsonl")
    assert skipped["step"] == 8
    assert "deviations above the usual" in skipped["reason"]
    _, unwatched = _train(tmp_path / "unwatched", _growing(8, 40.0), settings=_settings(spike_sigmas=None))
    assert unwatched["skipped_steps"] == 0
    _, early = _train(tmp_path / "early", _growing(3, 40.0))
    assert early["skipped_steps"] == 0, "in the first steps nothing is usual yet"
    _assert_same_bits(calm, _by_hand(range(1, 11), [1.0] * STEPS))


def test_mean_and_deviation_are_those_of_the_exponentially_weighted_sum():
    values = np.random.default_rng(0).lognormal(1.0, 0.3, 300)
    course = Course(least_deviation=1e-9)
    for value in values:
        course.add(value)
    # Each of the first 50 values weighs the same; each later one takes 2%, and leaves 98% to those before it.
    weights = np.full(50, 1 / 50)
    for _ in range(250):
        weights = np.append(weights * 0.98, 0.02)
    logs = np.log1p(values)
    mean = weights @ logs
    deviation = math.sqrt(weights @ (logs - mean) ** 2)
    assert course.mean == pytest.approx(mean, rel=1e-9)
    assert course.sigmas(20.0) == pytest.approx((math.log(21.0) - mean) / deviation, rel=1e-9)


def test_what_belongs_to_a_sound_training_is_no_spike():
    """Noise of a tenth in the loss and of a half in the norm, on curves that fall and level off; one batch twice as hard."""
    rng = np.random.default_rng(0)
    for scale, floor in ((9.0, 2.5), (3.0, 0.01), (0.7, 0.05)):
        watch = Watch(7.0)
        for step in range(3000):
            level = floor + scale * math.exp(-step / 150)
            loss = level * (1 + 0.1 * abs(rng.standard_normal())) * (1.35 if step % 500 == 499 else 1)
            norm = level * rng.lognormal(0.0, 0.4)
            assert watch.why_bad(loss, norm) is None, (scale, step)
            watch.taken(loss, norm)
        assert watch.why_bad(3 * loss + 3, norm) is not None
        assert watch.why_bad(loss, 20 * norm + 20) is not None


# --------------------------------------------------------------------------------------- checkpoints in the background


def _state(step):
    return TrainState(step, {"w": torch.full((50,), float(step))}, {"totals": {"step": step}})


def test_the_training_goes_on_while_a_copy_is_written(tmp_path, monkeypatch):
    go, real = threading.Event(), state.save_file

    def slow(tensors, file):
        assert go.wait(30)
        real(tensors, file)

    monkeypatch.setattr(state, "save_file", slow)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        saved = _state(1)
        checkpoints.save_behind(saved)  # returns, though the write cannot begin
        saved.tensors["w"].fill_(-1.0)
        saved.numbers["totals"]["step"] = -1
        checkpoints.check()
        assert not list(tmp_path.glob("step-*"))
        go.set()
        checkpoints.save_behind(_state(2))  # waits for the first: never two at once
        assert (tmp_path / "step-1").exists()
        first = checkpoints.at(1)
    assert torch.equal(first.tensors["w"], _state(1).tensors["w"])
    assert first.numbers == {"totals": {"step": 1}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"], "leaving waits for the last"


def test_what_the_writer_meets_is_raised_in_the_training_and_the_checkpoint_before_is_sound(tmp_path, monkeypatch):
    calls, real = itertools.count(1), state.save_file

    def full_at_the_second(tensors, file):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        real(tensors, file)

    undisturbed, _ = _train(tmp_path / "undisturbed")
    monkeypatch.setattr(state, "save_file", full_at_the_second)
    with pytest.raises(OSError, match="No space left") as error:
        _train(tmp_path / "full")
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-2"]
    resumed, _ = _train(tmp_path / "full")
    _assert_same_bits(resumed, undisturbed)


def test_the_last_save_is_waited_for_and_its_failure_is_not_lost(tmp_path, monkeypatch):
    def full(tensors, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        _train(tmp_path, settings=_settings(checkpoint_every=100))


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk of its own takes the right to mount one")
    try:
        big = torch.arange(150_000, dtype=torch.float32)  # 600 kB: one fits, two do not
        with Checkpoints(disk / "checkpoints", keep=2) as checkpoints:
            checkpoints.save_behind(TrainState(1, {"w": big}, {}))
            checkpoints.save_behind(TrainState(2, {"w": big + 1}, {}))
            with pytest.raises(Exception, match="No space left on device"):
                checkpoints.wait()
            assert torch.equal(checkpoints.latest(print).tensors["w"], big)
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-1"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_leaves_with_its_state_on_disk(tmp_path, number):
    undisturbed, _ = _train(tmp_path / "undisturbed")
    calls = itertools.count(1)

    def struck(model, batch):
        if next(calls) == 9:  # the first half of step 5
            os.kill(os.getpid(), number)
        return next_token_loss(model, batch)

    with pytest.raises(Interrupted, match="stopped at step 5, state saved"):
        _train(tmp_path / "struck", struck, settings=_settings(checkpoint_every=100))
    assert Checkpoints(tmp_path / "struck" / "checkpoints", keep=2).latest(print).step == 5
    resumed, _ = _train(tmp_path / "struck", settings=_settings(checkpoint_every=100))
    _assert_same_bits(resumed, undisturbed)


# ------------------------------------------------------------------------------------------------- the best is kept


LOSSES = {2: 3.0, 4: 1.0, 6: 2.0, 8: float("nan"), 10: 1.5}


def _train_looked_at(directory, best_checkpoint, stop_after=None):
    """Evaluated every second step; the losses are those of LOSSES, wherever the training was resumed."""
    resumed = [int(path.name.removeprefix("step-")) for path in directory.glob("checkpoints/step-*")]
    looks = itertools.count(max(resumed, default=0) // 2 + 1)

    def look():
        return {"validation_loss": LOSSES[2 * next(looks)]}

    return _train(directory, stop_after=stop_after, evaluate=look, evaluate_every=2, best_checkpoint=best_checkpoint)


def test_the_checkpoint_of_the_lowest_validation_loss_stays_beside_the_last(tmp_path):
    last, totals = _train_looked_at(tmp_path / "keep", "keep")
    assert totals["best"] == {"step": 4, "validation_loss": 1.0}
    assert sorted(path.name for path in (tmp_path / "keep/checkpoints").iterdir()) == ["step-10", "step-4", "step-8"]
    _assert_same_bits(last, _by_hand(range(1, 11), [1.0] * STEPS))
    _, ignoring = _train_looked_at(tmp_path / "ignore", "ignore")
    assert "best" not in ignoring
    assert sorted(path.name for path in (tmp_path / "ignore/checkpoints").iterdir()) == ["step-10", "step-8"]


@pytest.mark.parametrize("stop_after", [None, 5, 9])
def test_the_best_is_handed_over_when_asked_for_also_after_an_interruption(tmp_path, stop_after):
    if stop_after is not None:
        with pytest.raises(Stop):
            _train_looked_at(tmp_path, "hand_over", stop_after)
    best, totals = _train_looked_at(tmp_path, "hand_over")
    assert totals["best"] == {"step": 4, "validation_loss": 1.0}
    _assert_same_bits(best, select(Checkpoints(tmp_path / "checkpoints", 2).at(4).tensors, "model/"))
    assert any(not torch.equal(value, best[name]) for name, value in _by_hand(range(1, 11), [1.0] * STEPS).items())


def test_the_best_cannot_be_handed_over_where_nothing_was_measured(tmp_path):
    with pytest.raises(UserError, match="no validation loss was measured"):
        _train(tmp_path, best_checkpoint="hand_over", num_steps=2)


# ------------------------------------------------------------------------------------------------------------- fp16


def test_fp16_is_refused_where_it_cannot_work():
    with pytest.raises(UserError, match="precision: fp16 is for CUDA devices"):
        open_world("cpu", "fp16")


HALF = World(0, 1, torch.device("cpu"), torch.float16)


def test_in_fp16_the_loss_scale_changes_the_gradient_by_rounding_only():
    def gradient(world):
        model = _model()
        model.compute_dtype = world.dtype
        optimizer, seen = Optimizer(model, _settings()), {}
        optimizer.step = lambda rate: seen.update({n: p.grad.clone() for n, p in model.named_parameters()})
        result = optimizer_step(model, optimizer, BATCHES[0], next_token_loss, rate=1.0, gradient_clip=1e9, world=world)
        assert result.skipped is None
        return seen

    single, half = gradient(WORLD), gradient(HALF)
    for name, value in single.items():
        torch.testing.assert_close(half[name], value, rtol=0.05, atol=float(value.abs().max()) * 0.02)


def test_an_overflow_lowers_the_scale_skips_the_step_and_is_counted_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("mengya.train.loss_scale._FIRST", 2.0**14)
    weights, totals = _train(tmp_path / "run", world=HALF, settings=_settings(rewind_after=1))
    assert totals["overflowed_steps"] > 0
    assert totals["skipped_steps"] == 0, "an overflow is the scale's fault, not the data's"
    tensors = Checkpoints(tmp_path / "run" / "checkpoints", keep=2).latest(print).tensors
    value, good_steps = tensors["optimizer/loss_scale/state"].tolist()
    assert value == 2.0 ** (14 - totals["overflowed_steps"])
    assert good_steps == STEPS - totals["overflowed_steps"]
    assert any(not torch.equal(value, weights[name]) for name, value in _model().state_dict().items())


def test_stopped_and_resumed_in_fp16_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("mengya.train.loss_scale._FIRST", 2.0**14)
    undisturbed, totals = _train(tmp_path / "undisturbed", world=HALF)
    for stop_after in (3, 5):
        with pytest.raises(Stop):
            _train(tmp_path / str(stop_after), stop_after=stop_after, world=HALF)
        resumed, resumed_totals = _train(tmp_path / str(stop_after), world=HALF)
        _assert_same_bits(resumed, undisturbed)
        assert resumed_totals["overflowed_steps"] == totals["overflowed_steps"]


def test_a_loss_that_is_no_number_is_not_blamed_on_the_scale(tmp_path):
    _, totals = _train(tmp_path, _poisoned(7), world=HALF)
    assert totals["skipped_steps"] == 1


def test_the_scale_doubles_after_two_thousand_good_steps_and_has_a_smallest_value():
    scale = LossScale()
    first = scale.value
    assert not any(scale.update(overflowed=False) for _ in range(1999))
    assert scale.value == first
    scale.update(overflowed=False)
    assert scale.value == 2 * first
    overflows = [scale.update(overflowed=True) for _ in range(60)]
    assert scale.value == 2.0**-14
    assert overflows.count(True) == round(math.log2(2 * first)) + 14
    assert not overflows[-1], "what overflows at the smallest scale is bad by itself"


# --------------------------------------------------------------------------------------------------- naming the data


def test_an_example_is_named_as_exactly_as_its_data_can():
    assert origin(RandomRows(), 2) == "numbers numbers.jsonl:3"
    assert origin(_loader().state_dict(), 2) == "example 2"


def test_the_examples_of_a_batch_of_pairs_are_its_pairs():
    pairs = [TokenPair(1, np.array([1, 2]), np.array([1, 3])) for _ in range(9)]
    assert examples_of(pair_batch(pairs, [7, 3], 0)) == [7, 3]
