"""Which pairs are the judge's, when any are set apart, how good it is said to be, and what the policies are left with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mengya.corpus.records import Message, PreferencePair, to_row
from mengya.errors import UserError
from mengya.evaluate.score import proportion
from mengya.files import write_jsonl
from mengya.recipe import load_recipe
from mengya.run import Context, Run
from mengya.settings import Recipe
from mengya.stages import STAGES
from mengya.stages.judge import LEAST_PAIRS, Judge, Split, judge_of, save_judge, share_of
from mengya.stages.preferences import policy_pairs
from mengya.stages.reward import divided_pairs
from mengya.stages.rollouts import rollout_prompts

RECIPES = Path(__file__).parents[2] / "recipes"


def _pair(question: str, chosen: str = "好", *later: str) -> PreferencePair:
    prompt = [Message("user", question)]
    for text in later:
        prompt += [Message("assistant", "嗯。"), Message("user", text)]
    return PreferencePair(tuple(prompt), chosen, "坏", "test")


PAIRS = [_pair(f"第{n}号门在哪里？", f"在{n}号楼。") for n in range(2000)]


# ------------------------------------------------------------------------------------------------------------- split


def test_the_share_is_the_judges_and_every_pair_is_on_one_side_in_its_order():
    ours, judges = Split(0.3, 1).divided(PAIRS)
    # Binomial: 600 of 2,000, a standard deviation of 20.5; five of them.
    assert 600 - 103 < len(judges) < 600 + 103
    assert sorted(map(PAIRS.index, ours + judges)) == list(range(2000))
    assert ours == sorted(ours, key=PAIRS.index)
    assert judges == sorted(judges, key=PAIRS.index)
    assert Split(0.0, 1).divided(PAIRS) == (PAIRS, [])


def test_pairs_of_one_prompt_are_on_one_side_however_it_is_written():
    split = Split(0.5, 1)
    for n in range(60):
        question = f"Room {n} 在哪里？"
        same = [
            _pair(question, "一"),
            _pair(question, "二"),
            _pair(f"  room {n} 在哪里 "),
            _pair(question, "三", f"第{n}次问，后来呢？"),  # what is asked later: a conversation that began alike
        ]
        system = PreferencePair((Message("system", "你是萌芽"), *same[0].prompt), "四", "坏", "other")
        assert len({split.is_judges(pair.prompt) for pair in (*same, system)}) == 1


def test_more_data_moves_no_pair_and_another_seed_moves_many():
    _, few = Split(0.3, 1).divided(PAIRS[::2])
    _, all_of_them = Split(0.3, 1).divided(PAIRS)
    assert set(few) == {pair for pair in all_of_them if pair in set(PAIRS[::2])}
    _, others = Split(0.3, 2).divided(PAIRS)
    # Two independent draws of 0.3 share 0.09 of all.
    assert 180 - 82 < len(set(all_of_them) & set(others)) < 180 + 82


# -------------------------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("name", "share"), [("quickstart", 0.0), ("seed-failure", 0.0), ("real-cpu", 0.3), ("real-alignment", 0.3)]
)
def test_by_default_a_share_is_set_apart_where_no_truth_is_known(name, share):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert share_of(recipe, 1_700) == share


def test_few_pairs_are_left_whole_unless_the_recipe_says_otherwise():
    teahouse = load_recipe(RECIPES / "own-data.yaml")
    assert share_of(teahouse, LEAST_PAIRS - 1) == 0.0
    assert share_of(teahouse, LEAST_PAIRS) == 0.3
    asked = load_recipe(RECIPES / "own-data.yaml", ["reward.judge_share=0.2"])
    assert share_of(asked, 16) == 0.2
    refused = load_recipe(RECIPES / "real-cpu.yaml", ["reward.judge_share=0"])
    assert share_of(refused, 1_700) == 0.0


@pytest.mark.parametrize("share", ["-0.1", "0.9", "1"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match=r"reward\.judge_share"):
        load_recipe(RECIPES / "quickstart.yaml", [f"reward.judge_share={share}"])


# -------------------------------------------------------------------------------------------------------- how good


def test_a_judge_is_weak_where_its_interval_holds_a_half():
    # Wilson: 55 of 100 is [45.2%, 64.4%], 65 of 100 [55.3%, 73.6%], 35 of 100 [26.4%, 44.7%].
    for right, weak in ((55, True), (65, False), (35, True)):
        judge = Judge(Split(0.3, 1), proportion(right, 100))
        assert judge.is_weak == weak
        assert ("no better than a coin" in judge.described()) == weak
        assert "\n" not in judge.described()
    assert (
        "right on 65.0% [55.3%, 73.6%] of 100 held-out pairs" in Judge(Split(0.3, 1), proportion(65, 100)).described()
    )
    unmeasured = Judge(Split(0.3, 1), proportion(0, 0))
    assert unmeasured.is_weak
    assert "never measured" in unmeasured.described()


# ---------------------------------------------------------------------------------------------- what policies see


@pytest.fixture
def context(tmp_path) -> Context:
    """A run with 200 training pairs of the corpus and 100 of the model's own, of 150 prompts."""
    write_jsonl(tmp_path / "corpus/preferences/train.jsonl", map(to_row, [*PAIRS[:100], *PAIRS[:100]]))
    write_jsonl(tmp_path / "corpus/preferences/validation.jsonl", map(to_row, PAIRS[500:540]))
    write_jsonl(tmp_path / "preferences/pairs/train.jsonl", map(to_row, PAIRS[50:150]))
    write_jsonl(tmp_path / "preferences/pairs/validation.jsonl", [])
    return Context(
        Recipe.model_validate({"name": "test", "reward": {"judge_share": 0.4}}), Run(tmp_path), STAGES["ppo"]
    )


