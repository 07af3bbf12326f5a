"""The evidence of alignment in one command: on the tiny run, the page says what the manifests say, and a rerun makes nothing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
import yaml

from road import REPOSITORY, TINY

BENCHMARKS = REPOSITORY / "benchmarks"


def evidence(*arguments):
    """`python benchmarks/alignment.py ARGUMENTS…`: returncode, stdout, stderr."""
    command = [sys.executable, str(BENCHMARKS / "alignment.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=290)


def manifest(run, stage):
    return json.loads((run / stage / "manifest.json").read_text())


@pytest.fixture(scope="module")
def done(tiny_run, tmp_path_factory):
    """(arguments, folder of the runs, page, the finished command) of one seed, one ablation, failing settings and a judge.

    Without the pairs of the judge alone the recipe is the tiny run's, so that one is reused.
    """
    folder = tmp_path_factory.mktemp("evidence")
    own = folder / "own.jsonl"
    rows = [
        {"prompt": f"第{n}号门在哪里？", "chosen": f"在{n}号楼。", "rejected": f"不在{n}号楼。"} for n in range(300)
    ]
    own.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    both = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    both["corpus"]["preferences"].append({"path": str(own), "format": "prompt_chosen_rejected", "name": "doors"})
    judged = folder / "judged.yaml"
    judged.write_text(yaml.safe_dump(both), encoding="utf-8")
    failing = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    failing["ppo"] |= {"temperature": 0.1, "learning_rate": 0.01, "kl_coefficient": 0.0, "kl_target": None}
    recipe = folder / "failing.yaml"
    recipe.write_text(yaml.safe_dump(failing), encoding="utf-8")
    page = folder / "page" / "alignment.md"
    arguments = [
        "--recipe", judged, "--seeds", "3", "--stages", "dpo,ppo", "--ablations", "no-kl", "--failure", recipe,
        "--judge-sources", "doors", "--reuse", tiny_run, "--out", folder / "runs", "--page", page,
    ]  # fmt: skip
    finished = evidence(*arguments)
    assert finished.returncode == 0, finished.stderr
    return arguments, folder / "runs", page, finished


def test_a_finished_run_is_reused_as_it_is(done, tiny_run):
    _, out, _, _ = done
    for stage in ("sft", "reward", "dpo", "ppo"):
        assert (out / "seed-3" / stage / "manifest.json").read_bytes() == (
            tiny_run / stage / "manifest.json"
        ).read_bytes()
    assert manifest(out / "ablation-no-kl", "ppo")["settings"]["ppo"]["kl_coefficient"] == 0
    assert manifest(out / "failure", "ppo")["settings"]["ppo"]["temperature"] == 0.1
    assert manifest(out / "failure", "ppo")["inputs"]["sft/model"] == manifest(tiny_run, "sft")["outputs"]["sft/model"]


def test_grpo_on_arithmetic_is_what_the_recipe_for_it_says(monkeypatch):
    from mengya.recipe import load_recipe

    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    stage, overrides = importlib.import_module("alignment_runs").VARIANTS["grpo-arithmetic"]
    assert stage == "grpo"
    quickstart, arithmetic = (
        load_recipe(REPOSITORY / "recipes" / f"{name}.yaml", given)
        for name, given in (("quickstart", list(overrides)), ("arithmetic", []))
    )
    assert quickstart.grpo == arithmetic.grpo


def test_the_last_line_and_the_page_hold_the_manifests_numbers(done, tiny_run):
    _, out, page, finished = done
    last = json.loads(finished.stdout.splitlines()[-1])
    text = page.read_text(encoding="utf-8")
    sys.path.insert(0, str(BENCHMARKS))
    cell = importlib.import_module("results_page").cell
    for stage in ("dpo", "ppo"):
        made = manifest(tiny_run, stage)
        row = next(row for row in made["delta"] if row["metric"] == "gold_score")
        found = last["stages"][stage]["gold_score"]
        assert (found["value"], found["low"], found["high"]) == pytest.approx((row["change"], row["low"], row["high"]))
        assert last["beyond"][stage] == {"3": row["low"] > 0}
        for metric in ("gold_score", "repetition", "bits_per_byte", "kl_to_sft", "win_rate_vs_sft"):
            line = next(
                line
                for line in text.split("## Seed 3")[1].splitlines()
                if cell(metric, made["metrics"][f"{stage}.{metric}"]) in line
            )
            assert line.startswith("| ")
    for run, section in (("ablation-no-kl", "| no KL penalty | "), ("failure", "## Settings that are known to fail")):
        looks = manifest(out / run, "ppo")["counts"]["guard"]
        assert f"| {looks[-1]['score']:.3f}" in text.split(section)[1]
    assert last["failure"]["sft_handed_back"] == (
        manifest(out / "failure", "ppo")["outputs"]["ppo/model"] == manifest(tiny_run, "sft")["outputs"]["sft/model"]
    )
    assert "## What is weak, and why" in text


def test_the_judge_is_trained_on_its_own_pairs_and_on_nothing_else(done):
    _, out, page, finished = done
    counted = {
        run: manifest(out / run, "corpus")["counts"]["preferences"]["by_source"] for run in ("seed-3", "judge-3")
    }
    assert {run: list(sources) for run, sources in counted.items()} == {"seed-3": ["playground"], "judge-3": ["doors"]}
    assert (
        manifest(out / "judge-3", "reward")["inputs"]["sft/model"]
        == manifest(out / "seed-3", "sft")["outputs"]["sft/model"]
    )
    kept = json.loads((out / "judge-3" / "win_rates.json").read_text())
    assert kept["shared_prompts"] == 0
    rate = kept["win_rates"]["dpo"]
    found = json.loads(finished.stdout.splitlines()[-1])["stages"]["dpo"]["judge_win_rate"]
    assert (found["value"], found["low"]) == pytest.approx((rate["value"] - 0.5, rate["low"] - 0.5))
    assert "trained on doors alone" in page.read_text(encoding="utf-8")


def test_the_figure_stands_beside_the_page(done):
    _, _, page, _ = done
    assert "](alignment.svg)" in page.read_text(encoding="utf-8")
    assert page.with_suffix(".svg").read_text(encoding="utf-8").count("<svg") == 1


def test_a_rerun_makes_nothing_and_says_the_same(done):
    arguments, out, page, first = done
    files = [*out.glob("*/*/manifest.json"), *out.glob("*/*/model/model.safetensors")]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    text, figure = page.read_bytes(), page.with_suffix(".svg").read_bytes()
    again = evidence(*arguments)
    assert again.returncode == 0, again.stderr
    assert "starts" not in again.stderr
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files} == before
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert (page.read_bytes(), page.with_suffix(".svg").read_bytes()) == (text, figure)


def test_the_users_mistake_is_one_line(tmp_path):
    finished = evidence("--recipe", TINY, "--out", tmp_path / "runs", "--set", "ppo.step=4")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "did you mean 'steps'?" in finished.stderr
    assert not (tmp_path / "runs").exists()


def test_the_judge_compares_with_sft_prompt_by_prompt_and_remembers(tiny_copy):
    sys.path.insert(0, str(BENCHMARKS))
    judge = importlib.import_module("alignment_judge")
    (tiny_copy / "dpo" / "model" / "model.safetensors").write_bytes(
        (tiny_copy / "sft" / "model" / "model.safetensors").read_bytes()
    )
    found = judge.judged(tiny_copy, tiny_copy, ["dpo", "ppo"])
    assert found["win_rates"]["dpo"]["value"] == 0.5, "the same weights give the same answers to the same seed"
    assert found["win_rates"]["ppo"]["n"] == 16
    pairs = (tiny_copy / "corpus" / "preferences" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert found["shared_prompts"] == len(pairs)
    written = (tiny_copy / "win_rates.json").stat().st_mtime_ns
    assert judge.judged(tiny_copy, tiny_copy, ["dpo", "ppo"]) == found
    assert (tiny_copy / "win_rates.json").stat().st_mtime_ns == written
