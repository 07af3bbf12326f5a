"""The embedded corpus: a closed small world in Chinese, told, asked about and judged, from one seed.

All text is the project's own. Every function is a pure function of its `Playground`: the same seed gives the same
bytes, and the parts do not influence one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from mengya.corpus.playground import conversations, dirt, documents, preferences, questions
from mengya.corpus.playground.judges import (
    gold_score,
    is_refusal,
    is_repetitive,
    is_right,
    politeness,
    repetition,
)
from mengya.corpus.playground.turns import Identity
from mengya.corpus.playground.world import World, build_world
from mengya.corpus.records import Cloze, Conversation, Document, PreferencePair, Question

__all__ = [
    "PlantedDocument",
    "Playground",
    "build_world",
    "generate_answered_exercises",
    "generate_clozes",
    "generate_conversations",
    "generate_documents",
    "generate_exercises",
    "generate_preferences",
    "generate_questions",
    "gold_score",
    "is_refusal",
    "is_repetitive",
    "is_right",
    "politeness",
    "repetition",
]

SOURCE = "playground"
Split = Literal["train", "validation"]
_NUM_VALIDATION = {"conversations": 400, "preferences": 400}


@dataclass(frozen=True, slots=True)
class Playground:
    """What to generate. `num_characters` counts clean documents; name, author and date are what the assistant says."""

    seed: int = 0
    num_people: int = 40
    num_characters: int = 2_500_000
    num_conversations: int = 12_000
    num_preferences: int = 4_000
    name: str = "萌芽"
    author: str = "萌芽开发者"
    date: str = "2026年"

    @property
    def world(self) -> World:
        return _world(self.seed, self.num_people)

    @property
    def identity(self) -> Identity:
        return Identity(self.name, self.author, self.date)

    def rng(self, part: str) -> Random:
        return Random(f"{self.seed}:{part}")


@lru_cache(maxsize=4)
def _world(seed: int, num_people: int) -> World:
    return build_world(seed, num_people)


@dataclass(frozen=True, slots=True)
class PlantedDocument:
    """A document with its truth: which dirt it is (None: clean), and the origin of the document it was made `of`."""

    document: Document
    dirt: str | None = None
    of: str | None = None


def generate_documents(playground: Playground) -> list[PlantedDocument]:
    """Clean and planted documents in one random order; `document.origin` is "playground:INDEX" in that order.

    `dirt` is None, "exact_duplicate", "near_duplicate" (5-gram Jaccard ≥ 0.85 with its original), "boilerplate",
    "broken", "advertisement", or "boilerplate_line": a clean document with one line that should go while it stays.
    """
    rng = playground.rng("documents")
    texts = documents.write_documents(rng, playground.world, playground.num_characters)
    planted = dirt.plant(rng, texts)
    replaced = {plant.index for plant in planted if plant.dirt == "boilerplate_line"}
    rows: list[tuple[str, str | None, int | None, int | None]] = [
        (text, None, None, index) for index, text in enumerate(texts) if index not in replaced
    ]
    rows += [
        (plant.text, plant.dirt, None if plant.dirt == "boilerplate_line" else plant.index, None) for plant in planted
    ]
    rng.shuffle(rows)
    origins = {index: f"{SOURCE}:{row}" for row, (_, _, _, index) in enumerate(rows) if index is not None}
    return [
        PlantedDocument(Document(text, SOURCE, f"{SOURCE}:{row}"), kind, None if of is None else origins[of])
        for row, (text, kind, of, _) in enumerate(rows)
    ]


def generate_conversations(playground: Playground, split: Split) -> list[Conversation]:
    """Training conversations, or a few hundred validation ones whose last question has a held-out wording."""
    held_out = split == "validation"
    count = _NUM_VALIDATION["conversations"] if held_out else playground.num_conversations
    rng = playground.rng(f"conversations:{split}")
    return conversations.generate(rng, playground.world, playground.identity, count, held_out=held_out)


def generate_preferences(playground: Playground, split: Split) -> list[PreferencePair]:
    """Training pairs, or a few hundred validation ones whose last question has a held-out wording."""
    held_out = split == "validation"
    count = _NUM_VALIDATION["preferences"] if held_out else playground.num_preferences
    rng = playground.rng(f"preferences:{split}")
    return preferences.generate(rng, playground.world, playground.identity, count, held_out=held_out)


def generate_questions(playground: Playground) -> list[Question]:
    """Evaluation questions of kinds qa, multi_turn, identity, arithmetic, list, rewriting and unknown."""
    return questions.generate(playground.rng("questions"), playground.world, playground.identity)


def generate_exercises(playground: Playground, count: int, kinds: questions.Kinds = ()) -> list[Question]:
    """Questions with their truth, in training wordings: what reinforcement learning with verifiable rewards trains on."""
    rng = playground.rng("exercises")
    return questions.generate_exercises(rng, playground.world, playground.identity, count, kinds)


def generate_held_out_exercises(playground: Playground, count: int, kinds: questions.Kinds = ()) -> list[Question]:
    """Questions as those of `generate_exercises`, in held-out wordings, none twice: for who judges that training."""
    rng = playground.rng("held-out exercises")
    made = questions.answered_exercises(rng, playground.world, playground.identity, count, kinds, held_out=True)
    return list({question.messages: question for question, _ in made}.values())


def generate_answered_exercises(
    playground: Playground, count: int, kinds: questions.Kinds = ()
) -> list[tuple[Question, str]]:
    """Exercises, other ones than those of `generate_exercises`, each with a plain right answer."""
    rng = playground.rng("answered exercises")
    return questions.answered_exercises(rng, playground.world, playground.identity, count, kinds)


def generate_clozes(playground: Playground) -> list[Cloze]:
    """One cloze per fact: its true value against three of the same attribute."""
    return questions.generate_clozes(playground.rng("clozes"), playground.world)
