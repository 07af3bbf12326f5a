"""The mathematics of PPO and GRPO against NumPy in float64, entry by entry, and against exact expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mengya.objectives import policy

RNG = np.random.default_rng(7)
B, T = 5, 9
LENGTHS = (9, 1, 4, 7, 3)
MASK = np.array([[t < length for t in range(T)] for length in LENGTHS])
X, OLD, ADVANTAGES = (RNG.normal(size=(B, T)) for _ in range(3))


def _t(array):
    return torch.tensor(np.asarray(array), dtype=torch.float32 if np.asarray(array).dtype != bool else torch.bool)


# ------------------------------------------------------------------------------------------------------ KL estimators

P, Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.4, 0.2, 0.3, 0.1])
KL = float(np.sum(P * np.log(P / Q)))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    """Their expectation under π over all tokens is the divergence itself."""
    found = policy.KL_ESTIMATORS[name](_t(np.log(P)), _t(np.log(Q)))
    assert float((_t(P) * found).sum()) == pytest.approx(KL, rel=1e-5)


def test_k2_is_half_the_mean_square_and_near_the_divergence_of_near_distributions():
    found = policy.k2(_t(np.log(P)), _t(np.log(Q)))
    np.testing.assert_allclose(
        found.numpy(), [0.5 * math.log(p / q) ** 2 for p, q in zip(P, Q, strict=True)], rtol=1e-5
    )
    near = P * np.exp(0.01 * np.array([1.0, -1.0, 1.0, -1.0]))
    near /= near.sum()
    exact = float(np.sum(P * np.log(P / near)))
    assert float((P * policy.k2(_t(np.log(P)), _t(np.log(near))).numpy()).sum()) == pytest.approx(exact, rel=0.02)


def test_k2_and_k3_are_never_negative_where_k1_is():
    assert (policy.k1(_t(np.log(P)), _t(np.log(Q))) < 0).any()
    for name in ("k2", "k3"):
        assert (policy.KL_ESTIMATORS[name](_t(np.log(P)), _t(np.log(Q))) >= 0).all()


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_the_penalty_stands_on_every_token_and_the_score_on_the_last(name):
    formula = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}[name]
    score = RNG.normal(size=B)
    expected = np.zeros((B, T))
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            expected[b, t] = -0.3 * formula(X[b, t] - OLD[b, t])
        expected[b, length - 1] += score[b]
    found = policy.kl_penalised_rewards(_t(score), _t(X), _t(OLD), _t(MASK), 0.3, name)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- GAE, whitening


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_of_ragged_rows_is_the_sum_of_the_paper(gamma, lambda_):
    rewards, values = X, OLD
    found, returns = policy.gae(_t(rewards * MASK), _t(values * MASK), _t(MASK), gamma, lambda_)
    for b, length in enumerate(LENGTHS):
        v = [*values[b, :length], 0.0]
        deltas = [rewards[b, t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(T):
            expected = sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, length))
            assert found[b, t].item() == pytest.approx(expected, abs=1e-5)
            assert returns[b, t].item() == pytest.approx(expected + values[b, t] if t < length else 0.0, abs=1e-5)
    if (gamma, lambda_) == (1.0, 1.0):  # Monte Carlo: the return is the sum of the rewards still to come
        assert returns[0, 0].item() == pytest.approx(rewards[0].sum(), abs=1e-5)


def test_whitening_is_numpys_standardisation_of_what_is_inside_the_mask():
    expected = np.where(MASK, (X - X[MASK].mean()) / X[MASK].std(), 0.0)
    np.testing.assert_allclose(policy.whiten(_t(X), _t(MASK)).numpy(), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------- clipping, advantages


def _clipped(ratio, advantage, low, high):
    """The definition, by cases: what is gained by moving the ratio out of its bounds is not counted."""
    if advantage >= 0:
        return -min(ratio, high) * advantage
    return -max(ratio, low) * advantage


@pytest.mark.parametrize("high", [None, 0.5])
def test_the_clipped_losses_are_those_of_the_definition_by_cases(high):
    found = policy.clipped_losses(_t(X), _t(OLD), _t(ADVANTAGES), 0.2, high).numpy()
    ratios = np.exp(X - OLD)
    assert ((ratios > 1.5) | (ratios < 0.8)).any()
    assert ((ratios < 1.2) & (ratios > 0.8)).any()
    for b in range(B):
        for t in range(T):
            expected = _clipped(ratios[b, t], ADVANTAGES[b, t], 0.8, 1.2 if high is None else 1.5)
            assert found[b, t] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_is_the_worse_of_two_squares_or_one_square(clip):
    values, old, returns = X, OLD, ADVANTAGES
    near = values if clip is None else old + np.clip(values - old, -clip, clip)
    worse = np.maximum((values - returns) ** 2, (near - returns) ** 2)
    found = policy.value_loss(_t(values), _t(old), _t(returns), _t(MASK), clip).item()
    assert found == pytest.approx(0.5 * worse[MASK].sum(), rel=1e-5)


@pytest.mark.parametrize("divide", [True, False])
def test_group_advantages_are_numpys_over_the_answers_that_have_a_reward(divide):
    rewards, valid = RNG.normal(size=(6, 5)), RNG.random((6, 5)) > 0.25
    valid[0] = True
    found = policy.group_advantages(_t(rewards), _t(valid), divide_by_deviation=divide).numpy()
    for row, inside, advantages in zip(rewards, valid, found, strict=True):
        members = row[inside]
        expected = np.where(inside, row - members.mean(), 0.0)
        if divide and len(members) > 1:
            expected = expected / members.std()
        np.testing.assert_allclose(advantages, expected, atol=1e-4)
