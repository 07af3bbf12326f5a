"""A closed, consistent small world from a seed: people with their families, places, and the things around them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mengya.corpus.playground import lexicon
from mengya.errors import UserError

MIN_PEOPLE, MAX_PEOPLE = 20, 60
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Fact:
    """`value` is what `attribute` ("person.home") of `subject` is; `role` names the kinship of a "person.kin" fact."""

    subject: str
    attribute: str
    value: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """One inhabitant; `kin` maps a role ("妻子") to the one person who has it, so no role is ever ambiguous."""

    name: str
    is_female: bool
    home: str
    job: str
    food: str
    colour: str
    hobby: str
    birth: str
    pet_kind: str
    pet_name: str
    kin: tuple[tuple[str, str], ...]
    held_out: bool

    @property
    def pronoun(self) -> str:
        return "她" if self.is_female else "他"

    def facts(self) -> tuple[Fact, ...]:
        attributes = ("home", "job", "food", "colour", "hobby", "birth", "pet_kind", "pet_name")
        return (
            *(Fact(self.name, f"person.{attribute}", getattr(self, attribute)) for attribute in attributes),
            *(Fact(self.name, "person.kin", name, role) for role, name in self.kin),
        )


@dataclass(frozen=True)
class World:
    """All truth: `people` and the facts about things; `strangers` and `other_strangers` are names that nobody bears."""

    people: tuple[Person, ...]
    things: dict[str, tuple[Fact, ...]]
    kinds: dict[str, str]
    """subject → kind: "place", "animal", "plant", "food", "festival", "season", "opposite", "measure" """
    strangers: tuple[str, ...]
    other_strangers: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Nameable categories for list making: "水果" → its members"""

    @cached_property
    def person(self) -> dict[str, Person]:
        return {person.name: person for person in self.people}

    @cached_property
    def known(self) -> tuple[Person, ...]:
        return tuple(person for person in self.people if not person.held_out)

    @cached_property
    def held_out(self) -> tuple[Person, ...]:
        return tuple(person for person in self.people if person.held_out)

    @cached_property
    def facts(self) -> dict[str, tuple[Fact, ...]]:
        """subject → its facts, people first, then things."""
        return {**{person.name: person.facts() for person in self.people}, **self.things}

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """attribute → its distinct values in a fixed order."""
        found: dict[str, dict[str, None]] = {}
        for facts in self.facts.values():
            for fact in facts:
                found.setdefault(fact.attribute, {})[fact.value] = None
        return {attribute: tuple(values) for attribute, values in found.items()}

    def alternatives(self, fact: Fact) -> tuple[str, ...]:
        """Plausible false values of the same attribute; for kin the known people of the same sex, not the subject."""
        if fact.attribute == "person.kin":
            sex = self.person[fact.value].is_female
            kin = {name for _, name in self.person[fact.subject].kin}
            return tuple(
                other.name
                for other in self.known
                if other.is_female == sex and other.name != fact.subject and other.name not in kin
            )
        return tuple(
            value for value in self.values[fact.attribute] if value != fact.value and value not in fact.subject
        )

    def pronoun(self, subject: str) -> str:
        """他 她 for people, 那里 for places, 它 for things; times and words have none and give their own name."""
        if subject in self.person:
            return self.person[subject].pronoun
        return {"place": "那里", "animal": "它", "plant": "它", "food": "它"}.get(self.kinds[subject], subject)


def build_world(seed: int, num_people: int = 40) -> World:
    """The world of this seed; the same seed and size give the same world on every machine.

    Raises UserError when `num_people` is outside what the name tables can fill.
    """
    if not MIN_PEOPLE <= num_people <= MAX_PEOPLE:
        raise UserError(
            f"num_people is {num_people}", mend=f"choose a number of people from {MIN_PEOPLE} to {MAX_PEOPLE}"
        )
    rng = random.Random(f"{seed}:world")
    things, kinds = _things(rng)
    return World(
        people=_people(rng, num_people),
        things=things,
        kinds=kinds,
        strangers=_strangers(rng, lexicon.STRANGER_GIVEN[::2]),
        other_strangers=_strangers(rng, lexicon.STRANGER_GIVEN[1::2]),
        categories={
            "水果": tuple(lexicon.FRUITS),
            "蔬菜": tuple(lexicon.VEGETABLES),
            "动物": tuple(lexicon.ANIMALS),
            "花": tuple(lexicon.PLANTS),
            "颜色": lexicon.COLOURS,
            "季节": lexicon.SEASONS,
            "节日": tuple(lexicon.FESTIVALS),
            "职业": lexicon.JOBS,
        },
    )


def _shuffled(rng: random.Random, items: Iterable[str]) -> list[str]:
    result = list(items)
    rng.shuffle(result)
    return result


