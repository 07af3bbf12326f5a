"""A small piece of a recipe's data, taken through the real data stages: what there will be to train on, and how long it takes.

The corpus, tokenizer and shards stages run on the first rows of every source in a temporary directory. Of the playground's
conversations ever more are duplicates; how fast, the two halves of the sample tell.
"""

from __future__ import annotations

import io
import math
import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mengya.corpus.inputs import Kind
from mengya.corpus.playground import SOURCE
from mengya.errors import UserError
from mengya.files import read_json, read_jsonl
from mengya.run import Context, Run
from mengya.serve.plan_rows import take_rows, unpacked_bytes
from mengya.settings import Recipe, Source, StageName
from mengya.stages import STAGES, token_files

DATA_STAGES: tuple[StageName, ...] = ("corpus", "tokenizer", "shards")
_RECORDS: tuple[Kind, ...] = ("conversation", "preference")
_ROWS: dict[Kind, int] = {"document": 2_000, "conversation": 400, "preference": 200}
_BYTES: dict[Kind, float] = {"document": 1.5e6, "conversation": 1e6, "preference": 1e6}
"""Of rows that are read, over all sources of a kind."""
_PLAYGROUND = {"num_characters": 250_000, "num_conversations": 6_000, "num_preferences": 2_000}
_IMPORT_SECONDS = 1.0
"""Of the corpus stage, that do not grow with the data: libraries loaded, phases started."""
_SPAWN_SECONDS = 1.0
"""Until processes of their own begin to tokenise."""
_BYTES_OF_ID = 2.0
_LEAST_VOCABULARY = 300


@dataclass(frozen=True)
class Sample:
    """A finished corpus, tokenizer and shards of a part of the data (`context`), and what the whole will be.

    `scales` {(kind, source): rows of the whole / rows taken}; `seconds` of the data stages on the whole; `tokens`
    {source: tokens to train on} and `characters` of the whole's documents.
    """

    context: Context
    scales: dict[tuple[str, str], float]
    seconds: dict[str, float]
    tokens: dict[str, float]
    characters: float

    def count(self, kind: str) -> float:
        """Training records of a kind ("conversation", "preference") that the whole will hold."""
        rows = read_jsonl(self.context.path(f"corpus/{kind}s/train.jsonl"))
        return sum(self.scales.get((kind, row["source"]), 1.0) for row in rows)


def take_sample(recipe: Recipe, directory: Path) -> Sample:
    """The sample of what `recipe` reads, made under `directory`; UserError where it names no documents."""
    if not recipe.corpus.documents:
        raise UserError(
            "there is no text to plan with",
            where="corpus.documents",
            mend="name a source, if only for the plan: token files alone cannot be judged by a sample",
        )
    small, scales, growths = _smaller(recipe, directory / "rows")
    run = Run(directory / "run")
    run.directory.mkdir()
    manifests: dict[str, dict[str, Any]] = {}
    with redirect_stderr(io.StringIO()):
        for name in DATA_STAGES:
            while True:
                try:
                    manifests[name] = run.execute(small, STAGES[name])
                    break
                except UserError as error:
                    # The piece may hold fewer different tokens than the whole will; then its texts look longer by a little.
                    vocab_size = small.tokenizer.vocab_size // 2
                    if error.where != "tokenizer.vocab_size" or vocab_size < _LEAST_VOCABULARY:
                        raise
                    tokenizer = small.tokenizer.model_copy(update={"vocab_size": vocab_size})
                    small = small.model_copy(update={"tokenizer": tokenizer})
    document_scale = {source: scale for (kind, source), scale in scales.items() if kind == "document"}
    kept = manifests["corpus"]["counts"]["documents"]
    sources = manifests["shards"]["counts"]["train"]["sources"]
    tokens = {source: found["tokens"] * document_scale.get(source, 1.0) for source, found in sources.items()}
    tokens |= {"token_files": sum(unpacked_bytes(file) for file in token_files(recipe)) / _BYTES_OF_ID}
    sampled = sum(found["tokens"] for found in sources.values())
    growth = sum(tokens[source] for source in sources) / max(1.0, sampled)
    characters = kept["kept"]["train"]["characters"] * growth
    context = Context(small, run, STAGES["pretrain"])
    seconds = _seconds(recipe, context, manifests, growth, characters, growths)
    if ("conversation", SOURCE) in scales:
        made = small.playground.num_conversations, recipe.playground.num_conversations
        scales["conversation", SOURCE] = _kept_growth(context, *made)
    return Sample(context, scales, seconds, {name: n for name, n in tokens.items() if n}, characters)


