"""Common machines, what a plan takes on them, and whether a published claim is possible. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from mengya.errors import UserError

UTILISATION = 0.40
"""Of the bf16 peak, assumed for training on a GPU; 40–55% is what well-kept code reaches at a billion parameters."""
SEVERAL = 0.90
"""Of one GPU's speed that each of eight keeps, assumed."""
LAYER_SECONDS = 150e-6
"""Of launching a layer's kernels, forward; no GPU is faster however small the model. Assumed."""
POSSIBLE, USUAL = 1.0, 0.65
"""Shares of the peak: above the first a claim is impossible, above the second nobody has shown it for dense training."""


@dataclass(frozen=True)
class Machine:
    """`flops`: dense bf16 peak of a GPU, FLOP/s, fp32 accumulation, no sparsity; `memory` in GiB; `bandwidth` in bytes/s."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    count: int = 1

    @property
    def label(self) -> str:
        return self.name if self.count == 1 else f"{self.count}× {self.name}"


# Vendors' data sheets. The A800 and H800 are an A100 and an H100 with slower links.
GPUS: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("RTX 3060", 25.6e12, 12, 360e9),
        Machine("RTX 3090", 71.2e12, 24, 936e9),
        Machine("RTX 4090", 165.2e12, 24, 1008e9),
        Machine("A10", 125e12, 24, 600e9),
        Machine("L40S", 362e12, 48, 864e9),
        Machine("A100", 312e12, 80, 2039e9),
        Machine("A800", 312e12, 80, 2039e9),
        Machine("H20", 148e12, 96, 4000e9),
        Machine("H100", 989e12, 80, 3350e9),
        Machine("H800", 989e12, 80, 3350e9),
        Machine("H200", 989e12, 141, 4800e9),
    )
}
SHOWN = ("RTX 3060", "RTX 3090", "RTX 4090", "A100", "H100")


def common_machines() -> list[Machine]:
    """One and eight of each GPU of the table."""
    return [
        Machine(one.name, one.flops, one.memory, one.bandwidth, count)
        for name in SHOWN
        for one in [GPUS[name]]
        for count in (1, 8)
    ]


def gpu(name: str) -> Machine:
    """The GPU called `name`; spaces, case and RTX do not matter."""

    def plain(text: str) -> str:
        return text.lower().replace(" ", "").replace("-", "").replace("rtx", "").removesuffix("80g")

    for known, machine in GPUS.items():
        if plain(known) == plain(name):
            return machine
    raise UserError(f"unknown GPU {name!r}", where="gpu", mend=f"known: {', '.join(GPUS)}")


_CLAIM_KEYS = ("tokens", "parameters", "hours", "gpus", "gpu")


@dataclass(frozen=True)
class Claim:
    """What somebody says to have trained; `share` of the peak that it needs."""

    tokens: float
    parameters: float
    hours: float
    gpus: float
    gpu: Machine

    @property
    def flops(self) -> float:
        """6 a parameter and token (Kaplan et al. 2020, table 1), attention not counted: no less is possible."""
        return 6.0 * self.parameters * self.tokens

    @property
    def share(self) -> float:
        return self.flops / (3600 * self.hours * self.gpus * self.gpu.flops)

    def verdict(self) -> str:
        if self.share > POSSIBLE:
            return f"impossible: it needs {self.share:.1f} times the peak"
        if self.share > USUAL:
            return f"not believable: {self.share:.0%} of the peak, where {UTILISATION:.0%} to 55% is good"
        if self.share > 0.55:
            return f"very good, if true: {self.share:.0%} of the peak"
        return f"possible: {self.share:.0%} of the peak"


def parse_claim(text: str) -> Claim:
    """The claim that "tokens=64e9,parameters=1.1e9,hours=24,gpus=8,gpu=A800" makes."""
    pairs = dict(part.split("=", 1) for part in text.replace(" ", "").split(",") if "=" in part)
    missing = [key for key in _CLAIM_KEYS if key not in pairs and key != "gpus"]
    unknown = [key for key in pairs if key not in _CLAIM_KEYS]
    if missing or unknown:
        problem = f"no {missing[0]!r} in it" if missing else f"unknown key {unknown[0]!r}"
        raise UserError(problem, where="--claim", mend="write tokens=64e9,parameters=1.1e9,hours=24,gpus=8,gpu=A800")
    numbers: dict[str, float] = {}
    for key in ("tokens", "parameters", "hours", "gpus"):
        try:
            numbers[key] = float(pairs.get(key, "1"))
        except ValueError:
            raise UserError(
                f"{key}={pairs[key]} is no number", where="--claim", mend="write 64e9 for 64 billion"
            ) from None
        if not numbers[key] > 0:
            raise UserError(f"{key}={pairs[key]} is not above 0", where="--claim", mend="give what was claimed")
    return Claim(**numbers, gpu=gpu(pairs["gpu"]))
