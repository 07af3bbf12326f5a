"""Prompts that nothing was trained on and nothing is measured by, chosen among candidates; and why the others were not."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mengya.corpus import records
from mengya.corpus.funnel import EXCERPT, Drop, hash64
from mengya.corpus.messages import prompt_key
from mengya.corpus.records import Message, Question, to_row
from mengya.corpus.shingles import canonical
from mengya.corpus.split import in_validation

_SPARE = 4
"""Candidates kept in memory for each prompt that is wanted; of a source of millions these are a sample by hash."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question (of kind "open" where nobody knows its truth), its reference answer, and the side of the split that it
    is on: None while its hash has not decided."""

    question: Question
    reference: str
    origin: str = ""
    held_out: bool | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.question.messages

    def row(self) -> dict[str, Any]:
        return {
            "question": to_row(self.question),
            "reference": self.reference,
            "origin": self.origin,
            "held_out": self.held_out,
        }

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Prompt:
        return cls(records.question(row["question"]), row["reference"], row["origin"], row["held_out"])


def asked_keys(messages: Iterable[Message]) -> Iterator[int]:
    """A key for each of the user's turns, of all that the user said up to it: equal where a model is asked the same.

    White space, case and punctuation do not count, nor do system messages and what was answered in between.
    """
    said = ""
    for message in messages:
        if message.role == "user":
            said += f"\0{canonical(message.content) or message.content}"
            yield hash64("asked", said.encode())


def asked_key(messages: Iterable[Message]) -> int:
    """The key of the last of the user's turns."""
    return [0, *asked_keys(messages)][-1]


def sample(candidates: Iterable[Prompt], count: int, seed: int) -> tuple[list[Prompt], int]:
    """Four times `count` of the candidates, in the order of a hash of what is asked; and how many there were."""
    num_seen = 0

    def counted() -> Iterator[Prompt]:
        nonlocal num_seen
        for num_seen, prompt in enumerate(candidates, 1):  # noqa: B007
            yield prompt

    def rank(prompt: Prompt) -> int:
        return hash64(f"prompts {seed}", asked_key(prompt.messages).to_bytes(8, "big"))

    return heapq.nsmallest(_SPARE * count, counted(), key=rank), num_seen


def used_among(wanted: Collection[int], conversations: Iterable[Sequence[Message]]) -> set[int]:
    """Which of the `wanted` keys are asked at any turn of these conversations; memory does not grow with them."""
    return {key for messages in conversations for key in asked_keys(messages) if key in wanted}


def choose(
    candidates: Iterable[Prompt],
    count: int,
    used: Mapping[int, str],
    fits: Callable[[Prompt], bool],
    split: Callable[[Prompt], bool],
) -> tuple[list[Prompt], list[Drop]]:
    """The first `count` candidates to use, on their side of the split, and those passed over, each with its reason.

    `used` {key: reason} are the prompts that something else has; the other reasons are "duplicate_prompt" and
    "prompt_too_long" (not `fits`). Candidates after the last chosen one are not looked at.
    """
    chosen: list[Prompt] = []
    drops: list[Drop] = []
    seen: set[int] = set()
    for prompt in candidates:
        if len(chosen) == count:
            break
        key = asked_key(prompt.messages)
        reason = "duplicate_prompt" if key in seen else used.get(key)
        if reason is None and not fits(prompt):
            reason = "prompt_too_long"
        seen.add(key)
        if reason is None:
            held_out = split(prompt) if prompt.held_out is None else prompt.held_out
            chosen.append(Prompt(prompt.question, prompt.reference, prompt.origin, held_out))
        else:
            text = "\n".join(message.content for message in prompt.messages)
            drops.append(Drop(prompt.origin, prompt.question.source, reason, len(text), text[:EXCERPT]))
    return chosen, drops


def by_opening(fraction: float, seed: int) -> Callable[[Prompt], bool]:
    """Whether a prompt is held out: by the hash of what the user says first, as the corpus splits its records."""

    def split(prompt: Prompt) -> bool:
        opening = [message for message in prompt.messages if message.role == "user"][:1]
        return in_validation(prompt_key(opening), fraction, seed)

    return split
