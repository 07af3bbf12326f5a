"""What the recipe's keys say together, checked before anything runs."""

from __future__ import annotations

from pathlib import Path

from mengya.corpus import catalogue
from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.model.config import ModelConfig
from mengya.model.presets import preset, sized
from mengya.settings import Recipe, Source
from mengya.stages import STAGES, TOKEN_FILES, source_files, token_files

_CHAT_STAGES = ("sft", "reward", "dpo", "ppo", "grpo")


def vocab_size(recipe: Recipe) -> int:
    """Tokens of the tokenizer that the recipe trains, or of the imported one that it names."""
    if recipe.tokenizer.path is None:
        return recipe.tokenizer.vocab_size
    from mengya.tokenizer.encode import load_tokenizer

    return load_tokenizer(Path(recipe.tokenizer.path)).vocab_size


def model_config(recipe: Recipe, vocab_size: int) -> ModelConfig:
    """The model's shape: the preset or the size, explicit keys over it."""
    dumped = recipe.model.model_dump(exclude={"preset", "size"})
    explicit = {key: value for key, value in dumped.items() if value is not None}
    if recipe.model.preset is not None and recipe.model.size is not None:
        raise UserError("model.preset and model.size both name a shape", where="model", mend="leave one out")
    if recipe.model.preset is not None:
        return preset(recipe.model.preset, vocab_size, **explicit)
    if recipe.model.size is not None:
        return sized(recipe.model.size, vocab_size, **explicit)
    for key in ("width", "num_layers", "num_heads"):
        if key not in explicit:
            raise UserError(
                f"the key 'model.{key}' is missing", where="model", mend="add it, or name a preset or a size"
            )
    return ModelConfig(vocab_size=vocab_size, **explicit)


def _check_sources(recipe: Recipe) -> None:
    for kind in ("documents", "conversations", "preferences"):
        _check_files(getattr(recipe.corpus, kind), kind, f"corpus.{kind}")


def _check_files(sources: list[Source], kind: str, section: str) -> None:
    for index, source in enumerate(sources):
        where = f"{section}.{index}"
        if source.playground:
            continue
        if source.dataset is not None:
            catalogue.check(source, kind.removesuffix("s"), where)
            continue
        if source.path is None:
            raise UserError(
                "a source without a path", where=where, mend="write `playground`, `{path: …}` or `{dataset: …}`"
            )
        if not source_files(source):
            raise UserError(
                f"no such file: {source.path}",
                where=f"{where}.path",
                mend="mend the path; a relative one starts where you are",
            )


def _check_evaluation_sets(recipe: Recipe) -> None:
    names = [benchmark.label for benchmark in recipe.corpus.evaluation]
    for index, benchmark in enumerate(recipe.corpus.evaluation):
        where = f"corpus.evaluation.{index}"
        if not source_files(Source(path=benchmark.path)):
            raise UserError(f"no such file: {benchmark.path}", where=f"{where}.path", mend="mend the path")
        if benchmark.label in names[:index]:
            raise UserError(f"two sets are called {benchmark.label!r}", where=where, mend="give each a `name`")


def _check_executor(recipe: Recipe) -> None:
    if recipe.corpus.executor == "slurm" and recipe.corpus.slurm is None:
        raise UserError(
            "Slurm needs to know a partition",
            where="corpus.executor",
            mend="add `slurm: {partition: NAME}` beside it",
        )


def _check_tokenizer(recipe: Recipe) -> None:
    """The imported tokenizer is there and can do what the stages ask of it; token files come with their tokenizer."""
    settings = recipe.tokenizer
    if recipe.shards.token_files:
        if settings.path is None:
            raise UserError(
                "token files mean nothing without the tokenizer that made them",
                where="shards.token_files",
                mend="import it by `mengya tokenizer import`, and name it by tokenizer.path",
            )
        for index, path in enumerate(recipe.shards.token_files):
            if not source_files(Source(path=path)):
                raise UserError(f"no such file: {path}", where=f"shards.token_files.{index}", mend="mend the path")
    if settings.path is None:
        return
    from mengya.tokenizer.encode import load_tokenizer

    tokenizer = load_tokenizer(Path(settings.path))
    default = type(settings).model_fields["vocab_size"].default
    if settings.vocab_size not in (default, tokenizer.vocab_size):
        raise UserError(
            f"{settings.vocab_size} tokens are asked for, but the one at tokenizer.path has {tokenizer.vocab_size}",
            where="tokenizer.vocab_size",
            mend="leave it out",
        )
    if any(stage in recipe.stages for stage in _CHAT_STAGES):
        tokenizer.render([Message("user", "你好"), Message("assistant", "你好")])  # UserError without a template


