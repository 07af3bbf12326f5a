"""Who changes how models are measured has them measured again, not trained again."""

from __future__ import annotations

import json
import shutil

from road import TINY, manifests, mengya, model_digests

OTHERWISE = ("--set", "evaluate.num_documents=4")


def _measured(manifest, stage):
    return json.loads(manifest)["metrics"][f"{stage}.bits_per_byte"]["n"]


def _steps(run, stage):
    return (run / stage / "metrics.jsonl").read_bytes()


def test_another_evaluation_measures_what_is_trained_and_trains_nothing(tiny_copy):
    before, steps = manifests(tiny_copy), {stage: _steps(tiny_copy, stage) for stage in ("pretrain", "sft")}
    digests = model_digests(tiny_copy)
    done = mengya("run", TINY, "--out", tiny_copy, "--stages", "pretrain,sft,reward", *OTHERWISE)
    assert done.returncode == 0, done.stderr
    why = "evaluate.num_documents changed from 16 to 4"
    for stage in ("pretrain", "sft"):
        assert f"{stage}: {why}: it is measured again, not trained again" in done.stderr
        assert _steps(tiny_copy, stage) == steps[stage], "no step is made twice"
        assert _measured(manifests(tiny_copy)[stage], stage) == 4 < _measured(before[stage], stage)
    assert "reward: done already" in done.stderr
    assert model_digests(tiny_copy) == digests
    assert not (tiny_copy / ".stale").exists()


def test_without_its_checkpoints_or_with_other_training_it_is_trained_again(tiny_copy):
    shutil.rmtree(tiny_copy / "pretrain" / "checkpoints")
    done = mengya("run", TINY, "--out", tiny_copy, "--stages", "pretrain", *OTHERWISE)
    assert done.returncode == 0, done.stderr
    assert "pretrain: stale, evaluate.num_documents changed from 16 to 4" in done.stderr
    assert list((tiny_copy / ".stale").glob("pretrain-*")), "what was trained is set aside, not lost"
    done = mengya("run", TINY, "--out", tiny_copy, "--stages", "sft", *OTHERWISE, "--set", "sft.learning_rate=0.002")
    assert done.returncode == 0, done.stderr
    assert "measured again" not in done.stderr
    assert list((tiny_copy / ".stale").glob("sft-*"))
