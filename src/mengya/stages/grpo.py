"""grpo: the SFT model trained on rewards that can be verified, under the guard."""

from __future__ import annotations

import torch

from mengya.corpus import playground
from mengya.corpus.playground.questions import EXERCISES
from mengya.corpus.records import Question
from mengya.errors import UserError
from mengya.evaluate.answers import has_truth
from mengya.model.checkpoint import load_model
from mengya.rl.align import align
from mengya.rl.grpo import GRPO, grpo_objective
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Outcome
from mengya.stages.aligned import aligned_outcome, distinct_prompts, guard_look, with_room
from mengya.stages.common import load_language_model, tokenizer_of, world_of
from mengya.stages.corpus import world_of_recipe
from mengya.stages.micro_batch import fitted
from mengya.stages.preferences import preference_pairs
from mengya.train.sharding import parallelize, whole


def grpo_prompts(context: Context) -> list[Question]:
    """Exercises of the embedded corpus where it is part of the run; else the prompts of the preference pairs."""
    recipe, settings = context.recipe, context.recipe.grpo
    unknown = [kind for kind in settings.kinds if kind not in EXERCISES]
    if unknown:
        raise UserError(
            f"no exercises of kind {unknown[0]!r}", where="grpo.kinds", mend=f"known kinds: {', '.join(EXERCISES)}"
        )
    if any(source.playground for source in recipe.corpus.conversations):
        return playground.generate_exercises(world_of_recipe(recipe), settings.num_exercises, settings.kinds)
    pairs = preference_pairs(context, "train")
    return [Question(prompt, "open") for prompt in distinct_prompts(pairs)]


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.grpo
    world, tokenizer = world_of(context), tokenizer_of(context)
    torch.manual_seed(recipe.seed)
    prompts = grpo_prompts(context)
    kinds = {term.kind for term in settings.rewards}
    if kinds == {"truth"} and not any(map(has_truth, prompts)):
        raise UserError(
            "no prompt has an answer that can be verified",
            where="grpo.rewards",
            mend="add `{kind: model}`, or a function of your own",
        )
    model = None
    if "model" in kinds:
        path = context.path("reward/model")
        if not path.exists():
            raise UserError("the reward model is not there", where="grpo.rewards", mend="run the stage reward first")
        model = load_model(path, head="score", device=world.device, compute_dtype=world.dtype).requires_grad_(False)
    reference = load_language_model(context, "sft/model", world).requires_grad_(False)
    policy = parallelize(load_language_model(context, "sft/model", world), world, recipe.parallel)
    settings = fitted(settings, policy, grpo_objective(settings), world, recipe.parallel)
    fitting = with_room(prompts, [question.messages for question in prompts], tokenizer, settings, "grpo")
    rewards = RewardTerms.of(settings.rewards, model)
    try:
        totals = align(
            GRPO(policy, reference, tokenizer, fitting, rewards, settings, world=world, seed=recipe.seed),
            settings,
            look=guard_look(context, reference, tokenizer, settings, model),
            directory=context.directory,
            world=world,
        )
    finally:
        rewards.close()
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
