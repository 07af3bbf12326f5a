"""`mengya preferences` by the command line: pairs of own answers, resumed, counted, and trained on where the recipe says so."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from mengya.corpus import records
from mengya.corpus.fresh_prompts import asked_key, asked_keys
from mengya.evaluate.pairs import length_only_accuracy
from road import TINY, Started, mengya, the_only_line

MADE = (
    "--set", "preferences.method=reference", "--set", "preferences.num_prompts=80", "--set", "preferences.batch_size=4",
    "--set", "preferences.validation_fraction=0.3", "--set", "preferences.max_new_tokens=12",
    "--set", "preferences.kinds={list: 1, person: 1}",
)  # fmt: skip
"""Five parts of 16 prompts. Lists are asked in few ways, so that some prompt is one that instruction tuning has seen. A model
of ten seconds of training seldom ends its answers, so references stand against them."""


def _rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _pairs(run, split):
    return [records.preference_pair(row) for row in _rows(run / "preferences" / "pairs" / f"{split}.jsonl")]


def _manifest(run, stage="preferences"):
    return json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))


def _files(run, folder):
    return {path.name: path.read_bytes() for path in sorted((run / "preferences" / folder).iterdir())}


@pytest.fixture(scope="module")
def made_run(tiny_run, tmp_path_factory):
    """A copy of the tiny run with pairs of own answers, to be read only; and what was said."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("made") / "run")
    done = mengya("preferences", TINY, "--out", run, *MADE)
    assert done.returncode == 0, done.stderr
    return run, done.stderr


def test_pairs_are_the_reference_against_an_own_answer_to_a_prompt_that_nothing_else_has(made_run):
    run, _ = made_run
    train, validation = _pairs(run, "train"), _pairs(run, "validation")
    assert len(train) > 20
    assert len(validation) > 5
    assert {pair.reason for pair in train + validation} == {"own_reference"}
    keys = [asked_key(pair.prompt) for pair in train + validation]
    assert len(set(keys)) == len(keys)
    trained = {
        key for row in _rows(run / "corpus" / "conversations" / "train.jsonl")
        for key in asked_keys(records.conversation(row).messages)
    }  # fmt: skip
    measured = {
        asked_key(records.question(row).messages) for row in _rows(run / "corpus" / "evaluation" / "questions.jsonl")
    }
    assert not set(keys) & (trained | measured)
    of_corpus = {
        asked_key(records.preference_pair(row).prompt) for row in _rows(run / "corpus" / "preferences" / "train.jsonl")
    }
    assert not {asked_key(pair.prompt) for pair in validation} & of_corpus
    said = {text for name in _files(run, "answers") for row in _rows(run / "preferences" / "answers" / name)
            for text in row["texts"]}  # fmt: skip
    assert {pair.rejected for pair in train + validation} <= said


def test_every_candidate_is_kept_or_counted_with_its_reason_and_said(made_run):
    run, said = made_run
    counts = _manifest(run)["counts"]
    pairs = counts["pairs"]
    kept = pairs["kept"]
    dropped = {reason: entry["pairs"] for reason, entry in pairs["dropped"].items()}
    assert pairs["funnel"][0]["pairs"] == kept["pairs"] + sum(dropped.values())
    assert kept["train"]["pairs"] == len(_pairs(run, "train"))
    assert kept["validation"]["pairs"] == len(_pairs(run, "validation"))
    assert counts["prompts"] == pairs["funnel"][1]["pairs"] == counts["answers"]
    assert dropped["trained_on"] > 0
    assert ", ".join(f"{reason} {count}" for reason, count in dropped.items()) in said
    metrics = _manifest(run)["metrics"]
    assert metrics["preferences.chosen_accuracy"]["value"] == 1
    assert metrics["preferences.rejected_accuracy"]["value"] == 0


def test_inspect_shows_the_stage_its_pairs_and_what_fell_out(made_run):
    run, _ = made_run
    shown = mengya("inspect", run / "preferences")
    assert shown.returncode == 0, shown.stderr
    reasons = _manifest(run)["counts"]["pairs"]["dropped"]
    assert "trained_on" in reasons
    assert all(reason in shown.stdout for reason in reasons)
    assert _pairs(run, "train")[0].source in shown.stdout
    only = mengya("inspect", run / "preferences", "--reason", "trained_on")
    assert only.returncode == 0, only.stderr


def test_killed_at_work_and_resumed_it_ends_with_the_same_bits(made_run, tiny_copy):
    run, _ = made_run
    answers = tiny_copy / "preferences" / "answers"
    with Started("preferences", TINY, "--out", tiny_copy, *MADE) as started:
        assert started.wait_until((answers / "00001.jsonl").exists), "it ended before it could be killed"
        started.kill()
    assert not (tiny_copy / "preferences" / "manifest.json").exists()
    before = {name: path.stat().st_mtime_ns for name in _files(tiny_copy, "answers") if (path := answers / name)}
    before = {name: time for name, time in before.items() if not name.startswith(".")}
    assert 2 <= len(before) < 5
    done = mengya("preferences", TINY, "--out", tiny_copy, *MADE)
    assert done.returncode == 0, done.stderr
    assert f"preferences: {len(before)} of 5 parts of answers are there already" in done.stderr
    assert {name: (answers / name).stat().st_mtime_ns for name in before} == before, "a finished part was touched"
    for folder in ("prompts", "answers", "pairs"):
        assert _files(tiny_copy, folder) == _files(run, folder)
    assert _manifest(tiny_copy)["outputs"] == _manifest(run)["outputs"]


