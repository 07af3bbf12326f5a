"""Objectives against hand arithmetic and independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mengya.data.pairs import TokenPair, pair_batch
from mengya.objectives import policy
from mengya.objectives.preference import completion_logps, dpo, dpo_loss
from mengya.objectives.reward import bradley_terry
from mengya.objectives.terms import token_logps


def test_token_logps_are_the_log_softmax_at_the_token():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    expected = 2.0 - math.log(sum(math.exp(x) for x in (1.0, 2.0, 0.5)))
    assert token_logps(logits, torch.tensor([1])).item() == pytest.approx(expected)


def test_bradley_terry_is_the_negative_log_of_the_logistic():
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))))


def test_dpo_starts_at_log_two_and_falls_as_the_margin_grows():
    zero, one = torch.zeros(1), torch.ones(1)
    assert dpo(zero, zero, 0.1).item() == pytest.approx(math.log(2))
    assert dpo(one, zero, 0.1).item() == pytest.approx(math.log(1 + math.exp(-0.1)))
    smoothed = 0.9 * math.log(1 + math.exp(-0.1)) + 0.1 * math.log(1 + math.exp(0.1))
    assert dpo(one, zero, 0.1, label_smoothing=0.1).item() == pytest.approx(smoothed)


class _Uniform(torch.nn.Module):
    """A language model to which every token is equally likely."""

    compute_dtype = torch.float32

    def hidden(self, ids_BT, **_):
        return torch.zeros(*ids_BT.shape, 4)

    def logits(self, x):
        return torch.zeros(*x.shape[:-1], 8)


def test_completion_logps_sum_over_the_answers_tokens_only():
    ids = torch.randint(0, 8, (2, 6))
    completion = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    assert torch.allclose(completion_logps(_Uniform(), ids, completion), -math.log(8) * torch.tensor([3.0, 2.0]))


def test_dpo_loss_takes_the_reference_of_its_own_pairs():
    ids = np.zeros(3, dtype=np.int64)
    batch = pair_batch([TokenPair(1, ids, ids)] * 3, [2, 0], pad_id=0)
    own = -2 * math.log(8)
    reference = torch.tensor([[own - 1.0, own], [0.0, 0.0], [own, own - 3.0]])
    terms = dpo_loss(reference, beta=0.5, label_smoothing=0.0)(_Uniform(), batch)
    # Pair 2: policy margin 0, reference margin 3; pair 0: reference margin -1.
    expected = math.log(1 + math.exp(0.5 * 3)) + math.log(1 + math.exp(-0.5))
    assert terms.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert terms.count == 2
    # Every token of the chosen answers has log p = −log 8, so the added term is log 8 a pair.
    with_nll = dpo_loss(reference, beta=0.5, label_smoothing=0.0, nll_coefficient=0.1)(_Uniform(), batch)
    assert with_nll.loss_sum.item() == pytest.approx(expected + 2 * 0.1 * math.log(8), rel=1e-5)


def _gae_by_definition(rewards, values, gamma, lambda_):
    """The sum of the paper, term by term, for one episode."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([0.0, 0.95, 1.0]),
)
def test_gae_is_the_discounted_sum_of_temporal_differences(steps, gamma, lambda_):
    rewards, values = zip(*steps, strict=True)
    pad = [7.0] * (6 - len(steps))  # what lies behind the end must not matter
    mask = torch.tensor([[True] * len(steps) + [False] * len(pad)])
    advantages, returns = policy.gae(
        torch.tensor([[*rewards, *pad]]), torch.tensor([[*values, *pad]]), mask, gamma, lambda_
    )
    expected = torch.tensor(_gae_by_definition(rewards, values, gamma, lambda_))
    assert torch.allclose(advantages[0, : len(steps)], expected, atol=1e-5)
    assert torch.allclose(returns[0, : len(steps)], expected + torch.tensor(values), atol=1e-5)
    assert not advantages[0, len(steps) :].any()


def test_score_lands_on_the_end_token_and_kl_on_every_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logps = torch.full((2, 3), -1.0)
    reference = torch.tensor([[-1.5, -1.0, 9.0], [-1.0, -1.0, -3.0]])
    rewards = policy.kl_penalised_rewards(torch.tensor([2.0, -1.0]), logps, reference, mask, 0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 2.0, 0.0], [0.0, 0.0, -1.2]]))


def test_whitened_advantages_have_zero_mean_and_unit_variance_inside_the_mask():
    x, mask = torch.randn(5, 7), torch.rand(5, 7) > 0.3
    inside = policy.whiten(x, mask)[mask]
    assert inside.mean().item() == pytest.approx(0, abs=1e-6)
    assert inside.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)


def test_the_clipped_objective_gives_no_gradient_beyond_the_clip():
    old = torch.zeros(1, 4)
    logps = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    policy.policy_loss(logps, old, advantages, torch.ones(1, 4, dtype=torch.bool), clip=0.2).backward()
    # A ratio above 1.2 with positive advantage, or below 0.8 with negative advantage, has nothing more to gain.
    assert logps.grad[0, [0, 3]].tolist() == [0, 0]
    assert (logps.grad[0, [1, 2]] != 0).all()


def test_value_loss_is_the_worse_of_clipped_and_unclipped():
    value, old, target = torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[3.0]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert policy.value_loss(value, old, target, mask, clip=0.5).item() == pytest.approx(0.5 * (0.5 - 3) ** 2)


def test_kl_coefficient_rises_above_target_and_falls_below():
    assert policy.adapt_kl_coefficient(0.1, kl=10, target=5) == pytest.approx(0.102)
    assert policy.adapt_kl_coefficient(0.1, kl=1, target=5) == pytest.approx(0.098)
    assert policy.adapt_kl_coefficient(0.1, kl=5, target=5) == pytest.approx(0.1)
