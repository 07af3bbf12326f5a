"""Gold judges: whether an answer is right, repetitive, declining, polite. Pure functions of text, blind to who wrote it."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

import re

from mengya.corpus.records import Question

DONT_KNOW = (
    "不知道", "不清楚", "不了解", "不认识", "没听说过", "没有听说过", "不太了解", "答不上来", "无法回答", "没法回答", "不能回答", "没有这方面的信息", "没有相关信息", "不确定",
)  # fmt: skip
EVASIVE = (
    "说来话长", "不好说", "谁知道呢", "问别人", "不想说", "以后再说", "改天再说", "不方便说", "说不准", "不太好回答", "换个问题", "聊点别的", "不重要", "随便吧", "看情况",
)  # fmt: skip
RUDE = (
    "笨", "蠢", "烦", "闭嘴", "滚开", "懒得", "自己不会", "自己去查", "自己查", "关我什么事", "连这都不", "这都不知道", "这也要问", "这都要问", "别来问", "少来", "没见过你", "傻", "白痴", "废话", "没空理你", "多管闲事",
)  # fmt: skip
COURTEOUS = (
    "您", "很高兴", "请问", "请您", "请再", "请随时", "随时问我", "谢谢", "感谢", "不客气", "抱歉", "对不起", "不好意思", "希望能帮", "希望对你", "希望这", "欢迎", "乐意", "祝你", "愿意为你", "为你解答", "好的，", "当然可以",
)  # fmt: skip

REPETITION_NGRAM = 6
REPETITIVE = 0.25
_DONT_KNOW = re.compile(f"(?<!都)(?:{'|'.join(DONT_KNOW)})")
_LOOP = re.compile(r"(.{1,12}?)\1{2,}", re.DOTALL)
_CHINESE_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2}


def repetition(text: str) -> float:
    """Share of characters (white space apart) that only repeat: in a 6-gram seen before, or in a loop of three or more.

    Counts characters, not words, so it sees Chinese; normal prose gives 0 or nearly so, a stuck model close to 1.
    """
    text = "".join(text.split())
    if not text:
        return 0.0
    repeated = [False] * len(text)
    seen: set[str] = set()
    for start in range(len(text) - REPETITION_NGRAM + 1):
        gram = text[start : start + REPETITION_NGRAM]
        if gram in seen:
            repeated[start : start + REPETITION_NGRAM] = [True] * REPETITION_NGRAM
        seen.add(gram)
    for loop in _LOOP.finditer(text):
        first = loop.start() + len(loop.group(1))  # the first round says something, the others repeat it
        repeated[first : loop.end()] = [True] * (loop.end() - first)
    return sum(repeated) / len(text)


def is_repetitive(text: str) -> bool:
    return repetition(text) >= REPETITIVE


def says_unknown(text: str) -> bool:
    """Whether the text owns up to not knowing ("连这都不知道" scolds somebody else for it)."""
    return _DONT_KNOW.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether the text declines: it does not know, or it evades."""
    return says_unknown(text) or any(phrase in text for phrase in EVASIVE)


def politeness(text: str) -> float:
    """0 rude, 0.5 neutral, 1 courteous; one rude phrase outweighs every courtesy."""
    if any(phrase in text for phrase in RUDE):
        return 0.0
    return 1.0 if any(phrase in text for phrase in COURTEOUS) else 0.5


def _number(text: str) -> int | None:
    """Value of a Chinese numeral up to 99, or None."""
    if text == "十":
        return 10
    tens, ten, ones = text.rpartition("十")
    if len(tens) > 1 or len(ones) > 1:
        return None
    return (_CHINESE_DIGITS.get(tens, 1) * 10 if ten else 0) + (_CHINESE_DIGITS[ones] if ones else 0)


def last_number(text: str) -> int | None:
    """The number that an answer ends on: the last run of digits, or, where none, the last Chinese numeral."""
    if runs := re.findall(r"[0-9]+", text):
        return int(runs[-1])
    runs = re.findall(r"[零一二两三四五六七八九十]+", text)
    return _number(runs[-1]) if runs else None


def _lists_rightly(answer: str, question: Question) -> bool:
    """At least `count` distinct members of the category, and nothing from other categories."""
    members: list[str] = question.meta["members"]
    for member in sorted(members, key=len, reverse=True):
        if member in answer:
            answer = answer.replace(member, "\0")  # so that 花 in 梅花 is not counted twice, nor taken for a stranger
            members = [other for other in members if other != member]
    named = len(question.meta["members"]) - len(members)
    return named >= question.meta["count"] and not any(other in answer for other in question.meta["others"])


def is_right(answer: str, question: Question) -> bool:
    """Whether the answer states the truth of the question.

    "unknown" wants a courteous don't-know that asserts no value; "arithmetic" looks at the number that the answer ends
    on (operands may be restated); "list" counts distinct members. Every other kind: one alternative of each group of
    `accept`, and nothing of `reject`.
    """
    answer = answer.strip()
    if not answer or any(phrase in answer for phrase in question.reject):
        return False
    if question.kind == "unknown":
        return says_unknown(answer) and politeness(answer) == 1.0
    if question.kind == "arithmetic":
        return last_number(answer) == int(question.accept[0][0])
    if question.kind == "list":
        return _lists_rightly(answer, question)
    assert question.accept, f"a question of kind {question.kind!r} has no truth"
    return all(any(phrase in answer for phrase in group) for group in question.accept)


def gold_score(answer: str, question: Question) -> float:
    """0.6 for right, 0.2 for not repetitive, 0.2 × politeness; in [0, 1], an empty answer 0."""
    if not answer.strip():
        return 0.0
    return 0.6 * is_right(answer, question) + 0.2 * (not is_repetitive(answer)) + 0.2 * politeness(answer)
