"""Learning-rate schedules as a factor of the peak rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mengya.settings import TrainSettings


def rate_factor(step: int, num_steps: int, settings: TrainSettings) -> float:
    """Factor in (0, 1] for the optimizer step `step` (counted from 0) of `num_steps`.

    Linear warm-up over `warmup_fraction`; then constant, a cosine, or warm-up–stable–decay (Hu et al. 2024, MiniCPM:
    constant, then linear over the last `decay_fraction`) down to `final_fraction`.
    """
    warmup = round(settings.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        progress = (step - warmup) / max(1, num_steps - warmup)
        return settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = round(settings.decay_fraction * num_steps)
    remaining = (num_steps - step) / max(1, decay)
    return settings.final_fraction + (1 - settings.final_fraction) * min(1.0, remaining)
