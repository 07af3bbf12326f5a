"""DPO, IPO and SimPO against hand arithmetic, and their objectives against one sequence at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mengya.data.pairs import TokenPair, pair_batch
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives.preference import dpo_loss, ipo, simpo

BETA, GAMMA, SMOOTHING, NLL = 0.7, 0.4, 0.1, 0.3


def test_ipo_is_the_squared_distance_of_the_margin_from_its_aim():
    """Azar et al. 2023, eq. 17, with τ = 0.5: the aim is 1 / (2 · 0.5) = 1."""
    policy, reference = torch.tensor([3.0, 1.5, -1.0]), torch.tensor([1.0, 0.5, 0.0])
    assert ipo(policy, reference, 0.5).tolist() == [1.0, 0.0, 4.0]


def test_simpo_wants_the_margin_beyond_gamma():
    """Meng et al. 2024, eq. 6: −log σ(2 · 0.75 − 0.5)."""
    assert simpo(torch.tensor([0.75]), 2.0, 0.5).item() == pytest.approx(math.log(1 + math.exp(-1.0)))
    smoothed = 0.9 * math.log(1 + math.exp(-1.0)) + 0.1 * math.log(1 + math.exp(1.0))
    assert simpo(torch.tensor([0.75]), 2.0, 0.5, 0.1).item() == pytest.approx(smoothed)


def _pairs():
    rng = np.random.default_rng(4)

    def side(prompt):
        return np.concatenate([prompt, rng.integers(1, 50, rng.integers(2, 12))])

    prompts = [rng.integers(1, 50, rng.integers(2, 7)) for _ in range(6)]
    return [TokenPair(len(prompt), side(prompt), side(prompt)) for prompt in prompts]


def _model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=50, width=24, num_layers=2, num_heads=2, ffn_width=40, max_positions=64))


def _one_by_one(model, pairs):
    """Σ log p of the answers, (N, 2), and their lengths: every sequence alone, by log_softmax in float64."""
    logps, lengths = [], []
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            ids_1T = torch.tensor(side)[None]
            log_p_TV = model.logits(model.hidden(ids_1T))[0].double().log_softmax(-1)
            answer = range(pair.prompt_length, len(side))
            logps.append(torch.stack([log_p_TV[t - 1, ids_1T[0, t]] for t in answer]).sum())
            lengths.append(len(answer))
    return torch.stack(logps).view(-1, 2), torch.tensor(lengths, dtype=torch.float64).view(-1, 2)


def _by_hand(loss, normalised, logps_N2, lengths_N2, reference_N2):
    """The papers' formulas, term by term."""
    total = torch.zeros((), dtype=torch.float64)
    for logps, lengths, reference in zip(logps_N2, lengths_N2, reference_N2, strict=True):
        if loss == "simpo":
            h = BETA * logps[0] / lengths[0] - BETA * logps[1] / lengths[1] - GAMMA
        else:
            ratios = [(logps[i] - reference[i]) / (lengths[i] if normalised else 1) for i in (0, 1)]
            h = BETA * (ratios[0] - ratios[1])
        if loss == "ipo":
            total = total + (h / BETA - 0.5 / BETA) ** 2
        else:
            total = total + (1 - SMOOTHING) * torch.log1p(torch.exp(-h)) + SMOOTHING * torch.log1p(torch.exp(h))
        total = total - NLL * logps[0] / lengths[0]
    return total


@pytest.mark.parametrize(
    ("loss", "normalised"),
    [("sigmoid", False), ("sigmoid", True), ("ipo", False), ("ipo", True), ("simpo", False), ("simpo", True)],
)
def test_the_objective_and_its_gradient_are_the_formula_on_each_pair_alone(loss, normalised):
    pairs, model = _pairs(), _model()
    reference_N2 = -10 * torch.rand(len(pairs), 2, generator=torch.Generator().manual_seed(1))
    chosen = [4, 0, 3, 5]
    objective = dpo_loss(
        None if loss == "simpo" else reference_N2,
        BETA,
        0.0 if loss == "ipo" else SMOOTHING,
        NLL,
        loss=loss,
        margin=GAMMA,
        length_normalised=normalised,
    )
    terms = objective(model, pair_batch(pairs, chosen, pad_id=0))
    terms.loss_sum.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logps_N2, lengths_N2 = _one_by_one(model, [pairs[i] for i in chosen])
    expected = _by_hand(loss, normalised, logps_N2, lengths_N2, reference_N2[chosen].double())
    expected.backward()
    assert terms.count == 4
    assert terms.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_what_is_watched_is_the_implicit_reward():
    """Of SimPO β log p a token; the accuracy is the share of pairs whose chosen answer has the higher one."""
    pairs, model = _pairs(), _model()
    logps_N2, lengths_N2 = _one_by_one(model, pairs)
    rewards_N2 = (BETA * logps_N2 / lengths_N2).detach()
    sums = dpo_loss(None, BETA, 0.0, loss="simpo")(model, pair_batch(pairs, list(range(6)), pad_id=0)).sums
    assert sums["reward_chosen"].item() == pytest.approx(rewards_N2[:, 0].sum().item(), rel=1e-4)
    assert sums["reward_rejected"].item() == pytest.approx(rewards_N2[:, 1].sum().item(), rel=1e-4)
    assert sums["accuracy"].item() == (rewards_N2[:, 0] > rewards_N2[:, 1]).sum()


def test_simpo_reads_no_reference_and_the_others_must_have_one():
    with pytest.raises(AssertionError, match="SimPO has no reference"):
        dpo_loss(torch.zeros(1, 2), 2.0, 0.0, loss="simpo")
    with pytest.raises(AssertionError, match="the others need one"):
        dpo_loss(None, 0.1, 0.0)
