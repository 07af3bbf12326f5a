"""Which records are held out, and the errors of a split that leaves a side empty."""

from __future__ import annotations

from mengya.corpus.funnel import hash64
from mengya.errors import UserError


def in_validation(key: bytes, fraction: float, seed: int) -> bool:
    """Whether the record of this key is held out: a function of key and seed alone, so added data moves nothing."""
    return hash64(f"split {seed}", key) < fraction * 2**64


def check_parts(num_train: int, num_validation: int, fraction: float, unit: str) -> None:
    if num_train == 0:
        raise UserError(f"no {unit} left to train on", mend="see dropped.jsonl for the reasons, and relax the rules")
    if num_validation == 0 and fraction > 0:
        raise UserError(
            f"none of {num_train} {unit} fell to the {fraction:.2%} that are held out by their hash",
            where="corpus.validation_fraction",
            mend="raise it, or give more data",
        )
