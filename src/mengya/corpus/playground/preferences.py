"""Preference pairs, each better for one known reason, and balanced so that length says nothing.

Within every reason, for each pair whose better answer has `a` characters and the worse `b`, there is another with about
`b` and `a`, and exactly the opposite difference. So neither the difference nor the length itself betrays the better
answer; Singhal et al. 2023 ("A Long Way to Go") show how far a rule on length otherwise gets.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

from mengya.corpus.playground import judges
from mengya.corpus.playground.conversations import dialogue, dress, num_rounds
from mengya.corpus.playground.turns import Identity, Turn
from mengya.corpus.playground.world import World
from mengya.corpus.records import Message, PreferencePair

REASONS = {"right": 0.4, "answering": 0.2, "concise": 0.2, "polite": 0.2}
"""Shares of the reasons among held-out pairs."""
TRAINED = {"right": 0.58, "answering": 0.14, "concise": 0.14, "polite": 0.14}
"""The same among pairs to train on: style is learnt from a few hundred pairs, truth from as many as there are."""
LENGTH_BIN = 3
_KINDS = {"person": 62, "thing": 15, "word": 3, "arithmetic": 6, "list": 3, "rewriting": 3, "identity": 5, "unknown": 8}


def _answers(rng: Random, turn: Turn, reason: str) -> tuple[str, str]:
    """A better and a worse answer that differ in the reason; for other reasons than politeness both may be plain or courteous."""
    style = rng.choice(("plain", "courteous"))
    # Seldom of different courtesy: that truth outweighs it can be learnt only by who sees truth apart from it.
    other = style if rng.random() < 0.75 else rng.choice(("plain", "courteous"))
    if turn.kind == "unknown":
        return turn.answer, dress(rng, turn.wrong, other)
    chosen = dress(rng, turn.answer, style)
    if reason == "right":
        return chosen, dress(rng, turn.wrong, other)
    if reason == "answering":
        if rng.random() < 0.3:
            return chosen, rng.choice(("抱歉，我不知道。", "对不起，我不清楚这件事。", "抱歉，这个问题我答不上来。"))
        return chosen, dress(rng, turn.answer, "evasive")
    if reason == "concise":
        said = turn.curt if turn.curt and rng.random() < 0.8 else turn.answer
        return chosen, said * rng.choice((3, 3, 3, 4))
    assert reason == "polite", reason
    if rng.random() < 0.5 and judges.politeness(turn.answer) == 0.5:
        return dress(rng, turn.answer, "courteous"), turn.answer
    return chosen, dress(rng, turn.answer, "rude")


def generate(
    rng: Random, world: World, identity: Identity, count: int, *, held_out: bool = False
) -> list[PreferencePair]:
    """`count` pairs in the shares of REASONS; with `held_out` every last question has a held-out wording."""
    pairs: list[PreferencePair] = []
    split = "validation" if held_out else "train"
    for reason, share in (REASONS if held_out else TRAINED).items():
        wanted = round(share * count)
        waiting: dict[tuple[int, int], list[PreferencePair]] = defaultdict(list)
        balanced: list[PreferencePair] = []
        while len(balanced) < wanted:
            kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
            if kind == "unknown" and reason != "right":
                continue
            *before, last = dialogue(rng, world, identity, kind, num_rounds(rng), held_out=held_out)
            chosen, rejected = _answers(rng, last, reason)
            prompt = [message for turn in before for message in _exchange(turn)]
            pair = PreferencePair(
                (*prompt, Message("user", last.ask)), chosen, rejected, "playground", reason, f"playground:{split}"
            )
            longer = len(chosen) - len(rejected)
            if longer == 0:
                balanced.append(pair)
            elif mirrored := waiting[-longer, len(rejected) // LENGTH_BIN]:
                balanced += [mirrored.pop(), pair]
            else:
                waiting[longer, len(chosen) // LENGTH_BIN].append(pair)
        pairs += balanced[:wanted]
    rng.shuffle(pairs)
    return pairs


def _exchange(turn: Turn) -> tuple[Message, Message]:
    return Message("user", turn.ask), Message("assistant", turn.answer)
