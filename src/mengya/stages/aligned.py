"""What the alignment stages share: prompts that fit, the guard's look at a policy, the measurement against SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mengya.console import say
from mengya.corpus.playground import judges
from mengya.corpus.records import Message, PreferencePair, Question
from mengya.errors import UserError
from mengya.evaluate.answers import Answers, has_truth, kl_to_reference, win_rate
from mengya.evaluate.likelihood import spread
from mengya.model.heads import Scorer
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.rl.look import HeldOutPrompts, Seen, look_of, seen_of
from mengya.rl.rewards import reward_scores
from mengya.run import Context, Outcome
from mengya.settings import DPOSettings, GRPOSettings, PPOSettings, RolloutSettings
from mengya.stages.common import (
    held_out,
    load_language_model,
    load_measurement,
    measure_language_model,
    outcome_of,
    save_stage_model,
    style_answers,
)
from mengya.stages.judge import judge_of
from mengya.stages.reward_models import load_judge, load_rewards
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World

Item = TypeVar("Item")

GUARD_TEXTS = 64
"""Conversations, whose reference answers the policy is to foretell, and documents, at most: a look reads half as many
tokens more for them."""

TRUTH_ERRORS, JUDGE_ERRORS = 1.0, 2.0
"""`guard.gain_errors` where a recipe says none. A judge that is a reward model of 59–62% liked by 1.3 and 2.4 errors what on
other prompts was no better (docs/results/real-alignment.md)."""

NO_JUDGE = "nobody: no pairs were set apart for a judge, and the guard went by the reward model or by rules"


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

    One score a prompt: the gold judges' where the truth is known; else that of the run's judge, a reward model of pairs set
    apart; else (there is none) that of the reward model, which PPO itself raises; else minus the share of repetition. The
    policy that training was given is looked at once, as step 0, and every later look is compared with it prompt by prompt; a
    resumed training looks at it anew, and sees the same.
    `practised` prompts, of the kinds that training asks, come to the guard's of all kinds.
    `reference` gives the SFT model, `rewards` the reward model, if there is one; what these and the judge take is freed
    between looks where training itself does not hold them.
    """

    def __init__(
        self,
        context: Context,
        tokenizer: ChatTokenizer,
        max_new_tokens: int,
        reference: Callable[[], Transformer],
        rewards: Callable[[], Scorer | None],
        practised: Sequence[Question] = (),
    ) -> None:
        self.context, self.tokenizer, self.max_new_tokens = context, tokenizer, max_new_tokens
        self.reference, self.rewards = reference, rewards
        self.seed = context.recipe.seed
        held = held_out(context)
        measured = context.recipe.evaluate
        conversations = [held.conversations[i] for i in _others(len(held.conversations), measured.num_questions)]
        documents = _others(len(held.validation), measured.num_documents)
        self.held = HeldOutPrompts([*held.guard, *practised], conversations, held.validation, documents)
        self.start: Seen | None = None
        self.knows_truth = all(has_truth(question) for question in held.guard)
        self.judge = None if self.knows_truth else judge_of(context)
        if self.judge is not None:
            say(f"{context.stage.name}: judged by {self.judge.described()}")

    def models(self) -> tuple[Transformer, Scorer | None]:
        """The SFT model, and what scores answers where that takes a model."""
        reference = self.reference()
        if self.judge is not None:
            device = reference.output_weight_VC.device
            return reference, load_judge(self.context, device, reference.compute_dtype)
        return reference, None if self.knows_truth else self.rewards()

    def _score(self, answers: Answers, scorer: Scorer | None) -> list[float]:
        if self.knows_truth:
            pairs = zip(answers.texts, self.held.prompts, strict=True)
            return [judges.gold_score(text, question) for text, question in pairs]
        if scorer is not None:
            return reward_scores(scorer, answers)
        return [-judges.repetition(text) for text in answers.texts]

    def __call__(self, policy: Transformer, step: int) -> Look:
        reference, scorer = self.models()

        def seen(model: Transformer) -> Seen:
            return seen_of(
                model,
                reference,
                self.tokenizer,
                self.held,
                lambda answers: self._score(answers, scorer),
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
    practised: Sequence[Question],
) -> GuardLook:
    """The guard's look of a stage that holds the SFT model anyway."""
    return GuardLook(context, tokenizer, settings.max_new_tokens, lambda: reference, lambda: rewards, practised)


def guard_look_from_disk(context: Context, tokenizer: ChatTokenizer, max_new_tokens: int, world: World) -> GuardLook:
    """The guard's look of a stage that trains without a second model in memory: the SFT model, and what scores where no
    truth is known (without a judge the reward model, where the run has one), are read for each look."""
    return GuardLook(
        context,
        tokenizer,
        max_new_tokens,
        lambda: load_language_model(context, "sft/model", world),
        lambda: load_rewards(context, world) if context.has("reward/model") else None,
    )


Stage = TypeVar("Stage", DPOSettings, PPOSettings, GRPOSettings)


def guarded(settings: Stage, look: GuardLook) -> Stage:
    """The settings with `guard.gain_errors` said: what the recipe says, else by who judges."""
    if settings.guard.gain_errors is not None:
        return settings
    errors = TRUTH_ERRORS if look.knows_truth else JUDGE_ERRORS
    return settings.model_copy(update={"guard": settings.guard.model_copy(update={"gain_errors": errors})})


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
    """Metrics and delta of an aligned model, with its KL to SFT and its win rate; who judged is in the counts.

    Win rate: on each prompt the score of one sampled answer of each model, by the gold judges where the truth is known, else
    by the run's judge, where it has one; a tie counts half. "judge_score" is the judge's mean.
    """
    save_stage_model(context, model, tokenizer)
    held = held_out(context)
    measured, answers = measure_language_model(context, model, tokenizer, held)
    before = load_measurement(context.path("sft/evaluation.json"))
    reference = load_language_model(context, "sft/model", world)
    measured.metrics["kl_to_sft"] = kl_to_reference(model, reference, answers)
    score, judged_by = "gold_score", "the gold judges, who know the truth"
    if score not in measured.items:
        score, judged_by, judge = "judge_score", NO_JUDGE, judge_of(context)
        if judge is not None:
            judged_by, scorer = judge.described(), load_judge(context, world.device, world.dtype)
            measured.add_mean(score, reward_scores(scorer, answers))
            theirs = style_answers(context, reference, tokenizer, held.style)
            before.add_mean(score, reward_scores(scorer, theirs))
    if score in measured.items:
        measured.metrics["win_rate_vs_sft"] = win_rate(measured.items[score], before.items[score])
    outcome = outcome_of(context, measured, "sft", before)
    outcome.counts["judge"] = judged_by
    return outcome


def distinct_prompts(pairs: list[PreferencePair]) -> list[tuple]:
    """The prompts of preference pairs, each once, in order."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))
