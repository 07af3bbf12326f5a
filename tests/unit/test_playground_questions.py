from collections import Counter

from mengya.corpus.playground import Playground, generate_clozes, generate_exercises, generate_questions, is_right
from mengya.corpus.playground.wordings import WORDINGS, state

PLAYGROUND = Playground(seed=6)
WORLD = PLAYGROUND.world
QUESTIONS = generate_questions(PLAYGROUND)


def test_every_kind_is_large_enough_to_measure():
    counts = Counter(question.kind for question in QUESTIONS)
    assert counts["qa"] >= 400
    assert counts["multi_turn"] >= 150
    assert counts["identity"] >= 45
    assert min(counts[kind] for kind in ("arithmetic", "list", "rewriting", "unknown")) >= 25


def test_held_out_people_are_tagged_and_asked_about():
    names = {person.name for person in WORLD.held_out}
    tagged = {q.meta["subject"] for q in QUESTIONS if "held_out_entity" in q.tags}
    assert tagged == names
    others = [q for q in QUESTIONS if "held_out_entity" not in q.tags]
    assert not any(name in message.content for q in others for message in q.messages for name in names)


def test_every_statement_of_a_fact_answers_its_question_and_no_other_value_does():
    for question in QUESTIONS:
        if question.kind != "qa":
            continue
        facts = [f for f in WORLD.facts[question.meta["subject"]] if f.attribute == question.meta["attribute"]]
        # Of kin there are several: the question's is the one that its truth names.
        fact = next(fact for fact in facts if fact.value in "".join(question.accept[0]))
        answers = WORDINGS[fact.attribute].answers
        assert all(is_right(state(form, fact) + "。", question) for form in answers)
        for value in WORLD.alternatives(fact):
            false = state(answers[0], fact).replace(fact.value, value)
            assert not is_right(false + "。", question), (false, question)


def test_no_prompt_is_asked_twice():
    prompts = [tuple(message.content for message in q.messages) for q in QUESTIONS]
    assert len(set(prompts)) == len(prompts)


def test_a_cloze_has_four_distinct_choices_of_one_attribute_and_a_true_answer():
    clozes = generate_clozes(PLAYGROUND)
    assert len(clozes) >= 400
    for cloze in clozes:
        assert len(set(cloze.choices)) == 4
        value = cloze.choices[cloze.answer]
        assert any(
            fact.value == value and subject in cloze.prefix for subject, facts in WORLD.facts.items() for fact in facts
        )
        assert any(set(cloze.choices) <= set(values) for values in [*WORLD.values.values(), WORLD.person])


def test_exercises_are_of_the_kinds_and_in_the_shares_that_are_asked_for():
    def counts(kinds):
        return Counter(exercise.kind for exercise in generate_exercises(PLAYGROUND, 400, kinds))

    assert set(counts(["arithmetic", "list"])) == {"arithmetic", "list"}
    assert counts(["arithmetic", "list"])["arithmetic"] > 250, "three sums a list, as where all kinds are asked for"
    assert 150 < counts({"arithmetic": 1, "list": 1})["arithmetic"] < 250
