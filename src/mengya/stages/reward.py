"""reward: a Bradley–Terry reward model from the SFT model, measured beside what length alone can tell."""

from __future__ import annotations

from typing import Any

import torch

from mengya.evaluate.pairs import length_only_accuracy, pair_accuracy, that_fit
from mengya.evaluate.score import delta_table
from mengya.model.heads import RewardModel
from mengya.objectives.reward import reward_loss
from mengya.run import Context, Outcome
from mengya.stages.common import (
    ahead,
    load_language_model,
    per_second,
    save_stage_model,
    tokenizer_of,
    world_of,
)
from mengya.stages.micro_batch import fitted
from mengya.stages.preferences import pair_loader, preference_pairs
from mengya.train.loop import fit
from mengya.train.sharding import parallelize, whole


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.reward
    world, tokenizer = world_of(context), tokenizer_of(context)
    torch.manual_seed(recipe.seed)
    model = RewardModel.from_language_model(load_language_model(context, "sft/model", world))
    model = parallelize(model, world, recipe.parallel)
    settings = fitted(settings, model, reward_loss, world, recipe.parallel)
    train, validation = preference_pairs(context, "train"), preference_pairs(context, "validation")
    loader, counts, num_steps, _ = pair_loader(context, tokenizer, train, settings, world)

    def look() -> dict[str, float]:
        accuracy, _ = pair_accuracy(whole(model), tokenizer, validation, settings.sequence_length)
        return {"validation_accuracy": accuracy["value"]}

    totals = fit(
        model,
        ahead(loader, world),
        reward_loss,
        settings,
        num_steps=num_steps,
        directory=context.directory,
        world=world,
        unit="pairs",
        evaluate=look,
        evaluate_every=max(1, num_steps // 2),
    )
    model = whole(model)
    if not world.is_main:
        return Outcome()
    save_stage_model(context, model, tokenizer)
    accuracy, by_reason = pair_accuracy(model, tokenizer, validation, settings.sequence_length)
    # Of the very pairs that the model is asked about: long ones, which it never sees, differ in length by other habits.
    fitting = (that_fit(pairs, tokenizer, settings.sequence_length) for pairs in (train, validation))
    baseline = length_only_accuracy(*fitting)
    metrics: dict[str, Any] = {"reward.pair_accuracy": accuracy, "reward.length_only_accuracy": baseline}
    metrics |= {f"reward.pair_accuracy.{reason}": value for reason, value in by_reason.items()}
    metrics["reward.pairs_per_second"] = per_second(totals, "pairs")
    metrics["reward.tokens_per_second"] = per_second(totals)
    return Outcome(
        metrics=metrics,
        counts={**totals, "micro_batch_pairs": settings.micro_batch_pairs, **counts, **loader.packing()},
        delta=delta_table("length alone", {"pair_accuracy": baseline}, {"pair_accuracy": accuracy}, {}, {}),
    )
