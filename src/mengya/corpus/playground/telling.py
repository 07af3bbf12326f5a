"""How facts become sentences: dealt out evenly, named or by pronoun, told or asked for and answered."""

from __future__ import annotations

from collections import Counter
from random import Random

from mengya.corpus.playground.prose import LINKS, PERSON_LINKS
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


def tell(rng: Random, facts: list[Fact], pronoun: str) -> str:
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


def exchange(rng: Random, facts: list[Fact], asker: str, teller: str, pronoun: str) -> list[str]:
    """Alternating lines: a question about each fact, and its answer."""
    lines = []
    for index, fact in enumerate(facts):
        mention = fact.subject if index == 0 or rng.random() < 0.6 else pronoun
        lines.append(f"{asker}：{question(rng, fact, mention)}")
        lines.append(f"{teller}：{answer(rng, fact, rng.choice((fact.subject, mention)))}")
    return lines
