import pytest

from mengya.corpus.playground import gold_score, is_refusal, is_repetitive, is_right, politeness, repetition
from mengya.corpus.playground.judges import last_number
from mengya.corpus.records import Message, Question

HOME = Question((Message("user", "林小雨住在哪里？"),), "qa", (("青石镇",),), ("白沙村", "云溪镇"))
UNKNOWN = Question((Message("user", "丁一凡住在哪里？"),), "unknown", (), ("白沙村", "青石镇"))
SUM = Question((Message("user", "8减4等于几？"),), "arithmetic", (("4",),))
FRUITS = Question(
    (Message("user", "说出两种水果。"),),
    "list",
    meta={"count": 2, "members": ["苹果", "桃子", "梨"], "others": ["茄子", "白菜"]},
)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("林小雨住在青石镇。", True),
        ("青石镇", True),
        ("林小雨住在白沙村。", False),
        ("林小雨住在青石镇或者白沙村。", False),
        ("这个不好说。", False),
        ("", False),
        ("  \n", False),
    ],
)
def test_a_place_is_right_when_named_alone(answer, right):
    assert is_right(answer, HOME) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("抱歉，我不认识丁一凡。", True),
        ("不知道。", False),  # declines, but without courtesy
        ("丁一凡住在白沙村。", False),
        ("抱歉，我不知道，可能在白沙村。", False),
        ("自己去查，我不知道。", False),
    ],
)
def test_of_a_stranger_only_a_courteous_dont_know_is_right(answer, right):
    assert is_right(answer, UNKNOWN) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("8减4等于4。", True), ("4", True), ("等于四。", True), ("8减4等于5。", False), ("14", False), ("好的。", False)],
)
def test_a_sum_is_judged_by_the_number_that_the_answer_ends_on(answer, right):
    assert is_right(answer, SUM) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("苹果、桃子。", True),
        ("有苹果、桃子和梨。", True),
        ("苹果、苹果。", False),
        ("苹果、茄子、桃子。", False),
        ("苹果。", False),
    ],
)
def test_a_list_needs_distinct_members_and_nothing_else(answer, right):
    assert is_right(answer, FRUITS) is right


@pytest.mark.parametrize(
    ("text", "number"), [("十二", 12), ("一共二十个", 20), ("等于 15 。", 15), ("三十五", 35), ("好", None)]
)
def test_numbers_are_read_in_digits_and_in_chinese(text, number):
    assert last_number(text) == number


def test_normal_prose_does_not_repeat_and_a_loop_does():
    prose = "林小雨住在青石镇，是一名医生。她平时喜欢看书，最爱吃的食物是馄饨，家里还养了一只叫豆豆的猫。"
    assert repetition(prose) == 0
    assert repetition("") == 0
    assert repetition("青石镇。青石镇。青石镇。") > 0.6
    assert repetition("好好好好好好好好好好") > 0.8
    assert repetition("hello world " * 5) > 0.7
    assert is_repetitive(prose + prose)
    assert not is_repetitive(prose)


def test_the_more_often_a_sentence_is_said_the_higher_its_repetition():
    sentence = "林小雨住在青石镇。"
    shares = [repetition(sentence * times) for times in (1, 2, 3, 6)]
    assert shares == sorted(shares)
    assert shares[0] == 0


def test_politeness_has_three_grades_and_one_insult_outweighs_courtesy():
    assert politeness("林小雨住在青石镇。") == 0.5
    assert politeness("您好！林小雨住在青石镇。") == 1.0
    assert politeness("您好，你真笨，林小雨住在青石镇。") == 0.0


def test_declining_and_evading_are_refusals_and_answers_are_not():
    assert is_refusal("抱歉，我不知道。")
    assert is_refusal("这个不好说，改天再说吧。")
    assert not is_refusal("林小雨住在青石镇。")


def test_the_gold_score_adds_up():
    assert gold_score("您好！林小雨住在青石镇。", HOME) == pytest.approx(1.0)
    assert gold_score("林小雨住在青石镇。", HOME) == pytest.approx(0.9)
    assert gold_score("林小雨住在白沙村。", HOME) == pytest.approx(0.3)
    assert gold_score("青石镇。青石镇。青石镇。", HOME) == pytest.approx(0.7)
    assert gold_score("真烦，青石镇。", HOME) == pytest.approx(0.8)
    assert gold_score("", HOME) == 0.0
