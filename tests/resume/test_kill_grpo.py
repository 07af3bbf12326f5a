"""grpo killed in its rollouts, the user's reward process beside it, ends with the bits of an undisturbed stage."""

from __future__ import annotations

import json
import random
import shutil
import time

from road import GRPO, TINY, Started, digest, is_done, mengya


def _rows(run):
    """What every rollout gave, but for times."""
    rows = [json.loads(line) for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_grpo_killed_three_times_ends_with_the_same_rollouts_and_the_same_bits(grpo_run, tmp_path):
    run, rng = shutil.copytree(grpo_run, tmp_path / "run"), random.Random("kill -9")
    shutil.rmtree(run / "grpo")
    metrics = run / "grpo" / "metrics.jsonl"
    for step in (0, 1, 3):

        def reached(step=step):
            # Before the first rollout, the start's weights are not saved yet: a kill there begins anew.
            return (run / "grpo" / "started.json").exists() if step == 0 else _count(metrics) >= step

        with Started("grpo", TINY, "--out", run, *GRPO) as started:
            assert started.wait_until(reached), "the stage ended before the knife came"
            time.sleep(rng.uniform(0, 0.2))
            started.kill()
            assert started.helpers_end(), "the user's reward process outlives the killed stage"
        assert not is_done(run, "grpo")
    finished = mengya("grpo", TINY, "--out", run, *GRPO)
    assert finished.returncode == 0, finished.stderr
    assert "grpo: resumed at rollout" in finished.stderr
    assert _rows(run) == _rows(grpo_run)
    weights = "grpo/model/model.safetensors"
    assert digest(run / weights) == digest(grpo_run / weights)
    counts = [json.loads((each / "grpo" / "manifest.json").read_text())["counts"] for each in (run, grpo_run)]
    assert counts[0] == counts[1], "failed rewards and degenerate groups are counted once"


def _count(metrics):
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
