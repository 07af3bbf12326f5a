"""The guard bound by bound on looks made by hand, what a look is made of, and `fit` under an overseer."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mengya.corpus.records import Conversation, Message, Question
from mengya.evaluate.diversity import distinct, longest_repeat
from mengya.evaluate.likelihood import (
    answer_bits,
    answer_bits_per_byte,
    sequence_logps,
    sequence_logps_and_entropies,
    spread,
)
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.rl.guard import Guard, Look
from mengya.rl.look import HeldOutPrompts, Seen, look_of, paired_error, seen_of
from mengya.rl.oversight import Oversight, training_reward
from mengya.settings import DPOSettings, GuardSettings, PPOSettings
from mengya.stages.aligned import GUARD_TEXTS, _others, guarded
from mengya.tokenizer.encode import ChatTokenizer
from mengya.tokenizer.train import train_tokenizer
from mengya.train.parallel import World

ONE = World(0, 1, torch.device("cpu"), torch.float32)
ALLOWED = GuardSettings(
    max_kl=10,
    repetition=0.01,
    refusals=0.02,
    unfinished=0.03,
    bits_per_byte=0.01,
    answer_bits_per_byte=0.25,
    longest_repeat=2.0,
    distinct=0.1,
    entropy=0.5,
    length=1.5,
    patience=2,
)
START = Look(
    0,
    score=0.5,
    repetition=0.04,
    end_rate=0.95,
    kl=0.0,
    refusals=0.05,
    length=20.0,
    entropy=0.8,
    distinct_1=0.2,
    distinct_2=0.5,
    distinct_4=0.7,
    longest_repeat=1.0,
    bits_per_byte=0.4,
    answer_bits_per_byte=0.2,
)
BETTER = replace(START, step=10, score=0.7, error=0.02, kl=1.0, reward=0.3)

BOUNDS = [
    ("kl", 9.9, 10.1, "guard.max_kl 10"),
    ("repetition", 0.049, 0.051, "guard.repetition 1.0%"),
    ("refusals", 0.069, 0.071, "guard.refusals 2.0%"),
    ("end_rate", 0.921, 0.919, "guard.unfinished 3.0%"),
    ("bits_per_byte", 0.4039, 0.4041, "guard.bits_per_byte 1.0%"),
    ("answer_bits_per_byte", 0.249, 0.251, "guard.answer_bits_per_byte 25.0%"),
    ("longest_repeat", 2.9, 3.1, "guard.longest_repeat 2.0"),
    ("distinct_1", 0.181, 0.179, "guard.distinct 10.0%"),
    ("distinct_2", 0.451, 0.449, "guard.distinct 10.0%"),
    ("distinct_4", 0.631, 0.629, "guard.distinct 10.0%"),
    ("entropy", 0.41, 0.39, "guard.entropy 50.0%"),
    ("length", 29.9, 30.1, "guard.length 1.5"),
    ("length", 13.4, 13.3, "guard.length 1.5"),
]


def _seen(look, settings=ALLOWED):
    guard = Guard(settings)
    guard.see(START)
    guard.see(look)
    return guard


# ------------------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize(("name", "within", "beyond", "key"), BOUNDS, ids=[f"{b[0]}-{b[2]}" for b in BOUNDS])
def test_a_look_is_refused_for_the_bound_that_it_breaks_and_for_no_other(name, within, beyond, key):
    sound = _seen(replace(BETTER, **{name: within}))
    assert (sound.looks[-1].mark, sound.looks[-1].why_not) == ("kept", None)
    refused = _seen(replace(BETTER, **{name: beyond}))
    assert refused.best.step == 0
    assert refused.looks[-1].mark == "refused"
    assert key in refused.looks[-1].why_not
    assert ";" not in refused.looks[-1].why_not, "one bound, one reason"
    assert key in refused.verdict(), "it scored higher, so the verdict says why it is not handed over"


@pytest.mark.parametrize(
    ("name", "beyond", "error"),
    [
        ("repetition", 0.06, 0.011),
        ("refusals", 0.09, 0.021),
        ("end_rate", 0.90, 0.021),
        ("bits_per_byte", 0.408, 0.005),
        ("answer_bits_per_byte", 0.26, 0.011),
        ("longest_repeat", 4.0, 1.1),
        ("length", 32.0, 2.1),
    ],
)
def test_what_the_error_of_the_change_explains_is_not_held_against_a_look(name, beyond, error):
    assert _seen(replace(BETTER, **{name: beyond})).looks[-1].mark == "refused"
    assert _seen(replace(BETTER, **{name: beyond}, errors={name: error})).looks[-1].mark == "kept"
    assert _seen(replace(BETTER, **{name: beyond}, errors={name: error / 2})).looks[-1].mark == "refused"


@pytest.mark.parametrize(
    "name", ["kl", "repetition", "end_rate", "bits_per_byte", "answer_bits_per_byte", "distinct_2", "entropy", "length"]
)
def test_a_number_that_is_none_breaks_its_bound(name):
    assert _seen(replace(BETTER, **{name: float("nan")})).looks[-1].mark == "refused"


def test_all_broken_bounds_are_named():
    why = _seen(replace(BETTER, repetition=0.5, bits_per_byte=0.6, entropy=0.1)).looks[-1].why_not
    assert [key in why for key in ("guard.repetition", "guard.bits_per_byte", "guard.entropy")] == [True] * 3
    assert "rose from 4.0% to 50.0%" in why
    assert "50.0% (guard.bits_per_byte 1.0%" in why, "0.6 is half as much again as 0.4"


@pytest.mark.parametrize("name", ["bits_per_byte", "answer_bits_per_byte"])
def test_where_nothing_is_held_out_there_are_no_bits_to_bound(name):
    guard = Guard(ALLOWED)
    guard.see(replace(START, **{name: None}))
    assert guard.see(replace(BETTER, **{name: None}))


def test_a_look_that_did_not_gain_says_by_how_much():
    guard = _seen(replace(BETTER, score=0.51))
    assert guard.looks[-1].mark == "worse"
    assert "+0.010 against the start, not above its error of 0.020" in guard.looks[-1].why_not
    guard.see(BETTER)
    guard.see(replace(BETTER, step=30, score=0.65))
    assert [look.mark for look in guard.looks] == ["start", "worse", "kept", "worse"]
    assert "-0.050 against rollout 10" in guard.looks[-1].why_not


def test_a_recipe_may_ask_for_a_surer_gain():
    """START scores 0.5, every look's error is 0.02."""
    surer = ALLOWED.model_copy(update={"gain_errors": 3.0})
    guard = _seen(replace(BETTER, score=0.555), surer)
    assert guard.looks[-1].why_not == "held-out score +0.055 against the start, not above 3 errors (0.020 each)"
    assert "beyond 3 errors" in guard.verdict()
    assert _seen(replace(BETTER, score=0.565), surer).looks[-1].mark == "kept"
    assert _seen(replace(BETTER, score=0.555, entropy=0.1), surer).verdict() == guard.verdict(), "no gain to be refused"
    assert _seen(replace(BETTER, score=0.5001), ALLOWED.model_copy(update={"gain_errors": 0.0})).best.step == 10


