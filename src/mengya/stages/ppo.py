"""ppo: the SFT model trained against the reward model, under the guard."""

from __future__ import annotations

import statistics

import torch

from mengya.corpus.playground import judges
from mengya.errors import UserError
from mengya.evaluate.answers import SAMPLED, Answers, answer, has_truth, kl_to_reference
from mengya.model.checkpoint import load_model
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.rl.ppo import Actors, train_ppo
from mengya.rl.rewards import reward_scores
from mengya.run import Context, Outcome
from mengya.stages.aligned import aligned_outcome, distinct_prompts
from mengya.stages.common import held_out, load_language_model, tokenizer_of, world_of
from mengya.stages.preferences import preference_pairs


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
    actors = Actors(policy, values, reference, rewards)

    prompts = distinct_prompts(preference_pairs(context, "train"))
    room = settings.sequence_length - settings.max_new_tokens
    fitting = [p for p in prompts if len(tokenizer.render(p, add_generation_prompt=True)[0]) <= room]
    if not fitting:
        raise UserError(
            f"no prompt leaves room for an answer of {settings.max_new_tokens} tokens",
            where="ppo.sequence_length",
            mend="raise it",
        )
    guard_prompts = held_out(context).guard

    def judge(model: Transformer) -> tuple[list[float], Answers]:
        """One score a guard prompt: the judges' where the truth is known, else the reward model's."""
        answers = answer(
            model,
            tokenizer,
            [question.messages for question in guard_prompts],
            max_new_tokens=settings.max_new_tokens,
            sampling=SAMPLED,
            seed=recipe.seed,
        )
        pairs = list(zip(answers.texts, guard_prompts, strict=True))
        if all(has_truth(question) for question in guard_prompts):
            scores = [judges.gold_score(text, question) for text, question in pairs]
        else:
            scores = reward_scores(rewards, answers)
        return scores, answers

    start_scores, _ = judge(reference)

    def look(model: Transformer, step: int) -> Look:
        scores, answers = judge(model)
        gains = [now - then for now, then in zip(scores, start_scores, strict=True)]
        return Look(
            step,
            statistics.fmean(scores),
            statistics.fmean(judges.repetition(text) for text in answers.texts),
            statistics.fmean(answers.finished),
            kl_to_reference(model, reference, answers)["value"],
            statistics.pstdev(gains) / len(gains) ** 0.5,
        )

    totals = train_ppo(
        actors,
        tokenizer,
        fitting,
        settings,
        look=look,
        directory=context.directory,
        world=world,
        seed=recipe.seed,
    )
    outcome = aligned_outcome(context, policy, tokenizer, world)
    outcome.counts = {**totals, "prompts": len(fitting), "prompts_too_long": len(prompts) - len(fitting)}
    return outcome
