"""The terms of a reward against hand arithmetic: weights, unit, clip; what a term could not tell; who calls the user's function."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, Question
from mengya.errors import UserError
from mengya.evaluate.answers import Answers
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.rl.rewards import penalised, reward_scores
from mengya.rl.terms import RewardTerms
from mengya.settings import GRPOSettings, PPOSettings, RewardTerm
from mengya.train.parallel import World

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
ANSWERS = Answers(
    ["等于7。", "等于8。", "等于7吗", "是7"],
    [[5, 6, 7], [5, 6, 8], [9, 7], [10, 11, 12, 13]],
    [True, True, False, True],
    [[3, 4]] * 4,
)
QUESTIONS = [Question((Message("user", "三加四等于几？"),), "arithmetic", (("7",),))] * 3
QUESTIONS += [Question((Message("user", "说点什么。"),), "open")]


class Function:
    """In the place of the user's process: the numbers it is given."""

    spec, last_failure = "rewards.py:score", "it said so"

    def __init__(self, values):
        self.values = values

    def __call__(self, questions, texts):
        assert len(questions) == len(texts) == len(self.values)
        self.seen = list(zip(questions, texts, strict=True))
        return self.values


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ModelConfig(small_tokenizer().vocab_size, width=16, num_layers=1, num_heads=2, ffn_width=32)
    found = RewardModel(config)
    with torch.no_grad():
        found.score.weight.normal_(std=1.0)
    return found.requires_grad_(False)


def test_a_term_judges_the_questions_that_it_is_for(model):
    function = Function([0.1, 0.2, 0.4])
    terms = [
        RewardTerm(kind="truth"),
        RewardTerm(kind="model", weight=0.5, questions=["open"]),
        RewardTerm(kind="function", questions=["arithmetic"]),
        RewardTerm(kind="model", questions=["rewriting"]),
    ]
    totals, means = RewardTerms(terms, model, {2: function}, normalise=False)(QUESTIONS, ANSWERS, WORLD)
    (score,) = reward_scores(model, ANSWERS)[3:]
    assert totals == pytest.approx([1.1, 0.2, 1.4, 0.5 * score])
    assert function.seen == list(zip(QUESTIONS[:3], ANSWERS.texts[:3], strict=True))
    assert means["reward_1_model"] == pytest.approx(score)
    assert "reward_3_model" not in means, "there was nothing to judge"


def test_terms_are_added_up_with_their_weights(model):
    terms = [RewardTerm(kind="truth", weight=2), RewardTerm(kind="model", weight=0.5), RewardTerm(kind="function")]
    rewards = RewardTerms(terms, model, {2: Function([0.1, 0.2, math.nan, 0.4])})
    totals, means = rewards(QUESTIONS, ANSWERS, WORLD)
    raw = reward_scores(model, ANSWERS)
    unit = [(score - statistics.fmean(raw)) / statistics.pstdev(raw) for score in raw]
    truth = [1, 0, 1, 0]  # of the open prompt nobody knows
    expected = [2 * t + 0.5 * u + f for t, u, f in zip(truth, unit, (0.1, 0.2, math.nan, 0.4), strict=True)]
    assert totals == pytest.approx(expected, nan_ok=True)
    assert means["score"] == pytest.approx(statistics.fmean(raw))
    assert means["reward_0_truth"] == 0.5
    assert means["reward_2_function"] == pytest.approx(0.7 / 3), "of the answers that have one"
    after = penalised(totals, ANSWERS, PPOSettings(missing_end_penalty=0.7))
    assert [math.isnan(reward) for reward in after] == [False, False, True, False], "no penalty makes a reward of none"


def test_the_unit_is_that_of_the_first_rollout_and_survives_a_resume(model):
    settings = PPOSettings(reward_clip=None)
    rewards = RewardTerms.of(settings, model, WORLD, "ppo")
    first, _ = rewards(QUESTIONS, ANSWERS, WORLD)
    clipped, _ = RewardTerms.of(PPOSettings(reward_clip=0.3), model, WORLD, "ppo")(QUESTIONS, ANSWERS, WORLD)
    assert clipped == [min(max(value, -0.3), 0.3) for value in first]
    assert max(map(abs, first)) > 0.3
    few = Answers(*(getattr(ANSWERS, name)[:2] for name in ("texts", "tokens", "finished", "prompts")))
    resumed = RewardTerms.of(settings, model, WORLD, "ppo")
    resumed.load_state(rewards.state())
    assert resumed(QUESTIONS[:2], few, WORLD)[0] == pytest.approx(first[:2])
    fresh = RewardTerms.of(settings, model, WORLD, "ppo")
    assert fresh(QUESTIONS[:2], few, WORLD)[0] != pytest.approx(first[:2]), "else the state says nothing"


def test_scores_may_be_left_as_they_are(model):
    raw = reward_scores(model, ANSWERS)
    settings = PPOSettings(normalise_rewards=False, reward_clip=None)
    assert RewardTerms.of(settings, model, WORLD, "ppo")(QUESTIONS, ANSWERS, WORLD)[0] == pytest.approx(raw)
    grpo = RewardTerms.of(GRPOSettings(rewards=[RewardTerm(kind="model")]), model, WORLD, "grpo")
    found, _ = grpo(QUESTIONS, ANSWERS, WORLD)
    assert statistics.fmean(found) == pytest.approx(0, abs=1e-6)
    assert statistics.pstdev(found) == pytest.approx(1, abs=1e-6)


def test_the_users_process_is_started_on_rank_0_alone(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def score(prompt, answer, meta):\n    return len(answer)\n")
    settings = GRPOSettings(rewards=[RewardTerm(kind="function", function=f"{file}:score")])
    other = RewardTerms.of(settings, None, World(1, 2, torch.device("cpu"), torch.float32), "grpo")
    assert other.functions == {}
    main = RewardTerms.of(settings, None, WORLD, "grpo")
    try:
        assert main(QUESTIONS, ANSWERS, WORLD)[0] == [4, 4, 4, 2]
    finally:
        main.close()


def test_a_function_that_failed_for_every_answer_stops_with_its_reason():
    rewards = RewardTerms([RewardTerm(kind="function")], None, {0: Function([math.nan] * 4)})
    with pytest.raises(
        UserError, match=r"rewards\.py:score: the reward function failed for all of 4 answers: it said so"
    ):
        rewards(QUESTIONS, ANSWERS, WORLD)


def test_a_function_without_a_name_is_the_users_mistake():
    settings = PPOSettings(rewards=[RewardTerm(kind="model"), RewardTerm(kind="function")])
    with pytest.raises(UserError, match=r"ppo\.rewards\.1\.function"):
        RewardTerms.of(settings, None, WORLD, "ppo")