def _kept_growth(context: Context, some: int, whole: int) -> float:
    """Playground conversations that are no duplicates among `whole`, over those among the sample's `some`: (whole / some)^β, by
    the β with which they grew from its first half to all of it."""
    rows = read_jsonl(context.path("corpus/conversations/train.jsonl"))
    numbers = [int(row["origin"].rpartition(":")[2]) for row in rows if row["source"] == SOURCE]
    early = sum(number < some / 2 for number in numbers)
    exponent = min(1.0, math.log2(len(numbers) / early)) if early else 1.0
    return (whole / some) ** exponent


def _smaller(recipe: Recipe, directory: Path) -> tuple[Recipe, dict[tuple[str, str], float], dict[Kind, float]]:
    """The recipe with its sources cut to their first rows, by how much each, and all rows of a kind over those taken."""
    scales: dict[tuple[str, str], float] = {}
    growths: dict[Kind, float] = {}
    corpus: dict[str, Any] = {"evaluation": [], "num_processes": 1, "executor": "local"}
    world = recipe.playground
    tiny = {key: min(most, getattr(world, key)) for key, most in _PLAYGROUND.items()}
    for kind, key in zip(get_args(Kind), _PLAYGROUND, strict=True):
        sources: list[Source] = getattr(recipe.corpus, f"{kind}s")
        cut: list[Source] = []
        rows: dict[str, list[float]] = {}
        all_taken = whole = 0.0
        for index, source in enumerate(sources):
            if source.playground:
                cut.append(source)
                scales[kind, SOURCE] = getattr(world, key) / tiny[key]
                all_taken, whole = all_taken + tiny[key], whole + getattr(world, key)
                continue
            place = directory / f"{kind}-{index}"
            place.mkdir(parents=True)
            share = 1 + len([other for other in sources if not other.playground])
            parts, scale = take_rows(
                source, kind, recipe, place, most_rows=_ROWS[kind], most_bytes=_BYTES[kind] * 2 / share
            )
            cut += parts
            taken = sum(1 for part in parts for _ in read_jsonl(Path(part.path or "")))
            rows.setdefault(source.label, []).append(taken)
            all_taken, whole = all_taken + taken, whole + scale * taken
            scales[kind, source.label] = (
                scale
                if len(rows[source.label]) == 1
                else _mean(scales[kind, source.label], sum(rows[source.label][:-1]), scale, taken)
            )
        corpus[f"{kind}s"] = cut
        growths[kind] = whole / all_taken if all_taken else 1.0
    small = recipe.model_copy(
        update={
            "corpus": recipe.corpus.model_copy(update=corpus),
            "playground": world.model_copy(update=tiny),
            "shards": recipe.shards.model_copy(update={"num_workers": 1, "token_files": []}),
        }
    )
    return small, scales, growths


def _mean(scale: float, rows: float, other: float, more: float) -> float:
    return (scale * rows + other * more) / max(1.0, rows + more)


def _seconds(
    recipe: Recipe,
    context: Context,
    manifests: dict[str, dict[str, Any]],
    growth: float,
    characters: float,
    growths: dict[Kind, float],
) -> dict[str, float]:
    """Of the data stages on the whole: what grows with the data, by as much as the data does, over the processes."""
    mark = read_json(context.path("corpus/started.json"))["began"]
    end = mark + manifests["corpus"]["seconds"]
    spent_on: dict[str, float] = {}
    for kind in get_args(Kind):  # one after the other; the files of each are its last
        done = max(path.stat().st_mtime for path in context.path(f"corpus/{kind}s").rglob("*"))
        spent_on[kind], mark = done - mark, done
    documents, records = spent_on["document"], sum(spent_on[kind] * growths[kind] for kind in _RECORDS)
    processes = max(1, min(recipe.corpus.num_processes, len(recipe.corpus.documents), os.cpu_count() or 1))
    corpus = _IMPORT_SECONDS + max(0.0, documents - _IMPORT_SECONDS) * growth / processes
    counts = manifests["tokenizer"]["counts"]
    spent = counts.get("train_seconds", 0.0)
    sampled = sum(counts.get("sampled_characters", {}).values()) or 1
    wanted = min(characters, recipe.tokenizer.max_characters)
    workers = recipe.shards.num_workers or os.cpu_count() or 1
    return {
        "corpus": corpus + records + max(0.0, end - mark),
        "tokenizer": manifests["tokenizer"]["seconds"] - spent + spent * wanted / sampled,
        "shards": (_SPAWN_SECONDS if workers > 1 else 0.0) + manifests["shards"]["seconds"] * growth / workers,
    }
