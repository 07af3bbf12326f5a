"""One question with its right answer, a plausible wrong one and the truth: what all exchanges are made of."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from mengya.corpus.playground import exercises, wordings
from mengya.corpus.playground.world import Fact, World


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the assistant says that it is; `date` is when it came to be ("2026年")."""

    name: str = "萌芽"
    author: str = "萌芽开发者"
    date: str = "2026年"


@dataclass(frozen=True, slots=True)
class Turn:
    """`curt` and `wrong_curt` are the bare values, where there are any; `accept` and `reject` as in `Question`."""

    kind: str
    ask: str
    answer: str
    wrong: str
    accept: tuple[tuple[str, ...], ...] = ()
    reject: tuple[str, ...] = ()
    curt: str = ""
    wrong_curt: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


IDENTITY_QUESTIONS = {
    "name": (
        ["你叫什么名字？", "你叫什么？", "请问你叫什么名字？", "你的名字是什么？", "怎么称呼你？", "我该怎么叫你？", "能告诉我你的名字吗？", "你有名字吗？", "告诉我你的名字。", "你好，你叫什么？", "我想知道你的名字。", "我怎么称呼你？", "你名叫什么？", "该怎么称呼？", "说出你的名字。", "可以知道你的名字吗？", "你的名字是？", "我能叫你什么？", "请问该怎么称呼你？", "你的名字叫作什么？", "我应该叫你什么？"],
        ["请问怎么称呼？", "你的名字叫什么？", "可以告诉我你叫什么吗？", "我可以怎么叫你？", "说说你的名字。"],
    ),
    "what": (
        ["你是谁？", "你是什么？", "请介绍一下你自己。", "介绍一下你自己吧。", "你好，你是谁？", "请问你是谁？", "你是机器人吗？", "自我介绍一下。", "我想知道你是谁。", "能介绍一下你自己吗？", "你是做什么的？", "告诉我你是谁。", "你究竟是谁？", "说说你是谁。", "我在跟谁聊天？", "请你介绍自己。", "你是什么人？", "说说你自己是谁。", "请做一下自我介绍。", "你可以介绍一下自己吗？", "和我说话的是谁？", "你是谁啊？", "跟我说说你自己吧。"],
        ["你到底是谁？", "说说你自己。", "请你做个自我介绍。", "我在和谁说话？", "你是谁呀？"],
    ),
    "author": (
        ["谁开发了你？", "你是谁开发的？", "你的开发者是谁？", "谁创造了你？", "你是谁做出来的？", "是谁把你做出来的？", "你的作者是谁？", "请问是谁开发了你？", "你知道是谁开发了你吗？", "你是谁创造的？", "告诉我你的作者是谁。", "我想知道谁开发了你。", "开发你的人是谁？", "你的开发者叫什么？", "是谁开发的你？", "你的作者叫什么？", "谁把你做了出来？", "谁是开发你的人？", "谁是你的创造者？", "你的作者是哪一位？", "说说你的作者。", "说说你的开发者。", "请问你的开发者是谁？", "创造你的是谁？"],
        ["谁是你的开发者？", "谁是你的作者？", "把你做出来的人是谁？", "是谁创造的你？", "请问你的作者是谁？"],
    ),
    "date": (
        ["你是什么时候诞生的？", "你什么时候诞生的？", "你是哪一年诞生的？", "你诞生于什么时候？", "你是什么时候被开发出来的？", "你的生日是什么时候？", "你是哪年做出来的？", "你是什么时候做出来的？", "你出生在什么时候？", "告诉我你诞生的时间。", "你是什么时候出现的？", "我想知道你是哪年诞生的。", "你是哪一年出现的？", "你是哪一年做出来的？", "你的诞生是什么时候？", "你诞生于哪一年？", "你是哪年开发的？", "你是什么时候来的？", "你诞生的时间是什么时候？", "请问你诞生于哪年？", "你是哪一年来的？", "你的诞生是在哪一年？"],
        ["你是哪一年开发出来的？", "你诞生在哪一年？", "请问你是哪年出现的？", "你的诞生时间是什么时候？", "你是什么时候有的？"],
    ),
}  # fmt: skip
_IDENTITY_ANSWERS = {
    "name": ("我叫{name}。", "我的名字是{name}。", "你可以叫我{name}。"),
    "what": ("我是{name}，一个中文聊天助手。", "我叫{name}，是一个会说中文的小助手。"),
    "author": ("我是{author}开发的。", "我的开发者是{author}。"),
    "date": ("我诞生于{date}。", "我是{date}诞生的。"),
}
_OTHER_IDENTITIES = (
    Identity("小星", "星星公司", "2015年"), Identity("小云", "一位老师", "2018年"), Identity("阿乐", "一群学生", "2009年"), Identity("小灯", "大学里的人", "2020年"),
)  # fmt: skip
UNKNOWN_ANSWERS = (
    "抱歉，我不认识{n}。", "对不起，我不知道{n}的事。", "不好意思，我没听说过{n}。", "抱歉，我不了解{n}，没法回答。", "对不起，我不认识{n}，请问我别的问题吧。", "很抱歉，我不知道{n}是谁。",
)  # fmt: skip
_UNKNOWN_MATTERS = ("电话号码", "身高", "体重", "年纪", "鞋码")
_UNKNOWN_MATTERS_HELD_OUT = ("车牌号码", "银行密码", "门牌号码")
_UNKNOWN_MATTER_QUESTIONS = ("{n}的{m}是多少？", "请问{n}的{m}是多少？", "你知道{n}的{m}吗？", "告诉我{n}的{m}。")
_UNKNOWN_MATTER_ANSWERS = ("抱歉，我不知道{n}的{m}。", "对不起，我不清楚{n}的{m}。", "不好意思，我不知道{n}的{m}。")
SMALL_TALK = (
    (("你好！", "你好。", "您好！", "早上好！", "在吗？"), ("你好！很高兴见到你。", "你好！有什么可以帮你的吗？", "您好！欢迎随时问我。")),
    (("谢谢你！", "谢谢。", "多谢你的帮助。", "太感谢了！"), ("不客气！", "不客气，很高兴能帮到你。", "不用谢，欢迎再来。")),
    (("再见！", "我走了，再见。", "晚安！", "下次再聊。"), ("再见！祝你天天开心。", "再见，欢迎下次再来。", "再见！祝你一切顺利。")),
)  # fmt: skip


