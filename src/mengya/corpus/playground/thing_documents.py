"""Documents about things: encyclopaedia entries, pages of questions, pages of an exercise book."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mengya.corpus.playground.exercises import SUMS
from mengya.corpus.playground.prose import ENTRY_ENDS, SCHOOL_ENDS, SCHOOL_STARTS
from mengya.corpus.playground.telling import Exposure, exchange, tell
from mengya.corpus.playground.wordings import statement


def questions_page(kinds: tuple[str, ...]) -> Callable[[Random, Exposure], str]:
    """A page of questions with answers, on subjects of the given kinds."""

    def write(rng: Random, told: Exposure) -> str:
        ask, reply = rng.choice((("问", "答"), ("学生", "老师"), ("孩子", "爷爷"), ("小朋友", "阿姨")))
        lines: list[str] = []
        while len(lines) < rng.choice((6, 8, 8, 10)):
            subject = told.subject(rng.choice(kinds))
            facts = told.facts(subject, 2 if subject in told.world.person else 1)
            facts = sorted(facts, key=lambda fact: fact.attribute == "person.kin")
            lines += exchange(rng, facts, ask, reply, told.world.pronoun(subject))
        return "\n".join(lines)

    return write


def entry(kind: str, start: tuple[str, ...], count: tuple[int, int]) -> Callable[[Random, Exposure], str]:
    """An entry of a small encyclopaedia on several subjects of one kind."""

    def write(rng: Random, told: Exposure) -> str:
        parts = [rng.choice(start)] if rng.random() < 0.7 else []
        for _ in range(rng.randint(*count)):
            subject = told.subject(kind)
            parts.append(tell(rng, told.facts(subject, 3), told.world.pronoun(subject)))
        if rng.random() < 0.7:
            parts.append(rng.choice(ENTRY_ENDS))
        return "".join(parts)

    return write


# Words between the numbers: a page of bare sums is mostly digits, and a cleaner is right to drop it as a table.
SUM_LINES = (
    "算一算，{s}等于几？想好了，{s}等于{v}。",
    "老师问：“{s}等于多少？”学生回答：“{s}等于{v}。”",
    "问：请问{s}等于几？答：{s}等于{v}。",
    "想一想，{s}是多少？不难，{s}是{v}。",
    "小朋友都知道，{s}等于{v}。",
    "请大家记住，{s}等于{v}。",
)
SUM_REMARKS = ("做得真好。", "再来一道题。", "这道题很容易。", "下面一道难一点。", "别着急，慢慢想。", "大家一起说。")


def sums_page(rng: Random, told: Exposure) -> str:
    lines = rng.sample(SUM_LINES, 2)
    parts = [rng.choice(SCHOOL_STARTS)]
    for s in rng.sample(SUMS, rng.randint(6, 8)):
        remark = rng.choice(SUM_REMARKS) if rng.random() < 0.5 else ""
        parts.append(rng.choice(lines).format(s=s, v=s.result) + remark)
    first, *rest = parts[1:]
    return rng.choice(("\n", "")).join([parts[0] + first, *rest]) + rng.choice(SCHOOL_ENDS)


def sums_story(rng: Random, told: Exposure) -> str:
    parts = []
    for s in rng.sample([s for s in SUMS if s.operator != "乘"], 3):
        person = rng.choice(told.world.people)
        thing = rng.choice(("苹果", "橙子", "桃子", "本子", "气球", "贝壳", "糖果", "鸡蛋"))
        if s.operator == "加":
            parts.append(
                f"{person.name}有{s.left}个{thing}，又买了{s.right}个，{s}等于{s.result}，现在一共有{s.result}个{thing}。"
            )
        else:
            parts.append(
                f"{person.name}有{s.left}个{thing}，送给朋友{s.right}个，{s}等于{s.result}，还剩{s.result}个{thing}。"
            )
    return rng.choice(SCHOOL_STARTS) + "".join(parts)


def words_page(rng: Random, told: Exposure) -> str:
    kind = rng.choice(("opposite", "measure", "mixed"))
    parts = [rng.choice(SCHOOL_STARTS)]
    for _ in range(rng.randint(6, 9)):
        subject = told.subject(rng.choice(("opposite", "measure")) if kind == "mixed" else kind)
        parts.append(statement(rng, told.facts(subject, 1)[0]) + "。")
    return "".join(parts) + rng.choice(SCHOOL_ENDS)


def lists_page(rng: Random, told: Exposure) -> str:
    parts = [rng.choice(SCHOOL_STARTS)]
    categories = told.world.categories
    for category in rng.sample(list(categories), rng.randint(4, 5)):
        members = rng.sample(categories[category], 4)
        items = "、".join(members[:3])
        parts.append(
            rng.choice(
                (
                    f"{items}都是{category}。",
                    f"{category}有{items}和{members[3]}。",
                    f"说到{category}，有{items}。",
                    f"三种{category}：{items}。",
                )
            )
        )
    return "".join(parts) + rng.choice(SCHOOL_ENDS)
