"""What the alignment stages share: prompts that fit, the guard's look at a policy, the measurement against SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mengya.corpus.playground import judges
from mengya.corpus.records import Message, PreferencePair
from mengya.errors import UserError
from mengya.evaluate.answers import Answers, has_truth, kl_to_reference, win_rate
from mengya.evaluate.likelihood import spread
from mengya.model.heads import Scorer
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.rl.look import HeldOutPrompts, Seen, look_of, seen_of
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
)
from mengya.stages.reward_models import load_rewards
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World

Item = TypeVar("Item")

GUARD_TEXTS = 64
"""Conversations, whose reference answers the policy is to foretell, and documents, at most: a look reads half as many
tokens more for them."""


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


class GuardLook:
    """How the guard looks at a policy: sampled answers to prompts that are neither trained on nor measured at the end.

    One score a prompt: the judges' where the truth is known, else the reward model's, else (there is none) minus the
    share of repetition. The policy that training was given is looked at once, as step 0, and every later look is
    compared with it prompt by prompt; a resumed training looks at it anew, and sees the same.
    `models` gives the SFT model and the reward model, if there is one; what they take is freed between looks where
    training itself does not hold them.
    """

    def __init__(
        self,
        context: Context,
        tokenizer: ChatTokenizer,
        max_new_tokens: int,
        models: Callable[[], tuple[Transformer, Scorer | None]],
    ) -> None:
        self.tokenizer, self.max_new_tokens, self.models = tokenizer, max_new_tokens, models
        self.seed = context.recipe.seed
        held = held_out(context)
        measured = context.recipe.evaluate
        conversations = [held.conversations[i] for i in _others(len(held.conversations), measured.num_questions)]
        documents = _others(len(held.validation), measured.num_documents)
        self.held = HeldOutPrompts(held.guard, conversations, held.validation, documents)
        self.start: Seen | None = None

    def _score(self, answers: Answers, rewards: Scorer | None) -> list[float]:
        prompts = self.held.prompts
        if all(has_truth(question) for question in prompts):
            pairs = zip(answers.texts, prompts, strict=True)
            return [judges.gold_score(text, question) for text, question in pairs]
        if rewards is not None:
            return reward_scores(rewards, answers)
        return [-judges.repetition(text) for text in answers.texts]

    def __call__(self, policy: Transformer, step: int) -> Look:
        reference, rewards = self.models()

        def seen(model: Transformer) -> Seen:
            return seen_of(
                model,
                reference,
                self.tokenizer,
                self.held,
                lambda answers: self._score(answers, rewards),
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
            )

        if self.start is None:
            self.start = seen(reference)
        return look_of(step, seen(policy) if step else self.start, self.start)


def _others(total: int, num_measured: int) -> list[int]:
    """At most `GUARD_TEXTS` of so many held-out texts, of those not measured at the end where they suffice."""
    measured = set(spread(num_measured, total))
    pool = [i for i in range(total) if i not in measured]
    if len(pool) < GUARD_TEXTS:
        pool = list(range(total))
    return [pool[i] for i in spread(GUARD_TEXTS, len(pool))]


def guard_look(
    context: Context,
    reference: Transformer,
    tokenizer: ChatTokenizer,
    settings: RolloutSettings,
    rewards: Scorer | None,
) -> GuardLook:
    """The guard's look of a stage that holds the SFT model anyway."""
    return GuardLook(context, tokenizer, settings.max_new_tokens, lambda: (reference, rewards))


def guard_look_from_disk(context: Context, tokenizer: ChatTokenizer, max_new_tokens: int, world: World) -> GuardLook:
    """The guard's look of a stage that trains without a second model in memory: the SFT model, and the reward model
    where the run has one and no truth is known, are read for each look."""
    knows_truth = all(has_truth(question) for question in held_out(context).guard)

    def models() -> tuple[Transformer, Scorer | None]:
        judged = not knows_truth and context.has("reward/model")
        return load_language_model(context, "sft/model", world), load_rewards(context, world) if judged else None

    return GuardLook(context, tokenizer, max_new_tokens, models)


def check_measured_alike(context: Context) -> None:
    """UserError where SFT was measured on other prompts than this stage's model will be; asked before any training."""
    before = len(load_measurement(context.path("sft/evaluation.json")).items["repetition"])
    now = len(held_out(context).style)
    if before != now:
        raise UserError(
            f"SFT was measured on {before} prompts, this model would be on {now}",
            where="evaluate.num_prompts",
            mend="take the value back, or measure SFT anew with `mengya run`",
        )


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
    if "gold_score" in measured.items:
        rate = win_rate(measured.items["gold_score"], before.items["gold_score"])
        measured.metrics["win_rate_vs_sft"] = rate
    return outcome_of(context, measured, "sft", before)


def distinct_prompts(pairs: list[PreferencePair]) -> list[tuple]:
    """The prompts of preference pairs, each once, in order."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))
