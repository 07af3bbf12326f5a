"""GRPO's parts against hand arithmetic, and the whole: groups that teach nothing are replaced, a resume ends with the same bits."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus import playground
from mengya.corpus.playground import judges
from mengya.corpus.records import Message, Question
from mengya.data.conversations import TokenExamples
from mengya.data.loader import PackedLoader
from mengya.errors import UserError
from mengya.evaluate.answers import Answers
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives import policy as maths
from mengya.rl.align import align, stream_of_prompts
from mengya.rl.grpo import GRPO, grpo_objective
from mengya.rl.guard import Look
from mengya.rl.replay import Replay
from mengya.rl.rollout import lay_out
from mengya.rl.terms import RewardTerms
from mengya.settings import GRPOSettings, RewardTerm
from mengya.train.parallel import World

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
TOKENIZER = small_tokenizer()
PROMPTS = [Question((Message("user", f"小明有{count}只小船吗？"),), "open") for count in range(10)]
SETTINGS = GRPOSettings(
    steps=4, batch_prompts=3, group_size=4, micro_batch_rows=5, minibatches=2, max_new_tokens=6, sequence_length=64,
    checkpoint_every=1, evaluate_every=2, learning_rate=1e-3,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- mathematics


def test_advantages_compare_an_answer_with_its_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 2.0, 0.0]])
    valid = torch.ones(2, 4, dtype=torch.bool)
    plain = maths.group_advantages(rewards, valid, divide_by_deviation=False)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, 0.5, -1.5]]
    divided = maths.group_advantages(rewards, valid, divide_by_deviation=True)
    assert torch.allclose(divided[1], plain[1] / statistics.pstdev([3.0, 1.0, 2.0, 0.0]))
    assert divided[0].tolist() == [1, -1, -1, 1]


def test_an_answer_without_a_reward_counts_for_nothing():
    rewards = torch.tensor([[1.0, 0.0, 99.0]])
    valid = torch.tensor([[True, True, False]])
    assert maths.group_advantages(rewards, valid, divide_by_deviation=True).tolist() == [[1, -1, 0]]


def test_a_group_of_equal_rewards_teaches_nothing():
    rewards, valid = torch.full((1, 4), 0.7), torch.ones(1, 4, dtype=torch.bool)
    for divide in (True, False):
        assert maths.group_advantages(rewards, valid, divide_by_deviation=divide).abs().max() < 1e-6


def test_k3_is_the_expectation_of_the_kl_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    expected = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert (p * maths.k3(p.log(), q.log())).sum().item() == pytest.approx(expected)
    assert (maths.k3(p.log(), q.log()) >= 0).all()


def test_a_higher_upper_clip_lets_good_tokens_grow_further():
    old, logps = torch.zeros(1, 2), torch.tensor([[math.log(1.25), math.log(0.75)]], requires_grad=True)
    maths.clipped_losses(logps, old, torch.tensor([[1.0, -1.0]]), 0.2, 0.28).sum().backward()
    assert logps.grad[0, 0] != 0, "1.25 is within 1.28"
    assert logps.grad[0, 1] == 0, "0.75 is below 0.8"


def _policy():
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2, ffn_width=32, max_positions=64)
    )


@pytest.mark.parametrize(("level", "weights"), [("token", (5 / 7, 2 / 7)), ("sequence", (1 / 2, 1 / 2))])
def test_at_ratio_one_the_loss_is_minus_the_advantage_of_tokens_or_of_answers(level, weights):
    policy = _policy()
    answers = Answers(["", ""], [[5, 6, 7, 8, 9], [5, 6]], [True, True], [[3, 4], [3, 4, 5]])
    rollout = lay_out(answers, WORLD.device)
    with torch.no_grad():
        from mengya.rl.rollout import answer_logps

        logps_BA, _ = answer_logps(policy, rollout)
    advantages = torch.tensor([[2.0], [-1.0]]) * rollout.mask_BA
    filled = type(rollout)(
        **{**vars(rollout), "logps_BA": logps_BA, "reference_BA": logps_BA, "advantages_BA": advantages}
    )
    terms = grpo_objective(SETTINGS.model_copy(update={"loss_level": level}))(policy, filled)
    assert terms.loss_sum.item() / terms.count == pytest.approx(-(2 * weights[0] - weights[1]), rel=1e-5)


# --------------------------------------------------------------------------------------------------------- the whole


class Rewards(RewardTerms):
    """The share of even tokens: any number that depends on the answer will do."""

    def __init__(self, same=()):
        super().__init__([], None, {})
        self.same = same

    def __call__(self, questions, answers, world):
        return [
            0.5 if question.messages[0].content in self.same else sum(t % 2 == 0 for t in tokens) / max(1, len(tokens))
            for question, tokens in zip(questions, answers.tokens, strict=True)
        ], {}


class Stop(Exception):
    pass


def _replay():
    examples = TokenExamples(([i, i + 1, i + 2, i], [True] * 4) for i in range(9))
    loader = PackedLoader(examples, row_length=8, rows_per_step=2, micro_batch_rows=2, seed=1, pad_id=0)
    return Replay([(loader, 0.5)], WORLD)


def _train(directory, stop_at=None, same=(), settings=SETTINGS):
    policy, reference = _policy(), _policy().requires_grad_(False)
    algorithm = GRPO(
        policy, reference, TOKENIZER, PROMPTS, Rewards(same), settings, world=WORLD, seed=1, replay=_replay()
    )

    def look(model, step):
        if step == stop_at:
            raise Stop
        return Look(step, float(step), 0.0, 1.0, 0.0)

    totals = align(algorithm, settings, look=look, directory=directory, world=WORLD)
    return policy.state_dict(), totals


def test_grpo_stopped_and_started_again_ends_with_the_same_bits(tmp_path):
    undisturbed, totals = _train(tmp_path / "undisturbed")
    assert totals["rollouts"] == 4
    start = _policy().state_dict()
    assert any(not torch.equal(start[name], value) for name, value in undisturbed.items())
    for stop_at in (2, 4):
        with pytest.raises(Stop):
            _train(tmp_path / str(stop_at), stop_at)
        resumed, resumed_totals = _train(tmp_path / str(stop_at))
        assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
        assert resumed_totals == totals


def test_prompts_that_teach_nothing_are_replaced_by_others(tmp_path):
    same = {PROMPTS[i].messages[0].content for i in stream_of_prompts(len(PROMPTS), 0, 2, 1)}
    settings = SETTINGS.model_copy(update={"missing_end_penalty": 0.0, "repetition_penalty": 0.0})
    policy, reference = _policy(), _policy()
    algorithm = GRPO(policy, reference, TOKENIZER, PROMPTS, Rewards(same), settings, world=WORLD, seed=1)
    numbers = algorithm.rollout(0)
    assert numbers["groups"] == 3, "two of the first three taught nothing, and two others took their place"
    assert algorithm.totals["degenerate_groups"] == 2
    assert algorithm.drawn == 5
    everything = {question.messages[0].content for question in PROMPTS}
    algorithm = GRPO(policy, reference, TOKENIZER, PROMPTS, Rewards(everything), settings, world=WORLD, seed=1)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert algorithm.rollout(0)["groups"] == 0
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_held_out_exercises_are_worded_as_no_exercise_is():
    world = playground.Playground(seed=3, num_people=20)
    kinds = {"arithmetic": 3, "rewriting": 1}
    practised = {q.messages[-1].content for q in playground.generate_exercises(world, 2000, kinds)}
    held_out = playground.generate_held_out_exercises(world, 200, kinds)
    assert len(held_out) == len({question.messages for question in held_out}) > 100
    assert not practised & {question.messages[-1].content for question in held_out}
    sums = sum(question.kind == "arithmetic" for question in held_out)
    assert 0.6 < sums / len(held_out) < 0.95, "in the shares that were asked for"


def test_exercises_have_their_truth_and_training_wordings():
    world = playground.Playground(seed=3, num_people=20)
    exercises = playground.generate_exercises(world, 300)
    assert {question.kind for question in exercises} >= {"arithmetic", "list", "rewriting", "unknown"}
    held_out = {question.messages[-1].content for question in playground.generate_questions(world)}
    assert not {q.messages[-1].content for q in exercises if q.kind == "arithmetic"} & held_out
    sums = playground.generate_exercises(world, 50, ["arithmetic"])
    assert {question.kind for question in sums} == {"arithmetic"}
    assert all(judges.is_right(f"等于{question.accept[0][0]}。", question) for question in sums)


def test_a_reward_function_that_always_fails_stops_with_its_reason(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text("def score(prompt, answer, meta):\n    raise KeyError('x')\n")
    settings = SETTINGS.model_copy(update={"rewards": [RewardTerm(kind="function", function=f"{file}:score")]})
    terms = RewardTerms.of(settings, None, WORLD, "grpo")
    try:
        with pytest.raises(UserError, match="failed for all of 2 answers: KeyError"):
            terms(PROMPTS[:2], Answers(["一", "二"], [[5], [6]], [True, True], [[3], [3]]), WORLD)
    finally:
        terms.close()
