"""The page of alignment's evidence: its intervals against hand arithmetic, its verdicts against made-up looks and manifests."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from mengya.errors import UserError
from mengya.recipe import load_recipe

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
numbers = importlib.import_module("alignment_numbers")
runs = importlib.import_module("alignment_runs")
trials = importlib.import_module("alignment_trials")
alignment = importlib.import_module("alignment")

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


def change(value, half):
    return {"value": value, "low": value - half, "high": value + half}


# ------------------------------------------------------------------------------------------------------- intervals


def test_over_seeds_by_hand():
    found = numbers.over_seeds([change(0.03, 0.02), change(0.01, 0.02), change(0.02, 0.01)])
    assert found["value"] == pytest.approx(0.02)
    # √(0.02² + 0.02² + 0.01²) / 3 = 0.03 / 3
    assert (found["low"], found["high"]) == pytest.approx((0.01, 0.03))
    # standard deviation 0.01, t(2) = 4.303: 4.303 · 0.01 / √3 = 0.02484
    assert found["seeds_low"] == pytest.approx(0.02 - 0.024843, abs=1e-6)
    assert found["seeds_high"] == pytest.approx(0.02 + 0.024843, abs=1e-6)
    assert (found["least"], found["most"]) == (0.01, 0.03)


def test_a_single_seed_has_no_interval_of_seeds():
    found = numbers.over_seeds([change(0.03, 0.02)])
    assert (found["low"], found["high"]) == pytest.approx((0.01, 0.05))
    assert found["seeds_low"] is None


def test_the_quantiles_are_those_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    for degrees, quantile in enumerate(numbers._T95, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)


def test_beyond_its_interval_means_all_of_it():
    assert numbers.beyond(change(0.03, 0.02), "higher")
    assert not numbers.beyond(change(0.03, 0.04), "higher")
    assert not numbers.beyond(change(0.03, 0.02), "lower")
    assert numbers.beyond(change(-0.03, 0.02), "lower")


def test_a_share_may_lose_a_point_and_bits_one_percent_of_themselves():
    before = {name: {"value": 2.0} for name in numbers.PROMISED}
    changes = {
        "repetition": change(0.0099, 0.1),
        "refusal_rate": change(0.011, 0.1),
        "bits_per_byte": change(0.019, 0.1),
        "answer_bits_per_byte": change(0.021, 0.1),
    }
    kept = numbers.kept_promises(changes, before)
    assert kept == {"repetition": True, "refusal_rate": False, "bits_per_byte": True, "answer_bits_per_byte": False}


def test_a_win_rate_is_a_change_from_a_half():
    rate = {"value": 0.56, "low": 0.51, "high": 0.61, "n": 400}
    manifest = manifest_of("bb", None) | {"delta": [], "metrics": {"ppo.win_rate_vs_sft": rate}}
    found = numbers.changes_of(manifest, "ppo")["win_rate_vs_sft"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.06, 0.01, 0.11))


def test_the_same_weights_have_the_same_bits_per_byte():
    row = {"metric": "bits_per_byte", "before_stage": "sft", "change": 0.0, "low": -0.1, "high": 0.1}
    for weights, half in (("aa", 0.0), ("bb", 0.1)):
        manifest = manifest_of(weights, None) | {"delta": [row], "metrics": {}}
        assert numbers.changes_of(manifest, "ppo")["bits_per_byte"] == change(0.0, half)


# ------------------------------------------------------------------------------------------------- the guard's looks


def look(step, score, reward, error=0.01, **more):
    return {"step": step, "score": score, "reward": reward, "error": error, "kl": step / 10} | more


def test_over_optimisation_is_a_fall_of_the_score_while_the_reward_rises():
    rising = [look(0, 0.70, None, 0.0), look(6, 0.75, 0.1), look(12, 0.72, 0.4)]
    assert numbers.over_optimised(rising)["step"] == 6
    within_error = [*rising[:2], look(12, 0.745, 0.4)]
    assert numbers.over_optimised(within_error) is None
    both_fall = [*rising[:2], look(12, 0.72, 0.05)]
    assert numbers.over_optimised(both_fall) is None
    from_the_start = [look(0, 0.70, None, 0.0), look(6, 0.65, 0.1), look(12, 0.60, 0.4)]
    assert numbers.over_optimised(from_the_start)["step"] == 0
    assert numbers.over_optimised([]) is None


def manifest_of(weights, verdict):
    return {"outputs": {"ppo/model": weights}, "inputs": {"sft/model": "aa"}, "counts": {"verdict": verdict}}


def test_what_was_handed_over_is_told_by_the_weights_first():
    looks = [look(0, 0.7, None), look(6, 0.8, 0.1), look(12, 0.9, 0.2)]
    back = manifest_of("aa", "the policy of rollout 12 is handed over: held-out score +0.2 against the start")
    assert numbers.handed_over(back, "ppo", looks)["step"] == 0
    other = manifest_of("bb", "the policy of rollout 6 is handed over: held-out score +0.1 against the start")
    assert numbers.handed_over(other, "ppo", looks)["step"] == 6
    marked = [looks[0] | {"mark": "start"}, looks[1] | {"mark": "kept"}, looks[2] | {"mark": "worse"}]
    assert numbers.handed_over(manifest_of("bb", None), "ppo", marked)["step"] == 6
    assert numbers.handed_over(manifest_of("bb", None), "ppo", []) is None


def test_not_worse_is_an_interval_that_reaches_no_change():
    assert trials.not_worse("gold_score", change(-0.01, 0.02))
    assert not trials.not_worse("gold_score", change(-0.03, 0.02))
    assert not trials.not_worse("repetition", change(0.03, 0.02))
    assert trials.not_worse("repetition", change(-0.03, 0.02))
    assert trials.not_worse("answer_tokens", change(5.0, 1.0)) is None


# ------------------------------------------------------------------------------------------------------------ cases


def test_a_setting_that_the_package_does_not_know_is_a_reason_and_not_an_end():
    unknown = runs.Case("x", "x", ("ppo.of_a_later_day=false",))
    assert "of_a_later_day" in runs.why_not(QUICKSTART, [], unknown)
    impossible = runs.Case("x", "x", ("ppo.temperature=-1",))
    assert "ppo.temperature" in runs.why_not(QUICKSTART, [], impossible)
    assert runs.why_not(QUICKSTART, [], runs.Case("x", "x", ("ppo.temperature=0.1",))) is None


def test_a_mistake_in_the_recipe_itself_is_no_reason_to_skip():
    with pytest.raises(UserError, match="sed"):
        runs.why_not(QUICKSTART, ["sed=1"], runs.Case("x", "x", ()))


def test_ablations_are_chosen_by_name():
    assert runs.chosen_ablations("none") == []
    assert len(runs.chosen_ablations("all")) == len({case.name for case in runs.ABLATIONS}) >= 10
    assert [case.name for case in runs.chosen_ablations("fixed-kl, no-kl")] == ["fixed-kl", "no-kl"]
    with pytest.raises(UserError, match="known: no-kl"):
        runs.chosen_ablations("no-such")


@pytest.mark.parametrize("given", [["--stages", "sft"], ["--seeds", "1,1"]])
def test_what_cannot_be_run_is_said_before_anything_is(given):
    with pytest.raises(UserError, match=r"--stages|--seeds"):
        alignment.parsed(["--recipe", str(QUICKSTART), "--out", "x", *given])


def test_the_judges_pairs_and_the_policys_are_a_division_of_the_sources(tmp_path):
    recipe = tmp_path / "three.yaml"
    sources = [{"path": f"{name}.jsonl", "name": name, "balance_lengths": True} for name in "abc"]
    recipe.write_text(yaml.safe_dump({"name": "three", "corpus": {"preferences": sources}}))
    kept, only = runs.split_preferences(recipe, [], ["b"])
    found = [json.loads(value.removeprefix("corpus.preferences=")) for value in (kept, only)]
    assert [[row["name"] for row in rows] for rows in found] == [["a", "c"], ["b"]]
    assert all(row["balance_lengths"] for rows in found for row in rows)
    with pytest.raises(UserError, match="known: a, b, c"):
        runs.split_preferences(recipe, [], ["d"])
    with pytest.raises(UserError, match="no pairs are left"):
        runs.split_preferences(recipe, [], ["a", "b", "c"])


def test_a_refusal_is_a_finding_and_a_crash_is_an_end(tmp_path, monkeypatch):
    (tmp_path / "out" / "seed-7").mkdir(parents=True)
    asked = []

    def run(recipe, directory, stages, overrides):
        asked.append((directory.name, list(stages), list(overrides)))
        return runs.Ended(codes.get(directory.name + stages[0], 0), "why")

    monkeypatch.setattr(runs, "mengya_run", run)
    monkeypatch.setattr(runs, "begin_from", lambda base, directory: None)
    codes = {"seed-7ppo": 2}
    done, refused = runs.seed_run(QUICKSTART, tmp_path / "out", 7, ["dpo", "ppo", "grpo-arithmetic"], [])
    assert refused == {"ppo": "why"}
    assert {name: (run.name, stage) for name, (run, stage) in done.items()} == {
        "dpo": ("seed-7", "dpo"),
        "grpo-arithmetic": ("seed-7-grpo-arithmetic", "grpo"),
    }
    directory, stages, overrides = asked[-1]
    assert (directory, stages, overrides[0]) == ("seed-7-grpo-arithmetic", ["grpo"], "seed=7")
    settings = load_recipe(QUICKSTART, overrides).grpo
    assert (settings.kinds, [term.kind for term in settings.rewards]) == (["arithmetic"], ["truth"])
    codes = {"seed-7dpo": 1}
    with pytest.raises(SystemExit, match="ended with code 1: why"):
        runs.seed_run(QUICKSTART, tmp_path / "out", 7, ["dpo"], [])
    codes = {"seed-7corpus": 2}
    with pytest.raises(UserError, match="why"):
        runs.seed_run(QUICKSTART, tmp_path / "out", 7, ["dpo"], [])


def test_a_copy_follows_its_base_and_nothing_else(tmp_path):
    base, copy = tmp_path / "base", tmp_path / "copy"
    for stage in ("corpus", "sft"):
        (base / stage / "checkpoints").mkdir(parents=True)
        (base / stage / "manifest.json").write_text(f'"{stage} 1"')
        (base / stage / "made").write_text(f"{stage} 1")
    (base / "recipe.yaml").write_text("name: base\n")
    runs.begin_from(base, copy, ("corpus", "sft"))
    assert not (copy / "sft" / "checkpoints").exists()
    (copy / "corpus" / "made").write_text("untouched")
    (copy / "recipe.yaml").write_text("name: copy\n")
    (base / "sft" / "manifest.json").write_text('"sft 2"')
    (base / "sft" / "made").write_text("sft 2")
    runs.begin_from(base, copy, ("corpus", "sft"))
    assert (copy / "sft" / "made").read_text() == "sft 2"
    assert (copy / "corpus" / "made").read_text() == "untouched"
    assert (copy / "recipe.yaml").read_text() == "name: copy\n"
