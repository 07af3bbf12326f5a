"""Tasks whose answer is determined: sums, lists and small rewritings, each with training and held-out wordings."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mengya.corpus.playground.world import World


@dataclass(frozen=True, slots=True)
class Sum:
    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}"


SUMS = (
    *(Sum(a, "加", b, a + b) for a in range(1, 11) for b in range(1, 11)),
    *(Sum(a + b, "减", b, a) for a in range(1, 11) for b in range(1, 11)),
    *(Sum(a, "乘", b, a * b) for a in range(1, 6) for b in range(1, 6)),
)
SUM_QUESTIONS = (
    "{s}等于几？", "{s}等于多少？", "{s}是多少？", "请问{s}等于几？", "算一算，{s}等于几？", "你知道{s}等于几吗？", "告诉我，{s}等于多少？", "{s}得几？", "{s}的结果是几？", "{s}得多少？", "算一下{s}。", "请你算算{s}等于多少。", "{s}，等于多少？", "{s}的结果是多少？",
)  # fmt: skip
SUM_QUESTIONS_HELD_OUT = ("{s}，结果是多少？", "请算一下{s}。", "{s}的得数是几？", "想问一下，{s}等于多少呢？")
SUM_ANSWERS = ("{s}等于{v}。", "{s}等于{v}。", "{s}是{v}。", "等于{v}。")

LIST_QUESTIONS = (
    "说出{c}种{k}。", "请说出{c}种{k}。", "请告诉我{c}种{k}。", "你能说出{c}种{k}吗？", "写出{c}种{k}。", "举出{c}种{k}的例子。", "有哪些{k}？说{c}种。", "我想知道{c}种{k}。",
)  # fmt: skip
LIST_QUESTIONS_HELD_OUT = ("请写出{c}种{k}的名字。", "{k}有哪些？请说{c}种。", "你知道哪{c}种{k}？", "列出{c}种{k}。")
LIST_ANSWERS = ("{i}。", "{c}种{k}：{i}。", "有{i}。")
COUNT_WORDS = {2: "两", 3: "三", 4: "四"}


@dataclass(frozen=True, slots=True)
class ListTask:
    category: str
    count: int
    members: tuple[str, ...]
    others: tuple[str, ...]
    """members of other categories that are no part of a member: naming one is wrong"""

    def ask(self, rng: Random, *, held_out: bool = False) -> str:
        wordings = LIST_QUESTIONS_HELD_OUT if held_out else LIST_QUESTIONS
        return rng.choice(wordings).format(c=COUNT_WORDS[self.count], k=self.category)

    def answer(self, rng: Random) -> str:
        items = "、".join(rng.sample(self.members, self.count))
        return rng.choice(LIST_ANSWERS).format(c=COUNT_WORDS[self.count], k=self.category, i=items)


def list_task(rng: Random, world: World) -> ListTask:
    category = rng.choice(list(world.categories))
    members = world.categories[category]
    others = tuple(
        word
        for name, words in world.categories.items()
        if name != category
        for word in words
        if not any(word in member or member in word for member in members)
    )
    return ListTask(category, rng.choice((2, 3, 3, 4)), members, others)


_REQUESTS = (
    "给我一杯水", "把门关上", "帮我拿一下书", "告诉我时间", "坐下来", "等我一会儿", "把窗户打开", "帮我写一封信", "把伞借给我", "说慢一点", "给我一张纸", "帮我看看这幅画",
    "把灯打开", "给我一碗饭", "帮我搬一下桌子", "把笔借给我",
)  # fmt: skip
_PLAIN = (
    ("他", "喜欢", "唱歌"), ("她", "会", "游泳"), ("他们", "在", "下棋"), ("小鸟", "会", "飞"), ("弟弟", "喜欢", "画画"), ("妹妹", "在", "看书"), ("爸爸", "会", "拉二胡"),
    ("我们", "喜欢", "爬山"), ("老师", "在", "写字"), ("小狗", "会", "游泳"), ("姐姐", "喜欢", "跳舞"), ("妈妈", "在", "种花"), ("医生", "会", "开车"), ("哥哥", "喜欢", "踢足球"),
)  # fmt: skip
_REWRITE = {
    "polite": (
        ("把“{x}”说得礼貌一些。", "请把“{x}”改得礼貌一点。", "“{x}”怎么说才礼貌？", "把“{x}”变成礼貌的话。", "把“{x}”改成礼貌的说法。"),
        ("礼貌地说“{x}”。", "“{x}”这句话，怎么说更礼貌？", "请用礼貌的话说“{x}”。"),
    ),
    "ask": (
        ("把“{x}”改成问句。", "请把“{x}”变成问句。", "“{x}”改成问句怎么说？", "把“{x}”变成一个问题。"),
        ("“{x}”的问句怎么说？", "请用问句说“{x}”。", "怎么把“{x}”说成问句？"),
    ),
    "deny": (
        ("把“{x}”改成否定句。", "请把“{x}”变成否定句。", "“{x}”改成否定句怎么说？", "给“{x}”加上“不”。"),
        ("“{x}”的否定句怎么说？", "请用否定句说“{x}”。", "怎么把“{x}”说成否定句？"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewriting:
    kind: str
    source: str
    target: str

    def ask(self, rng: Random, *, held_out: bool = False) -> str:
        return rng.choice(_REWRITE[self.kind][held_out]).format(x=self.source)

    def answer(self) -> str:
        return self.target


def rewritings() -> tuple[Rewriting, ...]:
    """Every rewriting task of the world, in a fixed order."""
    tasks = [Rewriting("polite", x, f"请{x}，谢谢。") for x in _REQUESTS]
    for subject, verb, rest in _PLAIN:
        sentence = f"{subject}{verb}{rest}"
        tasks.append(Rewriting("ask", sentence, f"{sentence}吗？"))
        if verb != "在":  # what is going on now is denied with 没, which the task "加上“不”" would contradict
            tasks.append(Rewriting("deny", sentence, f"{subject}不{verb}{rest}。"))
    return tuple(tasks)
