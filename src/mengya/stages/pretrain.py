"""pretrain: next-token prediction on packed, shuffled documents, from random weights."""

from __future__ import annotations

import numpy as np
import torch

from mengya.data.mixture import Mixture, source_weights
from mengya.data.token_files import open_tokens
from mengya.data.token_source import TokenSource
from mengya.evaluate.answers import Measurement
from mengya.evaluate.likelihood import bits_per_byte, cloze_accuracy, packed_loss
from mengya.evaluate.ngram import ngram_losses
from mengya.model.presets import describe
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.run import Context, Outcome
from mengya.stages.check import model_config
from mengya.stages.common import (
    ahead,
    held_out,
    measure_language_model,
    outcome_of,
    packed_loader,
    per_second,
    save_stage_model,
    tokenizer_of,
    world_of,
)
from mengya.stages.micro_batch import fitted
from mengya.train.loop import fit
from mengya.train.sharding import parallelize, whole

_NGRAM_TOKENS = 20_000_000
"""Tokens counted at most for the n-gram baselines: beyond this their tables outgrow memory, not their quality."""


def _documents(shards: TokenSource, max_tokens: int) -> list[np.ndarray]:
    return [shards[i].astype(np.int64) for i in range(max(1, shards.documents_within(max_tokens)))]


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.pretrain
    world, tokenizer, held = world_of(context), tokenizer_of(context), held_out(context)
    train = open_tokens(context.path("shards/tokens"), "train")
    weights = source_weights(train, settings.weights, settings.temperature)
    weighted = any(weight != 1.0 for weight in weights.values())
    torch.manual_seed(recipe.seed)
    config = model_config(recipe, tokenizer.vocab_size)
    model = Transformer(config, world.dtype).to(world.device)

    untrained = Measurement()
    if world.is_main:
        untrained.metrics["bits_per_byte"] = bits_per_byte(model, held.validation, recipe.evaluate.num_documents)[0]
    if world.is_main and held.clozes:
        chosen = held.clozes[: recipe.evaluate.num_questions]
        untrained.metrics["cloze_accuracy"] = cloze_accuracy(model, tokenizer, chosen)
    flops = settings.tokens * config.flops_per_token(settings.sequence_length)
    model = parallelize(model, world, recipe.parallel, flops=flops)
    settings = fitted(settings, model, next_token_loss, world, recipe.parallel)

    loader = packed_loader(context, Mixture(train, weights) if weighted else train, settings, tokenizer, world)

    def look() -> dict[str, float]:
        return {"validation_loss": packed_loss(whole(model), held.validation, settings.sequence_length, world)}

    totals = fit(
        model,
        ahead(loader, world),
        next_token_loss,
        settings,
        num_steps=max(1, settings.tokens // settings.batch_tokens),
        directory=context.directory,
        world=world,
        evaluate=look,
        evaluate_every=settings.evaluate_every,
        best_checkpoint=settings.best_checkpoint,
    )
    validation_loss = look()
    model = whole(model)
    if not world.is_main:
        return Outcome()
    save_stage_model(context, model, tokenizer, chat=False)
    measured, _ = measure_language_model(context, model, tokenizer, held)
    outcome = outcome_of(context, measured, "untrained", untrained)
    baselines = ngram_losses(
        _documents(train, _NGRAM_TOKENS), _documents(held.validation, _NGRAM_TOKENS), config.vocab_size
    )
    outcome.metrics |= {f"pretrain.{name}": value for name, value in baselines.items()}
    outcome.metrics |= {f"pretrain.{name}": value for name, value in validation_loss.items()}
    outcome.metrics |= {"pretrain.tokens_per_second": per_second(totals)}
    outcome.counts = {
        **totals,
        "micro_batch_tokens": settings.micro_batch_tokens,
        "parameters": config.num_parameters,
        "model": describe(config),
        "precision": str(world.dtype).removeprefix("torch."),
        "train_tokens": train.num_tokens,
        "epochs": round(totals["tokens"] / max(1, train.num_tokens), 3),
        **loader.packing(),
    }
    if weighted:
        outcome.counts["weights"] = {name: round(weight, 4) for name, weight in weights.items()}
    return outcome
