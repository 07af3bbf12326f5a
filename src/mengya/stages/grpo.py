"""grpo: the SFT model trained on rewards that can be verified, under the guard."""

from __future__ import annotations

import torch

from mengya.corpus.records import Question
from mengya.rl.align import align
from mengya.rl.grpo import GRPO, grpo_objective
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Outcome
from mengya.settings import GRPOSettings
from mengya.stages.aligned import check_measured_alike, guard_look, guarded, with_room
from mengya.stages.common import load_language_model, tokenizer_of, world_of
from mengya.stages.micro_batch import fitted
from mengya.stages.replay import replay_of
from mengya.stages.reward_models import check_reward, load_rewards
from mengya.stages.rollouts import practised_prompts, rollout_outcome, rollout_prompts
from mengya.train.sharding import parallelize


def grpo_prompts(context: Context, settings: GRPOSettings) -> list[Question]:
    """Exercises of the embedded corpus where it is part of the run; else the prompts of the preference pairs."""
    return rollout_prompts(context, settings, exercises=True)


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.grpo
    scores = any(term.kind == "model" for term in settings.rewards)
    if scores:
        check_reward(context, settings.accept_weak_reward)
    world, tokenizer = world_of(context), tokenizer_of(context)
    check_measured_alike(context)
    torch.manual_seed(recipe.seed)
    prompts = grpo_prompts(context, settings)
    model = load_rewards(context, world) if scores else None
    reference = load_language_model(context, "sft/model", world).requires_grad_(False)
    policy = parallelize(load_language_model(context, "sft/model", world), world, recipe.parallel)
    settings = fitted(settings, policy, grpo_objective(settings), world, recipe.parallel)
    fitting = with_room(prompts, [question.messages for question in prompts], tokenizer, settings, "grpo")
    look = guard_look(context, reference, tokenizer, settings, model, practised_prompts(context, settings))
    settings = guarded(settings, look)
    rewards = RewardTerms.of(settings, model, world, "grpo")
    try:
        totals = align(
            GRPO(
                policy,
                reference,
                tokenizer,
                fitting,
                rewards,
                settings,
                world=world,
                seed=recipe.seed,
                replay=replay_of(context, settings, tokenizer, world),
            ),
            settings,
            look=look,
            directory=context.directory,
            world=world,
        )
    finally:
        rewards.close()
    return rollout_outcome(context, policy, tokenizer, world, totals, settings, prompts, fitting)
