"""The user's reward function: called as documented; what it does wrong is a failed call with its reason, or one clear line."""

from __future__ import annotations

import math

import pytest

from mengya.corpus.records import Message, Question
from mengya.errors import UserError
from mengya.rl.user_reward import UserReward

QUESTION = Question((Message("user", "三加四等于几？"),), "arithmetic", (("7",),), meta={"left": 3})
FUNCTIONS = """
import os, time

def score(prompt, answer, meta):
    assert prompt == [{"role": "user", "content": "三加四等于几？"}]
    assert meta["accept"] == [["7"]] and meta["left"] == 3
    return 1 if "7" in answer else 0

def raises(prompt, answer, meta):
    if answer == "bad":
        raise ValueError("no idea")
    return 0.5

def nan(prompt, answer, meta):
    return float("nan")

def hangs(prompt, answer, meta):
    while answer == "bad":
        time.sleep(1)
    return 0.5

def dies(prompt, answer, meta):
    if answer == "bad":
        os._exit(3)
    return 0.5
"""


@pytest.fixture
def call(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(FUNCTIONS, encoding="utf-8")
    opened = []

    def open_and_call(name, *texts, timeout=20.0):
        opened.append(UserReward(f"{file}:{name}", timeout))
        return opened[-1]([QUESTION] * len(texts), texts), opened[-1]

    yield open_and_call
    for reward in opened:
        reward.close()


def test_it_sees_prompt_answer_and_truth(call):
    values, reward = call("score", "等于7。", "等于8。")
    assert values == [1.0, 0.0]
    assert reward.failures == 0


@pytest.mark.parametrize(
    ("name", "why"), [("raises", "ValueError: no idea"), ("hangs", "no answer within"), ("dies", "its process ended")]
)
def test_a_call_that_fails_is_counted_and_the_next_ones_go_on(call, name, why):
    values, reward = call(name, "bad", "good", timeout=1.0)
    assert math.isnan(values[0])
    assert values[1] == 0.5
    assert reward.failures == 1
    assert why in reward.last_failure


def test_nan_is_no_reward(call):
    values, reward = call("nan", "answer")
    assert math.isnan(values[0])
    assert reward.last_failure == "it returned nan"


def test_a_function_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="no such reward function"):
        UserReward(f"{tmp_path / 'absent.py'}:score", 1.0)
    file = tmp_path / "broken.py"
    file.write_text("def score(:\n")
    with pytest.raises(UserError, match="cannot be loaded: SyntaxError"):
        UserReward(f"{file}:score", 1.0)
    file.write_text("")
    with pytest.raises(UserError, match="AttributeError"):
        UserReward(f"{file}:score", 1.0)


@pytest.mark.parametrize(("name", "why"), [("hangs", "no answer within 0.2 s"), ("dies", "its process ended")])
def test_one_that_does_nothing_but_hang_or_die_is_not_asked_hundreds_of_times(call, name, why):
    with pytest.raises(UserError, match=f"failed 5 times in a row: {why}"):
        call(name, *["bad"] * 400, timeout=0.2)
