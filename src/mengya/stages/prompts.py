"""Where the prompts of the stage `preferences` come from, and which of them are fresh."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mengya.corpus import playground, records
from mengya.corpus.build import build_conversations
from mengya.corpus.fresh_prompts import Prompt, asked_key, by_opening, choose, sample, used_among
from mengya.corpus.playground.questions import EXERCISES
from mengya.corpus.records import Question
from mengya.errors import UserError
from mengya.files import atomic_directory, read_json, read_jsonl, write_json, write_jsonl
from mengya.run import Context
from mengya.settings import Source
from mengya.stages.corpus import grams_of, inputs_of, refused, uses_playground, world_of_recipe
from mengya.tokenizer.encode import ChatTokenizer

_EXERCISES_A_PROMPT = 4
"""Exercises made for each prompt wanted: of the embedded corpus's questions instruction tuning has seen many."""


def gather_prompts(context: Context, tokenizer: ChatTokenizer, room: int, place: Path) -> int:
    """The number of prompts in PLACE/prompts.jsonl, made where it is not there; drops.jsonl and counts.json beside it.

    A prompt has at most `room` tokens. Instruction tuning did not train on it at any turn ("trained_on"), and the run
    is not measured by it ("held_out"). UserError where none is left.
    """
    recipe, settings = context.recipe, context.recipe.preferences
    if place.exists():
        return len(list(read_jsonl(place / "prompts.jsonl")))
    counts: dict[str, Any] = {}
    candidates, num_seen = sample(_candidates(context, counts), settings.num_prompts, recipe.seed)
    wanted = {asked_key(prompt.messages) for prompt in candidates}
    trained = used_among(
        wanted,
        (records.conversation(row).messages for row in read_jsonl(context.path("corpus/conversations/train.jsonl"))),
    )
    used = dict.fromkeys(_measured_by(context) & wanted, "held_out") | dict.fromkeys(trained, "trained_on")
    paired = _asked_in(context, "train")
    by_hash = by_opening(settings.validation_fraction, recipe.seed)
    chosen, drops = choose(
        candidates,
        settings.num_prompts,
        used,
        lambda prompt: len(tokenizer.render(prompt.messages, add_generation_prompt=True)[0]) <= room,
        # What the corpus's own pairs train on is never held out: stages may train on both.
        lambda prompt: asked_key(prompt.messages) not in paired and by_hash(prompt),
    )
    if not chosen:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(drop.reason for drop in drops).items())
        raise UserError(
            f"no prompt is left of {num_seen} ({reasons or 'there is none'})",
            where="preferences.sources",
            mend="name conversations that instruction tuning does not read, or leave room: max_new_tokens",
        )
    counts |= {"candidates": num_seen}
    with atomic_directory(place) as directory:
        write_jsonl(directory / "prompts.jsonl", (prompt.row() for prompt in chosen))
        write_jsonl(directory / "drops.jsonl", map(asdict, drops))
        write_json(directory / "counts.json", counts)
    shutil.rmtree(context.directory / "work", ignore_errors=True)
    return len(chosen)


def _candidates(context: Context, counts: dict[str, Any]) -> Iterator[Prompt]:
    """Prompts of the sources that the recipe names, or of what the run has; `counts` gets what became of files."""
    recipe, settings = context.recipe, context.recipe.preferences
    exercises = uses_playground(settings.sources or recipe.corpus.conversations)
    if exercises:
        yield from _exercises(context)
    if settings.sources:
        yield from _of_files(context, [source for source in settings.sources if not source.playground], counts)
    elif not exercises:
        yield from _of_corpus_pairs(context)


def check_kinds(kinds: Iterable[str], section: str) -> None:
    """UserError for a kind of exercises that the embedded corpus has not."""
    for kind in kinds:
        if kind not in EXERCISES:
            raise UserError(
                f"no exercises of kind {kind!r}", where=f"{section}.kinds", mend=f"known kinds: {', '.join(EXERCISES)}"
            )


def _exercises(context: Context) -> Iterator[Prompt]:
    settings = context.recipe.preferences
    check_kinds(settings.kinds, "preferences")
    made = playground.generate_answered_exercises(
        world_of_recipe(context.recipe), _EXERCISES_A_PROMPT * settings.num_prompts, settings.kinds
    )
    for number, (question, answer) in enumerate(made):
        yield Prompt(question, answer, f"{playground.SOURCE}:exercise:{number}")


def _of_files(context: Context, sources: list[Source], counts: dict[str, Any]) -> Iterator[Prompt]:
    """Read, cleaned and deduplicated as the corpus's conversations are; the last answer is the reference."""
    if not sources:
        return
    recipe, directory = context.recipe, context.directory / "sources"
    work = context.directory / "work"
    if not directory.exists():
        settings = recipe.corpus.model_copy(update={"validation_fraction": 0.0})
        with refused(context) as rejects, atomic_directory(directory) as made:
            manifest, repairs = build_conversations(
                inputs_of(sources, "conversation", [], recipe),
                settings,
                recipe.seed,
                made,
                work=work / "sources",
                rejects=rejects,
                grams=grams_of(recipe.corpus, work),
            )
            found = {"sources": manifest, "rejects": dict(rejects.counts), "repairs": dict(repairs)}
            write_json(made / "counts.json", found)
    counts |= read_json(directory / "counts.json")
    for row in read_jsonl(directory / "train.jsonl"):
        conversation = records.conversation(row)
        *messages, answer = conversation.messages
        question = Question(tuple(messages), "open", source=conversation.source)
        yield Prompt(question, answer.content, conversation.origin)


def _of_corpus_pairs(context: Context) -> Iterator[Prompt]:
    """The prompts of the corpus's pairs, each on the side that its pairs are on; the better answer is the reference."""
    for split in ("train", "validation"):
        for row in read_jsonl(context.path(f"corpus/preferences/{split}.jsonl")):
            pair = records.preference_pair(row)
            question = Question(pair.prompt, "open", source=pair.source)
            yield Prompt(question, pair.chosen, pair.origin, held_out=split == "validation")


def _asked_in(context: Context, split: str) -> set[int]:
    """The prompts of the corpus's pairs."""
    rows = read_jsonl(context.path(f"corpus/preferences/{split}.jsonl"))
    return {asked_key(records.preference_pair(row).prompt) for row in rows}


def _measured_by(context: Context) -> set[int]:
    """What the run is measured by: its questions, the last turn of its validation conversations, and, where the prompts
    are not theirs, the held-out pairs."""
    recipe, directory = context.recipe, context.path("corpus/evaluation")
    asked = {asked_key(records.question(row).messages) for row in read_jsonl(directory / "questions.jsonl")} | {
        asked_key(records.conversation(row).messages[:-1]) for row in read_jsonl(directory / "conversations.jsonl")
    }
    of_pairs = not (recipe.preferences.sources or uses_playground(recipe.corpus.conversations))
    return asked if of_pairs else asked | _asked_in(context, "validation")
