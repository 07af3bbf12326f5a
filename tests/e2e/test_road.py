"""The whole road by the command line: what a run leaves, what is skipped, what is stale and why, what is taken back."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest
import yaml

from mengya.corpus.parts import read_documents
from road import MODEL_STAGES, STAGES, TINY, digest, is_done, manifests, mengya, model_digests, the_only_line

ESTIMATE = {"value", "low", "high", "n"}
CHAT_STAGES = ("pretrain", "sft", "dpo", "ppo")


# ------------------------------------------------------------------------------------------- what a run leaves behind


def test_every_stage_is_done_and_says_from_what(tiny_run):
    assert yaml.safe_load((tiny_run / "recipe.yaml").read_text())["model"]["width"] == 64
    for stage, text in manifests(tiny_run).items():
        manifest = json.loads(text)
        assert manifest["stage"] == stage
        assert manifest["seed"] == 3
        assert {"settings", "inputs", "outputs", "counts", "metrics", "delta", "hardware"} <= manifest.keys()
        assert {"python", "torch", "mengya"} <= manifest["versions"].keys()
        assert manifest["seconds"] > 0
        for name, sha256 in {**manifest["inputs"], **manifest["outputs"]}.items():
            assert (tiny_run / name).exists()
            assert re.fullmatch("[0-9a-f]{64}", sha256)
        assert manifest["inputs"] or stage == "corpus"
    assert list(manifests(tiny_run)) == list(STAGES)


def test_the_resolved_recipe_gives_the_same_run_again(tiny_run, tiny_copy):
    done = mengya("run", tiny_copy / "recipe.yaml", "--out", tiny_copy)
    assert "nothing to do" in done.stderr
    assert (tiny_copy / "recipe.yaml").read_bytes() == (tiny_run / "recipe.yaml").read_bytes()


def test_the_funnel_adds_up(tiny_run):
    documents = json.loads((tiny_run / "corpus" / "manifest.json").read_text())["counts"]["documents"]
    dropped = sum(count["documents"] for count in documents["dropped"].values())
    kept = documents["kept"]["documents"]
    assert documents["funnel"][0]["step"] == "read"
    assert documents["funnel"][0]["documents"] == kept + dropped
    written = [read_documents(tiny_run / "corpus" / "documents", split) for split in ("train", "validation")]
    assert sum(1 for split in written for _ in split) == kept


def test_the_planted_dirt_is_found(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["corpus.exact_duplicate_recall"]["value"] == 1
    assert summary["corpus.near_duplicate_recall"]["value"] >= 0.95
    assert summary["corpus.near_duplicate_precision"]["value"] >= 0.98


@pytest.mark.parametrize("stage", MODEL_STAGES)
def test_a_training_stage_leaves_metrics_events_checkpoints_and_a_model(tiny_run, stage):
    directory = tiny_run / stage
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert len(list(directory.glob("events.out.tfevents.*"))) == 1
    saved = [int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").iterdir()]
    assert max(saved) == steps[-1]
    assert {"step", "tokens", "loss", "lr", "grad_norm"} <= rows[-1].keys()
    if stage == "ppo":
        own = {"reward", "kl", "entropy", "length", "value_loss", "policy_loss", "guard_score"}
        assert own <= rows[-1].keys()
    else:
        assert "tokens_per_second" in rows[-1]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    files = {path.name for path in (directory / "model").iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files == expected | (set() if stage == "reward" else {"generation_config.json"})
    assert "chat_template" in json.loads((directory / "model" / "tokenizer_config.json").read_text())


def test_tensorboard_reads_the_same_scalars(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "pretrain"))
    events.Reload()
    rows = [json.loads(line) for line in (tiny_run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows
    ]


def test_the_summary_holds_the_metrics_of_the_contract_each_with_its_interval(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    for name, estimate in summary.items():
        assert estimate.keys() == ESTIMATE, name
        assert estimate["low"] <= estimate["value"] <= estimate["high"], name
        assert estimate["n"] >= 1, name
    shared = ("bits_per_byte", "qa_accuracy", "multi_turn_accuracy", "identity_accuracy", "gold_score", "repetition")
    expected = {f"{stage}.{metric}" for stage in CHAT_STAGES for metric in (*shared, "refusal_rate", "cloze_accuracy")}
    expected |= {f"{stage}.{metric}" for stage in ("dpo", "ppo") for metric in ("win_rate_vs_sft", "kl_to_sft")}
    expected |= {f"{stage}.{metric}" for stage in STAGES for metric in ("seconds", "peak_memory_bytes")}
    expected |= {"pretrain.tokens_per_second", "sft.tokens_per_second", "tokenizer.chars_per_token", "run.seconds"}
    expected |= {"reward.pair_accuracy", "reward.length_only_accuracy"}
    assert expected <= summary.keys()
    shares = [name for name in summary if re.search("accuracy|_rate|recall|precision", name)]
    assert all(summary[name]["low"] >= 0 and summary[name]["high"] <= 1 for name in shares)


@pytest.mark.parametrize(
    ("stage", "before"),
    [("pretrain", "untrained"), ("sft", "pretrain"), ("reward", "length alone"), ("dpo", "sft"), ("ppo", "sft")],
)
def test_a_stage_is_measured_against_the_one_before_it(tiny_run, stage, before):
    rows = json.loads((tiny_run / stage / "manifest.json").read_text())["delta"]
    assert rows
    for row in rows:
        assert row["before_stage"] == before
        assert row["change"] == pytest.approx(row["after"] - row["before"])
        assert row["low"] <= row["change"] + 1e-9
        assert row["change"] <= row["high"] + 1e-9


def test_training_lowers_the_loss(tiny_run):
    for stage in ("pretrain", "sft"):
        rows = [json.loads(line) for line in (tiny_run / stage / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["validation_loss"] < math.log(600) - 0.5, "no better than guessing"
    before, after = (json.loads((tiny_run / "pretrain" / "metrics.jsonl").read_text().splitlines()[i]) for i in (0, -1))
    assert after["validation_loss"] < before["validation_loss"] - 0.1


def test_every_stage_answers_the_same_prompts(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) > 5
    assert all(list(row["answers"]) == list(CHAT_STAGES) for row in rows)


def test_the_report_is_one_page_that_needs_no_network(tiny_run):
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    # Name spaces and links to follow by hand may hold addresses; what a browser loads by itself may not.
    assert not re.search(r"""(?i)\b(src|srcset|data|poster|action)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"""(?i)<link\b[^>]*href\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"(?i)@import|url\(\s*[\"']?\s*(https?:)?//", page)
    assert "<script src" not in page
    assert not re.search(r"(?i)\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest", page)
    for stage in MODEL_STAGES:
        assert stage in page
    assert "<svg" in page


# ------------------------------------------------------------------------------------ done, stale, taken back, resumed


def test_a_second_call_does_nothing_and_says_so(tiny_run, tiny_copy):
    before = {path: path.stat().st_mtime_ns for path in tiny_copy.rglob("*") if path.is_file() and path.parent.name}
    done = mengya("run", TINY, "--out", tiny_copy)
    assert done.returncode == 0
    for stage in STAGES:
        assert f"{stage}: done already, nothing has changed" in done.stderr
    assert done.stderr.splitlines()[-1] == "nothing to do: every stage is done and unchanged"
    assert manifests(tiny_copy) == manifests(tiny_run)
    touched = {path.name for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert touched <= {"recipe.yaml", "report.html", "summary.json", ".lock"}


def test_a_second_call_is_quick_because_it_never_loads_torch(tiny_copy):
    command = [sys.executable, "-X", "importtime", "-m", "mengya", "run", str(TINY), "--out", str(tiny_copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "nothing to do" in done.stderr
    assert "mengya.run" in loaded
    assert not {"torch", "transformers"} & loaded


def test_a_changed_setting_makes_its_stage_and_those_downstream_stale_and_going_back_costs_nothing(tiny_run, tiny_copy):
    changed = mengya("run", TINY, "--out", tiny_copy, "--set", "sft.epochs=2")
    assert changed.returncode == 0, changed.stderr
    for stage in ("corpus", "tokenizer", "shards", "pretrain"):
        assert f"{stage}: done already, nothing has changed" in changed.stderr
    behind = "stale with it, if its result differs: reward, dpo, ppo, evaluate"
    assert f"sft: stale, sft.epochs changed from 1.0 to 2.0; {behind}" in changed.stderr
    for stage in ("reward", "dpo", "ppo", "evaluate"):
        assert f"{stage}: stale, its input sft/model changed" in changed.stderr
    weights, original = model_digests(tiny_copy), model_digests(tiny_run)
    assert weights["pretrain"] == original["pretrain"]
    assert all(weights[stage] != original[stage] for stage in ("sft", "reward", "dpo", "ppo"))

    back = mengya("run", TINY, "--out", tiny_copy)
    assert back.returncode == 0, back.stderr
    for stage in ("sft", "reward", "dpo", "ppo", "evaluate"):
        assert f"{stage}: taken back from earlier work" in back.stderr
    assert "starts" not in back.stderr
    assert manifests(tiny_copy) == manifests(tiny_run)
    assert model_digests(tiny_copy) == original
    assert json.loads((tiny_copy / "summary.json").read_text()) == json.loads((tiny_run / "summary.json").read_text())


def test_an_altered_output_is_made_again(tiny_run, tiny_copy):
    weights = tiny_copy / "reward" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = mengya("run", TINY, "--out", tiny_copy, "--stages", "reward")
    assert "reward: stale, its output reward/model was altered" in done.stderr
    assert model_digests(tiny_copy)["reward"] == model_digests(tiny_run)["reward"]


SENTENCES = (
    "小河从山脚下流过",
    "孩子们在树下看书",
    "风把稻田吹成了金色的波浪",
    "老人慢慢地讲着从前的故事",
    "船停在岸边等着天亮",
)


def _document(number):
    order = [SENTENCES[(number * 7 + place * place) % 5] for place in range(4)]
    return {"text": f"第{number}天，" + f"，{number * 13 % 101}只鸟飞过，".join(order) + f"。这是第{number}篇日记。"}


@pytest.fixture
def own_recipe(tmp_path):
    """A recipe on a file of one's own, corpus and tokenizer only: (recipe, file, run directory)."""
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps(_document(n), ensure_ascii=False) + "\n" for n in range(40)), encoding="utf-8")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"name: own\nseed: 2\nstages: [corpus, tokenizer]\nthreads: 1\n"
        f"corpus: {{documents: [{{path: '{file}', format: text}}], validation_fraction: 0.2}}\n"
        f"tokenizer: {{vocab_size: 320}}\n",
        encoding="utf-8",
    )
    return recipe, file, tmp_path / "own"


