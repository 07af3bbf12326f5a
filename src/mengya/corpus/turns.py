"""What every layout is made of: fields of a row, turns in order, and what happens when they are not in order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mengya.corpus.records import Conversation, Document, Message, PreferencePair, Role

Row = Mapping[str, Any]
Turn = tuple[str, Any]
TrainingRecord = Document | Conversation | PreferencePair
Converter = Callable[
    [Row, Counter[str]], Sequence[TrainingRecord]
]  # (row, repairs) -> records without source and origin
Recogniser = Callable[[Row], bool]

ROLE_NAMES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "client", "patient", "prompter", "客户", "问", "<user>"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "chatgpt", "counselor", "doctor", "moss", "律师", "答", "<bot>", "function_call"),
        "assistant",
    ),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}

# Reasons of rows that hold nothing to train on, however well they are read: they say nothing against the format.
NOT_CONVERTIBLE = frozenset(
    {
        "prompts only: nothing to train on",
        "rejected answer alone",
        "chosen equals rejected",
        "no two answers to compare",
    }
)

_PLACEHOLDER = re.compile(r"(\s?)(?:<(NAME|AUTHOR|DATE)>|\{\{\s*(name|author|date)\s*\}\})([ \t]?)")
_WIDE = re.compile("[\u2e80-\U0003ffff]")  # Han and its punctuation


class FormatError(ValueError):
    """A row that gives no record. `reason` is short and countable; the message adds the detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason} ({detail})" if detail else reason)


def as_text(value: Any, repairs: Counter[str]) -> str:
    """The text of a field: a string, or a list's strings or {"text"} joined by line ends ("joined_list"); null: ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        found = [item.get("text") if isinstance(item, dict) else item for item in value]
        parts = [part for part in found if isinstance(part, str)]
        if len(parts) == len(found):
            if len(parts) > 1:
                repairs["joined_list"] += 1
            return "\n".join(parts).strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        repairs["number_as_text"] += 1
        return str(value)
    raise FormatError("field is not text", f"{type(value).__name__}: {str(value)[:40]}")


def field(row: Row, *names: str) -> Any:
    """The first of `names` that the row has; FormatError("missing field …") when it has none."""
    for name in names:
        if name in row:
            return row[name]
    raise FormatError(f"missing field {names[0]!r}", f"has: {', '.join(map(str, row)) or 'nothing'}")


def _unpacked(value: Any) -> Any:
    """The list that a string is the JSON text of, as CSV files have it; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def listed(row: Row, *names: str) -> list[Any]:
    """As `field`, for a field that must be a list, or the JSON text of one."""
    value = _unpacked(field(row, *names))
    if not isinstance(value, list):
        raise FormatError(f"field {names[0]!r} is not a list", type(value).__name__)
    return value


def objects(row: Row, *names: str) -> list[Row]:
    """As `listed`, for a field that must be a list of objects."""
    value = listed(row, *names)
    if not all(isinstance(item, dict) for item in value):
        raise FormatError(f"field {names[0]!r} is not a list of objects", str(value)[:40])
    return value


def pairs(value: Any) -> list[Turn]:
    """The turns of a history [[question, answer], …], or of the JSON text of one; none for null, "" and []."""
    value = _unpacked(value)
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise FormatError("history is not a list of pairs", str(value)[:40])
    return [turn for question, answer in value for turn in (("user", question), ("assistant", answer))]


def role_turns(messages: Any, role_key: str, text_key: str) -> list[Turn]:
    """The turns of [{role_key: …, text_key: …}, …]."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FormatError("messages are not a list of objects", str(messages)[:40])
    return [(field(message, role_key), field(message, text_key)) for message in messages]


def tool_call(text: str) -> str:
    """An assistant's call of a tool as message content, in the notation that Qwen and Hermes templates share."""
    return f"<tool_call>\n{text}\n</tool_call>"


def assemble(turns: Iterable[Turn], repairs: Counter[str]) -> list[Message]:
    """Messages in order, not yet asked to end with anyone; [] when nothing is left. Defined outcomes:

    unknown role, or a field that is not text: FormatError. System messages at the head are merged; one further on is
    a FormatError. Anything of the assistant or a tool before the first user turn is removed ("leading_turn_removed").
    Two turns of one role in a row become one, joined by a line end ("merged_same_role"); tool messages stay apart.
    At an empty turn the conversation ends, with the question that it left open ("cut_at_empty_turn"), because what
    follows refers to what is not there.
    """
    system: list[str] = []
    messages: list[Message] = []
    for name, value in turns:
        role = ROLE_NAMES.get(str(name).strip().lower())
        if role is None:
            raise FormatError("unknown role", repr(name))
        text = as_text(value, repairs)
        if role == "system":
            if messages:
                raise FormatError("system message after the first turn")
            if text:
                system.append(text)
            continue
        if not messages and role != "user":
            repairs["leading_turn_removed"] += 1
            continue
        if not text:
            repairs["cut_at_empty_turn"] += 1
            break
        if str(name).strip().lower() == "function_call":
            text = tool_call(text)
        if messages and messages[-1].role == role and role != "tool":
            repairs["merged_same_role"] += 1
            messages[-1] = Message(role, f"{messages[-1].content}\n{text}")
        else:
            messages.append(Message(role, text))
    return [Message("system", "\n".join(system)), *messages] if system and messages else messages


def conversation_messages(turns: Iterable[Turn], repairs: Counter[str]) -> tuple[Message, ...]:
    """Messages ending with the assistant: user and tool turns after its last are removed ("trailing_turn_removed")."""
    messages = assemble(turns, repairs)
    if messages and messages[-1].role != "assistant":
        repairs["trailing_turn_removed"] += 1
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise FormatError("empty conversation")
    return tuple(messages)


def prompt_messages(turns: Iterable[Turn], repairs: Counter[str]) -> tuple[Message, ...]:
    """Messages that end with the user; FormatError when an answer stands last, for then no one asked for another."""
    messages = assemble(turns, repairs)
    if not messages or messages[-1].role not in ("user", "tool"):
        raise FormatError("prompt does not end with the user")
    return tuple(messages)


def fill_identity(text: str, identity: Mapping[str, str] | None) -> str:
    """`text` with <NAME>, {{name}} and those of author and date filled; FormatError when `identity` lacks one.

    The spaces that a template keeps around a placeholder go where Chinese meets Chinese: "我叫 {{name}}，是".
    """
    if "<" not in text and "{{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        before, after = match[1], match[4]
        key = (match[2] or match[3]).lower()
        if identity is None or key not in identity:
            raise FormatError(f"placeholder of {key} without an identity", match[0])
        filled = identity[key]
        if before == " " and _WIDE.match(filled[:1]) and _WIDE.match(text[match.start() - 1 : match.start()]):
            before = ""
        if after and _WIDE.match(filled[-1:]) and _WIDE.match(text[match.end() : match.end() + 1]):
            after = ""
        return before + filled + after

    return _PLACEHOLDER.sub(value, text)
