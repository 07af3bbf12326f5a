"""What is said in conversations and preference pairs: made uniform message by message, and the keys to compare it by."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mengya.corpus.blocks import around_first_change
from mengya.corpus.normalise import HAN, normalise, repeated_paragraphs
from mengya.corpus.personal import personal_data
from mengya.corpus.records import Conversation, Message, PreferencePair
from mengya.settings import CleaningSettings

Talk = Conversation | PreferencePair

_EXAMPLES = 3  # before and after, a transformation and input
_SPACE = re.compile(r"\s+")
# Blank lines before the first, and its indentation where it is prose: the first line of code keeps its own.
_LEADING = re.compile(rf"\A(?:[ \t]*\n)*(?:[ \t]+(?=[{HAN}“《【「（]))?")


def prompt_of(record: Talk) -> tuple[Message, ...]:
    """All that stands before the answer."""
    return record.prompt if isinstance(record, PreferencePair) else record.messages[:-1]


def answers_of(record: Talk) -> tuple[str, ...]:
    if isinstance(record, PreferencePair):
        return record.chosen, record.rejected
    return tuple(message.content for message in record.messages[-1:])


def whole_text(record: Talk) -> str:
    """All that is said in a record, a line each."""
    return "\n".join([*(message.content for message in prompt_of(record)), *answers_of(record)])


def prompt_key(messages: Iterable[Message]) -> bytes:
    """White space and case aside, nothing is ignored here: 3-1 and 3+1, 是吗 and 是吗？ are different questions."""
    text = "\0".join(f"{message.role}\1{_SPACE.sub('', message.content).lower()}" for message in messages)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def record_key(record: Talk) -> bytes:
    """16 bytes that copies share: a conversation's of its prompt, a pair's of its prompt and both answers."""
    key = prompt_key(prompt_of(record))
    if isinstance(record, PreferencePair):
        key += prompt_key(Message("assistant", answer) for answer in answers_of(record))
        return hashlib.blake2b(key, digest_size=16).digest()
    return key


def opening_key(record: Talk) -> bytes:
    """The key of what the user said first: records that share it are on one side of the split."""
    return prompt_key([message for message in prompt_of(record) if message.role == "user"][:1])


def why_unusable(record: Talk) -> str | None:
    """ "empty" or "equal_answers", or None."""
    prompt, answers = prompt_of(record), answers_of(record)
    if not prompt or not all(text.strip() for text in [*answers, *(message.content for message in prompt)]):
        return "empty"
    if len(answers) == 2 and answers[0].strip() == answers[1].strip():
        return "equal_answers"
    return None


def outer_white_space(text: str) -> str:
    """`text` without white space at its ends; what is inside, and the indentation of code, stays."""
    return text[_LEADING.match(text).end() :].rstrip()  # type: ignore[union-attr]  # it matches the empty string


class MessageCleaner:
    """Records with their messages cleaned; counts which transformation changed how many, with examples.

    The transformations are those of `clean`, but `white_space` is of a message's ends only.
    """

    def __init__(self, settings: CleaningSettings) -> None:
        self.settings = settings
        self._inner = settings.model_copy(update={"white_space": False})
        self.changed: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def clean(self, record: Talk) -> Talk:
        steps: dict[str, tuple[str, str]] = {}  # what a step changed first
        if isinstance(record, PreferencePair):
            cleaned: Talk = replace(
                record,
                prompt=self._messages(record.prompt, steps),
                chosen=self._text(record.chosen, steps),
                rejected=self._text(record.rejected, steps),
            )
        else:
            cleaned = replace(record, messages=self._messages(record.messages, steps))
        for step, (before, after) in steps.items():
            self.changed[step] += 1
            examples = self.examples.setdefault(step, [])
            if len(examples) < _EXAMPLES:
                examples.append({"origin": record.origin, **around_first_change(before, after)})
        return cleaned if steps else record

    def _messages(self, messages: tuple[Message, ...], steps: dict[str, tuple[str, str]]) -> tuple[Message, ...]:
        return tuple(Message(message.role, self._text(message.content, steps)) for message in messages)

    def _text(self, before: str, steps: dict[str, tuple[str, str]]) -> str:
        changed: list[str] = []
        text = normalise(before, self._inner, changed)
        for name, function in (
            ("white_space", outer_white_space),
            ("repeated_paragraphs", repeated_paragraphs),
            ("personal_data", personal_data),
        ):
            if getattr(self.settings, name) and (other := function(text)) != text:
                text = other
                changed.append(name)
        for step in changed:
            steps.setdefault(step, (before, text))
        return text

    @property
    def report(self) -> dict[str, Any]:
        return {"changed": dict(self.changed), "examples": self.examples}