def test_inputs_are_compared_by_content_never_by_date(own_recipe):
    recipe, file, run = own_recipe
    first = mengya("run", recipe, "--out", run)
    assert first.returncode == 0, first.stderr
    assert [line for line in first.stderr.splitlines() if "starts" in line] == ["corpus: starts", "tokenizer: starts"]
    tokenizer = digest(run / "tokenizer" / "model" / "tokenizer.json")

    file.touch()
    assert "nothing to do" in mengya("run", recipe, "--out", run).stderr

    with open(file, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(_document(99), ensure_ascii=False) + "\n")
    changed = mengya("run", recipe, "--out", run)
    assert changed.returncode == 0, changed.stderr
    assert f"corpus: stale, its input {file} changed; stale with it, if its result differs: tokenizer" in changed.stderr
    assert "tokenizer: stale, its input corpus/documents changed" in changed.stderr
    assert digest(run / "tokenizer" / "model" / "tokenizer.json") != tokenizer


def test_a_stage_made_again_with_the_same_result_leaves_those_downstream_alone(own_recipe):
    recipe, _, run = own_recipe
    assert mengya("run", recipe, "--out", run).returncode == 0
    again = mengya("run", recipe, "--out", run, "--set", "corpus.max_reject_share=0.5")
    assert "corpus: stale, corpus.max_reject_share changed from 0.05 to 0.5" in again.stderr
    assert "tokenizer: done already, nothing has changed" in again.stderr


