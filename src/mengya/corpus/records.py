"""The four records that all data becomes: Document, Conversation, PreferencePair, Question.

Every format is converted into these once; no later stage knows where a row came from except by `source`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One pretraining text. `origin` is "file:line" (or "generator:index"), so a reject can be found again."""

    text: str
    source: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order: at most one leading system message, then user/tool and assistant, ending with assistant."""

    messages: tuple[Message, ...]
    source: str
    kind: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt (messages ending with user) and two answers; `reason` says why `chosen` is better, where it is known.

    `weight`: 1, or 1 / the number of pairs that one ranked list gave, so that the list counts once. `margin`: by how much
    the judge scored `chosen` above `rejected`, where one did.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    reason: str = ""
    origin: str = ""
    weight: float = 1.0
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its truth, for measuring; never trained on.

    An answer is right when it contains every string group of `accept` (one alternative of each group) and none of
    `reject`. `kind` names the set: "qa", "multi_turn", "identity", "arithmetic", "unknown", ...; `tags` refine it,
    e.g. "held_out_wording", "held_out_entity".
    """

    messages: tuple[Message, ...]
    kind: str
    accept: tuple[tuple[str, ...], ...] = ()
    reject: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cloze:
    """A text with one true and several false continuations; a model is right when the true one is likeliest."""

    prefix: str
    choices: tuple[str, ...]
    answer: int
    source: str = ""


Record = Document | Conversation | PreferencePair | Question | Cloze


def to_row(record: Record) -> dict[str, Any]:
    """A JSON object with the record's fields, empty optional ones left out."""
    row: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if name in ("messages", "prompt"):
            row[name] = [{"role": message.role, "content": message.content} for message in value]
        elif isinstance(value, tuple):
            row[name] = [list(item) if isinstance(item, tuple) else item for item in value]
        elif value is not None and value != "" and value != {} and (name, value) != ("weight", 1.0):
            row[name] = value
    return row


def _messages(rows: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"]) for row in rows)  # type: ignore[arg-type]


def document(row: dict[str, Any]) -> Document:
    return Document(row["text"], row["source"], row.get("origin", ""))


def conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(_messages(row["messages"]), row["source"], row.get("kind", ""), row.get("origin", ""))


def preference_pair(row: dict[str, Any]) -> PreferencePair:
    return PreferencePair(
        _messages(row["prompt"]),
        row["chosen"],
        row["rejected"],
        row["source"],
        row.get("reason", ""),
        row.get("origin", ""),
        row.get("weight", 1.0),
        row.get("margin"),
    )


def question(row: dict[str, Any]) -> Question:
    return Question(
        _messages(row["messages"]),
        row["kind"],
        tuple(tuple(group) for group in row.get("accept", [])),
        tuple(row.get("reject", [])),
        tuple(row.get("tags", [])),
        row.get("source", ""),
        row.get("meta", {}),
    )


def cloze(row: dict[str, Any]) -> Cloze:
    return Cloze(row["prefix"], tuple(row["choices"]), row["answer"], row.get("source", ""))