def test_policies_leave_alone_what_the_judge_of_the_run_has_whatever_the_recipe_says(context):
    assert policy_pairs(context, "both")[1] == [], "there is no judge yet"
    split = Split(0.25, 7)  # of an earlier recipe: the judge's own word counts
    save_judge(context, Judge(split, proportion(65, 100)))
    assert judge_of(context) == Judge(split, proportion(65, 100))
    for pairs_from, count in (("corpus", 200), ("own", 100), ("both", 300)):
        ours, judges = policy_pairs(context, pairs_from)
        assert len(ours) + len(judges) == count
        assert ours
        assert judges
        assert all(split.is_judges(pair.prompt) for pair in judges)
        assert not any(split.is_judges(pair.prompt) for pair in ours)
    prompts = {question.messages for question in rollout_prompts(context, context.recipe.ppo, exercises=False)}
    ours, judges = policy_pairs(context)
    assert prompts == {pair.prompt for pair in ours}
    assert not prompts & {pair.prompt for pair in judges}


def test_the_reward_stage_divides_its_training_pairs_and_no_held_out_one(context):
    pairs = divided_pairs(context)
    assert {pair.prompt for pair in pairs.train}.isdisjoint(pair.prompt for pair in pairs.judges)
    assert len(pairs.train) + len(pairs.judges) == 200
    assert (pairs.split, pairs.validation) == (Split(0.4, context.recipe.seed), PAIRS[500:540])


def test_a_side_without_pairs_is_said_with_its_key(context):
    write_jsonl(context.path("corpus/preferences/train.jsonl"), map(to_row, [PAIRS[0], PAIRS[0]]))
    with pytest.raises(UserError, match="of 2 pairs to the judge") as error:
        divided_pairs(context)
    assert "reward.judge_share" in str(error.value)
    split = next(Split(0.5, seed) for seed in range(99) if Split(0.5, seed).is_judges(PAIRS[0].prompt))
    save_judge(context, Judge(split, proportion(65, 100)))
    with pytest.raises(UserError, match="all of 2 pairs are set apart for the judge"):
        policy_pairs(context)
