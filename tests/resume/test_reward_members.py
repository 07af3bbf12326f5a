"""An ensemble of reward models: its first member is the one that there would be alone; a kill between two loses nothing."""

from __future__ import annotations

import json
import shutil

import pytest

from road import TINY, Started, digest, mengya, the_only_line

TWO = ("--set", "reward.members=2")


@pytest.fixture(scope="module")
def two_members(tiny_run, tmp_path_factory):
    """The tiny run with a second reward model, trained without a break."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("members") / "run")
    done = mengya("reward", TINY, "--out", run, *TWO)
    assert done.returncode == 0, done.stderr
    return run


def weights(run):
    return [digest(run / "reward" / name / "model.safetensors") for name in ("model", "model-1")]


def test_the_first_member_is_the_model_that_there_would_be_alone(tiny_run, two_members):
    first, second = weights(two_members)
    assert first == digest(tiny_run / "reward" / "model" / "model.safetensors")
    assert second != first
    manifest = json.loads((two_members / "reward" / "manifest.json").read_text())
    assert {"reward.member_accuracy.0", "reward.member_accuracy.1", "reward.mean_accuracy"} <= manifest[
        "metrics"
    ].keys()
    assert {"reward/model", "reward/model-1", "reward/evaluation.json"} == manifest["outputs"].keys()


def test_killed_in_the_second_member_it_goes_on_with_it(tiny_run, two_members, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with Started("reward", TINY, "--out", run, *TWO, "--set", "reward.log_every=1") as started:
        assert started.wait_until((run / "reward" / "member-1" / "metrics.jsonl").exists)
        started.kill()
    first = digest(run / "reward" / "model" / "model.safetensors")
    done = mengya("reward", TINY, "--out", run, *TWO, "--set", "reward.log_every=1")
    assert done.returncode == 0, done.stderr
    assert "reward: resumed at step 7 of 7" in done.stderr, "the first member is not trained again"
    assert weights(run) == weights(two_members)
    assert weights(run)[0] == first


def test_ppo_trains_against_the_ensemble_and_refuses_a_weak_one_by_default(two_members, tmp_path):
    run = shutil.copytree(two_members, tmp_path / "run")
    shutil.rmtree(run / "ppo")
    refused = the_only_line(mengya("ppo", TINY, "--out", run, *TWO, "--set", "ppo.accept_weak_reward=false"))
    assert "held-out pairs" in refused
    assert "`ppo.accept_weak_reward: true` insists" in refused
    assert not (run / "ppo" / "checkpoints").exists()
    done = mengya("ppo", TINY, "--out", run, *TWO, "--set", "ppo.steps=1")
    assert done.returncode == 0, done.stderr
    assert "goes on all the same" in done.stderr
    inputs = json.loads((run / "ppo" / "manifest.json").read_text())["inputs"]
    assert {"reward/model", "reward/model-1", "reward/evaluation.json"} <= inputs.keys()


JUDGE = ("--set", "reward.judge_share=0.4", "--set", "reward.log_every=1")


def test_killed_in_the_judge_it_goes_on_with_it(tiny_run, tmp_path):
    whole, killed = (shutil.copytree(tiny_run, tmp_path / name) for name in ("whole", "killed"))
    done = mengya("reward", TINY, "--out", whole, *JUDGE)
    assert done.returncode == 0, done.stderr
    with Started("reward", TINY, "--out", killed, *JUDGE) as started:
        assert started.wait_until((killed / "reward" / "member-judge" / "metrics.jsonl").exists)
        started.kill()
    assert not (killed / "reward" / "manifest.json").exists(), "the stage outran the knife"
    done = mengya("reward", TINY, "--out", killed, *JUDGE)
    assert done.returncode == 0, done.stderr
    assert "reward: resumed at step" in done.stderr, "the reward model is not trained again"
    outputs, expected = (
        json.loads((run / "reward" / "manifest.json").read_text())["outputs"] for run in (killed, whole)
    )
    assert outputs == expected
    assert {"reward/model", "reward/judge", "reward/evaluation.json"} == outputs.keys()
    first = digest(tiny_run / "reward" / "model" / "model.safetensors")
    assert digest(whole / "reward" / "model" / "model.safetensors") != first, "it was trained on fewer pairs"
