"""tokenizer: train a byte-level BPE on the cleaned corpus and measure it on held-out text."""

from __future__ import annotations

from mengya.corpus.parts import read_documents
from mengya.files import atomic_directory
from mengya.run import Context, Outcome
from mengya.stages.check import model_config
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.train import measure, save_tokenizer, train_tokenizer


def execute(context: Context) -> Outcome:
    settings = context.recipe.tokenizer
    documents = context.path("corpus/documents")
    texts = (document.text for document in read_documents(documents, "train"))
    tokenizer = train_tokenizer(
        texts, settings.vocab_size, max_characters=settings.max_characters, seed=context.recipe.seed
    )
    max_positions = model_config(context.recipe, settings.vocab_size).max_positions
    with atomic_directory(context.directory / "model") as partial:
        save_tokenizer(tokenizer, partial, model_max_length=max_positions)
    trained = load_tokenizer(context.directory / "model")
    measured = measure(trained, [document.text for document in read_documents(documents, "validation")])
    return Outcome(
        metrics={
            "tokenizer.chars_per_token": measured["characters_per_token"],
            "tokenizer.bytes_per_token": measured["bytes_per_token"],
        },
        counts={"vocab_size": trained.vocab_size, **measured},
    )
