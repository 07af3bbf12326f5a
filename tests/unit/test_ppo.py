"""PPO's switches, each against what it says; answers without a reward; steps that are not taken."""

from __future__ import annotations

import math

import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, Question
from mengya.errors import UserError
from mengya.evaluate.answers import SAMPLED, answer
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives.terms import Terms
from mengya.rl import ppo
from mengya.rl.learner import Learner
from mengya.rl.rollout import answer_logps
from mengya.rl.terms import RewardTerms
from mengya.settings import PPOSettings, RewardTerm
from mengya.stages.aligned import with_room
from mengya.train import stability
from mengya.train.parallel import World

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
TOKENIZER = small_tokenizer()
QUESTIONS = [Question((Message("user", f"小明有{count}只小船吗？"),), "open") for count in range(6)]
SETTINGS = PPOSettings(
    steps=3, batch_prompts=6, epochs=1, minibatches=2, micro_batch_rows=2, max_new_tokens=6, sequence_length=64,
    value_warmup_steps=0, learning_rate=1e-3,
)  # fmt: skip
REWARDS = [0.5, -1.0, 2.0, 0.0, 1.0, -0.5]


def _actors():
    config = ModelConfig(TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2, ffn_width=32, max_positions=64)
    torch.manual_seed(0)
    reference = Transformer(config)
    policy = Transformer(config)
    policy.load_state_dict(reference.state_dict())
    with torch.no_grad():  # else every estimate of KL is 0
        policy.model.embed_tokens.weight += 0.05 * torch.randn(policy.model.embed_tokens.weight.shape)
    return ppo.Actors(policy, RewardModel(config), reference.requires_grad_(False))


@pytest.fixture(scope="module")
def answers():
    how = {"max_new_tokens": 6, "sampling": SAMPLED, "seed": 0}
    return answer(_actors().policy, TOKENIZER, [question.messages for question in QUESTIONS], **how)