def test_a_judge_that_is_a_model_is_asked_for_more_unless_the_recipe_says_how_much():
    for knows_truth, errors in ((True, 1.0), (False, 2.0)):
        look = SimpleNamespace(knows_truth=knows_truth)
        assert guarded(PPOSettings(), look).guard == GuardSettings(gain_errors=errors)
        said = DPOSettings(guard=GuardSettings(gain_errors=1.5, patience=2))
        assert guarded(said, look) == said


def test_looks_that_cannot_be_handed_over_end_the_training():
    guard = _seen(replace(BETTER, repetition=0.3))
    assert guard.stop_reason() is None, "once may be chance"
    guard.see(replace(BETTER, step=20, repetition=0.4))
    assert "2 looks in a row were refused or below the start, the last because repetition rose" in guard.stop_reason()
    guard = _seen(replace(BETTER, repetition=0.3))
    guard.see(replace(BETTER, step=20, score=0.51))
    assert guard.stop_reason() is None, "no gain is no loss"


def test_the_peak_of_the_score_is_where_over_optimisation_begins():
    guard = Guard(ALLOWED)
    scores = [0.5, 0.6, 0.7, 0.6]
    for step, score in enumerate(scores):
        guard.see(replace(BETTER, step=step, score=score, reward=step * 0.1 if step else None))
    assert guard.over_optimised() == 2
    guard.see(replace(BETTER, step=4, score=0.69, reward=0.4))
    assert guard.over_optimised() is None, "within its error of the peak"
    guard.see(replace(BETTER, step=5, score=0.3, reward=0.1))
    assert guard.over_optimised() is None, "the reward fell too: that is no over-optimisation"