def _check_source_names(recipe: Recipe) -> None:
    """Weights and shares name sources that the recipe reads."""
    documents = [source.label for source in recipe.corpus.documents]
    read = [*documents, *([TOKEN_FILES] if recipe.shards.token_files else [])]
    for where, named, known in (
        ("pretrain.weights", recipe.pretrain.weights, read),
        ("tokenizer.shares", recipe.tokenizer.shares, documents),
    ):
        for name in named:
            if name not in known:
                raise UserError(f"no source {name!r}", where=where, mend=f"sources: {', '.join(known)}")


def _check_lengths(recipe: Recipe) -> None:
    config = model_config(recipe, vocab_size(recipe))
    for stage in ("pretrain", "sft", "reward", "dpo", "ppo", "grpo"):
        length = getattr(recipe, stage).sequence_length
        if length > config.max_positions:
            raise UserError(
                f"sequences of {length} tokens are longer than the model's {config.max_positions} positions",
                where=f"{stage}.sequence_length",
                mend=f"set it to at most {config.max_positions}, or raise model.max_positions",
            )
    for stage in ("pretrain", "sft"):
        settings = getattr(recipe, stage)
        if settings.batch_tokens < settings.sequence_length:
            raise UserError(
                f"{settings.batch_tokens} tokens cannot hold a row of {settings.sequence_length}",
                where=f"{stage}.batch_tokens",
                mend=f"set it to {settings.sequence_length} or more",
            )
        if settings.micro_batch_tokens == "auto":
            continue
        if settings.micro_batch_tokens < settings.sequence_length:
            raise UserError(
                f"{settings.micro_batch_tokens} tokens cannot hold a row of {settings.sequence_length}",
                where=f"{stage}.micro_batch_tokens",
                mend=f"set it to {settings.sequence_length} or more",
            )
        if settings.batch_tokens % settings.micro_batch_tokens:
            raise UserError(
                f"{settings.batch_tokens} is not a multiple of micro_batch_tokens {settings.micro_batch_tokens}",
                where=f"{stage}.batch_tokens",
                mend=f"set it to a multiple of {settings.micro_batch_tokens}",
            )
    for stage in ("ppo", "grpo"):
        settings = getattr(recipe, stage)
        if settings.max_new_tokens >= settings.sequence_length:
            raise UserError(
                f"answers of {settings.max_new_tokens} tokens leave no room for a prompt",
                where=f"{stage}.max_new_tokens",
                mend=f"set it below {stage}.sequence_length, {settings.sequence_length}",
            )


def _check_dpo(recipe: Recipe) -> None:
    if recipe.dpo.loss == "ipo" and recipe.dpo.label_smoothing:
        raise UserError(
            "IPO has no label smoothing: it already aims at a finite margin",
            where="dpo.label_smoothing",
            mend="leave it out, or take dpo.loss: sigmoid",
        )


def check_recipe(recipe: Recipe) -> None:
    """UserError for the first impossible combination, missing file, or stage without what it needs."""
    _check_tokenizer(recipe)
    _check_source_names(recipe)
    _check_lengths(recipe)
    _check_dpo(recipe)
    if "corpus" in recipe.stages:
        _check_executor(recipe)
        _check_evaluation_sets(recipe)
        _check_sources(recipe)
    _check_files(recipe.preferences.sources, "conversations", "preferences.sources")
    needed_sources = {
        "documents": ("corpus",),
        "conversations": ("sft",),
        "preferences": ("reward", "dpo", "ppo", "grpo"),
    }
    for kind, stages in needed_sources.items():
        wanting = [stage for stage in stages if stage in recipe.stages]
        if kind == "documents" and token_files(recipe):
            continue  # there is something to train on without them
        if kind == "preferences":  # some may have the pairs that the run makes for itself
            wanting = [stage for stage in wanting if getattr(recipe, stage).pairs_from == "corpus"]
        if wanting and "corpus" in recipe.stages and not getattr(recipe.corpus, kind):
            raise UserError(
                f"the stage {wanting[0]} needs corpus.{kind}, which is empty",
                where=f"corpus.{kind}",
                mend="add a source, or leave the stage out of `stages`",
            )
    if len(set(recipe.stages)) != len(recipe.stages):
        raise UserError("a stage is named twice", where="stages", mend=f"known stages: {', '.join(STAGES)}")
