"""Reward models as PPO and GRPO take them: refused when weak, or of another tokenizer; scaled when constant; weighted."""

from __future__ import annotations

import random

import pytest
import torch
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus import records
from mengya.corpus.records import Message, PreferencePair
from mengya.data.pairs import pair_batch, render_pairs
from mengya.errors import UserError
from mengya.evaluate.answers import Answers
from mengya.evaluate.score import proportion
from mengya.files import write_json
from mengya.model.checkpoint import save_model
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardEnsemble, RewardModel
from mengya.objectives.reward import bradley_terry, reward_loss
from mengya.rl.rewards import Scale
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Run
from mengya.settings import PPOSettings, Recipe
from mengya.stages import STAGES
from mengya.stages.reward_models import check_reward, load_rewards, member_name
from mengya.tokenizer.train import save_tokenizer, train_tokenizer
from mengya.train.parallel import World

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
SHAPE = {"width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 64, "max_positions": 128}
PROMPT = (Message("user", "苹果好吃吗？"),)


def tiny_reward(seed: int) -> RewardModel:
    torch.manual_seed(seed)
    model = RewardModel(ModelConfig(vocab_size=small_tokenizer().vocab_size, **SHAPE))
    model.draw_head()
    return model.eval()


@pytest.fixture
def context(tmp_path) -> Context:
    """A run with a tokenizer and two reward models, of which 368 of 400 pairs were right."""
    save_tokenizer(small_tokenizer().backend, tmp_path / "tokenizer" / "model")
    for number in (0, 1):
        directory = tmp_path / "reward" / member_name(number)
        save_model(tiny_reward(number), directory, tokenizer_dir=tmp_path / "tokenizer" / "model")
    measured(tmp_path, 368)
    return Context(Recipe(name="test"), Run(tmp_path), STAGES["ppo"])


def measured(directory, right: int, offsets=(0.25, -0.5)) -> None:
    baselines = {"length_only": 0.5, "characters_only": 0.81, "answer_only": 0.7}
    metrics = {f"{name}_accuracy": proportion(share * 400, 400) for name, share in baselines.items()}
    metrics["pair_accuracy"] = proportion(right, 400)
    evaluation = {"metrics": metrics, "offsets": list(offsets), "conservatism": 0.5}
    write_json(directory / "reward" / "evaluation.json", evaluation)


# ------------------------------------------------------------------------------------------------------ refused


def test_a_reward_model_that_beats_its_baselines_is_taken(context):
    check_reward(context, accepted=False)


def test_a_weak_reward_model_is_refused_with_its_numbers_unless_the_recipe_insists(context, capsys):
    measured(context.run.directory, 330)
    with pytest.raises(UserError) as error:
        check_reward(context, accepted=False)
    line = str(error.value)
    assert "82.5% [78.5%, 85.9%] of 400 held-out pairs, the characters alone on 81.0%" in line
    assert "`ppo.accept_weak_reward: true` insists" in line
    assert "\n" not in line
    check_reward(context, accepted=True)
    assert "goes on all the same, as ppo.accept_weak_reward says" in " ".join(capsys.readouterr().err.split())


def test_the_recipes_margin_decides(context):
    strict = Recipe.model_validate({"name": "test", "reward": {"min_margin": 0.1}})
    with pytest.raises(UserError, match=r"not \+10\.0% above it"):
        check_reward(Context(strict, context.run, STAGES["ppo"]), accepted=False)


def test_a_reward_model_that_was_never_measured_is_refused(context):
    (context.run.directory / "reward" / "evaluation.json").unlink()
    with pytest.raises(UserError, match="run the stage reward"):
        check_reward(context, accepted=True)


@pytest.mark.parametrize(
    ("section", "key"), [("reward", "min_margin"), ("reward", "must_beat"), ("ppo", "accept_weak_reward")]
)
def test_what_decides_whether_a_stage_runs_makes_nothing_stale(tmp_path, section, key):
    value = {"min_margin": 0.3, "must_beat": ["length"], "accept_weak_reward": True}[key]
    first, second = Recipe(name="a"), Recipe.model_validate({"name": "a", section: {key: value}})
    run = Run(tmp_path)
    assert run.wanted(first, STAGES[section]) == run.wanted(second, STAGES[section])


# ------------------------------------------------------------------------------------------------------ loaded


def test_several_reward_models_are_loaded_as_one_and_one_as_itself(context):
    rewards = load_rewards(context, WORLD)
    assert isinstance(rewards, RewardEnsemble)
    assert (rewards.offsets, rewards.conservatism) == ((0.25, -0.5), 0.5)
    assert not any(parameter.requires_grad for parameter in rewards.parameters())
    ids_BT, lengths_B = torch.randint(5, 300, (3, 9)), torch.tensor([9, 4, 7])
    first, second = (tiny_reward(number)(ids_BT, lengths_B) for number in (0, 1))
    # Of two numbers a and b the deviation is |a − b| / 2.
    a, b = first - 0.25, second + 0.5
    torch.testing.assert_close(rewards(ids_BT, lengths_B), (a + b) / 2 - 0.5 * (a - b).abs() / 2)
    measured(context.run.directory, 368, offsets=(0.25,))
    alone = load_rewards(context, WORLD)
    assert isinstance(alone, RewardModel)
    assert torch.equal(alone(ids_BT, lengths_B), first)


def test_a_reward_model_of_another_tokenizer_is_refused(context):
    other = train_tokenizer([text[::-1] for text in TEXTS], 370, max_characters=100_000, seed=0)
    path = context.run.directory / "reward" / "model-1"
    save_model(tiny_reward(1), path)  # the same weights and the same size of vocabulary
    save_tokenizer(other, context.run.directory / "other")
    for file in (context.run.directory / "other").iterdir():
        file.rename(path / file.name)
    with pytest.raises(UserError, match="reads other tokens than the policy writes") as error:
        load_rewards(context, WORLD)
    assert "model-1" in str(error.value)


# ------------------------------------------------------------------------------------------------------ constant


def answers(count: int) -> Answers:
    return Answers([f"答{n}" for n in range(count)], [[7]] * count, [True] * count, [[5]] * count)


def test_a_constant_reward_is_said_and_stays_nothing(capsys):
    scores = [0.7 + n * 1e-8 for n in range(8)]  # equal but for rounding
    scale = Scale.of(scores)
    assert scale.deviation == 1.0
    assert "gives all of 8 answers the same score" in " ".join(capsys.readouterr().err.split())
    terms = RewardTerms.of(PPOSettings(), None, WORLD, "ppo")
    assert terms._normalised(scores) == pytest.approx([0.0] * 8, abs=1e-6)


def test_a_reward_that_varies_is_measured_in_its_own_deviation(capsys):
    scale = Scale.of([1.0, 3.0])
    assert (scale.mean, scale.deviation) == (2.0, 1.0)
    assert Scale.of([0.0, 0.02]).deviation == pytest.approx(0.01)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------ ranked lists


def test_a_ranked_list_counts_once():
    """The gradient of a list of three beside a single pair is that of (mean of its three pairs + the single one)."""
    words = ["好吃", "小明看见苹果", "白菜", "不"]
    ranked = [PreferencePair(PROMPT, words[a], words[b], "list", weight=1 / 3) for a, b in ((0, 1), (0, 2), (1, 2))]
    single = PreferencePair(PROMPT, words[0], words[3], "pair")
    rendered, _ = render_pairs([*ranked, single], small_tokenizer(), max_tokens=128)
    assert sum(pair.weight for pair in rendered) == pytest.approx(4.0), "the mean weight is 1"
    model = tiny_reward(3)
    terms = reward_loss()(model, pair_batch(rendered, range(4), pad_id=0))
    losses = []
    for pair in rendered:
        sides = [torch.from_numpy(side)[None] for side in (pair.chosen, pair.rejected)]
        chosen, rejected = (model(ids, torch.tensor([ids.shape[1]])) for ids in sides)
        losses.append(bradley_terry(chosen, rejected).squeeze())
    # Ouyang et al. 2022, eq. 1: each list divided by its number of pairs; here in units that make the mean weight 1.
    expected = 2.0 * (sum(losses[:3]) / 3 + losses[3])
    torch.testing.assert_close(terms.loss_sum, expected, rtol=1e-4, atol=1e-5)
    assert terms.count == 4


def test_pairs_of_no_list_weigh_one_exactly_and_their_rows_are_as_before():
    rng = random.Random(0)
    pairs = [PreferencePair(PROMPT, "好" * rng.randrange(1, 9), "坏", "test") for _ in range(7)]
    rendered, _ = render_pairs(pairs, small_tokenizer(), max_tokens=128)
    assert [pair.weight for pair in rendered] == [1.0] * 7
    assert "weight" not in records.to_row(pairs[0])
    weighted = PreferencePair(PROMPT, "好", "坏", "test", weight=1 / 3)
    assert records.preference_pair(records.to_row(weighted)) == weighted
