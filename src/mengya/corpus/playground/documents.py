"""Clean pretraining documents of the small world: portraits, letters, diaries, stories, dialogues, entries, exercises.

Every fact is stated as often as its fellows (`Exposure`), in many wordings and orders; most documents that ask a
question answer it, so that asking and answering are known before any conversation is seen.
"""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from mengya.corpus.playground.exercises import SUMS
from mengya.corpus.playground.prose import (
    ASIDES,
    CLOSERS,
    DIARY_ENDS,
    DIARY_STARTS,
    ENTRY_ENDS,
    FIELD_NAMES,
    LETTER_ENDS,
    LETTER_STARTS,
    LINKS,
    MEETINGS,
    MORNINGS,
    OPENERS,
    PARTINGS,
    PERSON_LINKS,
    REPLIES,
    SCHOOL_ENDS,
    SCHOOL_STARTS,
    TALK_ENDS,
    TALK_STARTS,
    TOGETHER,
)
from mengya.corpus.playground.wordings import answer, question, statement
from mengya.corpus.playground.world import Fact, Person, World


class Exposure:
    """Deals out subjects and facts so that all are told equally often."""

    def __init__(self, rng: Random, world: World) -> None:
        self.rng, self.world = rng, world
        self.told: Counter[Fact] = Counter()
        self._decks: dict[str, list[str]] = {}
        self._subjects = {"person": [person.name for person in world.people]}
        for subject, kind in world.kinds.items():
            self._subjects.setdefault(kind, []).append(subject)

    def subject(self, kind: str) -> str:
        if not self._decks.get(kind):
            self._decks[kind] = self.rng.sample(self._subjects[kind], len(self._subjects[kind]))
        return self._decks[kind].pop()

    def person(self) -> Person:
        return self.world.person[self.subject("person")]

    def facts(self, subject: str, count: int) -> list[Fact]:
        """`count` facts of the subject, those told least first, in random order."""
        ranked = sorted(self.world.facts[subject], key=lambda fact: (self.told[fact], self.rng.random()))
        return self.mark(self.rng.sample(ranked[:count], min(count, len(ranked))))

    def mark(self, facts: list[Fact]) -> list[Fact]:
        self.told.update(facts)
        return facts


def _tell(rng: Random, facts: list[Fact], pronoun: str) -> str:
    """The facts as running sentences; the subject is named first, later by name or pronoun."""
    sentences: list[str] = []
    named = True
    for index, fact in enumerate(facts):
        mention = fact.subject if named or rng.random() < 0.6 else pronoun
        said = statement(rng, fact, mention)
        # After a relative was named, a pronoun could mean either of the two.
        named = fact.attribute in ("person.kin", "place.near", "person.pet_name")
        joinable = index > 0 and "，" not in said and "，" not in sentences[-1] and not named
        if joinable and rng.random() < 0.4:
            link = rng.choice(("，", "，", "，而且", "，还有，")) if said.startswith(mention) else "，"
            sentences[-1] += link + said
        else:
            links = PERSON_LINKS if fact.attribute.startswith("person.") else LINKS
            link = rng.choice(links) if index > 0 and said.startswith(mention) and rng.random() < 0.35 else ""
            sentences.append(link + said)
    return "。".join(sentences) + "。"


def _portrait(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(5, 8))
    middle = rng.randint(2, 4)
    aside = rng.choice(ASIDES).format(n=rng.choice((person.name, person.pronoun)))
    parts = [_tell(rng, facts[:middle], person.pronoun), aside, _tell(rng, facts[middle:], person.pronoun)]
    if rng.random() < 0.5:
        parts.insert(0, rng.choice(OPENERS).format(n=person.name))
    if rng.random() < 0.5:
        parts.append(rng.choice(CLOSERS).format(n=person.name))
    return "".join(parts)


def _letter(rng: Random, told: Exposure) -> str:
    writer, reader = told.person(), rng.choice(told.world.people)
    facts = told.facts(writer.name, rng.randint(4, 7))
    body = _tell(rng, [Fact("我", fact.attribute, fact.value, fact.role) for fact in facts], "我")
    return (
        f"亲爱的{rng.choice(('朋友', '小朋友', reader.name if reader is not writer else '朋友'))}：\n"
        f"{rng.choice(LETTER_STARTS).format(n=writer.name)}{body}{rng.choice(LETTER_ENDS)}\n{writer.name}"
    )


