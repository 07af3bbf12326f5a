"""Numbers with their uncertainty, baselines and the guard, against hand arithmetic and slow direct counting."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from mengya.corpus.records import Cloze, Document, Message, PreferencePair
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.evaluate.answers import win_rate
from mengya.evaluate.likelihood import LN2, bits_per_byte, cloze_accuracy
from mengya.evaluate.ngram import ngram_losses
from mengya.evaluate.pairs import length_only_accuracy
from mengya.evaluate.score import delta_table, mean, proportion, ratio
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.rl.guard import Guard, Look
from mengya.settings import GuardSettings

# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (Wilson's score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_share_has_wilsons_interval(hits, n, low, high):
    found = proportion(hits, n)
    assert found["value"] == hits / n
    assert found["n"] == n
    assert found["low"] == pytest.approx(low, abs=5e-5)
    assert found["high"] == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 20, 1000])
def test_a_shares_interval_stays_inside_0_and_1_and_holds_the_share(n):
    for hits in range(n + 1):
        found = proportion(hits, n)
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_a_mean_has_the_normal_interval_of_its_standard_error():
    found = mean([1.0, 2.0, 3.0, 6.0])
    half = 1.959964 * math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert found == {"value": 3.0, "low": pytest.approx(3 - half), "high": pytest.approx(3 + half), "n": 4}


def test_a_ratio_is_of_the_sums_and_its_interval_covers_the_truth_as_often_as_it_says():
    assert ratio([1.0, 9.0], [1.0, 3.0])["value"] == 2.5, "of the sums, not the mean of 1 and 3"
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        sizes = generator.integers(10, 200, 60).astype(float)
        bits = sizes * (2 + 0.5 * generator.standard_normal(60))
        found = ratio(bits.tolist(), sizes.tolist())
        hits += found["low"] <= 2 <= found["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_nothing_measured_is_not_a_number():
    for found in (proportion(0, 0), mean([]), ratio([], [])):
        assert math.isnan(found["value"])
        assert found["n"] == 0


def test_paired_items_give_a_far_tighter_change():
    rng = random.Random("items")
    before = [rng.random() for _ in range(50)]
    after = [value + 0.1 + 0.01 * rng.random() for value in before]
    metrics = {"gold_score": mean(before)}, {"gold_score": mean(after)}
    (paired,) = delta_table("sft", *metrics, {"gold_score": before}, {"gold_score": after})
    (unpaired,) = delta_table("sft", *metrics, {}, {})
    assert paired["change"] == unpaired["change"] == pytest.approx(0.105, abs=0.002)
    assert paired["low"] == pytest.approx(0.105, abs=0.003)
    # Independent samples: the half-widths add as squares.
    first, second = metrics[0]["gold_score"], metrics[1]["gold_score"]
    half = math.hypot((first["high"] - first["low"]) / 2, (second["high"] - second["low"]) / 2)
    assert unpaired["high"] - unpaired["change"] == pytest.approx(half)
    assert half > 20 * (paired["high"] - paired["low"])


def test_the_delta_table_knows_what_both_have_and_which_way_is_better():
    before = {"repetition": proportion(1, 10), "only_before": proportion(1, 2)}
    after = {"repetition": proportion(2, 10), "bits_per_byte": proportion(1, 2)}
    rows = delta_table("sft", before, after, {}, {})
    assert [(row["metric"], row["better"], row["before_stage"]) for row in rows] == [("repetition", "lower", "sft")]
    (row,) = delta_table("sft", {"qa_accuracy": proportion(1, 2)}, {"qa_accuracy": proportion(2, 2)}, {}, {})
    assert (row["better"], row["before"], row["after"], row["change"]) == ("higher", 0.5, 1.0, 0.5)


# ----------------------------------------------------------------------------------------------------------- n-grams


def _witten_bell(train, vocab_size):
    """p(token | context of up to two tokens), by counting with dictionaries, as the formula is written."""
    counts = defaultdict(Counter)
    for document in train:
        padded = [document[0], *document]
        for place in range(2, len(padded)):
            for order in range(3):
                counts[tuple(padded[place - order : place])][padded[place]] += 1

    def p(token, context):
        after = counts[context]
        shorter = p(token, context[1:]) if context else 1 / vocab_size
        total, types = sum(after.values()), len(after)
        return (after[token] + types * shorter) / (total + types) if total else shorter

    return p


@pytest.fixture(scope="module")
def texts():
    rng = random.Random("ngrams")
    walk = [
        [0, *itertools.accumulate(rng.choice([1, 1, 2, 5]) for _ in range(rng.randrange(2, 30)))] for _ in range(40)
    ]
    documents = [[token % 11 if place else 0 for place, token in enumerate(document)] for document in walk]
    return documents[:30], documents[30:]


def test_ngram_losses_are_those_of_direct_counting(texts):
    train, validation = texts
    p = _witten_bell(train, 12)
    expected = {}
    for order, name in enumerate(("unigram_loss", "bigram_loss", "trigram_loss")):
        losses = []
        for document in validation:
            padded = [document[0], *document]
            losses += [
                -math.log(p(padded[place], tuple(padded[place - order : place]))) for place in range(2, len(padded))
            ]
        expected[name] = sum(losses) / len(losses)
    found = ngram_losses(*([np.array(document) for document in part] for part in texts), vocab_size=12)
    assert found == {name: pytest.approx(value, rel=1e-9) for name, value in expected.items()}
    assert found["trigram_loss"] < found["unigram_loss"] < math.log(12)


def test_ngram_probabilities_sum_to_one(texts):
    """Over all tokens that may follow a context: the loss of each asked for one by one."""
    train = [np.array(document) for document in texts[0]]
    for context in ([0, 1], [0, 3, 4], [0, 11, 11]):  # seen, seen, never seen
        for name in ("unigram_loss", "bigram_loss", "trigram_loss"):
            total = 0.0
            for token in range(12):
                with_token = ngram_losses(train, [np.array([*context, token])], 12)[name] * len(context)
                without = ngram_losses(train, [np.array(context)], 12)[name] * (len(context) - 1)
                total += math.exp(without - with_token)
            assert total == pytest.approx(1, abs=1e-9)


# -------------------------------------------------------------------------------------------------- pairs and answers


def _pair(chosen, rejected):
    return PreferencePair((Message("user", "问"),), "字" * chosen, "字" * rejected, source="s")


def test_length_alone_decides_by_what_training_taught_it():
    longer = [_pair(5, 2)] * 3 + [_pair(2, 5)]
    shorter = [_pair(2, 5)] * 4
    held_out = [_pair(9, 1), _pair(9, 1), _pair(9, 1), _pair(1, 9), _pair(4, 4)]
    assert length_only_accuracy(longer, held_out)["value"] == pytest.approx(3.5 / 5)
    assert length_only_accuracy(shorter, held_out)["value"] == pytest.approx(1.5 / 5), (
        "not peeking at the held-out side"
    )


def test_a_tie_is_half_a_win():
    found = win_rate([1.0, 0.5, 0.2, 0.9], [0.0, 0.5, 0.3, 0.9])
    assert found["value"] == 0.5
    assert found["n"] == 4
    assert win_rate([1.0, 1.0], [0.0, 0.0])["value"] == 1.0


# -------------------------------------------------------------------------------------------------------- likelihood


@pytest.fixture
def uniform():
    """A model that gives every token the same probability, and a tokenizer for it."""
    from mengya.tokenizer.encode import ChatTokenizer
    from mengya.tokenizer.train import train_tokenizer

    backend = train_tokenizer(["小明在河边看见一只小船，很高兴。"] * 4, 300, max_characters=1000, seed=0)
    tokenizer = ChatTokenizer(backend)
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, width=16, num_layers=1, num_heads=2, num_kv_heads=1, max_positions=16
        )
    )
    with torch.no_grad():
        model.output_weight_VC.zero_()
    return model, tokenizer


def test_bits_per_byte_of_a_uniform_model_are_log2_of_the_vocabulary_times_tokens_over_bytes(uniform, tmp_path):
    model, tokenizer = uniform
    texts = ["小明很高兴。", "小船在河边，" * 9, "a"]  # the second is longer than the model's 16 positions
    documents = [Document(text, "ab"[n % 2], f"f:{n}") for n, text in enumerate(texts)]
    write_shards(documents, tokenizer, tmp_path / "t", name="validation", shard_tokens=1000, num_workers=1)
    shards = TokenShards(tmp_path / "t", "validation")
    found, by_source = bits_per_byte(model, shards, 3)
    num_tokens = [len(tokenizer.encode(text)) + 1 for text in texts]  # that the document ends is predicted too
    num_bytes = [len(text.encode()) for text in texts]
    per_token = math.log2(tokenizer.vocab_size)
    assert max(num_tokens) > 16
    assert found["value"] == pytest.approx(per_token * sum(num_tokens) / sum(num_bytes), rel=1e-5)
    assert by_source["b"]["value"] == pytest.approx(per_token * num_tokens[1] / num_bytes[1], rel=1e-5)
    assert found["n"] == 3
    assert bits_per_byte(model, shards, 1)[0]["n"] == 1


def test_log_two(uniform):
    assert math.log(2) == LN2


def test_a_cloze_is_won_by_probability_a_byte_never_by_length(uniform):
    """Of a uniform model the choice with the fewest tokens a byte wins, however long it is."""
    model, tokenizer = uniform
    choices = ("小", "小明在河边看", "q")
    per_byte = [len(tokenizer.encode(choice)) / len(choice.encode()) for choice in choices]
    best = min(range(3), key=per_byte.__getitem__)
    assert best == 1, "the longest; by the whole log-probability it would lose"
    clozes = [Cloze("小", choices, answer) for answer in range(3)]
    assert cloze_accuracy(model, tokenizer, clozes)["value"] == pytest.approx(1 / 3)
    assert cloze_accuracy(model, tokenizer, [clozes[best]])["value"] == 1


# ------------------------------------------------------------------------------------------------------------- guard


ALLOWED = GuardSettings(max_kl=10, patience=2)


def _look(step, score, repetition=0.1, end_rate=0.9, kl=1.0, **more):
    return Look(step, score, repetition, end_rate, kl, **more)


def test_the_guard_keeps_the_best_look():
    guard = Guard(ALLOWED)
    assert [guard.see(_look(step, score)) for step, score in enumerate([0.3, 0.5, 0.4, 0.6, 0.6])] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert guard.best.step == 3
    assert "rollout 3" in guard.verdict()
    assert "+0.300" in guard.verdict()


def test_the_guard_hands_back_what_it_was_given_when_nothing_is_better():
    guard = Guard(ALLOWED)
    for step, score in enumerate([0.5, 0.5, 0.2]):
        guard.see(_look(step, score))
    assert guard.best.step == 0
    assert "the policy it was given" in guard.verdict()


@pytest.mark.parametrize(
    "bought",
    [{"repetition": 0.12}, {"end_rate": 0.87}, {"kl": 10.1}, {"refusals": 0.02}],
    ids=["repeats", "never ends", "drifts", "declines"],
)
def test_a_score_bought_by_repeating_never_ending_or_drifting_does_not_count(bought):
    guard = Guard(ALLOWED)
    guard.see(_look(0, 0.3))
    assert not guard.see(_look(10, 0.9, **bought))
    assert guard.see(_look(20, 0.4)), "an honest improvement still does"


def test_a_gain_within_its_error_is_no_gain():
    guard = Guard(ALLOWED)
    guard.see(_look(0, 0.5))
    assert not guard.see(Look(10, 0.52, 0.0, 1.0, 0.0, error=0.03))
    assert guard.see(Look(20, 0.54, 0.0, 1.0, 0.0, error=0.03))
    assert guard.best.step == 20


def test_the_guard_stops_at_max_kl_and_only_there():
    guard = Guard(ALLOWED)
    guard.see(_look(0, 0.3, kl=0))
    assert guard.stop_reason() is None
    guard.see(_look(10, 0.1, kl=9.9))
    assert guard.stop_reason() is None
    guard.see(_look(20, 0.1, kl=10.5))
    assert "10.5 nats" in guard.stop_reason()


def test_the_guard_stops_when_the_judges_fall_while_the_reward_rises():
    guard = Guard(ALLOWED)
    guard.see(_look(0, 0.5))
    guard.see(_look(10, 0.4, error=0.05, reward=0.1))
    assert guard.stop_reason() is None, "once may be chance"
    guard.see(_look(20, 0.47, error=0.05, reward=0.2))
    assert guard.stop_reason() is None, "within its error"
    guard.see(_look(30, 0.4, error=0.05, reward=0.3))
    guard.see(_look(40, 0.4, error=0.05, reward=0.4))
    assert "2 looks in a row, while the training reward rose" in guard.stop_reason()
    assert guard.best.step == 0


def test_the_guards_state_survives_a_resume():
    guard, again = Guard(ALLOWED), Guard(ALLOWED)
    for step, score in enumerate([0.3, 0.5, 0.4]):
        guard.see(_look(step, score))
    again.load_state(guard.state())
    assert again.best == guard.best
    assert again.looks == guard.looks
    assert again.see(_look(3, 0.45)) is False
