"""The guard: alignment hands over its best policy, or the one it was given, never a worse one.

Every few steps the policy answers held-out prompts. Where the truth is known (the playground) judges that training
never sees score them; elsewhere a reward model of pairs set apart for that, which training never sees either (without
such pairs the reward model itself, on prompts it was not trained on). Beside the score stands what a policy can lose
while it gains: `Look` holds it, `settings.GuardSettings` bounds it. The best sound look so far is kept; the policy that
training was given is look 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mengya.settings import GuardSettings


@dataclass(frozen=True)
class Look:
    """One look at the policy: `score` is to be maximised; `kl` in nats an answer from the SFT model.

    `error` is the standard error of the score's gain over the starting policy, prompt by prompt, `errors` those of the
    other changes (a name that is missing has none); `reward` what training itself saw last, None at the start. Shares:
    `repetition` of characters, `end_rate` of answers, `refusals` of the prompts that can be answered, `distinct_n` of all
    character n-grams. `length` in tokens, `longest_repeat` in characters, `entropy` in nats a token. `bits_per_byte` is of
    held-out documents, `answer_bits_per_byte` of reference answers; None where nothing of the kind is held out.
    """

    step: int
    score: float
    repetition: float
    end_rate: float
    kl: float
    error: float = 0.0
    refusals: float = 0.0
    length: float = 0.0
    reward: float | None = None
    entropy: float = 0.0
    distinct_1: float = 1.0
    distinct_2: float = 1.0
    distinct_4: float = 1.0
    longest_repeat: float = 0.0
    bits_per_byte: float | None = None
    answer_bits_per_byte: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    mark: str = ""
    """What the guard made of it: start, kept (the best so far), worse (than that, or within its error), refused."""
    why_not: str | None = None
    """Why it was not kept: for one that was refused, the bounds it broke with their numbers."""


def broken_bounds(look: Look, first: Look, allowed: GuardSettings) -> Iterator[str]:
    """What `look` has lost against `first` beyond `allowed`, one line a bound. A number that is NaN breaks its bound."""

    def rises(name: str, words: str, bound: float, key: str, *, down: bool = False, form: str = ".1%") -> Iterator[str]:
        now, then, error = getattr(look, name), getattr(first, name), look.errors.get(name, 0.0)
        if not ((then - now if down else now - then) <= bound + error):
            what = f"{words} {'fell' if down else 'rose'} from {then:{form}} to {now:{form}}"
            yield f"{what} (guard.{key} {bound:{form}}, error {error:{form}})"

    if not look.kl <= allowed.max_kl:
        yield f"KL to the SFT model is {look.kl:.1f} nats an answer (guard.max_kl {allowed.max_kl:g})"
    yield from rises("repetition", "repetition", allowed.repetition, "repetition")
    yield from rises("longest_repeat", "the longest repeat", allowed.longest_repeat, "longest_repeat", form=".1f")
    yield from rises("refusals", "the share of refusals", allowed.refusals, "refusals")
    yield from rises("end_rate", "the share of answers that end", allowed.unfinished, "unfinished", down=True)
    for name, of in (("bits_per_byte", "held-out documents"), ("answer_bits_per_byte", "reference answers")):
        if getattr(first, name) is None:
            continue
        assert getattr(look, name) is not None, "what is held out is the same at every look"
        now, then = getattr(look, name), max(getattr(first, name), 1e-9)
        rise, bound, error = now / then - 1, getattr(allowed, name), look.errors.get(name, 0.0) / then
        if not rise <= bound + error:
            change = f"bits per byte of {of} rose from {then:.3f} to {now:.3f}, {rise:.1%}"
            yield f"{change} (guard.{name} {bound:.1%}, error {error:.1%})"
    for name in ("distinct_1", "distinct_2", "distinct_4"):
        now, then = getattr(look, name), getattr(first, name)
        if not now >= (1 - allowed.distinct) * then:
            yield (
                f"distinct character {name[-1]}-grams fell from {then:.1%} to {now:.1%} (guard.distinct {allowed.distinct:.1%})"
            )
    if not look.entropy >= (1 - allowed.entropy) * first.entropy:
        change = f"entropy fell from {first.entropy:.3f} to {look.entropy:.3f} nats a token"
        yield f"{change} (guard.entropy {allowed.entropy:.1%})"
    error = look.errors.get("length", 0.0)
    if not first.length / allowed.length - error <= look.length <= first.length * allowed.length + error:
        change = f"the length of answers went from {first.length:.1f} to {look.length:.1f} tokens"
        yield f"{change} (guard.length {allowed.length:g}, error {error:.1f})"


class Guard:
    """Keeps the best look; says when to stop. `unit` is what steps are called: rollout or step.

    A look is better when its gain is more than `gain_errors` of its standard errors (unsaid: one): the best of several
    noisy looks always seems to have gained, and handing it over would often make the model worse. And it counts only while
    the policy has not bought its score by what `settings` forbid.
    """

    def __init__(self, settings: GuardSettings, unit: str = "rollout") -> None:
        self.settings, self.unit = settings, unit
        self.gain_errors = 1.0 if settings.gain_errors is None else settings.gain_errors
        self.looks: list[Look] = []
        self.best: Look | None = None

    def see(self, look: Look) -> bool:
        """Record `look`, marked; whether it is the best so far (the caller then keeps the policy)."""
        mark, why_not = self._judged(look)
        look = replace(look, mark=mark, why_not=why_not)
        self.looks.append(look)
        if why_not is None:
            self.best = look
        return why_not is None

    def _judged(self, look: Look) -> tuple[str, str | None]:
        if self.best is None:
            return "start", None
        first = self.looks[0]
        if broken := list(broken_bounds(look, first, self.settings)):
            return "refused", "; ".join(broken)
        if not self._gained(look):
            bar = f"{self._bar} ({look.error:.3f} each)" if self.gain_errors != 1 else f"its error of {look.error:.3f}"
            return "worse", f"held-out score {look.score - first.score:+.3f} against the start, not above {bar}"
        if not look.score > self.best.score:
            return "worse", f"held-out score {look.score - self.best.score:+.3f} against {self.unit} {self.best.step}"
        return "kept", None

    def _gained(self, look: Look) -> bool:
        return look.score - self.looks[0].score > self.gain_errors * look.error

    @property
    def _bar(self) -> str:
        """What a gain has to be beyond, in words."""
        return "its error" if self.gain_errors == 1 else f"{self.gain_errors:g} errors"

    def stop_reason(self) -> str | None:
        """Why training should stop now, or None."""
        look, first, allowed = self.looks[-1], self.looks[0], self.settings
        if not look.kl <= allowed.max_kl:
            return f"KL to the SFT model reached {look.kl:.1f} nats an answer (guard.max_kl {allowed.max_kl:g})"
        recent = self.looks[1:][-allowed.patience :]
        fell = [seen.score < first.score - seen.error for seen in recent]
        if len(recent) < allowed.patience:
            return None
        if all(fell):
            rewards = [seen.reward for seen in self.looks if seen.reward is not None]
            # Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization".
            rose = len(rewards) > 1 and rewards[-1] > rewards[0]
            why = ", while the training reward rose: it is over-optimised" if rose else ""
            return f"the held-out score was below the start's, beyond its error, in {len(recent)} looks in a row{why}"
        if all(below or seen.mark == "refused" for below, seen in zip(fell, recent, strict=True)):
            last = next(seen.why_not for seen in reversed(recent) if seen.mark == "refused")
            return f"{len(recent)} looks in a row were refused or below the start, the last because {last}"
        return None

    def over_optimised(self) -> int | None:
        """The step of the look past which the held-out score fell, beyond its error, while the training reward rose.

        The peak of the curve of score against KL (Gao et al. 2023, figure 1); None where the last look is not behind it.
        """
        last, peak = self.looks[-1], max(self.looks, key=lambda seen: seen.score)
        rewards = [seen.reward for seen in self.looks if seen.reward is not None and seen.step >= peak.step]
        rose = len(rewards) > 1 and rewards[-1] > rewards[0]
        return peak.step if rose and last.score < peak.score - last.error else None

    def verdict(self) -> str:
        """What is handed over, in words."""
        assert self.best is not None
        first = self.looks[0]
        if self.best.step:
            gain = f"{self.best.score - first.score:+.3f} ± {self.best.error:.3f}"
            return f"the policy of {self.unit} {self.best.step} is handed over: held-out score {gain} against the start"
        higher = [seen for seen in self.looks if seen.mark == "refused" and self._gained(seen)]
        if higher:
            best = max(higher, key=lambda seen: seen.score)
            return (
                f"the policy it was given is handed over: {self.unit} {best.step} scored {best.score - first.score:+.3f}, "
                f"but is refused: {best.why_not}"
            )
        return f"no look was better, beyond {self._bar}, than the policy it was given; that one is handed over"

    def state(self) -> dict[str, Any]:
        return {"looks": [asdict(look) for look in self.looks], "best": None if self.best is None else self.best.step}

    def load_state(self, state: dict[str, Any]) -> None:
        self.looks = [Look(**look) for look in state["looks"]]
        self.best = next((look for look in self.looks if look.step == state["best"]), None)
