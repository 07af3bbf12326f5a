"""The judge on a road over files, whose truth nobody knows: trained on its own pairs, asked by the guard, shown in the report."""

from __future__ import annotations

import json
import shutil
import statistics

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mengya.corpus import records
from mengya.evaluate.answers import SAMPLED, answer
from mengya.evaluate.score import proportion
from mengya.model.checkpoint import load_model
from mengya.recipe import load_recipe
from mengya.run import Context, Run
from mengya.serve import plan as plans
from mengya.serve import plan_probe
from mengya.stages import STAGES
from mengya.stages.common import held_out
from mengya.stages.ppo import ppo_prompts
from mengya.stages.preferences import policy_pairs, preference_pairs
from mengya.stages.reward import divided_pairs
from mengya.tokenizer.encode import load_tokenizer
from road import TINY, digest, mengya


def _rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _manifest(run, stage):
    return json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def judged(tiny_run, tmp_path_factory):
    """(recipe, finished run, what was said): the tiny recipe on files, among which no question has a truth."""
    folder = tmp_path_factory.mktemp("judged")
    corpus = tiny_run / "corpus"
    sources = {"documents": [{"path": str(corpus / "documents" / "train-*.jsonl.zst"), "format": "text"}]}
    for kind, layout in (("conversations", "messages"), ("preferences", "message_lists")):
        rows = [row for split in ("train", "validation") for row in _rows(corpus / kind / f"{split}.jsonl")]
        if kind == "preferences":
            rows = [
                {name: [*row["prompt"], {"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
                for row in rows
            ]
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        sources[kind] = [{"path": str(file), "format": layout, "name": kind}]
    recipe = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    recipe["corpus"] |= {**sources, "validation_fraction": 0.4}
    recipe["reward"]["judge_share"] = 0.4
    path = folder / "files.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = mengya("run", path, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return path, folder / "run", done.stderr


def _context(run, stage):
    return Context(Run.open(run).recipe(), Run.open(run), STAGES[stage])


def test_nobody_knows_the_truth_here(judged):
    held = held_out(_context(judged[1], "ppo"))
    assert {question.kind for question in (*held.guard, *held.style)} == {"open"}
    assert len(held.guard) == 160
    assert len(held.style) == 16


def test_the_judge_and_the_reward_model_divide_the_pairs(judged):
    _, run, said = judged
    manifest = _manifest(run, "reward")
    counts = manifest["counts"]
    all_pairs = len(_rows(run / "corpus/preferences/train.jsonl"))
    assert counts["examples"] + counts["dropped"] + counts["pairs_of_judge"] == all_pairs
    own = counts["judge_training"]
    assert own["examples"] + own["dropped"] == counts["pairs_of_judge"] > 50
    accuracy = manifest["metrics"]["reward.judge_accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["n"] == manifest["metrics"]["reward.pair_accuracy"]["n"] > 100
    assert "reward/judge" in manifest["outputs"]
    assert digest(run / "reward/judge/model.safetensors") != digest(run / "reward/model/model.safetensors")
    assert f"reward: {counts['pairs_of_judge']} of {all_pairs} pairs are set apart for the judge" in said
    assert ("no better than a coin" in counts["judge"]) == (accuracy["low"] <= 0.5)
    assert f"reward: the judge: {counts['judge']}" in said


def test_neither_dpo_nor_ppo_sees_a_prompt_of_the_judges(judged):
    run = judged[1]
    judges = {pair.prompt for pair in divided_pairs(_context(run, "reward")).judges}
    asked = {question.messages for question in ppo_prompts(_context(run, "ppo"))}
    trained = {pair.prompt for pair in policy_pairs(_context(run, "dpo"))[0]}
    everything = {pair.prompt for pair in preference_pairs(_context(run, "dpo"), "train")}
    assert asked == trained == everything - judges
    counts = {stage: _manifest(run, stage)["counts"] for stage in ("reward", "dpo", "ppo")}
    assert counts["dpo"]["pairs_of_judge"] == counts["reward"]["pairs_of_judge"]
    assert counts["dpo"]["examples"] == counts["reward"]["examples"]
    assert counts["ppo"]["prompts_of_judge"] == len(judges)
    assert counts["ppo"]["prompts"] + counts["ppo"]["prompts_too_long"] == len(everything - judges)


@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_the_stage_ends_with_the_judges_word_on_it_and_sft(judged, stage):
    _, run, said = judged
    manifest = _manifest(run, stage)
    assert "reward/judge" in manifest["inputs"], "another judge makes it stale"
    tokenizer, judge = load_tokenizer(run / "tokenizer/model"), load_model(run / "reward/judge", head="score")
    prompts = [question.messages for question in held_out(_context(run, stage)).style]

    def scores(name):
        """The judge on one text after the other, each read as a whole."""
        given = answer(
            load_model(run / name / "model"), tokenizer, prompts, max_new_tokens=16, sampling=SAMPLED, seed=3
        )
        with torch.no_grad():
            return [
                judge.scores(torch.tensor([prompt + tokens]))[0, -1].item()
                for prompt, tokens in zip(given.prompts, given.tokens, strict=True)
            ]

    now, before = scores(stage), scores("sft")
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(now, before, strict=True)]
    rate, score = (manifest["metrics"][f"{stage}.{name}"] for name in ("win_rate_vs_sft", "judge_score"))
    assert rate["value"] == pytest.approx(statistics.fmean(wins), abs=0.07), "one near-tie may fall otherwise"
    assert rate["n"] == score["n"] == 16
    assert score["value"] == pytest.approx(statistics.fmean(now), abs=1e-3)
    (row,) = (row for row in manifest["delta"] if row["metric"] == "judge_score")
    assert (row["before"], row["after"]) == pytest.approx((statistics.fmean(before), statistics.fmean(now)), abs=1e-3)
    assert row["low"] <= row["change"] <= row["high"]
    assert manifest["counts"]["judge"] == _manifest(run, "reward")["counts"]["judge"]
    assert f"{stage}: judged by {manifest['counts']['judge']}" in said


def test_the_plan_counts_the_judges_steps_and_nobody_elses_pairs(judged, monkeypatch):
    recipe, run, _ = judged
    monkeypatch.setattr(plan_probe, "SECONDS_A_PROBE", 0.02)
    planned = plans.make_plan(load_recipe(recipe))["stages"]
    reward, dpo = (_manifest(run, stage)["counts"] for stage in ("reward", "dpo"))
    both = reward["step"] + reward["judge_training"]["step"]
    assert reward["judge_training"]["step"] >= 5
    # From a sample of the pairs, whose share is not to a pair that of the whole.
    assert planned["reward"]["steps"] == pytest.approx(both, abs=2)
    assert planned["dpo"]["steps"] == pytest.approx(reward["step"], abs=2)
    assert dpo["examples"] == reward["examples"]


def test_the_report_says_who_judged(judged):
    run = judged[1]
    page = (run / "report.html").read_text(encoding="utf-8")
    described = _manifest(run, "reward")["counts"]["judge"]
    for stage in ("reward", "dpo", "ppo"):
        section = page[page.index(f'<section id="{stage}">') :]
        assert section[: section.index("</section>")].count(described) == 1
    assert "score by the held-out judge" in page
    assert "accuracy of the held-out judge" in page


def test_a_reward_that_rises_while_the_judge_falls_is_over_optimised(judged, tmp_path):
    """The judge is the reward model with its head turned round: what pleases the one displeases the other."""
    recipe, finished, _ = judged
    run = shutil.copytree(finished, tmp_path / "run")
    weights = load_file(run / "reward/model/model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, run / "reward/judge/model.safetensors", metadata={"format": "pt"})
    changes = {
        "steps": 24, "evaluate_every": 1, "learning_rate": 1e-3, "value_warmup_steps": 0, "kl_coefficient": 0.0,
        "kl_target": "null", "missing_end_penalty": 0, "repetition_penalty": 0, "replay.documents": 0,
    }  # fmt: skip
    wide = ("max_kl", "longest_repeat", "length", "bits_per_byte", "answer_bits_per_byte")
    whole = ("repetition", "refusals", "unfinished", "distinct", "entropy")
    # Nothing but the score may stop it.
    changes |= {f"guard.{key}": 1e9 for key in wide} | {f"guard.{key}": 1.0 for key in whole}
    overrides = [part for key, value in changes.items() for part in ("--set", f"ppo.{key}={value}")]
    done = mengya("ppo", recipe, "--out", run, *overrides)
    assert done.returncode == 0, done.stderr
    counts = _manifest(run, "ppo")["counts"]
    last, looks = counts["guard"][-1], counts["guard"][1:]
    assert last["reward"] > looks[0]["reward"]
    assert last["score"] < counts["guard"][0]["score"] - last["error"]
    assert "it is over-optimised" in counts["stopped_early"]
    assert counts["rollouts"] < 24
    assert counts["handed_over"] == 0
    assert digest(run / "ppo/model/model.safetensors") == digest(run / "sft/model/model.safetensors")
    assert _manifest(run, "ppo")["metrics"]["ppo.win_rate_vs_sft"]["value"] == 0.5


def test_without_a_share_there_is_no_judge_and_every_pair_is_trained_on(judged, tmp_path):
    recipe, finished, _ = judged
    run = shutil.copytree(finished, tmp_path / "run")
    none = ("--set", "reward.judge_share=0")
    done = mengya("run", recipe, "--out", run, *none, "--stages", "reward,dpo")
    assert done.returncode == 0, done.stderr
    assert "reward: stale, reward.judge_share changed from 0.4 to 0" in done.stderr
    assert "dpo: stale" in done.stderr
    assert not (run / "reward/judge").exists()
    assert "reward.judge_accuracy" not in _manifest(run, "reward")["metrics"]
    manifest = _manifest(run, "dpo")
    rows = _rows(run / "corpus/preferences/train.jsonl")
    assert manifest["counts"]["examples"] + manifest["counts"]["dropped"] == len(rows)
    assert manifest["counts"]["pairs_of_judge"] == 0
    assert manifest["counts"]["judge"].startswith("nobody: no pairs were set apart")
    assert "dpo.win_rate_vs_sft" not in manifest["metrics"]
    assert "reward/judge" not in manifest["inputs"]
    assert {records.preference_pair(row).prompt for row in rows} == {
        pair.prompt for pair in policy_pairs(_context(run, "dpo"))[0]
    }


def test_a_judge_of_another_tokenizer_is_said_in_one_line(judged, tmp_path):
    recipe, finished, _ = judged
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "reward/judge/tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    first, second = list(tokenizer["model"]["merges"])[:2]
    tokenizer["model"]["merges"][:2] = [second, first]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    done = mengya("dpo", recipe, "--out", run)
    assert done.returncode == 2, done.stderr
    assert "reads other tokens than the policy writes" in done.stderr


def test_where_the_truth_is_known_a_judge_changes_nothing_but_the_pairs(tiny_copy):
    done = mengya("run", TINY, "--out", tiny_copy, "--set", "reward.judge_share=0.4", "--stages", "reward,dpo")
    assert done.returncode == 0, done.stderr
    manifest = _manifest(tiny_copy, "dpo")
    assert manifest["counts"]["judge"] == "the gold judges, who know the truth"
    assert manifest["counts"]["pairs_of_judge"] > 0
    assert "dpo.judge_score" not in manifest["metrics"]
    assert manifest["metrics"]["dpo.win_rate_vs_sft"]["n"] == manifest["metrics"]["dpo.gold_score"]["n"]
    hits = _manifest(tiny_copy, "reward")["metrics"]["reward.judge_accuracy"]
    assert hits == proportion(round(hits["value"] * hits["n"]), hits["n"])
