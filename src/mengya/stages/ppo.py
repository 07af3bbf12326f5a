"""ppo: the SFT model trained against the reward model, under the guard."""

from __future__ import annotations

import torch

from mengya.corpus.records import Question
from mengya.model.heads import RewardModel
from mengya.rl.align import align
from mengya.rl.ppo import PPO, Actors, policy_objective
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Outcome
from mengya.stages.aligned import check_measured_alike, guard_look, guarded, with_room
from mengya.stages.common import load_language_model, tokenizer_of, world_of
from mengya.stages.micro_batch import fitted
from mengya.stages.replay import replay_of
from mengya.stages.reward_models import check_reward, load_rewards, value_model
from mengya.stages.rollouts import practised_prompts, rollout_outcome, rollout_prompts
from mengya.train.sharding import parallelize


def ppo_prompts(context: Context) -> list[Question]:
    """The prompts of the preference pairs; exercises where a term of the reward asks for their truth."""
    settings = context.recipe.ppo
    return rollout_prompts(context, settings, exercises=any(term.kind == "truth" for term in settings.rewards))


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.ppo
    if any(term.kind == "model" for term in settings.rewards):
        check_reward(context, settings.accept_weak_reward)
    world, tokenizer = world_of(context), tokenizer_of(context)
    check_measured_alike(context)
    torch.manual_seed(recipe.seed)
    prompts = ppo_prompts(context)
    model = load_rewards(context, world)
    reference = load_language_model(context, "sft/model", world).requires_grad_(False)
    policy = load_language_model(context, "sft/model", world)
    fresh = settings.values_from == "policy"
    values = RewardModel.from_language_model(policy) if fresh else value_model(context, world)
    # The two that learn are divided; the two that only answer stay whole on every rank.
    policy, values = parallelize(policy, world, recipe.parallel), parallelize(values, world, recipe.parallel)
    settings = fitted(settings, policy, policy_objective(settings), world, recipe.parallel)
    fitting = with_room(prompts, [question.messages for question in prompts], tokenizer, settings, "ppo")
    look = guard_look(context, reference, tokenizer, settings, model, practised_prompts(context, settings))
    settings = guarded(settings, look)
    rewards = RewardTerms.of(settings, model, world, "ppo")
    try:
        totals = align(
            PPO(
                Actors(policy, values, reference),
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
