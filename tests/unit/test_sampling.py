"""Sampling draws from the distribution it says, and reports the log-probability it says."""

import math

import pytest
import torch

from mengya.errors import UserError
from mengya.generate.sampling import GREEDY, Sampling, keep_top_k, keep_top_p, penalize_repetition, sample

LOGITS = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])


def _uniform(rows: int) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(0))


def _frequencies(sampling: Sampling, draws: int = 20_000) -> list[float]:
    ids, _ = sample(LOGITS.expand(draws, 4), sampling, _uniform(draws))
    return (torch.bincount(ids, minlength=4) / draws).tolist()


def test_frequencies_are_the_probabilities():
    assert _frequencies(Sampling()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)


def test_temperature_raises_probabilities_to_its_inverse():
    weights = [p**2 for p in (0.5, 0.3, 0.15, 0.05)]
    assert _frequencies(Sampling(temperature=0.5)) == pytest.approx([w / sum(weights) for w in weights], abs=0.012)


def test_top_k_and_top_p_renormalise_over_the_likeliest():
    assert _frequencies(Sampling(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.012)
    assert _frequencies(Sampling(top_p=0.75)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.012)
    assert _frequencies(Sampling(top_p=0.01)) == [1, 0, 0, 0]


def test_filters_keep_at_least_one_and_at_most_all():
    assert torch.isfinite(keep_top_k(LOGITS, 100)).all()
    assert torch.isfinite(keep_top_p(torch.zeros(2, 5), 1e-9)).sum(-1).tolist() == [1, 1]


def test_repetition_penalty_lowers_positive_and_negative_logits_of_seen_tokens_only():
    logits, seen = torch.tensor([[2.0, -2.0, 3.0, -3.0]]), torch.tensor([[True, True, False, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_logp_is_the_models_own_whatever_the_sampling():
    for sampling in (Sampling(), GREEDY, Sampling(temperature=0.3, top_k=3, top_p=0.9)):
        logits = 2 * torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
        ids, logp = sample(logits, sampling, _uniform(50))
        torch.testing.assert_close(logp, logits.log_softmax(-1)[torch.arange(50), ids])


def test_greedy_is_the_argmax_whatever_the_chance():
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    for uniform in (torch.zeros(8), _uniform(8)):
        assert torch.equal(sample(logits, GREEDY, uniform)[0], logits.argmax(-1))


def test_no_draw_chooses_a_token_of_probability_zero():
    extremes = torch.tensor([0.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))])
    logits = torch.full((2, 5000), float("-inf"))
    logits[:, 100:4900] = 0
    ids, _ = sample(logits, Sampling(), extremes)
    assert ids.tolist() == [100, 4899]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0}]
)
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
