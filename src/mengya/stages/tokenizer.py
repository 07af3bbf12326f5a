"""tokenizer: train a byte-level BPE on the cleaned corpus, or take an imported one; measure it on held-out text."""

from __future__ import annotations

import shutil
import time
from typing import Any

from mengya.corpus.parts import read_documents
from mengya.errors import UserError
from mengya.files import atomic_directory
from mengya.run import Context, Outcome
from mengya.stages import tokenizer_files
from mengya.stages.check import model_config
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.sample import characters_within, sample_mixture
from mengya.tokenizer.train import measure, save_tokenizer, train_on_sample


def execute(context: Context) -> Outcome:
    documents = context.path("corpus/documents")
    counts: dict[str, Any] = {}
    if context.recipe.tokenizer.path is None:
        counts = _train(context)
    else:
        with atomic_directory(context.directory / "model") as partial:
            for file in tokenizer_files(context.recipe):
                shutil.copyfile(file, partial / file.name)
    tokenizer = load_tokenizer(context.directory / "model")
    counts["vocab_size"] = tokenizer.vocab_size
    texts = [document.text for document in read_documents(documents, "validation")]
    if not texts and context.recipe.tokenizer.path is not None:
        return Outcome(counts=counts)  # a run on token files alone has no text of its own
    measured = measure(tokenizer, texts)
    return Outcome(
        metrics={
            "tokenizer.chars_per_token": measured["characters_per_token"],
            "tokenizer.bytes_per_token": measured["bytes_per_token"],
        },
        counts=counts | measured,
    )


def _train(context: Context) -> dict[str, Any]:
    """Train it into the stage's model/; what was sampled for it, and how long it took."""
    recipe, settings = context.recipe, context.recipe.tokenizer
    documents = read_documents(context.path("corpus/documents"), "train")
    allowed = characters_within(settings.max_characters, settings.max_memory_gib)
    sample, sampled = sample_mixture(
        ((document.source, document.text) for document in documents), allowed, seed=recipe.seed, shares=settings.shares
    )
    if settings.shares and not set(settings.shares) <= set(sampled):
        raise UserError(
            f"no document of {sorted(set(settings.shares) - set(sampled))}",
            where="tokenizer.shares",
            mend=f"sources: {', '.join(sampled)}",
        )
    began = time.perf_counter()
    tokenizer = train_on_sample(sample, settings.vocab_size)
    counts = {"sampled_characters": sampled, "train_seconds": round(time.perf_counter() - began, 3)}
    max_positions = model_config(recipe, settings.vocab_size).max_positions
    with atomic_directory(context.directory / "model") as partial:
        save_tokenizer(tokenizer, partial, model_max_length=max_positions)
    return counts
