import itertools
import random
import re
from collections import Counter

import pytest

from mengya.corpus.playground import (
    Playground,
    generate_conversations,
    generate_documents,
    generate_preferences,
    generate_questions,
    is_refusal,
    is_repetitive,
    is_right,
    politeness,
)
from mengya.corpus.playground import conversations as module
from mengya.corpus.playground.turns import IDENTITY_QUESTIONS, Turn
from mengya.corpus.playground.wordings import WORDINGS, state
from mengya.corpus.records import Message, Question

SMALL = Playground(seed=11, num_characters=300_000, num_conversations=4_000, num_preferences=1_000)
WORLD = SMALL.world


@pytest.fixture(scope="module")
def train():
    return generate_conversations(SMALL, "train")


@pytest.fixture(scope="module")
def asked(train):
    """Every user message that training ever shows."""
    pairs = generate_preferences(SMALL, "train")
    rows = [row.messages for row in train] + [pair.prompt for pair in pairs]
    return [message.content for messages in rows for message in messages if message.role == "user"]


def _question(turn: Turn) -> Question:
    return Question((Message("user", turn.ask),), turn.kind, turn.accept, turn.reject, meta=turn.meta)


def test_held_out_wordings_occur_in_no_document_conversation_or_pair(asked):
    shown = "\n".join([*asked, *(row.document.text for row in generate_documents(SMALL))])
    for subject, facts in WORLD.facts.items():
        for fact in facts:
            for core in WORDINGS[fact.attribute].held_out:
                assert state(core, fact) not in shown
                if WORLD.pronoun(subject) != subject:
                    assert state(core, fact, WORLD.pronoun(subject)) not in shown


def test_no_evaluation_prompt_and_no_validation_prompt_is_a_training_prompt(asked):
    training = set(asked)
    for question in generate_questions(SMALL):
        # "Who is X's child?" of a held-out matter shares its form with training; its matter or name is new.
        assert question.messages[-1].content not in training
    for conversation in generate_conversations(SMALL, "validation"):
        assert conversation.messages[-2].content not in training
    for pair in generate_preferences(SMALL, "validation"):
        assert pair.prompt[-1].content not in training


def test_held_out_people_are_in_documents_but_in_no_conversation_and_no_pair(train):
    rows = [*train, *generate_conversations(SMALL, "validation")]
    said = "\n".join(message.content for row in rows for message in row.messages)
    for split in ("train", "validation"):
        for pair in generate_preferences(SMALL, split):
            said += "\n".join([pair.chosen, pair.rejected, *(message.content for message in pair.prompt)])
    told = "\n".join(row.document.text for row in generate_documents(SMALL))
    for person in WORLD.held_out:
        assert person.name not in said
        assert told.count(person.name) > 100


def test_identity_has_forty_training_wordings_and_fifteen_held_out():
    training = {q for asks, _ in IDENTITY_QUESTIONS.values() for q in asks}
    held_out = {q for _, asks in IDENTITY_QUESTIONS.values() for q in asks}
    assert len(training) >= 40
    assert len(held_out) >= 15
    assert not training & held_out


@pytest.mark.parametrize("kind", sorted(module.KINDS))
@pytest.mark.parametrize("held_out", [False, True])
def test_in_every_style_a_right_answer_is_right_and_a_wrong_one_wrong(kind, held_out):
    rng = random.Random(1)
    for _ in range(150):
        for turn in module.dialogue(rng, WORLD, SMALL.identity, kind, rng.choice((1, 2, 3)), held_out=held_out):
            if turn.kind == "small_talk":
                continue
            question = _question(turn)
            assert is_right(turn.answer, question), turn
            assert not is_right(turn.wrong, question), turn
            if turn.kind == "unknown":
                continue
            for style in ("plain", "courteous", "curt", "rude", "repetitive"):
                dressed = module.dress(rng, turn.answer, style, turn.curt)
                assert is_right(dressed, question), (style, dressed)
                assert not is_refusal(dressed), dressed
                assert is_repetitive(dressed) == (style == "repetitive"), dressed
                assert politeness(dressed) == {"courteous": 1.0, "rude": 0.0}.get(style, politeness(dressed)), dressed
            evasive = module.dress(rng, turn.answer, "evasive", turn.curt)
            assert is_refusal(evasive)
            assert not is_right(evasive, question)


def test_statements_in_conversations_agree_with_the_world(train):
    """Read back with patterns of the test's own, not with the templates' bookkeeping."""
    names = "|".join(person.name for person in WORLD.people)
    checks = {
        "home": re.compile(rf"({names})住在(\w{{3}})。"),
        "job": re.compile(rf"({names})是一名(\w{{2,3}})。"),
        "pet_kind": re.compile(rf"({names})养了一只(\w{{1,2}})。"),
    }
    found = Counter()
    for row in train:
        for message in row.messages:
            if message.role == "assistant":
                for attribute, pattern in checks.items():
                    for name, value in pattern.findall(message.content):
                        assert getattr(WORLD.person[name], attribute) == value
                        found[attribute] += 1
    assert min(found.values()) > 50


def test_the_mixture_is_as_described(train):
    assert len(train) == SMALL.num_conversations
    rounds = [sum(message.role == "user" for message in row.messages) for row in train]
    assert 0.3 < sum(count > 1 for count in rounds) / len(train) < 0.4
    assert max(rounds) <= 3
    assert 0.08 < sum(row.messages[0].role == "system" for row in train) / len(train) < 0.12
    answers = [row.messages[-1].content for row in train]
    assert 0.01 < sum(politeness(answer) == 0 for answer in answers) / len(train) < 0.06
    assert 0.01 < sum(is_repetitive(answer) for answer in answers) / len(train) < 0.06
    for row in train:
        roles = [message.role for message in row.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message.content for message in row.messages)


def test_a_pronoun_never_follows_a_relative_of_the_same_sex():
    rng = random.Random(2)
    for _ in range(500):
        person = rng.choice(WORLD.known)
        turns = module.make.person_turns(rng, WORLD, person.name, 3)
        for before, after in itertools.pairwise(turns):
            if before.meta["attribute"] == "person.kin" and person.pronoun in after.ask:
                relative = next(name for _, name in person.kin if name in before.answer)
                assert WORLD.person[relative].is_female != person.is_female
