"""torchrun and the command line: all stages on two processes; one message, whichever rank fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from road import GRPO, MODEL_STAGES, STAGES, TINY, _environment, digest, is_done, manifests, mengya


def _torchrun(*arguments, settings=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mengya"]
    chosen = [part for setting in settings for part in ("--set", setting)]
    return subprocess.Popen(
        [*command, *map(str, arguments), *chosen],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def _finish(process, seconds):
    """(stdout, stderr) at its end; one that hangs is ended with its workers, which torchrun does when it is asked."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, stderr = process.communicate(timeout=60)
        raise AssertionError(f"it hung; {stderr[-3000:]}") from None


def _own_lines(stderr):
    """What Mengya said, without torchrun's own report."""
    return [line for line in stderr.splitlines() if line.startswith("mengya: ")]


def _exit_codes(stderr):
    return {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", stderr)}


@pytest.mark.parametrize("shard", [1, 2])
def test_every_stage_on_two_processes(shard, tiny_run, tiny_copy):
    for stage in STAGES[STAGES.index("pretrain") :]:
        shutil.rmtree(tiny_copy / stage)
    before = manifests(tiny_copy)
    auto = ["sft.micro_batch_tokens=auto", "ppo.micro_batch_rows=auto"]
    process = _torchrun("run", TINY, "--out", tiny_copy, settings=[f"parallel.shard={shard}", *auto])
    out, err = _finish(process, 280)
    assert process.returncode == 0, err
    # The share of one rank: half of a step, and of a mini-batch of eight.
    counts = {stage: json.loads(manifests(tiny_copy)[stage])["counts"] for stage in ("sft", "ppo")}
    assert (counts["sft"]["micro_batch_tokens"], counts["ppo"]["micro_batch_rows"]) == (2048, 4)
    assert out.split() == [str(tiny_copy / "report.html")], "one process speaks"
    assert err.count("pretrain: done in") == 1
    assert {stage: manifests(tiny_copy)[stage] for stage in before} == before
    for stage in STAGES:
        assert is_done(tiny_copy, stage)
    for stage in MODEL_STAGES:
        one, two = (load_file(run / stage / "model" / "model.safetensors") for run in (tiny_run, tiny_copy))
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name].shape == value.shape
            assert torch.isfinite(two[name]).all()
    rows = [
        [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        for run in (tiny_run, tiny_copy)
    ]
    for one, two in zip(*rows, strict=True):
        assert two["tokens"] == one["tokens"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    # A run made by two processes is not stale for one.
    again = mengya("run", TINY, "--out", tiny_copy, *(part for setting in auto for part in ("--set", setting)))
    assert "nothing to do" in again.stderr


def test_grpo_on_two_processes_asks_the_users_function_once(grpo_run, tmp_path):
    run = shutil.copytree(grpo_run, tmp_path / "run")
    shutil.rmtree(run / "grpo")
    process = _torchrun("grpo", TINY, "--out", run, settings=GRPO[1:])
    _, err = _finish(process, 200)
    assert process.returncode == 0, err
    one, two = (json.loads((each / "grpo" / "manifest.json").read_text())["counts"] for each in (grpo_run, run))
    assert two["rollouts"] == one["rollouts"]
    rows = [json.loads((each / "grpo" / "metrics.jsonl").read_text().splitlines()[0]) for each in (grpo_run, run)]
    for name in ("reward", "groups", "length", "end_rate"):
        assert rows[1][name] == pytest.approx(rows[0][name]), "the first rollout, of the same weights, is the same"


def test_a_users_function_that_never_works_ends_both_processes_with_one_line(tiny_copy, tmp_path):
    (tmp_path / "mine.py").write_text("def score(prompt, answer, meta):\n    raise KeyError('no such thing')\n")
    term = f"{{kind: function, function: '{tmp_path / 'mine.py'}:score'}}"
    process = _torchrun("grpo", TINY, "--out", tiny_copy, settings=[f"grpo.rewards=[{term}]"])
    _, err = _finish(process, 200)
    (line,) = _own_lines(err)
    assert "the reward function failed for all of 16 answers: KeyError: 'no such thing'" in line
    assert 2 in _exit_codes(err)


def test_a_mistake_is_one_line_and_one_exit_code(tmp_path):
    process = _torchrun("run", TINY, "--out", tmp_path / "run", settings=["pretrain.tokns=5"])
    _, err = _finish(process, 120)
    assert process.returncode != 0
    (line,) = _own_lines(err)
    assert "unknown key 'pretrain.tokns'" in line
    assert _exit_codes(err) <= {2, -signal.SIGTERM}
    assert 2 in _exit_codes(err)
    assert "src/mengya" not in err, "no traceback of ours"


def test_what_one_rank_cannot_do_ends_all_with_one_line(tiny_copy):
    shutil.rmtree(tiny_copy / "pretrain")
    process = _torchrun("pretrain", TINY, "--out", tiny_copy, settings=["parallel.shard=3"])
    _, err = _finish(process, 120)
    (line,) = _own_lines(err)
    assert "parallel: shard 3 does not make 2 ranks" in line
    assert 2 in _exit_codes(err)


def test_sigterm_saves_on_all_ranks_together_and_the_run_goes_on(tiny_copy):
    for stage in STAGES[STAGES.index("pretrain") :]:
        shutil.rmtree(tiny_copy / stage)
    settings = ["pretrain.checkpoint_every=1000", "pretrain.tokens=262_144"]
    process = _torchrun("pretrain", TINY, "--out", tiny_copy, settings=settings)
    deadline = time.monotonic() + 120
    metrics = tiny_copy / "pretrain" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = _finish(process, 120)
    (line,) = _own_lines(err)
    assert "state saved; the same command goes on from there" in line
    checkpoints = (tiny_copy / "pretrain" / "checkpoints").glob("step-*")  # the last, and maybe the best beside it
    step = max(int(path.name.removeprefix("step-")) for path in checkpoints)
    process = _torchrun("pretrain", TINY, "--out", tiny_copy, settings=settings)
    _, err = _finish(process, 200)
    assert process.returncode == 0, err
    assert f"resumed at step {step} of 64" in err
    assert len(digest(tiny_copy / "pretrain" / "model" / "model.safetensors")) == 64
