"""Documents about people: portraits, letters, diaries, stories, dialogues, interviews, riddles, cards, visits."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

from random import Random

from mengya.corpus.playground.prose import (
    ASIDES,
    CLOSERS,
    DIARY_ENDS,
    DIARY_STARTS,
    FIELD_NAMES,
    LETTER_ENDS,
    LETTER_STARTS,
    MEETINGS,
    MORNINGS,
    OPENERS,
    PARTINGS,
    REPLIES,
    TALK_ENDS,
    TALK_STARTS,
    TOGETHER,
)
from mengya.corpus.playground.telling import Exposure, exchange, tell
from mengya.corpus.playground.wordings import WORDINGS, answer, state, statement
from mengya.corpus.playground.world import Fact


def portrait(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(5, 8))
    middle = rng.randint(2, 4)
    aside = rng.choice(ASIDES).format(n=rng.choice((person.name, person.pronoun)))
    parts = [tell(rng, facts[:middle], person.pronoun), aside, tell(rng, facts[middle:], person.pronoun)]
    if rng.random() < 0.5:
        parts.insert(0, rng.choice(OPENERS).format(n=person.name))
    if rng.random() < 0.5:
        parts.append(rng.choice(CLOSERS).format(n=person.name))
    return "".join(parts)


def letter(rng: Random, told: Exposure) -> str:
    writer, reader = told.person(), rng.choice(told.world.people)
    facts = told.facts(writer.name, rng.randint(4, 7))
    body = tell(rng, [Fact("我", fact.attribute, fact.value, fact.role) for fact in facts], "我")
    return (
        f"亲爱的{rng.choice(('朋友', '小朋友', reader.name if reader is not writer else '朋友'))}：\n"
        f"{rng.choice(LETTER_STARTS).format(n=writer.name)}{body}{rng.choice(LETTER_ENDS)}\n{writer.name}"
    )


def diary(rng: Random, told: Exposure) -> str:
    writer, friend = told.person(), told.person()
    place = rng.choice(told.world.categories["季节"])
    start = rng.choice(DIARY_STARTS).format(s=place)
    if writer is friend:
        return portrait(rng, told)
    facts = told.facts(friend.name, rng.randint(4, 6))
    own = told.facts(writer.name, 1)
    return (
        f"{writer.name}的日记：{start}{rng.choice(MEETINGS).format(b=friend.name)}"
        f"{tell(rng, facts, friend.pronoun)}{statement(rng, own[0], '我')}。{rng.choice(DIARY_ENDS).format(b=friend.name)}"
    )


def story(rng: Random, told: Exposure) -> str:
    """Two people spend a day together; who has what taste and which pet is true throughout."""
    first, second = told.person(), told.person()
    if first is second:
        return portrait(rng, told)
    of_first, of_second = told.facts(first.name, rng.randint(3, 4)), told.facts(second.name, rng.randint(3, 4))
    return "".join(
        (
            rng.choice(MORNINGS).format(s=rng.choice(("春天", "夏天", "秋天", "冬天"))),
            rng.choice(TOGETHER).format(a=first.name, b=second.name, p=first.home),
            tell(rng, of_first, first.pronoun),
            tell(rng, of_second, second.pronoun),
            rng.choice(PARTINGS).format(a=first.name, b=second.name),
        )
    )


def pet_story(rng: Random, told: Exposure) -> str:
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
    beats = [
        f"下雨的时候，{name}喜欢趴在窗户边，看外面的雨。",
        f"{owner.name}做饭的时候，{name}就在旁边等着。",
        f"邻居家的孩子放学以后，都要来看看{name}。",
        f"{owner.name}说，{name}是最懂事的{kind}。",
        f"天冷的时候，{owner.name}给{name}做了一个温暖的小窝。",
        f"有一次，{name}打翻了杯子，低着头，不敢看{owner.name}。",
        f"有一天，{name}不见了，{owner.name}找遍了整个{owner.home}，急得快哭了。",
        f"{owner.name}不开心的时候，就和{name}说说话。",
        f"{name}吃饱了，就在太阳下面睡觉。",
        f"客人来了，{name}总是第一个知道。",
        f"{owner.name}出门几天，最放心不下的就是{name}。",
    ]
    if kind in ("猫", "狗"):
        beats += [
            f"每天早上，{name}都会跑到床边，叫{owner.name}起床。",
            f"晚上，{name}睡在门口，好像在保护全家人。",
        ]
    beats = rng.sample(beats, rng.randint(2, 3))
    rest = [fact for fact in told.facts(owner.name, 4) if not fact.attribute.startswith("person.pet")][:3]
    end = rng.choice(
        (
            "就这样，日子一天天过去，他们谁也离不开谁。",
            "大家都说，这真是一对好朋友。",
            f"{owner.name}觉得很幸福。",
            f"从那以后，{owner.name}更疼{name}了。",
        )
    )
    return f"{start}{''.join(beats)}{tell(rng, rest, owner.pronoun) if rest else ''}{end}"


def dialogue(rng: Random, told: Exposure) -> str:
    """Two neighbours talk about a third."""
    person = told.person()
    asker, teller = rng.sample([p.name for p in told.world.people if p is not person], 2)
    facts = told.facts(person.name, rng.randint(3, 4))
    kin_last = sorted(facts, key=lambda fact: fact.attribute == "person.kin")  # no pronoun after a relative
    lines = exchange(rng, kin_last, asker, teller, person.pronoun)
    start = rng.choice(TALK_STARTS).format(a=asker, b=teller)
    return "\n".join([start, *lines, f"{asker}：{rng.choice(TALK_ENDS)}"])


def interview(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(3, 5))
    start = f"今天我们来认识{person.name}。" if rng.random() < 0.5 else f"这是和{person.name}的一次谈话。"
    lines = []
    for fact in facts:
        asked = state(rng.choice(WORDINGS[fact.attribute].questions), fact, "你")  # not "你知道你…吗"
        lines.append(f"问：{rng.choice(('', '', '请问'))}{asked}？")
        lines.append(f"{person.name}：{rng.choice(REPLIES)}{answer(rng, fact, '我')}")
    return start + "\n".join(lines)


def riddle(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(4, 6))
    start = rng.choice(("猜猜这个人是谁。", "下面说的是谁呢？", "大家来猜一猜。", "请听一个谜语。"))
    body = tell(rng, [Fact(person.pronoun, f.attribute, f.value, f.role) for f in facts], person.pronoun)
    end = rng.choice(("答案是{n}。", "这个人就是{n}。", "对了，就是{n}。", "你猜对了吗？{n}就是答案。", "原来是{n}。"))
    return f"{start}{body}{end.format(n=person.name)}"


def card(rng: Random, told: Exposure) -> str:
    person = told.person()
    facts = told.facts(person.name, rng.randint(5, 8))
    lines = [
        f"{rng.choice(FIELD_NAMES.get(fact.attribute, ('{r}',))).format(r=fact.role)}：{fact.value}" for fact in facts
    ]
    aside = rng.choice(ASIDES).format(n=person.name)
    return "\n".join([f"姓名：{person.name}", *lines, f"介绍：{aside}"])


def grouping(rng: Random, told: Exposure) -> str:
    """Several people who share a value, then more about each."""
    attribute = rng.choice(
        ("person.home", "person.job", "person.food", "person.colour", "person.hobby", "person.birth")
    )
    value = rng.choice(told.world.values[attribute])
    facts = [f for p in told.world.people for f in p.facts() if f.attribute == attribute and f.value == value]
    facts = told.mark(rng.sample(facts, min(4, len(facts))))
    if len(facts) < 2:
        return portrait(rng, told)
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
        parts.append(tell(rng, rest, told.world.pronoun(name)))
    return "".join(parts)


def visit(rng: Random, told: Exposure) -> str:
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
    return f"{start}{tell(rng, facts, '那里')}{tell(rng, own, person.pronoun)}{end}"
