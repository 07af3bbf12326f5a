"""shards: the corpus tokenised once, into memory-mapped files; token files of others are indexed where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mengya.corpus.parts import document_files, read_documents
from mengya.corpus.records import Document
from mengya.data.shard_writer import write_shards
from mengya.data.token_files import TokenFiles, index_token_files
from mengya.run import Context, Outcome
from mengya.stages import TOKEN_FILES, token_files
from mengya.stages.common import tokenizer_of
from mengya.tokenizer.encode import ChatTokenizer


def _index_files(context: Context, tokenizer: ChatTokenizer, directory: Path) -> tuple[dict[str, Any], list[Document]]:
    """(counts of the token files, the documents held out of them as text)."""
    files = token_files(context.recipe)
    if not files:
        return {}, []
    directory.mkdir(parents=True, exist_ok=True)
    index = index_token_files(
        files,
        directory,
        end_id=tokenizer.end_of_text_id,
        vocab_size=tokenizer.vocab_size,
        num_held_out=context.recipe.shards.held_out_documents,
        source=TOKEN_FILES,
    )
    counts = {key: index[key] for key in ("documents", "tokens", "empty", "unended", "dtype")}
    counts |= {"files": len(index["files"]), "held_out": len(index["held_out"])}
    held_out = [Document(tokenizer.decode(ids.tolist()), TOKEN_FILES) for ids in TokenFiles(directory).held_out()]
    return counts, held_out


def execute(context: Context) -> Outcome:
    settings, tokenizer = context.recipe.shards, tokenizer_of(context)
    directory = context.directory / "tokens"
    # What an earlier run of this stage tokenised is not tokenised again: only a source that is new or has changed.
    earlier = sorted((context.run.directory / ".stale").glob("shards-*/tokens"))
    files, held_out = _index_files(context, tokenizer, directory)
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        place = context.path("corpus/documents")
        documents: Iterable[Document] = read_documents(place, split)
        if files and split == "train" and not document_files(place, split):
            continue
        if files and split == "validation":
            documents = chain(documents, held_out)
        index = write_shards(
            documents,
            tokenizer,
            directory,
            name=split,
            shard_tokens=settings.shard_tokens,
            num_workers=settings.num_workers or os.cpu_count() or 1,
            reuse=earlier,
        )
        counts[split] = {key: index[key] for key in ("documents", "tokens", "bytes", "dtype", "sources")}
    tokens = counts["train"]["tokens"] if "train" in counts else 0
    if files:
        counts["token_files"] = files
        tokens += files["tokens"]
    return Outcome(counts=counts, metrics={"shards.tokens": tokens})
