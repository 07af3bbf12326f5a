"""The guard: alignment hands over its best policy, or the one it was given, never a worse one.

Every few rollouts the policy answers held-out prompts. Where the truth is known (the playground) judges that training
never sees score them; elsewhere the reward model does, on prompts it was not trained on. Repetition, refusals, answers
that never end and KL are watched beside it. The best look so far is kept; the starting policy is look 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mengya.settings import GuardSettings


@dataclass(frozen=True)
class Look:
    """One look at the policy: `score` is to be maximised; `kl` in nats an answer from the SFT model.

    `error` is the standard error of the score's gain over the starting policy, prompt by prompt; `reward` what training
    itself saw last, None at the start.
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


class Guard:
    """Keeps the best look; says when to stop.

    A look is better when its gain is more than its standard error: the best of several noisy looks always seems to have
    gained, and handing it over would often make the model worse. And it counts only while the policy has not bought its
    score by what `settings` forbid.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.looks: list[Look] = []
        self.best: Look | None = None

    def see(self, look: Look) -> bool:
        """Record `look`; whether it is the best so far (the caller then keeps the policy)."""
        self.looks.append(look)
        gained = (
            look.score - self.looks[0].score > look.error and self.best is not None and look.score > self.best.score
        )
        if self.best is None or (gained and self._is_sound(look)):
            self.best = look
            return True
        return False

    def _is_sound(self, look: Look) -> bool:
        first, allowed = self.looks[0], self.settings
        return (
            look.repetition <= first.repetition + allowed.repetition
            and look.refusals <= first.refusals + allowed.refusals
            and look.end_rate >= first.end_rate - allowed.unfinished
            and look.kl <= allowed.max_kl
        )

    def stop_reason(self) -> str | None:
        """Why training should stop now, or None."""
        look, allowed = self.looks[-1], self.settings
        if look.kl > allowed.max_kl:
            return f"KL to the SFT model reached {look.kl:.1f} nats an answer (guard.max_kl {allowed.max_kl:g})"
        recent = self.looks[1:][-allowed.patience :]
        if len(recent) == allowed.patience and all(seen.score < self.looks[0].score - seen.error for seen in recent):
            rewards = [seen.reward for seen in self.looks if seen.reward is not None]
            # Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization".
            rose = len(rewards) > 1 and rewards[-1] > rewards[0]
            why = ", while the training reward rose: it is over-optimised" if rose else ""
            return f"the held-out score was below the start's, beyond its error, in {len(recent)} looks in a row{why}"
        return None

    def verdict(self) -> str:
        """What is handed over, in words."""
        assert self.best is not None
        if self.best.step == 0:
            return "no look was better, beyond its error, than the policy it was given; that one is handed over"
        gain = self.best.score - self.looks[0].score
        return f"the policy of rollout {self.best.step} is handed over: held-out score {gain:+.3f} against the start"

    def state(self) -> dict[str, Any]:
        return {"looks": [asdict(look) for look in self.looks], "best": None if self.best is None else self.best.step}

    def load_state(self, state: dict[str, Any]) -> None:
        self.looks = [Look(**look) for look in state["looks"]]
        self.best = next((look for look in self.looks if look.step == state["best"]), None)
