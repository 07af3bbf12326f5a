"""What the alignment stages share: prompts that fit, the guard's look at a policy, the measurement against SFT."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from mengya.corpus.playground import judges
from mengya.corpus.records import Message, PreferencePair
from mengya.errors import UserError
from mengya.evaluate.answers import SAMPLED, Answers, answer, has_truth, kl_to_reference, win_rate
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.rl.rewards import reward_scores
from mengya.run import Context, Outcome
from mengya.settings import RolloutSettings
from mengya.stages.common import (
    held_out,
    load_language_model,
    load_measurement,
    measure_language_model,
    outcome_of,
    save_stage_model,
    world_of,
)
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World

Item = TypeVar("Item")


def with_room(
    items: Sequence[Item],
    prompts: Sequence[Sequence[Message]],
    tokenizer: ChatTokenizer,
    settings: RolloutSettings,
    stage: str,
) -> list[Item]:
    """The items whose prompt leaves room for an answer in `sequence_length`; UserError where none does."""
    room = settings.sequence_length - settings.max_new_tokens
    fitting = [
        item
        for item, prompt in zip(items, prompts, strict=True)
        if len(tokenizer.render(prompt, add_generation_prompt=True)[0]) <= room
    ]
    if not fitting:
        raise UserError(
            f"no prompt leaves room for an answer of {settings.max_new_tokens} tokens",
            where=f"{stage}.sequence_length",
            mend="raise it",
        )
    return fitting


def guard_look(
    context: Context,
    reference: Transformer,
    tokenizer: ChatTokenizer,
    settings: RolloutSettings,
    rewards: RewardModel | None,
) -> Callable[[Transformer, int], Look]:
    """How the guard looks at a policy: sampled answers to prompts that are neither trained on nor measured at the end.

    One score a prompt: the judges' where the truth is known, else the reward model's, else (there is none) minus the
    share of repetition.
    """
    prompts = held_out(context).guard

    def judge(model: Transformer) -> tuple[list[float], Answers]:
        answers = answer(
            model,
            tokenizer,
            [question.messages for question in prompts],
            max_new_tokens=settings.max_new_tokens,
            sampling=SAMPLED,
            seed=context.recipe.seed,
        )
        if all(has_truth(question) for question in prompts):
            pairs = zip(answers.texts, prompts, strict=True)
            return [judges.gold_score(text, question) for text, question in pairs], answers
        if rewards is not None:
            return reward_scores(rewards, answers), answers
        return [-judges.repetition(text) for text in answers.texts], answers

    start_scores = judge(reference)[0] if world_of(context).is_main else []  # rank 0 alone looks

    def look(model: Transformer, step: int) -> Look:
        scores, answers = judge(model)
        gains = [now - then for now, then in zip(scores, start_scores, strict=True)]
        answerable = [text for text, question in zip(answers.texts, prompts, strict=True) if question.kind != "unknown"]
        return Look(
            step,
            statistics.fmean(scores),
            statistics.fmean(judges.repetition(text) for text in answers.texts),
            statistics.fmean(answers.finished),
            kl_to_reference(model, reference, answers)["value"],
            statistics.pstdev(gains) / len(gains) ** 0.5,
            statistics.fmean(judges.is_refusal(text) for text in answerable) if answerable else 0.0,
            statistics.fmean(map(len, answers.tokens)),
        )

    return look


def aligned_outcome(context: Context, model: Transformer, tokenizer: ChatTokenizer, world: World) -> Outcome:
    """Metrics and delta of an aligned model: with its KL to SFT, and its win rate by the gold judge where there is one.

    Win rate: on each prompt the gold score of one sampled answer of each model; a tie counts half.
    """
    save_stage_model(context, model, tokenizer)
    held = held_out(context)
    measured, answers = measure_language_model(context, model, tokenizer, held)
    before = load_measurement(context.path("sft/evaluation.json"))
    reference = load_language_model(context, "sft/model", world)
    measured.metrics["kl_to_sft"] = kl_to_reference(model, reference, answers)
    if len(measured.items["repetition"]) != len(before.items["repetition"]):
        raise UserError(
            f"SFT was measured on {len(before.items['repetition'])} prompts, this model on {len(measured.items['repetition'])}",
            where="evaluate.num_prompts",
            mend="take the value back, or measure SFT anew with `mengya run`",
        )
    if "gold_score" in measured.items:
        rate = win_rate(measured.items["gold_score"], before.items["gold_score"])
        measured.metrics["win_rate_vs_sft"] = rate
    return outcome_of(context, measured, "sft", before)


def distinct_prompts(pairs: list[PreferencePair]) -> list[tuple]:
    """The prompts of preference pairs, each once, in order."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))
