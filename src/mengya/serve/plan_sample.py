"""A small piece of a recipe's data, taken through the real data stages: what there will be to train on, and how long it takes.

The corpus, tokenizer and shards stages run on the first rows of every source in a temporary directory. The playground's
conversations and pairs are made in full (up to a number), since duplicates among them grow faster than they do.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mengya.corpus.inputs import Kind
from mengya.errors import UserError
from mengya.files import read_json, read_jsonl
from mengya.run import Context, Run
from mengya.serve.plan_rows import take_rows, unpacked_bytes
from mengya.settings import Recipe, Source, StageName
from mengya.stages import STAGES, token_files

DATA_STAGES: tuple[StageName, ...] = ("corpus", "tokenizer", "shards")
_ROWS: dict[Kind, int] = {"document": 2_000, "conversation": 400, "preference": 200}
_BYTES: dict[Kind, float] = {"document": 1.5e6, "conversation": 1e6, "preference": 1e6}
"""Of rows that are read, over all sources of a kind."""
_PLAYGROUND = {"num_characters": 250_000, "num_conversations": 20_000, "num_preferences": 8_000}
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
    small, scales = _smaller(recipe, directory / "rows")
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
    seconds = _seconds(recipe, context, manifests, growth, characters, scales)
    return Sample(context, scales, seconds, {name: n for name, n in tokens.items() if n}, characters)


def _smaller(recipe: Recipe, directory: Path) -> tuple[Recipe, dict[tuple[str, str], float]]:
    """The recipe with its sources cut to their first rows, and by how much."""
    scales: dict[tuple[str, str], float] = {}
    corpus: dict[str, Any] = {"evaluation": [], "num_processes": 1, "executor": "local"}
    world = recipe.playground
    tiny = {key: min(most, getattr(world, key)) for key, most in _PLAYGROUND.items()}
    for kind, key in zip(get_args(Kind), _PLAYGROUND, strict=True):
        sources: list[Source] = getattr(recipe.corpus, f"{kind}s")
        cut: list[Source] = []
        rows: dict[str, list[float]] = {}
        for index, source in enumerate(sources):
            if source.playground:
                cut.append(source)
                scales[kind, source.label] = getattr(world, key) / tiny[key]
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
            scales[kind, source.label] = (
                scale
                if len(rows[source.label]) == 1
                else _mean(scales[kind, source.label], sum(rows[source.label][:-1]), scale, taken)
            )
        corpus[f"{kind}s"] = cut
    return recipe.model_copy(
        update={
            "corpus": recipe.corpus.model_copy(update=corpus),
            "playground": world.model_copy(update=tiny),
            "shards": recipe.shards.model_copy(update={"num_workers": 1, "token_files": []}),
        }
    ), scales


def _mean(scale: float, rows: float, other: float, more: float) -> float:
    return (scale * rows + other * more) / max(1.0, rows + more)


def _seconds(
    recipe: Recipe,
    context: Context,
    manifests: dict[str, dict[str, Any]],
    growth: float,
    characters: float,
    scales: dict[tuple[str, str], float],
) -> dict[str, float]:
    """Of the data stages on the whole: what grows with the data, by as much as the data does, over the processes."""
    began = read_json(context.path("corpus/started.json"))["began"]
    documents = max(path.stat().st_mtime for path in context.path("corpus/documents").rglob("*")) - began
    records = manifests["corpus"]["seconds"] - documents
    others = [scale for (kind, _), scale in scales.items() if kind != "document"]
    processes = max(1, min(recipe.corpus.num_processes, len(recipe.corpus.documents), os.cpu_count() or 1))
    corpus = _IMPORT_SECONDS + max(0.0, documents - _IMPORT_SECONDS) * growth / processes
    counts = manifests["tokenizer"]["counts"]
    spent = counts.get("train_seconds", 0.0)
    sampled = sum(counts.get("sampled_characters", {}).values()) or 1
    wanted = min(characters, recipe.tokenizer.max_characters)
    workers = recipe.shards.num_workers or os.cpu_count() or 1
    return {
        "corpus": corpus + records * (sum(others) / len(others) if others else 1.0),
        "tokenizer": manifests["tokenizer"]["seconds"] - spent + spent * wanted / sampled,
        "shards": (_SPAWN_SECONDS if workers > 1 else 0.0) + manifests["shards"]["seconds"] * growth / workers,
    }
