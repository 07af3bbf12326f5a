"""The guard: alignment hands over its best policy, or the one it was given, never a worse one.

Every few rollouts the policy answers held-out prompts. Where the truth is known (the playground) judges that training
never sees score them; elsewhere the reward model does, on prompts it was not trained on. Repetition and KL are watched
beside it. The best look so far is kept; the starting policy is look 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """One look at the policy: `score` is to be maximised; `kl` in nats an answer from the SFT model.

    `error` is the standard error of the score's gain over the starting policy, prompt by prompt.
    """

    step: int
    score: float
    repetition: float
    end_rate: float
    kl: float
    error: float = 0.0


@dataclass
class Guard:
    """Keeps the best look; says when to stop.

    A look is better when its gain is more than its standard error: the best of several noisy looks always seems to have
    gained, and handing it over would often make the model worse. And it counts only while the policy has not bought its
    score: repetition not above the start's by more than `repetition_margin`, end rate not below it by more than
    `end_margin`.
    """

    max_kl: float
    repetition_margin: float = 0.01
    end_margin: float = 0.02

    def __post_init__(self) -> None:
        self.looks: list[Look] = []
        self.best: Look | None = None

    def see(self, look: Look) -> bool:
        """Record `look`; whether it is the best so far (the caller then keeps the policy)."""
        self.looks.append(look)
        first = self.looks[0]
        sound = (
            look.repetition <= first.repetition + self.repetition_margin
            and look.end_rate >= first.end_rate - self.end_margin
            and look.kl <= self.max_kl
        )
        gained = look.score - first.score > look.error and self.best is not None and look.score > self.best.score
        if self.best is None or (sound and gained):
            self.best = look
            return True
        return False

    def stop_reason(self) -> str | None:
        """Why training should stop now, or None."""
        look = self.looks[-1]
        if look.kl > self.max_kl:
            return f"KL to the SFT model reached {look.kl:.1f} nats an answer (ppo.max_kl {self.max_kl:g})"
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
