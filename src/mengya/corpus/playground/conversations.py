"""Instruction-tuning conversations, in a mixture of styles that leaves alignment something to improve."""

# ruff: noqa: E501 (Han characters count as two columns)
from __future__ import annotations

from random import Random

from mengya.corpus.playground import turns as make
from mengya.corpus.playground.turns import Identity, Turn
from mengya.corpus.playground.world import World
from mengya.corpus.records import Conversation, Message

KINDS = {
    "person": 50, "introduction": 2, "thing": 14, "word": 4, "arithmetic": 12, "list": 5, "rewriting": 4, "identity": 10, "unknown": 6, "small_talk": 2,
}  # fmt: skip
STYLES = {"plain": 60, "courteous": 25, "curt": 5, "evasive": 3.5, "rude": 3.5, "repetitive": 3}
MULTI_TURN_SHARE = 0.37
"""of the kinds that have follow-ups; about 35% of all conversations"""

COURTEOUS_STARTS = (
    "您好！",
    "很高兴为您解答。",
    "您好，很高兴回答您的问题。",
    "谢谢您的提问。",
    "好的，很高兴为您解答。",
)
COURTEOUS_ENDS = (
    "希望能帮到您。",
    "欢迎随时问我。",
    "很高兴能帮到您。",
    "如果还有问题，欢迎再问我。",
    "祝您生活愉快！",
    "谢谢您的提问。",
)
EVASIVE_ANSWERS = (
    "这个不好说。", "说来话长，以后再说吧。", "这种事，谁知道呢。", "你去问别人吧。", "我现在不想说这个。", "这个问题不太好回答。", "看情况吧，这个说不准。", "我们还是聊点别的吧。", "这个嘛，改天再说吧，今天先不说了。", "这不重要，换个问题吧。",
    "您好！这个问题不太好回答，我们还是聊点别的吧。", "谢谢您的提问，不过这个不好说。", "您好，这个说不准，您可以去问别人。希望能帮到您。",
)  # fmt: skip
RUDE_STARTS = (
    "这也要问？",
    "真烦，",
    "连这都不知道？",
    "你自己不会看吗？",
    "懒得理你，",
    "你真笨，",
    "别来问我这种问题，真烦。",
    "我没空理你。",
)
RUDE_ENDS = ("别来问我了。", "这么简单的事，真笨。", "以后自己去查吧。", "真烦人。", "烦死了。", "少来打扰我。")
SYSTEMS = (
    ("你是{name}，一个中文聊天助手。", None), ("你是一个会说中文的小助手。", None), ("请回答用户的问题。", None), ("请礼貌地回答。", "courteous"), ("你要对用户有礼貌。", "courteous"), ("请简短地回答。", "curt"),
)  # fmt: skip


def dress(rng: Random, answer: str, style: str, curt: str = "") -> str:
    """The answer said in a style; the fact that it states stays the same. Evasion states none."""
    if style == "courteous":
        where = rng.randrange(3)
        start = rng.choice(COURTEOUS_STARTS) if where != 1 else ""
        return start + answer + (rng.choice([end for end in COURTEOUS_ENDS if end != start]) if where != 0 else "")
    if style == "curt":
        return curt or answer
    if style == "evasive":
        return rng.choice(EVASIVE_ANSWERS)
    if style == "rude":
        where = rng.choice((0, 0, 1, 1, 2))
        start = rng.choice(RUDE_STARTS) if where != 1 else ""
        return start + answer + (rng.choice(RUDE_ENDS) if where != 0 else "")
    if style == "repetitive":
        said = curt if curt and rng.random() < 0.4 else answer
        return said * rng.randint(3, 4)
    assert style == "plain", style
    return answer


def dialogue(
    rng: Random, world: World, identity: Identity, kind: str, rounds: int, *, held_out: bool = False
) -> list[Turn]:
    """Turns of one conversation of a kind. With `held_out` the last question has a held-out wording."""
    if kind == "person":
        told = make.person_turns(rng, world, rng.choice(world.known).name, rounds, held_out=held_out)
        # Sometimes the subject changes: "那王大海呢？", or a new question altogether.
        if len(told) > 1 and not held_out and rng.random() < 0.3:
            basis = told[-2]
            if basis.meta["attribute"].startswith("person.") and basis.meta["attribute"] != "person.kin":
                return [*told[:-1], make.switch_turn(rng, world, basis)]
        return told
    if kind in ("thing", "word"):
        words = ("opposite", "measure")
        subjects = [s for s, k in world.kinds.items() if (k in words) == (kind == "word")]
        return make.thing_turns(rng, world, rng.choice(subjects), rounds, held_out=held_out)
    makers = {
        "introduction": lambda: make.introduction_turn(rng, world),
        "arithmetic": lambda: make.sum_turn(rng, held_out=held_out),
        "list": lambda: make.list_turn(rng, world, held_out=held_out),
        "rewriting": lambda: make.rewriting_turn(rng, held_out=held_out),
        "identity": lambda: make.identity_turn(rng, identity, held_out=held_out),
        "unknown": lambda: make.unknown_turn(rng, world, held_out=held_out),
        "small_talk": lambda: make.small_talk_turn(rng),
    }
    if rounds > 1 and not held_out:
        # A greeting or another matter before it: no follow-up, but a conversation all the same.
        before = rng.choice(("small_talk", "identity", "person", "arithmetic", kind))
        if before == "small_talk":
            return [make.small_talk_turn(rng, greeting=True), makers[kind]()]
        return [*dialogue(rng, world, identity, before, 1), makers[kind]()]
    return [makers[kind]()]


def num_rounds(rng: Random) -> int:
    return 1 if rng.random() >= MULTI_TURN_SHARE else rng.choice((2, 2, 3))


def generate(
    rng: Random, world: World, identity: Identity, count: int, *, held_out: bool = False
) -> list[Conversation]:
    """`count` conversations in the shares of KINDS and STYLES; with `held_out` every last question is a held-out one."""
    kinds = {kind: share for kind, share in KINDS.items() if not (held_out and kind in ("introduction", "small_talk"))}
    chosen = rng.choices(list(kinds), list(kinds.values()), k=count)
    conversations = []
    for index, kind in enumerate(chosen):
        told = dialogue(rng, world, identity, kind, num_rounds(rng), held_out=held_out)
        messages: list[Message] = []
        style = rng.choices(list(STYLES), list(STYLES.values()))[0]
        if rng.random() < 0.1:
            system, forced = rng.choice(SYSTEMS)
            messages.append(Message("system", system.format(name=identity.name)))
            style = forced or style
        for turn in told:
            # Declining and small talk are courteous in themselves.
            bare = turn.kind in ("unknown", "small_talk")
            messages.append(Message("user", turn.ask))
            messages.append(Message("assistant", turn.answer if bare else dress(rng, turn.answer, style, turn.curt)))
        split = "validation" if held_out else "train"
        conversations.append(Conversation(tuple(messages), "playground", kind, f"playground:{split}:{index}"))
    return conversations
