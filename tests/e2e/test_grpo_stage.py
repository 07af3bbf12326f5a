"""grpo by the command line, with a reward function of the user's own; and what its mistakes, and a recipe's, lead to."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from mengya.corpus import records
from mengya.files import read_jsonl
from mengya.model.checkpoint import load_model
from mengya.tokenizer.encode import load_tokenizer
from road import GRPO, TINY, digest, mengya, the_only_line


def test_it_leaves_metrics_counts_and_a_comparison_with_sft(grpo_run):
    manifest = json.loads((grpo_run / "grpo" / "manifest.json").read_text())
    rows = [json.loads(line) for line in (grpo_run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    own = {"reward", "groups", "kl", "entropy", "length", "end_rate", "loss", "grad_norm", "clip_share", "tokens"}
    assert own <= rows[0].keys()
    counts = manifest["counts"]
    assert counts["rollouts"] == 5
    assert counts["failed_rewards"] > 0, "answers of some lengths have no reward, on purpose"
    assert counts["failed_rewards"] < 5 * 16
    assert counts["prompts"] == 200
    assert {"grpo.kl_to_sft", "grpo.win_rate_vs_sft", "grpo.gold_score"} <= manifest["metrics"].keys()
    assert {row["before_stage"] for row in manifest["delta"]} == {"sft"}
    assert len(counts["guard"]) == 4, "the start, rollouts 2 and 4, and the last"
    assert any(name.endswith("reward.py") for name in manifest["inputs"]), "another function would make it stale"


def test_summary_and_report_know_of_it(grpo_run):
    assert "grpo.gold_score" in json.loads((grpo_run / "summary.json").read_text())
    page = (grpo_run / "report.html").read_text(encoding="utf-8")
    assert 'id="grpo"' in page or "GRPO" in page


def test_its_model_is_that_of_transformers(grpo_run):
    transformers = pytest.importorskip("transformers")
    directory = grpo_run / "grpo" / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    ours, tokenizer = load_model(directory), load_tokenizer(directory)
    question = records.question(next(iter(read_jsonl(grpo_run / "corpus" / "evaluation" / "questions.jsonl"))))
    ids_1T = torch.tensor([tokenizer.render(question.messages, add_generation_prompt=True)[0]])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours.hidden(ids_1T)), theirs(ids_1T).logits, rtol=0, atol=1e-4)


def test_a_second_call_does_nothing(grpo_run, tmp_path):
    run = shutil.copytree(grpo_run, tmp_path / "run")
    before = digest(run / "grpo" / "manifest.json")
    again = mengya("grpo", TINY, "--out", run, *GRPO)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert digest(run / "grpo" / "manifest.json") == before


FUNCTIONS = """
import time

def raises(prompt, answer, meta):
    raise KeyError("no such thing")

def hangs(prompt, answer, meta):
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("stage", "name", "why"),
    [
        ("grpo", "raises", "the reward function failed for all of 16 answers: KeyError: 'no such thing'"),
        ("grpo", "hangs", "the reward function failed 5 times in a row: no answer within 0.2 s"),
        ("ppo", "raises", "the reward function failed for all of 16 answers: KeyError: 'no such thing'"),
    ],
)
def test_a_reward_function_that_never_works_ends_the_stage_with_one_line(tiny_copy, tmp_path, stage, name, why):
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    term = f"{{kind: function, function: '{file}:{name}', timeout_seconds: 0.2}}"
    line = the_only_line(mengya(stage, TINY, "--out", tiny_copy, "--set", f"{stage}.rewards=[{term}]"))
    assert f"{file}:{name}: {why}" in line
    assert "the run goes on from its last checkpoint" in line


@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_another_number_of_prompts_than_sft_was_measured_on_is_said_before_training(tiny_copy, stage):
    command = (stage, TINY, "--out", tiny_copy, *GRPO, "--set", "evaluate.num_prompts=7")
    line = the_only_line(mengya(*command))
    assert "evaluate.num_prompts: SFT was measured on 16 prompts, this model would be on 7" in line
    assert not (tiny_copy / stage / "metrics.jsonl").exists(), "nothing was trained"


SWITCHES = {
    "dpo": ["loss=simpo", "beta=2", "margin=1", "label_smoothing=0.1"],
    "ppo": [
        "rewards=[{kind: truth}, {kind: model, weight: 0.5}]", "kl_target=null", "kl_estimator=k3", "whiten_advantages=false",
        "kl_loss_coefficient=0.1", "entropy_coefficient=0.01", "values_from=policy", "value_clip=null", "reward_clip=null",
        "normalise_rewards=false", "spike_sigmas=null",
    ],
}  # fmt: skip


@pytest.mark.parametrize("stage", SWITCHES)
def test_every_switch_can_be_thrown(tiny_run, tiny_copy, stage):
    settings = [part for switch in SWITCHES[stage] for part in ("--set", f"{stage}.{switch}")]
    done = mengya(stage, TINY, "--out", tiny_copy, *settings)
    assert done.returncode == 0, done.stderr
    assert f"{stage}: done in" in done.stderr
    rows = [json.loads(line) for line in (tiny_copy / stage / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    counts = json.loads((tiny_copy / stage / "manifest.json").read_text())["counts"]
    assert counts["skipped_steps"] == 0
    if stage == "ppo":
        assert all(row["reward_0_truth"] >= 0 and row["kl_coefficient"] == rows[0]["kl_coefficient"] for row in rows)
        assert counts["prompts"] == 2000, "exercises, whose truth is known"


def test_ipo_with_label_smoothing_is_refused(tmp_path):
    changes = ("--set", "dpo.loss=ipo", "--set", "dpo.label_smoothing=0.1")
    line = the_only_line(mengya("run", TINY, "--out", tmp_path / "run", *changes))
    assert "dpo.label_smoothing: IPO has no label smoothing" in line
