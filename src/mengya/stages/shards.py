"""shards: the corpus tokenised once, into memory-mapped files."""

from __future__ import annotations

import os

from mengya.corpus.parts import read_documents
from mengya.data.shards import write_shards
from mengya.run import Context, Outcome
from mengya.stages.common import tokenizer_of


def execute(context: Context) -> Outcome:
    settings = context.recipe.shards
    counts = {}
    for split in ("train", "validation"):
        index = write_shards(
            read_documents(context.path("corpus/documents"), split),
            tokenizer_of(context),
            context.directory / "tokens",
            name=split,
            shard_tokens=settings.shard_tokens,
            num_workers=settings.num_workers or os.cpu_count() or 1,
        )
        counts[split] = {key: index[key] for key in ("documents", "tokens", "bytes", "dtype", "sources")}
    return Outcome(counts=counts, metrics={"shards.tokens": counts["train"]["tokens"]})