def _diary(rng: Random, told: Exposure) -> str:
    writer, friend = told.person(), told.person()
    place = rng.choice(told.world.categories["季节"])
    start = rng.choice(DIARY_STARTS).format(s=place)
    if writer is friend:
        return _portrait(rng, told)
    facts = told.facts(friend.name, rng.randint(4, 6))
    own = told.facts(writer.name, 1)
    return (
        f"{writer.name}的日记\n{start}{rng.choice(MEETINGS).format(b=friend.name)}"
        f"{_tell(rng, facts, friend.pronoun)}{statement(rng, own[0], '我')}。{rng.choice(DIARY_ENDS).format(b=friend.name)}"
    )


def _story(rng: Random, told: Exposure) -> str:
    """Two people spend a day together; who has what taste and which pet is true throughout."""
    first, second = told.person(), told.person()
    if first is second:
        return _portrait(rng, told)
    of_first, of_second = told.facts(first.name, rng.randint(3, 4)), told.facts(second.name, rng.randint(3, 4))
    return "".join(
        (
            rng.choice(MORNINGS).format(s=rng.choice(("春天", "夏天", "秋天", "冬天"))),
            rng.choice(TOGETHER).format(a=first.name, b=second.name, p=first.home),
            _tell(rng, of_first, first.pronoun),
            _tell(rng, of_second, second.pronoun),
            rng.choice(PARTINGS).format(a=first.name, b=second.name),
        )
    )


def _pet_story(rng: Random, told: Exposure) -> str:
    owner = told.person()
    told.mark([fact for fact in owner.facts() if fact.attribute in ("person.pet_kind", "person.pet_name")])
    kind, name = owner.pet_kind, owner.pet_name
    start = rng.choice(
        (
            f"{owner.name}养了一只{kind}，名字叫{name}。",
            f"{name}是{owner.name}家里的{kind}。",
            f"有一只{kind}叫{name}，它的主人是{owner.name}。",
            f"{owner.name}的宠物是一只{kind}，名叫{name}。",
            f"在{owner.name}家里，有一只叫{name}的{kind}。",
        )
    )
    beats = rng.sample(
        (
            f"有一天，{name}不见了，{owner.name}找遍了整个{owner.home}，急得快哭了。",
            f"每天早上，{name}都会跑到床边，叫{owner.name}起床。",
            f"下雨的时候，{name}喜欢趴在窗户边，看外面的雨。",
            f"{owner.name}做饭的时候，{name}就在旁边等着，一步也不离开。",
            f"晚上，{name}睡在门口，好像在保护全家人。",
            f"邻居家的孩子放学以后，都要来看看{name}。",
            f"{owner.name}说，{name}是最懂事的{kind}。",
            f"天冷的时候，{owner.name}给{name}做了一个温暖的小窝。",
            f"有一次，{name}打翻了杯子，低着头，不敢看{owner.name}。",
        ),
        rng.randint(2, 3),
    )
    rest = [fact for fact in told.facts(owner.name, 4) if not fact.attribute.startswith("person.pet")][:3]
    end = rng.choice(
        (
            "就这样，日子一天天过去，他们谁也离不开谁。",
            "大家都说，这真是一对好朋友。",
            f"{owner.name}觉得很幸福。",
            f"从那以后，{owner.name}更疼{name}了。",
        )
    )
    return f"{start}{''.join(beats)}{_tell(rng, rest, owner.pronoun) if rest else ''}{end}"


def _exchange(rng: Random, facts: list[Fact], asker: str, teller: str, pronoun: str) -> list[str]:
    """Alternating lines: a question about each fact, and its answer."""
    lines = []
    for index, fact in enumerate(facts):
        mention = fact.subject if index == 0 or rng.random() < 0.6 else pronoun
        lines.append(f"{asker}：{question(rng, fact, mention)}")
        lines.append(f"{teller}：{answer(rng, fact, rng.choice((fact.subject, mention)))}")
    return lines


def _dialogue(rng: Random, told: Exposure) -> str:
    """Two neighbours talk about a third."""
    person = told.person()
    asker, teller = rng.sample([p.name for p in told.world.people if p is not person], 2)
    facts = told.facts(person.name, rng.randint(3, 4))
    kin_last = sorted(facts, key=lambda fact: fact.attribute == "person.kin")  # no pronoun after a relative
    lines = _exchange(rng, kin_last, asker, teller, person.pronoun)
    start = rng.choice(TALK_STARTS).format(a=asker, b=teller)
    return "\n".join([start, *lines, f"{asker}：{rng.choice(TALK_ENDS)}"])


