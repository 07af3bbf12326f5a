"""The guard on the tiny run: DPO and PPO under it, what the report shows of it, and SFT handed back bit by bit."""

from __future__ import annotations

import json
import shutil

import pytest

from mengya.recipe import load_recipe
from mengya.run import Context, Run
from mengya.settings import Recipe
from mengya.stages import STAGES as STAGE_OF
from mengya.stages import aligned
from mengya.tokenizer.encode import load_tokenizer
from mengya.train.parallel import open_world
from road import TINY, Started, digest, mengya

ALIGNED = ("dpo", "ppo")
MEASURED = {
    "score", "repetition", "end_rate", "kl", "error", "refusals", "length", "entropy", "distinct_1", "distinct_2",
    "distinct_4", "longest_repeat", "bits_per_byte", "answer_bits_per_byte", "reward", "errors", "mark", "why_not",
}  # fmt: skip


def _counts(run, stage):
    return json.loads((run / stage / "manifest.json").read_text())["counts"]


def _weights(run, stage):
    return digest(run / stage / "model" / "model.safetensors")


@pytest.mark.parametrize("stage", ALIGNED)
def test_every_look_is_in_the_manifest_with_its_mark(tiny_run, stage):
    counts = _counts(tiny_run, stage)
    looks = counts["guard"]
    assert all(look.keys() >= MEASURED for look in looks)
    assert (looks[0]["step"], looks[0]["mark"]) == (0, "start")
    for look in looks[1:]:
        assert look["mark"] in ("kept", "worse", "refused")
        assert (look["why_not"] is None) == (look["mark"] == "kept")
        assert look["reward"] is not None
    kept = [look["step"] for look in looks if look["mark"] in ("start", "kept")]
    assert counts["handed_over"] == kept[-1]
    if counts["handed_over"] == 0:
        assert _weights(tiny_run, stage) == _weights(tiny_run, "sft"), "what is handed back is SFT's, bit by bit"
    else:
        assert _weights(tiny_run, stage) != _weights(tiny_run, "sft")


def test_the_stages_begin_with_the_same_look(tiny_run):
    first = [_counts(tiny_run, stage)["guard"][0] for stage in ALIGNED]
    assert first[0] == first[1]


def test_dpo_is_looked_at_every_few_steps_and_at_its_end(tiny_run):
    counts = _counts(tiny_run, "dpo")
    expected = [0, 3, 7]  # not 6: the last look is one step on
    assert [look["step"] for look in counts["guard"]] == expected[: len(counts["guard"])]
    assert counts["stopped_early"] or len(counts["guard"]) == len(expected)


@pytest.mark.parametrize("stage", ALIGNED)
def test_the_report_shows_the_guards_table(tiny_run, stage):
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    section = page[page.index(f'<section id="{stage}">') :]
    section = section[: section.index("</section>")]
    table = section[section.index('<table class="guard">') :]
    assert table[: table.index("</table>")].count("<tr>") == 1 + len(_counts(tiny_run, stage)["guard"])
    assert "handed over" in section


def test_a_policy_beyond_its_bounds_is_given_back_as_sft_bit_by_bit(tiny_run, tiny_copy):
    done = mengya("dpo", TINY, "--out", tiny_copy, "--set", "dpo.guard.max_kl=1e-9", "--set", "dpo.learning_rate=1e-2")
    assert done.returncode == 0, done.stderr
    counts = _counts(tiny_copy, "dpo")
    assert counts["step"] == 3, "stopped at the first look"
    assert counts["handed_over"] == 0
    assert "dpo: stopped early: KL to the SFT model reached" in done.stderr
    assert "guard.max_kl 1e-09" in counts["guard"][1]["why_not"]
    assert _weights(tiny_copy, "dpo") == _weights(tiny_copy, "sft")


def test_killed_dpo_goes_on_to_the_same_looks_and_weights(tiny_run, tiny_copy):
    for stage in ("dpo", "ppo", "evaluate"):
        shutil.rmtree(tiny_copy / stage)
    command = ("dpo", TINY, "--out", tiny_copy, "--set", "dpo.log_every=1")
    metrics = tiny_copy / "dpo" / "metrics.jsonl"
    with Started(*command) as started:
        assert started.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 2)
        started.kill()
    assert not (tiny_copy / "dpo" / "manifest.json").exists(), "the stage outran the knife"
    done = mengya(*command)
    assert done.returncode == 0, done.stderr
    assert "dpo: resumed at step" in done.stderr
    assert _counts(tiny_copy, "dpo")["guard"] == _counts(tiny_run, "dpo")["guard"]
    assert _weights(tiny_copy, "dpo") == _weights(tiny_run, "dpo")
    step = _counts(tiny_run, "dpo")["step"]
    trained = [run / "dpo" / "checkpoints" / f"step-{step}" / "state.safetensors" for run in (tiny_run, tiny_copy)]
    assert digest(trained[0]) == digest(trained[1]), "the training itself too, not only what was handed over"


def test_the_start_is_looked_at_once(tiny_run, monkeypatch):
    run = Run.open(tiny_run)
    recipe = Recipe.model_validate(run.recipe().model_dump())
    context = Context(recipe, run, STAGE_OF["dpo"])
    world, tokenizer = open_world("cpu", "fp32"), load_tokenizer(tiny_run / "tokenizer/model")
    calls, seen_of = [], aligned.seen_of
    monkeypatch.setattr(aligned, "seen_of", lambda *a, **k: calls.append(a[0]) or seen_of(*a, **k))
    look = aligned.guard_look_from_disk(context, tokenizer, 8, world)
    reference, _ = look.models()
    first, second = look(reference, 0), look(reference, 5)
    assert len(calls) == 2
    assert (first.step, second.step) == (0, 5)
    assert (second.score, second.kl, second.bits_per_byte) == (first.score, first.kl, first.bits_per_byte)
    # Resumed: the start is looked at anew before the first later look, and is the same.
    calls.clear()
    assert aligned.guard_look_from_disk(context, tokenizer, 8, world)(reference, 5) == second
    assert len(calls) == 2


@pytest.mark.parametrize(("name", "stages"), [("seed-failure", {"ppo", "grpo"}), ("arithmetic", {"grpo"})])
def test_recipes_that_go_on_from_the_quickstart_differ_in_one_stage_alone(name, stages):
    recipes = TINY.parents[2] / "recipes"
    ours, quickstart = (
        load_recipe(recipes / f"{one}.yaml").model_dump(exclude={"name", "description", *stages})
        for one in (name, "quickstart")
    )
    assert ours == quickstart, "else a finished quickstart could not be taken for its first stages"
