"""Clean pretraining documents of the small world, in fixed shares of their kinds.

Every fact is told as often as its fellows (`Exposure`), in many wordings and orders; most documents that ask a question
answer it, so that asking and answering are known before any conversation is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mengya.corpus.playground import people_documents, thing_documents
from mengya.corpus.playground.telling import Exposure
from mengya.corpus.playground.world import World

MIN_CHARACTERS, MAX_CHARACTERS = 80, 300
WRITERS: tuple[tuple[float, Callable[[Random, Exposure], str]], ...] = (
    (16, people_documents.portrait),
    (8, people_documents.letter),
    (8, people_documents.diary),
    (8, people_documents.story),
    (4, people_documents.pet_story),
    (7, people_documents.dialogue),
    (6, people_documents.interview),
    (3, people_documents.riddle),
    (4, people_documents.card),
    (8, thing_documents.questions_page(("person",))),
    (5, people_documents.grouping),
    (4, people_documents.visit),
    (1.5, thing_documents.entry("place", ("我们来认识几个地方。", "这里有一张地图。", "旅行的人要知道这些。"), (2, 3))),
    (2.5, thing_documents.entry("animal", ("今天说说动物。", "动物的世界真有意思。", "动物园里来了新朋友。"), (2, 4))),
    (
        2,
        thing_documents.entry(
            "plant", ("花园里开着各种各样的花。", "我们来认识几种花。", "爷爷很会种花，他告诉我们这些。"), (2, 4)
        ),
    ),
    (2, thing_documents.entry("food", ("菜市场里真热闹。", "我们来认识水果和蔬菜。", "妈妈买菜回来了。"), (3, 5))),
    (
        2,
        thing_documents.entry("festival", ("一年里有很多节日。", "说说我们的节日。", "奶奶给我们讲节日的事。"), (2, 4)),
    ),
    (1, thing_documents.entry("season", ("一年有四个季节。", "季节在变化。", "大自然真奇妙。"), (2, 3))),
    (5, thing_documents.questions_page(("place", "animal", "plant", "food", "festival", "season"))),
    (2, thing_documents.questions_page(("opposite", "measure"))),
    (5, thing_documents.sums_page),
    (2, thing_documents.sums_story),
    (3, thing_documents.words_page),
    (2, thing_documents.lists_page),
)


def write_documents(rng: Random, world: World, num_characters: int) -> list[str]:
    """Distinct clean documents, `num_characters` in all (to within one document)."""
    told = Exposure(rng, world)
    weights, writers = zip(*WRITERS, strict=True)
    texts: dict[str, None] = {}
    written = 0
    while written < num_characters:
        text = rng.choices(writers, weights)[0](rng, told)
        if text not in texts and MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            texts[text] = None
            written += len(text)
    return list(texts)