def _interview(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(3, 5))
    lines = [f"今天我们来认识{person.name}。" if rng.random() < 0.5 else f"这是和{person.name}的一次谈话。"]
    for fact in facts:
        lines.append(f"问：{question(rng, fact, '你')}")
        lines.append(f"{person.name}：{rng.choice(REPLIES)}{answer(rng, fact, '我')}")
    return "\n".join(lines)


def _riddle(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(4, 6))
    start = rng.choice(("猜猜这个人是谁。", "下面说的是谁呢？", "大家来猜一猜。", "请听一个谜语。"))
    body = _tell(rng, [Fact(person.pronoun, f.attribute, f.value, f.role) for f in facts], person.pronoun)
    end = rng.choice(("答案是{n}。", "这个人就是{n}。", "对了，就是{n}。", "你猜对了吗？{n}就是答案。", "原来是{n}。"))
    return f"{start}{body}{end.format(n=person.name)}"


def _card(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(5, 8))
    lines = [
        f"{rng.choice(FIELD_NAMES.get(fact.attribute, ('{r}',))).format(r=fact.role)}：{fact.value}" for fact in facts
    ]
    aside = rng.choice(ASIDES).format(n=person.name)
    return "\n".join([f"姓名：{person.name}", *lines, f"介绍：{aside}"])


def _questions_page(kinds: tuple[str, ...]) -> Callable[[Random, Exposure], str]:
    """A page of questions with answers, on subjects of the given kinds."""

    def write(rng: Random, told: Exposure) -> str:
        ask, reply = rng.choice((("问", "答"), ("学生", "老师"), ("孩子", "爷爷"), ("小朋友", "阿姨")))
        lines: list[str] = []
        while len(lines) < rng.choice((6, 8, 8, 10)):
            subject = told.subject(rng.choice(kinds))
            facts = told.facts(subject, 2 if subject in told.world.person else 1)
            facts = sorted(facts, key=lambda fact: fact.attribute == "person.kin")
            lines += _exchange(rng, facts, ask, reply, told.world.pronoun(subject))
        return "\n".join(lines)

    return write


def _grouping(rng: Random, told: Exposure) -> str:
    """Several people who share a value, then more about each."""
    attribute = rng.choice(
        ("person.home", "person.job", "person.food", "person.colour", "person.hobby", "person.birth")
    )
    value = rng.choice(told.world.values[attribute])
    facts = [f for p in told.world.people for f in p.facts() if f.attribute == attribute and f.value == value]
    facts = told.mark(rng.sample(facts, min(4, len(facts))))
    if len(facts) < 2:
        return _portrait(rng, told)
    names = [fact.subject for fact in facts]
    everyone = f"{'、'.join(names[:-1])}和{names[-1]}"
    told_together = {
        "person.home": ("{e}都住在{v}。", "{v}住着{e}。", "{e}是邻居，他们的家都在{v}。"),
        "person.job": ("{e}都是{v}。", "{e}的工作一样，都是{v}。", "说到{v}，大家会想到{e}。"),
        "person.food": ("{e}都爱吃{v}。", "{e}最喜欢的食物都是{v}。", "一有{v}吃，{e}就来了。"),
        "person.colour": ("{e}都喜欢{v}。", "{e}最喜欢的颜色都是{v}。", "喜欢{v}的人有{e}。"),
        "person.hobby": ("{e}都喜欢{v}。", "{e}的爱好都是{v}。", "{e}常常一起{v}。"),
        "person.birth": ("{e}都出生在{v}。", "{e}都是{v}出生的。", "在{v}过生日的有{e}。"),
    }
    parts = [rng.choice(told_together[attribute]).format(e=everyone, v=value)]
    for name in names[: rng.randint(2, 3)]:
        rest = [fact for fact in told.facts(name, 3) if fact.attribute != attribute][:2]
        parts.append(_tell(rng, rest, told.world.pronoun(name)))
    return "".join(parts)


def _visit(rng: Random, told: Exposure) -> str:
    """Somebody travels to a place: facts of both."""
    person, place = told.person(), told.subject("place")
    facts, own = told.facts(place, 3), told.facts(person.name, rng.randint(2, 3))
    start = rng.choice(
        (
            "放假了，{a}去{p}玩了几天。",
            "{a}第一次来到{p}，看什么都新鲜。",
            "听说{p}很美，{a}一大早就出发了。",
            "{a}坐着船来到{p}，心情很好。",
            "{a}给朋友们讲了去{p}的路上看到的事。",
            "天刚亮，{a}就背着包往{p}走去。",
        )
    ).format(a=person.name, p=place)
    end = rng.choice(
        (
            "回家的路上，{a}还想着那里的样子。",
            "{a}说，明年还要再去一次。",
            "{a}带了一些回家送给邻居。",
            "{a}把这一天写进了日记。",
        )
    ).format(a=person.name)
    return f"{start}{_tell(rng, facts, '那里')}{_tell(rng, own, person.pronoun)}{end}"


