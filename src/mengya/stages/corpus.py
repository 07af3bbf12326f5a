"""corpus: read, clean, deduplicate and split documents, conversations and preference pairs; and what measures them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mengya.console import say
from mengya.corpus import catalogue, playground
from mengya.corpus.build import build_conversations, build_preferences
from mengya.corpus.contamination import evaluation_grams, save_index
from mengya.corpus.documents import all_drops, build_documents
from mengya.corpus.evaluation_sets import read_evaluation
from mengya.corpus.funnel import score_dedup
from mengya.corpus.inputs import Input, Kind, ListInput, file_inputs
from mengya.corpus.playground import Playground
from mengya.corpus.provenance import attribution, source_record
from mengya.corpus.records import Record, to_row
from mengya.corpus.sources import Rejects
from mengya.errors import UserError
from mengya.evaluate.score import proportion
from mengya.files import atomic_directory, read_json, read_jsonl, write_jsonl, write_text
from mengya.run import Context, Outcome
from mengya.settings import CorpusSettings, Recipe, Source


def world_of_recipe(recipe: Recipe) -> Playground:
    """The embedded corpus in the size and with the identity that the recipe asks for."""
    return Playground(seed=recipe.seed, **recipe.playground.model_dump(), **recipe.identity.model_dump())


def inputs_of(sources: list[Source], kind: Kind, embedded: list[Any], recipe: Recipe) -> list[Input]:
    """What records are read from, in the recipe's order: a source's files one by one."""
    inputs: list[Input] = []
    for source in sources:
        if source.playground:
            inputs.append(ListInput(playground.SOURCE, embedded, source.rules))
        else:
            inputs += file_inputs(source, kind, None if kind == "document" else recipe.identity)
    return inputs


def grams_of(settings: CorpusSettings, work: Path) -> Path | None:
    """The 13-grams of the recipe's evaluation sets, made once for all that looks at them; None where it names none."""
    if not settings.evaluation:
        return None
    file = work / "evaluation.npz"
    if not file.exists():
        tally = Counter[str]()
        save_index({s.label: evaluation_grams(read_evaluation(s.path, tally=tally)) for s in settings.evaluation}, file)
        say(f"corpus: {len(settings.evaluation)} evaluation sets of {tally['texts']:,} texts to keep out of training")
    return file


def _provenance(recipe: Recipe, counts: dict[str, Any], hashes: dict[str, str]) -> list[dict[str, Any]]:
    """A record of each source: the files that were read, with their `hashes`, licence, and what became of its records."""
    records = []
    for name, unit in (("documents", "documents"), ("conversations", "conversations"), ("preferences", "pairs")):
        sources: dict[str, list[Source]] = {}
        for source in getattr(recipe.corpus, name):
            sources.setdefault(source.label, []).append(source)
        for label, found in counts.get(name, {}).get("by_source", {}).items():
            named = sources.get(label, [])
            records.append(
                source_record(
                    label,
                    dict.fromkeys(
                        f for source in named if not source.playground for f in catalogue.source_files(source)
                    ),
                    unit=unit,
                    read=found["read"],
                    kept=found["kept"],
                    dropped=found["dropped"],
                    hashes=hashes,
                    licence=next((source.licence for source in named if source.licence), None),
                )
            )
    return records


def uses_playground(sources: list[Source]) -> bool:
    """Whether the embedded corpus is among them."""
    return any(source.playground for source in sources)


def _replace_held_out(directory: Path, held_out: list[Record]) -> None:
    """Playground records of the validation split give way to those with held-out wordings, which training never saw."""
    rows = read_jsonl(directory / "validation.jsonl")  # open until the new file takes its name
    kept = (row for row in rows if row["source"] != playground.SOURCE)
    write_jsonl(directory / "validation.jsonl", chain(kept, map(to_row, held_out)))


@contextmanager
def refused(context: Context) -> Iterator[Rejects]:
    """What could not be read, left in rejects.jsonl; UserError above the share that the recipe allows.

    Nothing left to train on may be because nothing could be read: then that is said, for it is what there is to mend.
    """
    rejects, allowed = Rejects(), context.recipe.corpus.max_reject_share
    file = context.directory / "rejects.jsonl"
    try:
        yield rejects
    except UserError:
        write_jsonl(file, rejects.rows())
        rejects.check(allowed)
        raise
    write_jsonl(file, rejects.rows())
    rejects.check(allowed)
    if rejects.counts:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejects.counts.most_common())
        say(
            f"{context.stage.name}: {sum(rejects.counts.values())} of {rejects.num_rows} rows rejected ({reasons}); see {file}"
        )