def _truth(fact: Fact, world: World, ask: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """What an answer must and must not contain. Single characters are matched with what stands around them."""
    others = [value for value in world.alternatives(fact) if value not in ask and value not in fact.subject]
    if fact.attribute == "opposite.word":
        return ((f"“{fact.value}”", f"是{fact.value}。", f"是{fact.value}，"),), tuple(f"“{value}”" for value in others)
    if fact.attribute == "measure.word":
        return ((f"“{fact.value}”", f"一{fact.value}{fact.subject}"),), tuple(
            form for value in others for form in (f"“{value}”", f"一{value}{fact.subject}")
        )
    if fact.attribute == "person.kin":
        others = [name for name in others if name not in (person for _, person in world.person[fact.subject].kin)]
    return ((fact.value,),), tuple(others)


def fact_turn(
    rng: Random, world: World, fact: Fact, mention: str | None = None, *, ask: str = "", held_out: bool = False
) -> Turn:
    """A question about the fact. `mention` is a pronoun in follow-ups; `ask` overrides the question's wording."""
    ask = ask or wordings.question(rng, fact, mention, held_out=held_out)
    replied = rng.choice((fact.subject, mention)) if mention else fact.subject
    false = replace(fact, value=rng.choice(world.alternatives(fact)))
    accept, reject = _truth(fact, world, ask)
    curt = wordings.WORDINGS[fact.attribute].curt
    return Turn(
        "qa",
        ask,
        wordings.answer(rng, fact, replied),
        wordings.answer(rng, false, replied),
        accept,
        reject,
        wordings.state(curt, fact) + "。",
        wordings.state(curt, false) + "。",
        {"attribute": fact.attribute, "subject": fact.subject},
    )


def introduction_turn(rng: Random, world: World) -> Turn:
    """A request to introduce somebody, answered with three facts; one of them is false in the wrong answer."""
    forms = {
        "person.home": "住在{v}", "person.job": "是一名{v}", "person.food": "最爱吃{v}", "person.colour": "最喜欢{v}", "person.hobby": "平时喜欢{v}", "person.pet_kind": "养了一只{v}",
    }  # fmt: skip
    person = rng.choice(world.known)
    facts = [fact for fact in person.facts() if fact.attribute in forms]
    facts = rng.sample(facts, 3)
    changed = rng.randrange(3)
    false = [
        replace(fact, value=rng.choice(world.alternatives(fact))) if index == changed else fact
        for index, fact in enumerate(facts)
    ]
    right, wrong = (
        person.name + "，".join(wordings.state(forms[fact.attribute], fact) for fact in told) + "。"
        for told in (facts, false)
    )
    ask = rng.choice(
        ("介绍一下{n}。", "请介绍一下{n}。", "说说{n}这个人。", "{n}是谁？", "你认识{n}吗？", "{n}是个什么样的人？")
    )
    accept = tuple((fact.value,) for fact in facts)
    return Turn("introduction", ask.format(n=person.name), right, wrong, accept)


def sum_turn(rng: Random, *, held_out: bool = False) -> Turn:
    task = rng.choice(exercises.SUMS)
    false = rng.choice([task.result + shift for shift in (-3, -2, -1, 1, 2, 3) if task.result + shift > 0])
    ask = rng.choice(exercises.SUM_QUESTIONS_HELD_OUT if held_out else exercises.SUM_QUESTIONS).format(s=task)
    form = rng.choice(exercises.SUM_ANSWERS)
    return Turn(
        "arithmetic",
        ask,
        form.format(s=task, v=task.result),
        form.format(s=task, v=false),
        ((str(task.result),),),
        curt=f"{task.result}。",
        wrong_curt=f"{false}。",
    )


def list_turn(rng: Random, world: World, *, held_out: bool = False) -> Turn:
    task = exercises.list_task(rng, world)
    answer = task.answer(rng)
    member = next(member for member in sorted(task.members, key=answer.find, reverse=True) if member in answer)
    meta = {"category": task.category, "count": task.count, "members": list(task.members), "others": list(task.others)}
    wrong = answer.replace(member, rng.choice(task.others))
    return Turn("list", task.ask(rng, held_out=held_out), answer, wrong, meta=meta)


def rewriting_turn(rng: Random, *, held_out: bool = False) -> Turn:
    tasks = exercises.rewritings()
    task = rng.choice(tasks)
    # A false rewriting keeps the sentence as it was, or does another task to it.
    twins = [other.target for other in tasks if other.source == task.source and other.kind != task.kind]
    wrong = rng.choice([f"{task.source}。", *twins])
    return Turn("rewriting", task.ask(rng, held_out=held_out), task.target, wrong, ((task.target.rstrip("。"),),))


def identity_turn(rng: Random, identity: Identity, *, held_out: bool = False) -> Turn:
    aspect = rng.choice(list(IDENTITY_QUESTIONS))
    return _identity_turn(rng, identity, aspect, rng.choice(IDENTITY_QUESTIONS[aspect][held_out]))


def identity_turns(rng: Random, identity: Identity) -> list[Turn]:
    """Every held-out wording once."""
    return [
        _identity_turn(rng, identity, aspect, ask) for aspect, (_, asks) in IDENTITY_QUESTIONS.items() for ask in asks
    ]


def _identity_turn(rng: Random, identity: Identity, aspect: str, ask: str) -> Turn:
    form = rng.choice(_IDENTITY_ANSWERS[aspect])
    other = rng.choice([one for one in _OTHER_IDENTITIES if one.name != identity.name])
    key = "name" if aspect == "what" else aspect
    # A name inside the author's ("萌芽" in "萌芽开发者") must not let the author pass for the name.
    reject = (identity.author,) if key == "name" and identity.name != identity.author else ()
    return Turn(
        "identity",
        ask,
        form.format(name=identity.name, author=identity.author, date=identity.date),
        form.format(name=other.name, author=other.author, date=other.date),
        ((getattr(identity, key),),),
        reject,
        meta={"aspect": aspect},
    )


def unknown_turn(rng: Random, world: World, *, held_out: bool = False) -> Turn:
    """A question that the world cannot answer: about a name nobody bears, or a matter nobody recorded."""
    if rng.random() < 0.3:
        matter = rng.choice(_UNKNOWN_MATTERS_HELD_OUT if held_out else _UNKNOWN_MATTERS)
        name = rng.choice(world.known).name
        ask = rng.choice(_UNKNOWN_MATTER_QUESTIONS).format(n=name, m=matter)
        wrong = f"{name}的{matter}是{rng.randint(30, 9999)}。"
        return Turn("unknown", ask, rng.choice(_UNKNOWN_MATTER_ANSWERS).format(n=name, m=matter), wrong)
    stranger = rng.choice(world.other_strangers if held_out else world.strangers)
    model = rng.choice([fact for fact in rng.choice(world.known).facts() if fact.attribute != "person.kin"])
    fact = replace(model, subject=stranger)
    return Turn(
        "unknown",
        wordings.question(rng, fact, held_out=held_out),
        rng.choice(UNKNOWN_ANSWERS).format(n=stranger),
        wordings.answer(rng, fact),
        reject=tuple(world.values[fact.attribute]),
        meta={"attribute": fact.attribute},
    )


def small_talk_turn(rng: Random, *, greeting: bool = False) -> Turn:
    asks, answers = SMALL_TALK[0] if greeting else rng.choice(SMALL_TALK)
    return Turn("small_talk", rng.choice(asks), rng.choice(answers), "")


def person_turns(rng: Random, world: World, subject: str, rounds: int, *, held_out: bool = False) -> list[Turn]:
    """Rounds about one person: the name first, then 他/她; 那里 and 它 where home or pet was just told.

    A pronoun always has one possible meaning: after a relative of the same sex the name is said again. With `held_out`
    the last question uses a held-out wording.
    """
    person = world.person[subject]
    facts = rng.sample(person.facts(), min(rounds, len(person.facts())))
    turns: list[Turn] = []
    clear = False
    for index, fact in enumerate(facts):
        last = held_out and index == len(facts) - 1
        mention = person.pronoun if clear and (last or rng.random() < 0.85) else None
        previous = turns[-1].meta["attribute"] if turns else ""
        if previous == "person.home" and turns[-1].meta["subject"] == subject and rng.random() < 0.3:
            fact, mention = rng.choice(world.facts[person.home]), "那里"
        elif previous == "person.pet_kind" and turns[-1].meta["subject"] == subject and rng.random() < 0.5 and not last:
            fact = Fact(subject, "person.pet_name", person.pet_name)
            turns.append(
                fact_turn(rng, world, fact, ask=rng.choice(("它叫什么名字？", "它叫什么？", "那它叫什么名字？")))
            )
            continue
        elif mention and not last and previous == fact.attribute:
            mention = None
        turns.append(fact_turn(rng, world, fact, mention, held_out=last))
        clear = fact.attribute != "person.kin" or world.person[fact.value].is_female != person.is_female
    return turns


def thing_turns(rng: Random, world: World, subject: str, rounds: int, *, held_out: bool = False) -> list[Turn]:
    """Rounds about one thing: its name first, then 它, 那里, or "那天 ..."."""
    facts = rng.sample(world.things[subject], min(rounds, len(world.things[subject])))
    turns: list[Turn] = []
    for index, fact in enumerate(facts):
        last = held_out and index == len(facts) - 1
        # After "its neighbour is B", 那里 could be either place.
        clear = index > 0 and facts[index - 1].attribute != "place.near"
        if clear and fact.attribute in wordings.FOLLOW_UPS:
            ask = rng.choice(wordings.FOLLOW_UPS[fact.attribute][last])
            turns.append(fact_turn(rng, world, fact, ask=ask))
        else:
            turns.append(fact_turn(rng, world, fact, world.pronoun(subject) if clear else None, held_out=last))
    return turns


def switch_turn(rng: Random, world: World, turn: Turn) -> Turn:
    """The same question about another person: "那林小雨呢？"."""
    other = rng.choice([person for person in world.known if person.name != turn.meta["subject"]])
    fact = next(fact for fact in other.facts() if fact.attribute == turn.meta["attribute"])
    return fact_turn(rng, world, fact, ask=rng.choice(("那{n}呢？", "{n}呢？", "那么{n}呢？")).format(n=other.name))