def _collect(answers, rewards=REWARDS, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return ppo.collect(_actors(), answers, rewards, settings, 0.1, WORLD)


def test_advantages_are_whitened_unless_they_are_not(answers):
    white, _ = _collect(answers)
    plain, _ = _collect(answers, whiten_advantages=False)
    inside = plain.advantages_BA[plain.mask_BA]
    expected = (inside - inside.mean()) / inside.std(unbiased=False)
    torch.testing.assert_close(white.advantages_BA[white.mask_BA], expected)
    assert abs(inside.mean()) > 1e-3
    torch.testing.assert_close(plain.returns_BA, (plain.advantages_BA + plain.values_BA) * plain.mask_BA)


@pytest.mark.parametrize(
    ("estimator", "of"), [("k1", lambda d: d), ("k2", lambda d: d**2 / 2), ("k3", lambda d: (-d).exp() - 1 + d)]
)
def test_the_return_of_the_first_token_is_the_reward_less_the_estimated_kl(answers, estimator, of):
    """With γ = λ = 1, R_1 = reward − β Σ KL over the answer, whatever the values say."""
    rollout, numbers = _collect(answers, kl_estimator=estimator, gae_lambda=1.0)
    difference_BA = rollout.logps_BA - rollout.reference_BA
    assert numbers["kl"] == pytest.approx(difference_BA.sum(1).mean().item()), (
        "the log's KL is k1 whatever is penalised"
    )
    assert difference_BA.abs().max() > 0.1
    expected = torch.tensor(REWARDS) - 0.1 * (of(difference_BA) * rollout.mask_BA).sum(1)
    torch.testing.assert_close(rollout.returns_BA[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_an_answer_without_a_reward_teaches_nothing(answers):
    rewards = [math.nan, *REWARDS[1:]]
    rollout, numbers = _collect(answers, rewards)
    assert not rollout.mask_BA[0].any()
    assert not rollout.advantages_BA[0].any()
    assert numbers["reward"] == pytest.approx(sum(REWARDS[1:]) / 5)
    others, _ = ppo.collect(
        _actors(),
        type(answers)(*(getattr(answers, name)[1:] for name in ("texts", "tokens", "finished", "prompts"))),
        REWARDS[1:],
        SETTINGS,
        0.1,
        WORLD,
    )
    torch.testing.assert_close(rollout.advantages_BA[rollout.mask_BA], others.advantages_BA[others.mask_BA])
    nobody, numbers = _collect(answers, [math.nan] * 6)
    assert numbers["kl"] == numbers["reward"] == 0
    assert ppo.policy_objective(SETTINGS)(_actors().policy, nobody).count == 0


def _gradient(rollout, **changes):
    policy = _actors().policy
    terms = ppo.policy_objective(SETTINGS.model_copy(update=changes))(policy, rollout)
    terms.loss_sum.backward()
    return terms.loss_sum.item(), torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_kl_and_entropy_enter_the_loss_with_their_coefficients(answers):
    rollout, _ = _collect(answers)
    plain, gradient = _gradient(rollout)
    d_BA = (rollout.reference_BA - rollout.logps_BA).double()
    k3 = ((d_BA.exp() - 1 - d_BA) * rollout.mask_BA).sum().item()
    assert _gradient(rollout, kl_loss_coefficient=0.3)[0] == pytest.approx(plain + 0.3 * k3, rel=1e-4)
    # Entropy and its gradient from the definition, −Σ p log p, by autograd through softmax.
    policy = _actors().policy
    total = torch.zeros(())
    for b, (prompt, length) in enumerate(
        zip(rollout.prompt_lengths_B.tolist(), rollout.mask_BA.sum(1).tolist(), strict=True)
    ):
        logits = policy.logits(policy.hidden(rollout.ids_BT[b : b + 1]))[0, prompt - 1 : prompt - 1 + length]
        p = logits.softmax(-1)
        total = total - (p * p.log()).sum()
    total.backward()
    expected = gradient - 0.2 * torch.cat([p.grad.flatten() for p in policy.parameters()])
    loss, found = _gradient(rollout, entropy_coefficient=0.2)
    assert loss == pytest.approx(plain - 0.2 * total.item(), rel=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, gradient, atol=1e-3)


def test_the_entropy_that_is_only_watched_has_no_gradient(answers):
    rollout, _ = _collect(answers)
    assert not answer_logps(_actors().policy, rollout)[1].requires_grad
    assert answer_logps(_actors().policy, rollout, learns_entropy=True)[1].requires_grad


# --------------------------------------------------------------------------------------------------------- rollouts


class Broken:
    """A user's function that has no number for some answers."""

    spec, last_failure = "rewards.py:score", "no idea"

    def __call__(self, questions, texts):
        return [math.nan, *(float(len(text)) for text in texts[1:])]


def test_a_rollout_counts_the_answers_without_a_reward_and_learns_from_the_others():
    actors = _actors()
    before = {name: value.clone() for name, value in actors.policy.state_dict().items()}
    rewards = RewardTerms([RewardTerm(kind="function")], None, {0: Broken()})
    algorithm = ppo.PPO(actors, TOKENIZER, QUESTIONS, rewards, SETTINGS, world=WORLD, seed=1)
    numbers = algorithm.rollout(0)
    assert algorithm.totals["failed_rewards"] == 1
    assert all(math.isfinite(value) for value in numbers.values())
    assert any(not torch.equal(before[name], value) for name, value in actors.policy.state_dict().items())


def test_a_step_without_a_finite_gradient_is_not_taken_but_counted():
    actors = _actors()
    rewards = RewardTerms([RewardTerm(kind="function")], None, {0: Broken()})
    algorithm = ppo.PPO(actors, TOKENIZER, QUESTIONS, rewards, SETTINGS, world=WORLD, seed=1)
    with torch.no_grad():
        actors.values.score.weight[0, 0] = math.inf
    before = {name: value.clone() for name, value in actors.policy.state_dict().items()}
    numbers = algorithm.rollout(0)
    assert algorithm.totals["skipped_steps"] == numbers["skipped_steps"] == 4, "two of the values, two of the policy"
    assert all(torch.equal(before[name], value) for name, value in actors.policy.state_dict().items())


class Batch:
    def to(self, device):
        return self


def test_a_spike_is_skipped_and_what_was_usual_is_part_of_the_state():
    """The loss is the weight times what the test says: the gradient is that number."""

    def learner():
        torch.manual_seed(0)
        return Learner("policy", torch.nn.Linear(1, 1, bias=False), SETTINGS, WORLD)

    def learn(learner, slope):
        totals = {"skipped_steps": 0.0}
        objective = lambda model, batch: Terms(slope * model.weight.sum(), 1)  # noqa: E731
        result = learner.learn([Batch()], objective, rate=0.0, step=0, totals=totals)
        return result.skipped, totals["skipped_steps"]

    first = learner()
    for _ in range(stability._FIRST_STEPS):
        assert learn(first, 1.0) == (None, 0)
    reason, count = learn(first, 1000.0)
    assert "deviations above the usual" in reason
    assert count == 1
    resumed = learner()
    assert learn(resumed, 1000.0) == (None, 0), "a fresh one knows nothing of what is usual"
    resumed.load(first.tensors(), first.numbers())
    assert learn(resumed, 1000.0)[0] == reason
    assert learn(resumed, 1.0) == (None, 0)


def test_another_start_of_the_values_is_a_head_that_says_nothing():
    policy = _actors().policy
    fresh = RewardModel.from_language_model(policy)
    assert not fresh.scores(torch.arange(10)[None]).any()


def test_prompts_without_room_for_an_answer_are_left_out_and_counted_or_said():
    lengths = [len(TOKENIZER.render(q.messages, add_generation_prompt=True)[0]) for q in QUESTIONS]
    long = Question((Message("user", "小明在河边看见一只小船。" * 5),), "open")
    room = {"sequence_length": max(lengths) + 6, "max_new_tokens": 6}
    settings = SETTINGS.model_copy(update=room)
    asked = [*QUESTIONS, long]
    assert with_room(asked, [q.messages for q in asked], TOKENIZER, settings, "ppo") == QUESTIONS
    tight = SETTINGS.model_copy(update=room | {"sequence_length": min(lengths) + 5})
    with pytest.raises(UserError, match=r"ppo\.sequence_length: no prompt leaves room for an answer of 6 tokens"):
        with_room(asked, [q.messages for q in asked], TOKENIZER, tight, "ppo")
