"""Which steps not to take: those without a finite loss and gradient, and those far above what was usual of late.

A spike does its damage in the step that follows it, so it is seen before that step: log(1 + loss) and
log(1 + gradient norm) are held against an exponentially weighted mean and deviation of the steps that were taken.
OLMo-core skips at 6 standard deviations of the last 128 steps, the OLMo 2 report (2025, §3.2) calls 7 a spike, ZClip
(Kumar et al. 2025) watches an exponential mean of the norm. In logarithms, because both fall by factors in training, and
with a least deviation, because a smooth curve's own is too small to judge by: at 7 a spike is at least 1.4 times the usual
1 + loss (3 → 4.7 nats), or 4 times the usual 1 + norm.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

_WEIGHT = 0.02
"""Of the newest value in mean and variance: a memory of about 50 steps."""
_FIRST_STEPS = 50
"""Values before anything is called a spike: the first steps of a training fall too fast to be usual."""
_LEAST_DEVIATIONS = {"loss": 0.05, "gradient norm": 0.2}


@dataclass
class Course:
    """Mean and variance of log(1 + x), exponentially weighted (plain, until there are 1 / _WEIGHT values)."""

    least_deviation: float
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def sigmas(self, x: float) -> float:
        """Standard deviations above the mean; 0 as long as too few values are known."""
        if self.count < _FIRST_STEPS:
            return 0.0
        return (_log(x) - self.mean) / max(math.sqrt(self.variance), self.least_deviation)

    def add(self, x: float) -> None:
        self.count += 1
        weight = max(_WEIGHT, 1 / self.count)
        difference = _log(x) - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)


def _log(x: float) -> float:
    return math.log1p(max(x, 0.0))


def why_not_finite(loss: float, grad_norm: float) -> str | None:
    """Why a step cannot be taken whatever came before it."""
    for name, value in (("loss", loss), ("gradient", grad_norm)):
        if not math.isfinite(value):
            return f"its {name} is not finite"
    return None


@dataclass
class Watch:
    """What is usual, and what has been done about the unusual; a pure function of the steps, so equal on all ranks.

    `rate` is the factor of the learning rates since the last rewind. `rewound_to` is the step gone back to, until a
    checkpoint after it is written.
    """

    spike_sigmas: float | None
    courses: dict[str, Course] = field(
        default_factory=lambda: {name: Course(least) for name, least in _LEAST_DEVIATIONS.items()}
    )
    bad_in_a_row: int = 0
    rate: float = 1.0
    rewound_to: int | None = None

    def why_bad(self, loss: float, grad_norm: float) -> str | None:
        """Why a step should be skipped, in words, or None."""
        if (reason := why_not_finite(loss, grad_norm)) is not None or self.spike_sigmas is None:
            return reason
        for (name, course), value in zip(self.courses.items(), (loss, grad_norm), strict=True):
            if (sigmas := course.sigmas(value)) > self.spike_sigmas:
                return f"its {name} of {value:.4g} is {sigmas:.0f} deviations above the usual {math.expm1(course.mean):.4g}"
        return None

    def taken(self, loss: float, grad_norm: float) -> None:
        """Learn of a step that was taken."""
        self.bad_in_a_row = 0
        for course, value in zip(self.courses.values(), (loss, grad_norm), strict=True):
            course.add(value)

    def state(self) -> dict[str, Any]:
        state = asdict(self)
        del state["spike_sigmas"]
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.courses = {name: Course(**course) for name, course in state["courses"].items()}
        self.bad_in_a_row, self.rate, self.rewound_to = state["bad_in_a_row"], state["rate"], state["rewound_to"]
