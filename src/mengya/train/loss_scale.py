"""The factor that keeps fp16 gradients representable: the loss is multiplied by it, the gradient divided.

float16 ends at 65,504 and below 6e-8 is 0, where activations' gradients easily are (Micikevicius et al. 2018, §3.2).
The factor is halved whenever a gradient overflows, and doubled after 2,000 steps without. Our losses are sums over a
batch, so it begins lower than the 2¹⁶ that is usual for means.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST, _SMALLEST, _LARGEST = 2.0**8, 2.0**-14, 2.0**24
_STEPS_TO_DOUBLE = 2000


class LossScale:
    """`value` is the factor, a power of two, so that scaling back is exact."""

    def __init__(self) -> None:
        self.value, self._good_steps = _FIRST, 0

    def update(self, overflowed: bool) -> bool:
        """Learn of a step; whether its overflow was this factor's fault (at the smallest it is the step's own)."""
        if overflowed:
            at_fault = self.value > _SMALLEST
            self.value, self._good_steps = max(self.value / 2, _SMALLEST), 0
            return at_fault
        self._good_steps += 1
        if self._good_steps == _STEPS_TO_DOUBLE:
            self.value, self._good_steps = min(self.value * 2, _LARGEST), 0
        return False

    def state_tensor(self) -> Tensor:
        return torch.tensor([self.value, self._good_steps], dtype=torch.float64)

    def load_state_tensor(self, state: Tensor) -> None:
        self.value, self._good_steps = float(state[0]), int(state[1])
