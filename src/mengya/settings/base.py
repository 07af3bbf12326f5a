"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal[
    "corpus", "tokenizer", "shards", "pretrain", "sft", "preferences", "reward", "dpo", "ppo", "grpo", "evaluate"
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
PairsFrom = Literal["corpus", "own", "both"]
"""Whose preference pairs: those of `corpus.preferences`, those that the stage `preferences` made, or both."""


class Settings(BaseModel):
    """Base of every section: immutable, and an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
