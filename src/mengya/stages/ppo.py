"""ppo: the SFT model trained against the reward model, under the guard."""

from __future__ import annotations

import torch

from mengya.model.checkpoint import load_model
from mengya.rl.align import align
from mengya.rl.ppo import PPO, Actors, policy_objective
from mengya.run import Context, Outcome
from mengya.stages.aligned import aligned_outcome, distinct_prompts, guard_look, with_room
from mengya.stages.common import load_language_model, tokenizer_of, world_of
from mengya.stages.micro_batch import fitted
from mengya.stages.preferences import preference_pairs
from mengya.train.sharding import parallelize, whole


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.ppo
    world, tokenizer = world_of(context), tokenizer_of(context)
    torch.manual_seed(recipe.seed)
    rewards = load_model(
        context.path("reward/model"), head="score", device=world.device, compute_dtype=world.dtype
    ).requires_grad_(False)
    values = load_model(context.path("reward/model"), head="score", device=world.device, compute_dtype=world.dtype)
    reference = load_language_model(context, "sft/model", world).requires_grad_(False)
    policy = load_language_model(context, "sft/model", world)
    # The two that learn are divided; the two that only answer stay whole on every rank.
    policy, values = parallelize(policy, world, recipe.parallel), parallelize(values, world, recipe.parallel)
    settings = fitted(settings, policy, policy_objective(settings.clip), world, recipe.parallel)
    prompts = distinct_prompts(preference_pairs(context, "train"))
    fitting = with_room(prompts, prompts, tokenizer, settings, "ppo")
    actors = Actors(policy, values, reference, rewards)
    totals = align(
        PPO(actors, tokenizer, fitting, settings, world=world, seed=recipe.seed),
        settings,
        look=guard_look(context, reference, tokenizer, settings, rewards),
        directory=context.directory,
        world=world,
    )
    policy = whole(policy)
    if not world.is_main:
        return Outcome()
    outcome = aligned_outcome(context, policy, tokenizer, world)
    outcome.counts = {
        **totals,
        "micro_batch_rows": settings.micro_batch_rows,
        "prompts": len(fitting),
        "prompts_too_long": len(prompts) - len(fitting),
    }
    return outcome
