"""Evaluation sets with their truth: questions in held-out wordings, and clozes of facts as documents state them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

from mengya.corpus.playground import turns as make
from mengya.corpus.playground import wordings
from mengya.corpus.playground.conversations import dialogue, num_rounds
from mengya.corpus.playground.turns import Identity, Turn
from mengya.corpus.playground.world import World
from mengya.corpus.records import Cloze, Message, Question

HELD_OUT_WORDING, HELD_OUT_ENTITY = "held_out_wording", "held_out_entity"
NUM_MULTI_TURN, NUM_ARITHMETIC, NUM_LIST, NUM_REWRITING, NUM_UNKNOWN = 200, 60, 40, 40, 80


def _question(turns: list[Turn], kind: str, *tags: str) -> Question:
    """The last turn as a question; the earlier ones, truly answered, are its context."""
    *before, last = turns
    context = [m for turn in before for m in (Message("user", turn.ask), Message("assistant", turn.answer))]
    messages = (*context, Message("user", last.ask))
    return Question(messages, kind, last.accept, last.reject, tags, "playground", last.meta)


def generate(rng: Random, world: World, identity: Identity) -> list[Question]:
    """Every fact of the world once in a held-out wording, and the other kinds in fixed numbers; no prompt twice."""
    questions = [
        _question(
            [make.fact_turn(rng, world, fact, held_out=True)],
            "qa",
            HELD_OUT_WORDING,
            *([HELD_OUT_ENTITY] if subject in {person.name for person in world.held_out} else []),
        )
        for subject, facts in world.facts.items()
        for fact in facts
    ]
    things = [s for s, kind in world.kinds.items() if len(world.things[s]) > 1]
    for _ in range(NUM_MULTI_TURN):
        rounds = rng.choice((2, 2, 3))
        if rng.random() < 0.8:
            turns = make.person_turns(rng, world, rng.choice(world.known).name, rounds, held_out=True)
        else:
            turns = make.thing_turns(rng, world, rng.choice(things), rounds, held_out=True)
        questions.append(_question(turns, "multi_turn", HELD_OUT_WORDING))
    for turn in make.identity_turns(rng, identity):
        for before in ([], [make.small_talk_turn(rng, greeting=True)], [make.sum_turn(rng)]):
            questions.append(_question([*before, turn], "identity", HELD_OUT_WORDING))
    kinds = (
        ("arithmetic", NUM_ARITHMETIC, lambda: make.sum_turn(rng, held_out=True)),
        ("list", NUM_LIST, lambda: make.list_turn(rng, world, held_out=True)),
        ("rewriting", NUM_REWRITING, lambda: make.rewriting_turn(rng, held_out=True)),
        ("unknown", NUM_UNKNOWN, lambda: make.unknown_turn(rng, world, held_out=True)),
    )
    for kind, count, make_turn in kinds:
        questions += [_question([make_turn()], kind, HELD_OUT_WORDING) for _ in range(count)]
    return list({tuple(message.content for message in q.messages): q for q in questions}.values())


Kinds = Mapping[str, float] | Collection[str]
"""Kinds of exercises, with the share of each, or in the shares of EXERCISES; none for all of them."""
EXERCISES = {"person": 50, "thing": 15, "word": 5, "arithmetic": 15, "list": 5, "rewriting": 5, "unknown": 5}
"""Kinds of exercises with their shares, where not all are asked for."""


def generate_exercises(rng: Random, world: World, identity: Identity, count: int, kinds: Kinds = ()) -> list[Question]:
    """`count` questions to train on, in training wordings, each with its truth; of `kinds`."""
    return [question for question, _ in answered_exercises(rng, world, identity, count, kinds)]


def answered_exercises(
    rng: Random, world: World, identity: Identity, count: int, kinds: Kinds = (), *, held_out: bool = False
) -> list[tuple[Question, str]]:
    """The same, each with a plain right answer; with `held_out` the last turn has a held-out wording."""
    asked: Mapping[str, float] = kinds if isinstance(kinds, Mapping) else EXERCISES
    shares = {kind: share for kind, share in asked.items() if not kinds or kind in kinds}
    exercises = []
    for kind in rng.choices(list(shares), list(shares.values()), k=count):
        turns = dialogue(rng, world, identity, kind, num_rounds(rng), held_out=held_out)
        exercises.append((_question(turns, turns[-1].kind), turns[-1].answer))
    return exercises


def generate_clozes(rng: Random, world: World, per_fact: int = 1) -> list[Cloze]:
    """Facts of people and things as a document states them, cut before the value, against three false values."""
    clozes = []
    for facts in world.facts.values():
        for fact in facts:
            # Only statements that end on the value, so that the choices are whole endings.
            endings = [
                t for t in wordings.WORDINGS[fact.attribute].statements if t.endswith("{v}") and t.count("{v}") == 1
            ]
            others = [value for value in world.alternatives(fact) if value not in fact.subject]
            if not endings or len(others) < 3:
                continue
            for template in rng.sample(endings, min(per_fact, len(endings))):
                choices = [fact.value, *rng.sample(others, 3)]
                rng.shuffle(choices)
                prefix = wordings.state(template.removesuffix("{v}"), fact)
                clozes.append(Cloze(prefix, tuple(choices), choices.index(fact.value), "playground"))
    return clozes
