"""A training under the guard: looks, the log's numbers, and what the manifest says at the end; for `align` and for `fit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mengya.console import say
from mengya.model.transformer import Transformer
from mengya.rl.guard import Guard, Look
from mengya.settings import GuardSettings
from mengya.train.parallel import World
from mengya.train.sharding import whole

_LOGGED = (
    "score",
    "repetition",
    "kl",
    "entropy",
    "distinct_2",
    "longest_repeat",
    "bits_per_byte",
    "answer_bits_per_byte",
)


def training_reward(numbers: dict[str, float]) -> float | None:
    """What the training raises: the mean reward of a rollout, or DPO's implicit one, chosen against rejected answer."""
    if "reward" in numbers:
        return numbers["reward"]
    if "reward_chosen" in numbers:
        return numbers["reward_chosen"] - numbers["reward_rejected"]
    return None


class Oversight:
    """The guard at work (a `train.overseer.Overseer`). `look(policy, step)` measures on rank 0; all ranks get its word."""

    looks_first = True

    def __init__(
        self,
        name: str,
        settings: GuardSettings,
        look: Callable[[Transformer, int], Look],
        world: World,
        unit: str = "rollout",
    ) -> None:
        self.name, self.look, self.world = name, look, world
        self.guard = Guard(settings, unit)

    def see(self, policy: Any, step: int, numbers: dict[str, float]) -> tuple[bool, dict[str, float]]:
        """Whether the policy after `step` is the best so far, and numbers for the log; every rank calls this."""
        found = whole(policy)
        look = Look(**self.world.from_main(lambda: asdict(self.look(found, step))))
        better = self.guard.see(replace(look, reward=training_reward(numbers)))
        seen = self.guard.looks[-1]
        say(f"{self.name}: guard at {self.guard.unit} {step}: {described(seen)}")
        return better, {f"guard_{key}": value for key in _LOGGED if (value := getattr(seen, key)) is not None}

    def stop_reason(self) -> str | None:
        return self.guard.stop_reason() if self.guard.looks else None

    @property
    def best(self) -> dict[str, float]:
        """{"step"} of the weights to hand over; 0 for those that training was given."""
        assert self.guard.best is not None
        return {"step": self.guard.best.step}

    def state(self) -> dict[str, Any]:
        return self.guard.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.guard.load_state(state)

    def close(self) -> dict[str, Any]:
        """Say what is handed over, and why training ended early; the same for the manifest, with all looks."""
        stopped = self.stop_reason()
        if stopped:
            say(f"{self.name}: stopped early: {stopped}")
        say(f"{self.name}: {self.guard.verdict()}")
        return {
            "stopped_early": stopped,
            "verdict": self.guard.verdict(),
            "handed_over": self.best["step"],
            "over_optimised_past": self.guard.over_optimised(),
            "guard": self.guard.state()["looks"],
        }


def described(look: Look) -> str:
    """A look in one line."""
    bits = "" if look.bits_per_byte is None else f", {look.bits_per_byte:.3f} bits a byte of documents"
    numbers = f"score {look.score:.3f} ± {look.error:.3f}, KL {look.kl:.2f}, repetition {look.repetition:.1%}{bits}"
    return f"{numbers}; {look.mark}" + (f": {look.why_not}" if look.why_not else "")
