"""A run that was killed, interrupted or damaged ends with the bits that an undisturbed run ends with."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import pytest

from road import MODEL_STAGES, STAGES, TINY, Started, is_done, manifests, mengya, model_digests, the_only_line


def _drop_from(run, stage):
    """Make `stage` and all after it "not yet run"."""
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run / name)


NUM_STEPS = {"pretrain": 16, "sft": 3, "reward": 7, "dpo": 7, "ppo": 4}
EVERY_STEP = [part for stage in MODEL_STAGES if stage != "ppo" for part in ("--set", f"{stage}.log_every=1")]
"""A line of metrics a step, by which the step to strike in is known; it changes no bit of a model."""


def _reached(run, stage, rng):
    """When to strike in `stage`: at its start, or, where it trains, in a random step."""
    directory = run / stage
    if stage not in MODEL_STAGES:
        return (directory / "started.json").exists
    metrics, step = directory / "metrics.jsonl", rng.randrange(NUM_STEPS[stage])
    return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= step


def _kill_inside(run, stage, rng):
    """Start the run and `kill -9` it inside `stage`; where the stage outran the knife, it is undone and tried again."""
    for _ in range(5):
        with Started("run", TINY, "--out", run, *EVERY_STEP) as started:
            assert started.wait_until(_reached(run, stage, rng)), "the run ended before the stage came"
            time.sleep(rng.uniform(0, 0.03))
            started.kill()
            assert started.helpers_end(), "a helper process outlives the killed run, and may hold its lock"
        if not is_done(run, stage):
            return
        shutil.rmtree(run / stage)
    raise AssertionError(f"{stage} was never caught at work")


def test_killed_in_every_stage_and_in_ten_steps_the_run_ends_with_the_same_bits(tiny_run, tmp_path):
    run, rng = tmp_path / "run", random.Random("kill -9")
    before = {}
    for stage in [name for name in STAGES for _ in range(2 if name in MODEL_STAGES else 1)]:
        _kill_inside(run, stage, rng)
        done = manifests(run)
        assert list(done) == list(STAGES[: STAGES.index(stage)])
        assert {name: done[name] for name in before} == before, "a finished stage was touched"
        before = done
    finished = mengya("run", TINY, "--out", run, *EVERY_STEP)
    assert finished.returncode == 0, finished.stderr
    assert {name: text for name, text in manifests(run).items() if name in before} == before
    assert model_digests(run) == model_digests(tiny_run)
    assert sorted(model_digests(run)) == sorted(MODEL_STAGES)
    assert not list(run.rglob(".*.partial")), "what killed writers left behind is removed"
    assert (
        json.loads((run / "summary.json").read_text()).keys()
        == json.loads((tiny_run / "summary.json").read_text()).keys()
    )
    again = mengya("run", TINY, "--out", run, *EVERY_STEP)
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_the_same_command_goes_on(tiny_run, tiny_copy, number):
    _drop_from(tiny_copy, "pretrain")
    # No checkpoint of its own before the end: what is resumed from is what the signal saved.
    command = ("pretrain", TINY, "--out", tiny_copy, "--set", "pretrain.checkpoint_every=1000")
    with Started(*command) as started:
        assert started.wait_until((tiny_copy / "pretrain" / "metrics.jsonl").exists)
        code, stderr = started.send(number)
    assert code == 130, stderr
    assert "state saved; the same command goes on from there" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    (checkpoint,) = (tiny_copy / "pretrain" / "checkpoints").glob("step-*")
    done = mengya(*command)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {checkpoint.name.removeprefix('step-')} of 16" in done.stderr
    assert model_digests(tiny_copy)["pretrain"] == model_digests(tiny_run)["pretrain"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_training_ends_the_run_in_the_same_way(tmp_path, number):
    with Started("run", TINY, "--out", tmp_path / "run") as started:
        assert started.wait_until((tmp_path / "run" / "corpus" / "started.json").exists)
        code, stderr = started.send(number)
        assert started.helpers_end()
    assert code == 130, stderr
    assert "Traceback" not in stderr
    if number == signal.SIGTERM:  # after Ctrl-C the terminal shows ^C
        assert stderr.splitlines()[-1] == "mengya: interrupted; the same command goes on from there"


def _interrupted_at_step(run, stage, last_step):
    """`stage` as a kill leaves it after checkpoints up to `last_step` of a finished run."""
    for name in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(run / name)
    directory = run / stage
    for name in ("manifest.json", "evaluation.json"):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / "model")
    steps = sorted(directory.glob("checkpoints/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    assert [int(path.name.removeprefix("step-")) for path in steps] == last_step
    return steps


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _truncate(file):
    with open(file, "rb+") as handle:
        handle.truncate(file.stat().st_size // 2)


@pytest.mark.parametrize(("damage", "name"), [(_flip_a_bit, "state.safetensors"), (_truncate, "state.json")])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_it_is_said(tiny_run, tiny_copy, damage, name):
    _older, newest = _interrupted_at_step(tiny_copy, "sft", [2, 4])
    damage(newest / name)
    done = mengya("sft", TINY, "--out", tiny_copy)
    assert done.returncode == 0, done.stderr
    assert f"{newest} is damaged" in done.stderr
    assert "sft: resumed at step 2 of 4" in done.stderr
    assert model_digests(tiny_copy)["sft"] == model_digests(tiny_run)["sft"]


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_when_every_checkpoint_is_damaged_nothing_is_started_afresh_in_silence(tiny_copy, stage):
    for checkpoint in _interrupted_at_step(tiny_copy, stage, {"sft": [2, 4], "ppo": [3, 4]}[stage]):
        _flip_a_bit(checkpoint / "state.safetensors")
    line = the_only_line(mengya(stage, TINY, "--out", tiny_copy))
    assert "every checkpoint is damaged" in line
    assert str(tiny_copy / stage / "checkpoints") in line
