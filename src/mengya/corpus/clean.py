"""A raw text made clean, or the reason why it is dropped: transformations, then rules, then the masking of personal data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mengya.corpus.normalise import STEPS, Transformation, normalise, repeated_paragraphs
from mengya.corpus.personal import personal_data
from mengya.corpus.rules import RULES, SETTING_OF, Rule, first_reason, too_short
from mengya.settings import CleaningSettings

__all__ = [
    "RULES",
    "SETTING_OF",
    "TRANSFORMATIONS",
    "Cleaned",
    "Rule",
    "Transformation",
    "clean",
    "clean_batch",
    "first_reason",
    "normalise",
    "too_short",
]

TRANSFORMATIONS: tuple[tuple[str, Transformation], ...] = (
    *STEPS,
    ("repeated_paragraphs", repeated_paragraphs),
    ("personal_data", personal_data),
)
"""(name, function) in order; the name is also the key that switches the step on or off."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`text` after all transformations that are on, also when it is dropped; `reason` of the first rule that drops it.

    `changed` names the transformations that changed it, in their order.
    """

    text: str
    reason: str | None
    changed: tuple[str, ...]


_ORDER = {name: number for number, (name, _) in enumerate(TRANSFORMATIONS)}


def clean(text: str, settings: CleaningSettings) -> Cleaned:
    """`text` cleaned. The rules see it before personal data is masked, so that a list of numbers is still one."""
    changed: list[str] = []
    text = normalise(text, settings, changed)
    if settings.repeated_paragraphs and (once := repeated_paragraphs(text)) != text:
        text = once
        changed.append("repeated_paragraphs")
    reason = first_reason(text, settings)
    if settings.personal_data and (masked := personal_data(text)) != text:
        text = masked
        changed.append("personal_data")
    return Cleaned(text, reason, tuple(sorted(changed, key=_ORDER.__getitem__)))


def clean_batch(texts: Iterable[str], settings: CleaningSettings) -> list[Cleaned]:
    """Each of `texts` cleaned: the work that a process is given."""
    return [clean(text, settings) for text in texts]
