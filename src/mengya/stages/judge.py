"""The judge of a policy where nobody knows the truth: a reward model of pairs that were set apart for it.

The stage `reward` trains it, and leaves beside its weights by which hash its pairs were told from the others
(reward/judge/judge.json). By that file, not by the recipe of the day, DPO, PPO and GRPO know which prompts to leave alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mengya.corpus.fresh_prompts import asked_keys
from mengya.corpus.funnel import hash64
from mengya.corpus.records import Message, PreferencePair
from mengya.evaluate.score import Estimate
from mengya.files import read_json, write_json
from mengya.run import Context
from mengya.settings import Recipe
from mengya.stages import JUDGE
from mengya.stages.corpus import uses_playground

AUTO_SHARE = 0.3
"""Of the prompts, where the recipe leaves it open: PPO climbs the reward model at every step, and so needs it the better of
the two; the judge only compares two policies, on average over 160 prompts."""
LEAST_PAIRS = 1_000
"""Training pairs below which nothing is set apart where the recipe leaves it open: a judge of less than some 300 would hardly
be better than a coin, and the reward model misses the pairs."""


@dataclass(frozen=True)
class Split:
    """Which prompts are the judge's: a `share` of them, by a hash of what the user says first and of the run's seed.

    So all pairs of one prompt, and of all conversations that begin alike, are on one side, and further data moves none.
    """

    share: float
    seed: int

    def is_judges(self, prompt: Iterable[Message]) -> bool:
        opening = next(asked_keys(prompt), 0)
        return hash64(f"judge {self.seed}", opening.to_bytes(8, "big")) < self.share * 2**64

    def divided(self, pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], list[PreferencePair]]:
        """(the pairs for the reward model and the policies, the judge's), each in their order."""
        sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
        for pair in pairs:
            sides[self.is_judges(pair.prompt)].append(pair)
        return sides


@dataclass(frozen=True)
class Judge:
    """What is known of a run's judge: its prompts, and its accuracy on held-out pairs with its 95% interval."""

    split: Split
    accuracy: Estimate

    def described(self) -> str:
        found = self.accuracy
        share = f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
        right = f"right on {share} of {found['n']} held-out pairs"
        weak = ", which is no better than a coin beyond its error: believe it accordingly" if self.is_weak else ""
        return f"a reward model of pairs set apart for judging, {right if found['n'] else 'never measured'}{weak}"

    @property
    def is_weak(self) -> bool:
        """Whether the interval of its accuracy holds 50%, or lies below; so also where no pair was held out."""
        return not self.accuracy["low"] > 0.5


def share_of(recipe: Recipe, num_pairs: int) -> float:
    """The share of prompts to set apart of so many training pairs: `reward.judge_share`, or what its absence means."""
    if recipe.reward.judge_share is not None:
        return recipe.reward.judge_share
    # As the corpus stage goes: questions with a truth come with the embedded corpus's conversations alone.
    knows_truth = uses_playground(recipe.corpus.conversations)
    return 0.0 if knows_truth or num_pairs < LEAST_PAIRS else AUTO_SHARE


def judge_of(context: Context) -> Judge | None:
    """The judge that the run has; None where no pairs were set apart."""
    path = context.path(JUDGE) / "judge.json"
    if not path.is_file():
        return None
    row = read_json(path)
    return Judge(Split(row["share"], row["seed"]), row["accuracy"])


def save_judge(context: Context, judge: Judge) -> None:
    """Put beside the judge's weights what is known of it."""
    row = {"share": judge.split.share, "seed": judge.split.seed, "accuracy": judge.accuracy}
    write_json(context.path(JUDGE) / "judge.json", row)