def _dealt(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values, each as often as the others (±1), in random order: no value is the safe guess."""
    deck: list[str] = []
    while len(deck) < count:
        deck += _shuffled(rng, values)
    return _shuffled(rng, deck[:count])


def _families(rng: random.Random, num_people: int) -> list[list[tuple[str, bool, tuple[tuple[str, str], ...]]]]:
    """Families of (name, is_female, kin); children bear the father's surname, siblings each other's."""
    surnames = iter(_shuffled(rng, lexicon.SURNAMES * 2))
    given = {False: iter(_shuffled(rng, lexicon.MALE_GIVEN)), True: iter(_shuffled(rng, lexicon.FEMALE_GIVEN))}
    families: list[list[tuple[str, bool, tuple[tuple[str, str], ...]]]] = []
    remaining = num_people
    shapes = ("couple_two", "couple_one", "siblings", "couple_one", "couple", "single")
    while remaining:
        size = {"couple_two": 4, "couple_one": 3, "siblings": 2, "couple": 2, "single": 1}
        shape = next(
            (s for s in shapes[len(families) % len(shapes) :] if size[s] <= remaining and size[s] <= 4), "single"
        )
        surname = next(surnames)
        kin: dict[str, list[tuple[str, str]]] = {}
        sex: dict[str, bool] = {}

        def born(surname: str, is_female: bool, sex: dict[str, bool] = sex, kin: dict = kin) -> str:
            name = surname + next(given[is_female])
            sex[name], kin[name] = is_female, []
            return name

        if shape.startswith("couple"):
            father, mother = born(surname, False), born(next(surnames), True)
            kin[father].append(("妻子", mother))
            kin[mother].append(("丈夫", father))
            first_is_female = rng.random() < 0.5
            sexes = {"couple": [], "couple_one": [first_is_female]}.get(shape, [first_is_female, not first_is_female])
            children = [born(surname, is_female) for is_female in sexes]
            for child in children:
                kin[father].append(("女儿" if sex[child] else "儿子", child))
                kin[mother].append(("女儿" if sex[child] else "儿子", child))
                kin[child] += [("爸爸", father), ("妈妈", mother)]
        elif shape == "siblings":
            children = [born(surname, rng.random() < 0.5), born(surname, rng.random() < 0.5)]
        else:
            children = [born(surname, rng.random() < 0.5)]
        if len(children) == 2:
            elder, younger = children
            kin[elder].append(("妹妹" if sex[younger] else "弟弟", younger))
            kin[younger].append(("姐姐" if sex[elder] else "哥哥", elder))
        families.append([(name, sex[name], tuple(kin[name])) for name in sex])
        remaining -= len(sex)
    return families


def _people(rng: random.Random, num_people: int) -> tuple[Person, ...]:
    families = _families(rng, num_people)
    # Whole families are held out, so that no known person's kin can give a held-out name away.
    held_out: set[str] = set()
    for family in reversed(families):
        if len(held_out) < HELD_OUT_SHARE * num_people:
            held_out |= {name for name, _, _ in family}
    family_homes = _dealt(rng, lexicon.PLACE_NAMES, len(families))  # a family lives together
    columns = {
        "home": [home for home, family in zip(family_homes, families, strict=True) for _ in family],
        "job": _dealt(rng, lexicon.JOBS, num_people),
        "food": _dealt(rng, lexicon.FAVOURITE_FOODS, num_people),
        "colour": _dealt(rng, lexicon.COLOURS, num_people),
        "hobby": _dealt(rng, lexicon.HOBBIES, num_people),
        "birth": _dealt(rng, lexicon.SEASONS, num_people),
        "pet_kind": _dealt(rng, lexicon.PET_KINDS, num_people),
        "pet_name": _shuffled(rng, lexicon.PET_NAMES),
    }
    members = [member for family in families for member in family]
    return tuple(
        Person(
            name=name,
            is_female=is_female,
            kin=kin,
            held_out=name in held_out,
            **{attribute: values[index] for attribute, values in columns.items()},
        )
        for index, (name, is_female, kin) in enumerate(members)
    )


def _things(rng: random.Random) -> tuple[dict[str, tuple[Fact, ...]], dict[str, str]]:
    things: dict[str, tuple[Fact, ...]] = {}
    kinds: dict[str, str] = {}

    def add(kind: str, attributes: tuple[str, ...], table: Mapping[str, tuple[str, ...]]) -> None:
        for subject, values in table.items():
            facts = (Fact(subject, f"{kind}.{name}", value) for name, value in zip(attributes, values, strict=True))
            # 兔子 is both a pet kind and an animal, 饺子 a dish of two tables: facts of one subject add up.
            things[subject] = (*things.get(subject, ()), *facts)
            kinds[subject] = kind

    names = _shuffled(rng, lexicon.PLACE_NAMES)
    terrains, specialities = _shuffled(rng, lexicon.TERRAINS), _shuffled(rng, lexicon.SPECIALITIES)
    neighbours = [names[i ^ 1] for i in range(len(names))]  # pairs: each is the other's neighbour
    add(
        "place",
        ("terrain", "speciality", "near"),
        {name: row for name, *row in zip(names, terrains, specialities, neighbours, strict=True)},  # type: ignore[misc]
    )
    add("animal", ("food", "dwelling", "skill"), lexicon.ANIMALS)
    add("plant", ("colour", "season", "where"), lexicon.PLANTS)
    add("food", ("colour", "taste"), {**lexicon.FRUITS, **lexicon.VEGETABLES})
    add("festival", ("season", "food", "custom"), lexicon.FESTIVALS)
    add("season", ("weather", "scene", "activity"), lexicon.SEASON_TRAITS)
    both_ways = [*lexicon.OPPOSITES, *((b, a) for a, b in lexicon.OPPOSITES)]
    add("opposite", ("word",), {word: (other,) for word, other in both_ways})
    add("measure", ("word",), {noun: (measure,) for noun, measure in lexicon.MEASURES})
    return things, kinds


def _strangers(rng: random.Random, given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_shuffled(rng, [surname + name for surname in lexicon.SURNAMES for name in given]))
