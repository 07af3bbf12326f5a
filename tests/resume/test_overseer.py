"""`fit` under an overseer: the weights it chose are handed over, it ends the training, and a kill changes no bit."""

from __future__ import annotations

import pytest
import torch

from mengya.data.loader import PackedLoader
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.rl.guard import Look
from mengya.rl.oversight import Oversight
from mengya.settings import GuardSettings, SFTSettings
from mengya.train.loop import fit
from mengya.train.overseer import look_due, num_looks
from mengya.train.parallel import World
from mengya.train.state import Checkpoints, select
from random_rows import RandomRows

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
CONFIG = ModelConfig(vocab_size=50, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=24)
STEPS = 9
EVERY = 2


class Stop(Exception):
    """What a test kills a training with."""


def _train(directory, scores, stop_after=None, patience=3, **look_changes):
    """(weights, oversight, totals) of a training whose looks find `scores` {step: score}."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    loader = PackedLoader(RandomRows(), row_length=20, rows_per_step=6, micro_batch_rows=3, seed=1, pad_id=0)
    asked = []

    def look(policy, step):
        asked.append(step)
        assert not policy.training
        torch.rand(3)  # a look may draw from the global generator: a resumed training must not notice
        return Look(step, scores[step], 0.0, 1.0, 0.1 * step, **look_changes)

    class Stopping:
        state_dict, load_state_dict = loader.state_dict, loader.load_state_dict

        def __iter__(self):
            for number, step in enumerate(loader):
                if number == stop_after:
                    raise Stop
                yield step

    oversight = Oversight("dpo", GuardSettings(patience=patience), look, WORLD, unit="step")
    settings = SFTSettings(learning_rate=1e-2, checkpoint_every=3, log_every=1, keep_checkpoints=1)
    totals = fit(
        model,
        Stopping(),
        next_token_loss,
        settings,
        num_steps=STEPS,
        directory=directory,
        world=WORLD,
        evaluate_every=EVERY,
        overseer=oversight,
    )
    return {name: value.clone() for name, value in model.state_dict().items()}, oversight, totals, asked


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _untouched():
    torch.manual_seed(0)
    return Transformer(CONFIG).state_dict()


RISING = {0: 0.1, 2: 0.2, 4: 0.5, 6: 0.3, 8: 0.4, 9: 0.45}
FALLING = {0: 0.5, 2: 0.4, 4: 0.5, 6: 0.3, 8: 0.2, 9: 0.1}


def test_the_weights_of_the_best_look_are_handed_over(tmp_path):
    weights, oversight, totals, asked = _train(tmp_path, RISING)
    assert asked == [0, 2, 4, 6, 8, 9]
    assert (oversight.best["step"], totals["best"], totals["step"]) == (4, {"step": 4}, STEPS)
    assert _same(weights, select(Checkpoints(tmp_path / "checkpoints", 1).at(4).tensors, "model/"))
    last = select(Checkpoints(tmp_path / "checkpoints", 1).at(STEPS).tensors, "model/")
    assert not _same(weights, last)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-9"]


def test_where_nothing_is_better_the_weights_are_those_before_the_first_step(tmp_path):
    weights, oversight, _, _ = _train(tmp_path, FALLING, patience=99)
    assert oversight.best["step"] == 0
    assert _same(weights, _untouched())


def test_the_overseer_ends_the_training(tmp_path):
    weights, oversight, totals, asked = _train(tmp_path, FALLING, patience=2)
    assert (totals["step"], asked) == (8, [0, 2, 4, 6, 8]), "two looks in a row below the start"
    assert "in 2 looks in a row" in oversight.close()["stopped_early"]
    assert _same(weights, _untouched())
    again, resumed, totals, asked = _train(tmp_path, FALLING, patience=2, stop_after=0)
    assert (totals["step"], asked) == (8, []), "called again it trains no further, and looks no more"
    assert _same(again, weights)
    assert resumed.guard.looks == oversight.guard.looks


@pytest.mark.parametrize(("scores", "patience"), [(RISING, 3), (FALLING, 2)])
def test_stopped_after_any_step_it_ends_with_the_same_bits_and_looks(tmp_path, scores, patience):
    undisturbed, watched, totals, _ = _train(tmp_path / "undisturbed", scores, patience=patience)
    last = Checkpoints(tmp_path / "undisturbed/checkpoints", 1).latest(print)
    for stop_after in range(totals["step"]):
        directory = tmp_path / str(stop_after)
        with pytest.raises(Stop):
            _train(directory, scores, stop_after, patience=patience)
        resumed, again, _, _ = _train(directory, scores, patience=patience)
        assert _same(resumed, undisturbed)
        assert again.guard.looks == watched.guard.looks
        assert again.close() == watched.close()
        found = Checkpoints(directory / "checkpoints", 1).latest(print)
        assert found.step == last.step
        assert _same(found.tensors, last.tensors), "the training itself too, not only what was handed over"


@pytest.mark.parametrize(
    ("every", "num_steps", "looks"),
    [
        (15, 76, [15, 30, 45, 60, 76]),
        (4, 16, [4, 8, 12, 16]),
        (4, 6, [4, 6]),
        (4, 5, [5]),
        (9, 4, [4]),
        (1, 3, [1, 2, 3]),
        (0, 3, [3]),
    ],
)
def test_looks_come_at_intervals_and_at_the_end_but_not_just_before_it(every, num_steps, looks):
    assert [step for step in range(1, num_steps + 1) if look_due(step, every, num_steps)] == looks
    assert num_looks(every, num_steps) == len(looks)