def test_marks_and_reasons_survive_json():
    guard, again = _seen(replace(BETTER, entropy=0.1, errors={"length": 0.5})), Guard(ALLOWED)
    again.load_state(json.loads(json.dumps(guard.state())))
    assert (again.looks, again.best) == (guard.looks, guard.best)
    assert again.verdict() == guard.verdict()


# ------------------------------------------------------------------------------------------------- what a look holds

TEXTS = st.lists(st.text("甲乙丙 ", max_size=12), max_size=4)


@given(TEXTS, st.integers(1, 4))
def test_distinct_is_the_share_of_different_windows(texts, n):
    windows = ["".join(w) for t in texts for w in zip(*(t.replace(" ", "")[k:] for k in range(n)), strict=False)]
    assert distinct(texts, n) == (len(set(windows)) / len(windows) if windows else 1.0)


@given(st.text("甲乙 ", max_size=12))
def test_the_longest_repeat_is_found(text):
    text = text.replace(" ", "")
    recurring = [
        end - start
        for start, end in itertools.combinations(range(len(text) + 1), 2)
        if text.find(text[start:end], start + 1) >= 0
    ]
    assert longest_repeat(" ".join(text)) == max(recurring, default=0)


def _tokenizer():
    return ChatTokenizer(train_tokenizer(["小明在河边看见一只小船，很高兴。"] * 4, 300, max_characters=1000, seed=0))


def _model(vocab_size, seed=0):
    torch.manual_seed(seed)
    return Transformer(
        ModelConfig(
            vocab_size=vocab_size, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=32, max_positions=64
        )
    )


def test_entropies_are_of_the_answers_tokens_alone():
    model, rng = _model(50), random.Random(1)
    sequences = [[rng.randrange(50) for _ in range(length)] for length in (5, 9, 12, 12)]
    starts = [2, 3, 11, 1]
    logps, entropies = sequence_logps_and_entropies(model, sequences, starts)
    assert logps == sequence_logps(model, sequences, starts), "the KL of a policy to itself is 0 to the last bit"
    for sequence, start, found in zip(sequences, starts, entropies, strict=True):
        with torch.no_grad():
            p = model(torch.tensor([sequence]))[0, start - 1 : -1].double().softmax(-1).numpy()
        assert found == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)


QUESTIONS = [
    Question((Message("user", f"小明有{count}只小船吗？"),), "unknown" if count % 3 == 0 else "qa")
    for count in range(9)
]


def _seen_of(model, reference, tokenizer):
    held = HeldOutPrompts(QUESTIONS, [])
    scored = lambda answers: [float(len(text)) for text in answers.texts]  # noqa: E731
    return seen_of(model, reference, tokenizer, held, scored, max_new_tokens=6, seed=1)


def test_the_start_is_at_no_distance_from_itself():
    tokenizer = _tokenizer()
    model = _model(tokenizer.vocab_size)
    start = _seen_of(model, model, tokenizer)
    look = look_of(0, start, start)
    assert (look.kl, look.error, look.bits_per_byte, look.answer_bits_per_byte) == (0, 0, None, None)
    assert set(look.errors.values()) == {0.0}
    copy = _model(tokenizer.vocab_size)
    assert asdict(look_of(0, _seen_of(copy, model, tokenizer), start)) == asdict(look)
    other = look_of(5, _seen_of(_model(tokenizer.vocab_size, seed=1), model, tokenizer), start)
    assert other.entropy == pytest.approx(np.log(tokenizer.vocab_size), rel=0.05), "an untrained model knows nothing"
    assert other.errors["length"] >= 0
    assert len(start.items["refusals"]) == sum(question.kind != "unknown" for question in QUESTIONS)


def _by_hand(scores, texts, tokens, bits):
    items = {
        "score": scores,
        "repetition": [0.0, 0.5],
        "end_rate": [1.0, 0.0],
        "length": tokens,
        "longest_repeat": [float(longest_repeat(text)) for text in texts],
        "refusals": [0.0],
    }
    return Seen(items, texts, kls=[1.0, 2.0], entropies=[3.0, 5.0], foretold={"bits_per_byte": (bits, [2.0, 6.0])})