def execute(context: Context) -> Outcome:
    with refused(context) as rejects:
        return _build(context, rejects)


def _build(context: Context, rejects: Rejects) -> Outcome:
    recipe, settings = context.recipe, context.recipe.corpus
    world = world_of_recipe(recipe)
    repairs = Counter[str]()
    counts: dict[str, Any] = {}
    metrics: dict[str, Any] = {}

    planted = playground.generate_documents(world) if uses_playground(settings.documents) else []
    work = context.directory / "work"
    grams = grams_of(settings, work)
    with atomic_directory(context.directory / "documents") as directory:
        if settings.documents:  # without any, token files alone are trained on
            inputs = inputs_of(settings.documents, "document", [plant.document for plant in planted], recipe)
            counts["documents"], repairs = build_documents(
                inputs, settings, recipe.seed, directory, work=work, rejects=rejects, grams=grams
            )
    if planted:
        truth = {plant.document.origin: (plant.dirt, plant.of) for plant in planted if plant.dirt is not None}
        metrics |= _dirt_metrics(score_dedup(truth, all_drops(work)))

    held_out: dict[str, list[Record]] = {"conversations": [], "preferences": []}
    balanced = {source.label for source in settings.preferences if source.balance_lengths}
    kinds: tuple[tuple[str, Kind, Any], ...] = (
        ("conversations", "conversation", build_conversations),
        ("preferences", "preference", partial(build_preferences, balanced=balanced)),
    )
    for name, kind, builder in kinds:
        sources: list[Source] = getattr(settings, name)
        embedded: list[Any] = []
        if uses_playground(sources):
            generate = getattr(playground, f"generate_{name}")
            embedded, held_out[name] = generate(world, "train"), generate(world, "validation")
        with atomic_directory(context.directory / name) as directory:
            if sources:
                counts[name], mended = builder(
                    inputs_of(sources, kind, embedded, recipe),
                    settings,
                    recipe.seed,
                    directory,
                    work=work / name,
                    rejects=rejects,
                    copies={source.label: source.copies for source in sources},
                    grams=grams,
                )
                repairs += mended
            else:
                write_jsonl(directory / "train.jsonl", [])
                write_jsonl(directory / "validation.jsonl", [])
            _replace_held_out(directory, held_out[name])

    questions = playground.generate_questions(world)
    if not uses_playground(settings.conversations):
        # Real data has no gold truth, but every assistant should know who it is.
        questions = [question for question in questions if question.kind == "identity"]
    clozes = playground.generate_clozes(world) if planted else []
    with atomic_directory(context.directory / "evaluation") as directory:
        write_jsonl(directory / "questions.jsonl", map(to_row, questions))
        write_jsonl(directory / "clozes.jsonl", map(to_row, clozes))
        conversations = read_jsonl(context.directory / "conversations" / "validation.jsonl")
        write_jsonl(directory / "conversations.jsonl", conversations)

    hashes = read_json(context.directory / "started.json")["inputs"]  # made when the stage began
    counts["provenance"] = _provenance(recipe, counts, hashes)
    write_text(context.directory / "ATTRIBUTION.md", attribution({"counts": counts}))
    counts |= {"rejects": dict(rejects.counts), "rows": rejects.num_rows, "repairs": dict(repairs)}
    counts |= {"encodings": dict(rejects.encodings), "playground": asdict(world)}
    shutil.rmtree(work, ignore_errors=True)  # last: until here an interruption loses none of it
    return Outcome(counts=counts, metrics=metrics)


def _dirt_metrics(score: dict[str, Any]) -> dict[str, Any]:
    """Recall and precision of duplicate removal on the planted truth, with intervals."""
    names = {
        "corpus.exact_duplicate_recall": ("exact_duplicate_recall", "num_exact_duplicates_planted"),
        "corpus.near_duplicate_recall": ("near_duplicate_recall", "num_near_duplicates_planted"),
        "corpus.near_duplicate_precision": ("near_duplicate_precision", "num_near_duplicates_dropped"),
    }
    return {
        metric: proportion(score[share] * score[number], score[number])
        for metric, (share, number) in names.items()
        if score[share] is not None
    }
