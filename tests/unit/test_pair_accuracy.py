"""The baseline that length alone gives is measured on the pairs that the model is asked about."""

import pytest
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, PreferencePair
from mengya.evaluate.pairs import length_only_accuracy, that_fit


def pair(chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair((Message("user", "苹果好吃吗？"),), "好" * chosen, "坏" * rejected, "test")


def test_length_alone_is_judged_by_the_side_that_wins_in_training():
    held_out = [pair(9, 2), pair(9, 3), pair(2, 9), pair(5, 5)]
    assert length_only_accuracy([pair(9, 1)], held_out)["value"] == pytest.approx(2.5 / 4)
    assert length_only_accuracy([pair(1, 9)], held_out)["value"] == pytest.approx(1.5 / 4)


def test_pairs_too_long_for_the_model_are_left_out():
    short, long = pair(3, 2), pair(2, 300)
    assert that_fit([short, long], small_tokenizer(), 64) == [short]
