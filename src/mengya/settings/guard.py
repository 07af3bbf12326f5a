"""What a policy may not lose while it gains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mengya.settings.base import Fraction, NotNegative, Positive, PositiveFloat, Settings


class GuardSettings(Settings):
    """Bounds of a look at the policy, each against the policy that training was given, on the same held-out prompts.

    Where a change can be measured prompt by prompt, its standard error comes on top of the bound: a look is refused for
    what is worse by more than the bound, beyond its error. A loss of the bound and two errors is caught five times in six.
    A bare bound would refuse the noise. One SFT model (the quickstart's), 160 prompts sampled with five seeds: refusals
    2.8–6.3%, repetition 0.3–1.3%, longest repeat 0.7–1.0 characters, length 10.1–11.0 tokens, distinct 2-grams
    43.1–46.6% (1-grams 18.3–19.4, 4-grams 66.3–70.1), score 0.689–0.723; six of the twenty ordered pairs of seeds would
    break 0.01 more refusals.
    """

    gain_errors: NotNegative | None = None
    """Standard errors of its gain, prompt by prompt, that the held-out score must have gained. Absent: 1 where the truth is
    known, 2 where a reward model judges, whose own errors are no chance of the prompts (docs/algorithms.md, the guard)."""
    max_kl: PositiveFloat = 12.0
    """Nats an answer from the SFT model at which training stops."""
    repetition: NotNegative = 0.01
    """How much more of its answers may be repetition (share of characters)."""
    refusals: NotNegative = 0.01
    """How many more of the prompts it may decline (share of those that can be answered)."""
    unfinished: NotNegative = 0.02
    """How many more of the answers may run into the length limit (share)."""
    bits_per_byte: NotNegative = 0.01
    """How much worse it may foretell held-out documents (share of the start's bits): what alignment costs of the language."""
    answer_bits_per_byte: NotNegative = 0.25
    """The same of the reference answers of held-out conversations. Who moves towards one good answer gives less to another's
    wording of it: in the quickstart ten rollouts of PPO at 0.4 nats an answer raise it by 9%, the collapse of
    recipes/seed-failure.yaml by 62%."""
    longest_repeat: NotNegative = 1.0
    """By how many characters the longest passage that an answer says twice may grow, on average: thrice the spread over
    seeds, where a policy that loops adds tens."""
    distinct: Fraction = 0.5
    """Share of its distinct character 1-, 2- and 4-grams (over all answers together) that it may lose. A kind word in every
    answer takes a third of them; a policy that gives every prompt the same answer loses nearly all."""
    entropy: Fraction = 0.5
    """Share of its entropy a token that it may lose. Alignment sharpens: this bound only tells a collapse."""
    length: Annotated[float, Field(ge=1.0)] = 2.0
    """Factor by which its answers may grow longer, or shorter, on average."""
    patience: Positive = 3
    """Looks in a row, each refused or with a score below the start's beyond its error, after which training stops."""