def test_balanced_pairs_tell_nothing_by_length(made_run, tiny_copy):
    done = mengya("preferences", TINY, "--out", tiny_copy, *MADE, "--set", "preferences.balance_length=true")
    assert done.returncode == 0, done.stderr
    plain = {(pair.prompt, pair.chosen, pair.rejected) for pair in _pairs(made_run[0], "train")}
    for split in ("train", "validation"):
        pairs = _pairs(tiny_copy, split)
        longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
        assert longer == sum(len(pair.chosen) < len(pair.rejected) for pair in pairs)
        assert length_only_accuracy(pairs, pairs)["value"] == 0.5
    assert {(pair.prompt, pair.chosen, pair.rejected) for pair in _pairs(tiny_copy, "train")} < plain
    assert re.search(r"length_balance \d", done.stderr)
    kept = len(_pairs(tiny_copy, "train")) + len(_pairs(tiny_copy, "validation"))
    assert _manifest(tiny_copy)["metrics"]["preferences.rejected_accuracy"]["n"] == kept


def test_own_pairs_are_trained_on_where_the_recipe_says_so_and_then_only(made_run, tiny_run, tmp_path):
    run = shutil.copytree(made_run[0], tmp_path / "run")
    as_before = mengya("reward", TINY, "--out", run, *MADE)
    assert "reward: done already, nothing has changed" in as_before.stderr, "pairs that nobody asked for change nothing"
    both = mengya("reward", TINY, "--out", run, *MADE, "--set", "reward.pairs_from=both")
    assert both.returncode == 0, both.stderr
    assert "reward: stale, reward.pairs_from changed from corpus to both" in both.stderr
    manifest = _manifest(run, "reward")
    assert manifest["inputs"]["preferences/pairs"] == _manifest(run)["outputs"]["preferences/pairs"]
    assert manifest["counts"]["examples"] == _manifest(tiny_run, "reward")["counts"]["examples"] + len(
        _pairs(run, "train")
    )
    own = manifest["metrics"]["reward.pair_accuracy.own_reference"]
    assert own["n"] == len(_pairs(run, "validation"))

    changed = mengya("preferences", TINY, "--out", run, *MADE, "--set", "preferences.temperature=0.7",
                     "--set", "reward.pairs_from=both")  # fmt: skip
    assert changed.returncode == 0, changed.stderr
    assert "stale with it, if its result differs: reward" in changed.stderr
    again = mengya("reward", TINY, "--out", run, *MADE, "--set", "preferences.temperature=0.7",
                   "--set", "reward.pairs_from=both")  # fmt: skip
    assert "reward: stale, its input preferences/pairs changed" in again.stderr


@pytest.mark.parametrize("method", ["dpo"])
def test_dpo_trains_on_own_pairs_alone(made_run, tmp_path, method):
    run = shutil.copytree(made_run[0], tmp_path / "run")
    done = mengya(method, TINY, "--out", run, *MADE, "--set", f"{method}.pairs_from=own")
    assert done.returncode == 0, done.stderr
    assert _manifest(run, method)["counts"]["examples"] == len(_pairs(run, "train"))


def test_prompts_of_files_are_read_as_conversations_are(tiny_copy, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"第{n}个问题是什么？"},
                          {"role": "assistant", "content": f"第{n}个问题，我说的是{n * 7}号。"}]}
            for n in range(40)]  # fmt: skip
    seen = _rows(tiny_copy / "corpus" / "conversations" / "train.jsonl")[0]["messages"][:2]
    rows += [rows[0], {"messages": seen}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    sources = f"preferences.sources=[{{path: '{file}', format: messages, name: mine}}]"
    done = mengya("preferences", TINY, "--out", tiny_copy, *MADE, "--set", sources)
    assert done.returncode == 0, done.stderr
    counts = _manifest(tiny_copy)["counts"]
    assert counts["sources"]["dropped"]["duplicate_prompt"]["conversations"] == 1
    assert counts["pairs"]["by_source"]["mine"]["read"] == 41
    assert counts["pairs"]["dropped"]["trained_on"]["pairs"] == 1
    assert {pair.chosen for pair in _pairs(tiny_copy, "train")} <= {row["messages"][1]["content"] for row in rows}
    assert str(file) in _manifest(tiny_copy)["inputs"]


def test_without_sft_it_is_said_in_one_line(tmp_path):
    line = the_only_line(mengya("preferences", TINY, "--out", tmp_path / "run"))
    assert "the stage preferences needs sft/model, which is not there" in line
    assert "run the stage sft first" in line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (("preferences.judge=rewards",), ("preferences.rewards", "no terms")),
        (("preferences.judge=rewards", "preferences.rewards=[{kind: model}]"), ("preferences.rewards.0.kind", "trained after")),
        (("preferences.kinds=[riddle]",), ("preferences.kinds", "'riddle'")),
        (("preferences.sources=[{path: nowhere.jsonl}]",), ("preferences.sources.0.path", "no such file")),
        (("preferences.max_new_tokens=256",), ("preferences.sources", "no prompt is left", "prompt_too_long")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(tiny_copy, changes, parts):
    arguments = [part for change in changes for part in ("--set", change)]
    line = the_only_line(mengya("preferences", TINY, "--out", tiny_copy, *arguments))
    for part in parts:
        assert part in line


def test_a_stage_that_wants_own_pairs_says_which_stage_makes_them(tiny_copy):
    line = the_only_line(mengya("dpo", TINY, "--out", tiny_copy, "--set", "dpo.pairs_from=own"))
    assert "the stage dpo needs preferences/pairs, which is not there" in line
    assert "run the stage preferences first" in line
