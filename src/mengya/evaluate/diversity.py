"""How varied answers are, seen character by character: Chinese has no spaces to split words at."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct character n-grams as a share of all in `texts`, white space apart; 1 where there are none.

    Li et al. 2016, "A Diversity-Promoting Objective Function". Over all texts together: a policy that gives every prompt
    the same fluent answer repeats itself in no single one. Falls as texts grow longer or more, so it is to be compared
    between answers to the same prompts.
    """
    seen: set[str] = set()
    count = 0
    for text in texts:
        text = "".join(text.split())
        grams = [text[start : start + n] for start in range(len(text) - n + 1)]
        seen.update(grams)
        count += len(grams)
    return len(seen) / count if count else 1.0


def longest_repeat(text: str) -> int:
    """Characters of the longest passage that stands in `text` twice (the two may overlap), white space apart.

    A passage that recurs contains shorter ones that do, so its length is found by bisection.
    """
    text = "".join(text.split())

    def recurs(length: int) -> bool:
        seen: set[str] = set()
        for start in range(len(text) - length + 1):
            passage = text[start : start + length]
            if passage in seen:
                return True
            seen.add(passage)
        return False

    known, beyond = 0, max(1, len(text))
    while beyond - known > 1:
        middle = (known + beyond) // 2
        known, beyond = (middle, beyond) if recurs(middle) else (known, middle)
    return known