def test_chosen_stages_run_in_dependency_order_and_single_ones_by_their_name(own_recipe):
    recipe, _, run = own_recipe
    assert mengya("run", recipe, "--out", run, "--stages", "corpus").returncode == 0
    assert is_done(run, "corpus")
    assert not (run / "tokenizer").exists()
    assert mengya("tokenizer", recipe, "--out", run).returncode == 0
    assert is_done(run, "tokenizer")
    both = mengya("run", recipe, "--out", run.with_name("other"), "--stages", "tokenizer, corpus")
    assert [line for line in both.stderr.splitlines() if "starts" in line] == ["corpus: starts", "tokenizer: starts"]


def test_without_out_the_run_is_named_by_its_recipe(own_recipe, tmp_path):
    recipe, _, _ = own_recipe
    done = mengya("corpus", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert is_done(tmp_path / "runs" / "own", "corpus")
    assert done.stdout == "runs/own/report.html\n"


def test_a_stage_says_which_stage_it_needs(own_recipe):
    recipe, _, run = own_recipe
    line = the_only_line(mengya("tokenizer", recipe, "--out", run))
    assert "needs corpus/documents" in line
    assert "run the stage corpus first" in line


def test_what_a_kill_before_the_summary_left_out_is_made_up_for(tiny_run, tiny_copy):
    """A run killed between its last manifest and summary.json has nothing to do, but its summary is of before."""
    (tiny_copy / "summary.json").write_text("{}\n")
    assert mengya("run", TINY, "--out", tiny_copy).returncode == 0
    assert json.loads((tiny_copy / "summary.json").read_text()) == json.loads((tiny_run / "summary.json").read_text())