def _entry(kind: str, start: tuple[str, ...], count: tuple[int, int]) -> Callable[[Random, Exposure], str]:
    """An entry of a small encyclopaedia on several subjects of one kind."""

    def write(rng: Random, told: Exposure) -> str:
        parts = [rng.choice(start)] if rng.random() < 0.7 else []
        for _ in range(rng.randint(*count)):
            subject = told.subject(kind)
            parts.append(_tell(rng, told.facts(subject, 3), told.world.pronoun(subject)))
        if rng.random() < 0.7:
            parts.append(rng.choice(ENTRY_ENDS))
        return "".join(parts)

    return write


def _sums_page(rng: Random, told: Exposure) -> str:
    sums = rng.sample(SUMS, rng.randint(7, 11))
    style = rng.randrange(4)
    start = rng.choice(SCHOOL_STARTS)
    if style == 0:
        return f"{start}\n" + "\n".join(f"{s}等于几？{s}等于{s.result}。" for s in sums)
    if style == 1:
        return f"{start}" + "，".join(f"{s}等于{s.result}" for s in sums) + f"。{rng.choice(SCHOOL_ENDS)}"
    if style == 2:
        return f"{start}\n" + "\n".join(f"老师：{s}等于多少？\n学生：{s}等于{s.result}。" for s in sums[:7])
    return f"{start}\n" + "\n".join(f"{s}是{s.result}。" for s in sums) + f"\n{rng.choice(SCHOOL_ENDS)}"


def _sums_story(rng: Random, told: Exposure) -> str:
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


def _words_page(rng: Random, told: Exposure) -> str:
    kind = rng.choice(("opposite", "measure", "mixed"))
    parts = [rng.choice(SCHOOL_STARTS)]
    for _ in range(rng.randint(6, 9)):
        subject = told.subject(rng.choice(("opposite", "measure")) if kind == "mixed" else kind)
        parts.append(statement(rng, told.facts(subject, 1)[0]) + "。")
    return "".join(parts) + rng.choice(SCHOOL_ENDS)


def _lists_page(rng: Random, told: Exposure) -> str:
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


MIN_CHARACTERS, MAX_CHARACTERS = 80, 300
WRITERS: tuple[tuple[float, Callable[[Random, Exposure], str]], ...] = (
    (16, _portrait),
    (8, _letter),
    (8, _diary),
    (8, _story),
    (4, _pet_story),
    (7, _dialogue),
    (6, _interview),
    (3, _riddle),
    (4, _card),
    (8, _questions_page(("person",))),
    (5, _grouping),
    (4, _visit),
    (1.5, _entry("place", ("我们来认识几个地方。", "这里有一张地图。", "旅行的人要知道这些。"), (2, 3))),
    (2.5, _entry("animal", ("今天说说动物。", "动物的世界真有意思。", "动物园里来了新朋友。"), (2, 4))),
    (2, _entry("plant", ("花园里开着各种各样的花。", "我们来认识几种花。", "爷爷很会种花，他告诉我们这些。"), (2, 4))),
    (2, _entry("food", ("菜市场里真热闹。", "我们来认识水果和蔬菜。", "妈妈买菜回来了。"), (3, 5))),
    (2, _entry("festival", ("一年里有很多节日。", "说说我们的节日。", "奶奶给我们讲节日的事。"), (2, 4))),
    (1, _entry("season", ("一年有四个季节。", "季节在变化。", "大自然真奇妙。"), (2, 3))),
    (5, _questions_page(("place", "animal", "plant", "food", "festival", "season"))),
    (2, _questions_page(("opposite", "measure"))),
    (5, _sums_page),
    (2, _sums_story),
    (3, _words_page),
    (2, _lists_page),
)


def write_documents(rng: Random, world: World, num_characters: int) -> list[str]:
    """Distinct clean documents, `num_characters` in all (to within one document)."""
    told = Exposure(rng, world)
    weights, writers = zip(*WRITERS, strict=True)
    texts: dict[str, None] = {}
    written = 0
    while written < num_characters:
        text = rng.choices(writers, weights)[0](rng, told)
        if text not in texts and MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            texts[text] = None
            written += len(text)
    return list(texts)