def test_a_look_is_means_with_the_errors_of_paired_changes():
    start = _by_hand([0.2, 0.4], ["甲乙", "丙丁"], [2.0, 2.0], [2.0, 2.0])
    now = _by_hand([0.3, 0.9], ["甲乙甲乙", "丙"], [4.0, 1.0], [3.0, 2.5])
    look = look_of(7, now, start)
    assert (look.step, look.score, look.kl, look.length) == (7, pytest.approx(0.6), 1.5, 2.5)
    assert look.error == pytest.approx(np.std([0.1, 0.5]) / 2**0.5)
    assert look.entropy == pytest.approx(8 / 5)
    assert look.bits_per_byte == pytest.approx(5.5 / 8)
    assert (look.longest_repeat, look.distinct_1, look.distinct_2) == (1.0, 3 / 5, 2 / 3)
    # Delta method by hand: changes d = (1, 0.5) over sizes b = (2, 6); ratio 1.5/8, residuals d − r b, n/(n − 1) = 2.
    residuals = np.array([1, 0.5]) - 1.5 / 8 * np.array([2, 6])
    assert look.errors["bits_per_byte"] == pytest.approx(np.sqrt(2 * (residuals**2).sum()) / 8)
    assert look.errors["repetition"] == 0
    assert look.errors["length"] == pytest.approx(np.std([2, -1]) / 2**0.5)
    assert paired_error([], []) == 0


def test_the_error_of_a_pair_knows_that_the_prompts_are_the_same():
    """A policy that is better by the same on every prompt has gained for certain, however the prompts differ."""
    then = [0.0, 1.0, 0.2, 0.8]
    assert paired_error([value + 0.1 for value in then], then) == pytest.approx(0, abs=1e-12)


def test_bits_of_answers_one_by_one_add_up_to_the_metric():
    tokenizer = _tokenizer()
    model = _model(tokenizer.vocab_size)
    conversations = [
        Conversation((Message("user", "小明在吗？"), Message("assistant", "小明在河边。" * n)), "x") for n in (1, 2, 40)
    ]
    bits, sizes = answer_bits(model, tokenizer, conversations)
    assert sizes == [18.0, 36.0], "the third is longer than the model's positions"
    assert answer_bits_per_byte(model, tokenizer, conversations)["value"] == pytest.approx(sum(bits) / 54)


# ---------------------------------------------------------------------------------------------------------- oversight


def test_what_training_raises_is_the_reward_or_dpos_margin():
    assert training_reward({"reward": 0.4, "reward_chosen": 9.0}) == 0.4
    assert training_reward({"reward_chosen": 0.3, "reward_rejected": -0.2}) == 0.5
    assert training_reward({"loss": 1.0}) is None


def test_oversight_tells_the_manifest_what_the_guard_saw(capsys):
    looks = iter([START, replace(BETTER, score=0.9, repetition=0.2), BETTER])
    oversight = Oversight("ppo", ALLOWED, lambda policy, step: replace(next(looks), step=step), ONE)
    policy = _model(20)
    kept = [oversight.see(policy, step, {"reward": step / 10})[0] for step in (0, 10, 20)]
    assert kept == [True, False, True]
    counts = oversight.close()
    assert counts["handed_over"] == oversight.best["step"] == 20
    assert counts["verdict"].startswith("the policy of rollout 20 is handed over: held-out score +0.200 ± 0.020")
    assert [look["mark"] for look in counts["guard"]] == ["start", "refused", "kept"]
    assert [look["reward"] for look in counts["guard"]] == [0.0, 1.0, 2.0]
    lines = capsys.readouterr().err.splitlines()
    assert any("guard at rollout 10: score 0.900" in line and "refused: repetition rose" in line for line in lines)


def test_a_policy_that_says_nothing_is_refused():
    """A collapsed policy may end every answer at once: there is nothing to divide by, and it is no shorter answer."""
    start = _by_hand([0.2, 0.4], ["甲乙", "丙丁"], [2.0, 2.0], [2.0, 2.0])
    nothing = replace(_by_hand([0.9, 0.9], ["", ""], [0.0, 0.0], [2.0, 2.0]), kls=[], entropies=[])
    look = look_of(3, nothing, start)
    assert (look.length, look.entropy, look.kl, look.distinct_2) == (0, 0, 0, 1)
    guard = Guard(ALLOWED)
    guard.see(look_of(0, start, start))
    assert not guard.see(look)
    assert "guard.length" in guard.looks[-1].why_not


def test_the_guard_has_texts_foretold_that_are_not_measured_at_the_end():
    spared = _others(400, 300)
    assert len(set(spared)) == len(spared) == GUARD_TEXTS
    assert not set(spared) & set(spread(300, 400))
    assert len(set(_others(400, 400))) == GUARD_TEXTS, "where all are measured, some of those"
    assert _others(5, 300) == [0, 1, 2, 3, 4]
    assert _others(0, 300) == []
