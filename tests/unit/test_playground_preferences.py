from collections import Counter

import pytest

from mengya.corpus.playground import (
    Playground,
    generate_preferences,
    is_refusal,
    is_repetitive,
    politeness,
)
from mengya.corpus.playground.preferences import REASONS, TRAINED

SMALL = Playground(seed=4, num_preferences=2_000)


@pytest.fixture(scope="module", params=["train", "validation"])
def pairs(request):
    return generate_preferences(SMALL, request.param)


def _best_threshold_accuracy(pairs) -> float:
    """The best of all rules "prefer the longer (or shorter) when the difference exceeds t, else toss a coin"."""
    differences = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    best = 0.5
    for threshold in range(41):
        longer = sum(d > threshold for d in differences)
        shorter = sum(-d > threshold for d in differences)
        undecided = len(differences) - longer - shorter
        best = max(best, (max(longer, shorter) + undecided / 2) / len(differences))
    return best


def test_length_alone_tells_nothing_within_any_reason(pairs):
    for reason in REASONS:
        of_reason = [pair for pair in pairs if pair.reason == reason]
        longer = sum(len(pair.chosen) > len(pair.rejected) for pair in of_reason)
        shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in of_reason)
        assert abs(longer - shorter) <= 2, reason
        assert longer > len(of_reason) / 5, reason
        assert _best_threshold_accuracy(of_reason) <= 0.52, reason
    assert _best_threshold_accuracy(pairs) <= 0.52


def test_absolute_length_tells_nearly_nothing(pairs):
    """The rule scores an answer by how often one of its length was chosen in one half, and is tried on the other."""
    fit, trial = pairs[::2], pairs[1::2]
    chosen = Counter(len(pair.chosen) // 3 for pair in fit)
    rejected = Counter(len(pair.rejected) // 3 for pair in fit)

    def score(text: str) -> float:
        bin_ = len(text) // 3
        return (chosen[bin_] + 1) / (chosen[bin_] + rejected[bin_] + 2)

    right = sum(
        1.0 if score(pair.chosen) > score(pair.rejected) else 0.5 * (score(pair.chosen) == score(pair.rejected))
        for pair in trial
    )
    assert right / len(trial) <= 0.6


@pytest.mark.parametrize(("split", "shares"), [("train", TRAINED), ("validation", REASONS)])
def test_reasons_have_their_shares(split, shares):
    made = generate_preferences(SMALL, split)
    counts = Counter(pair.reason for pair in made)
    assert counts == {reason: round(share * len(made)) for reason, share in shares.items()}


def test_the_better_answer_is_never_rude_or_repetitive_and_the_worse_one_is_what_the_reason_says(pairs):
    for pair in pairs:
        assert pair.chosen != pair.rejected
        assert politeness(pair.chosen) >= 0.5
        assert not is_repetitive(pair.chosen)
        assert is_repetitive(pair.rejected) == (pair.reason == "concise")
        assert politeness(pair.rejected) >= 0.5 or pair.reason == "polite"
        if pair.reason != "right":
            assert not is_refusal(pair.chosen)
            assert is_refusal(pair.rejected) == (pair.reason == "answering")


def test_courtesy_is_better_than_plain_words_and_both_are_better_than_rudeness(pairs):
    polite = [pair for pair in pairs if pair.reason == "polite"]
    worse = Counter((politeness(pair.chosen), politeness(pair.rejected)) for pair in polite)
    plain = worse.pop((1.0, 0.5))
    assert {rejected for _, rejected in worse} == {0.0}
    assert 0.2 < plain / len(polite) < 0.5


def test_prompts_end_with_the_user_and_some_have_several_rounds(pairs):
    assert all(pair.prompt[-1].role == "user" for pair in pairs)
    assert 0.2 < sum(len(pair.prompt) > 1 for pair in pairs) / len(pairs) < 0.5
    declined = [pair for pair in pairs if is_refusal(pair.chosen)]
    assert 0.01 < len(declined) / len(pairs) < 0.1
