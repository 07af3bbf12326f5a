"""From a row of any public layout to records: the registry of layouts, `convert`, and the guess for an unknown file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mengya.corpus.conversation_layouts import CONVERSATIONS
from mengya.corpus.preference_layouts import PREFERENCES
from mengya.corpus.records import Conversation, Document, Message, PreferencePair
from mengya.corpus.turns import (
    Converter,
    FormatError,
    Recogniser,
    Row,
    TrainingRecord,
    as_text,
    field,
    fill_identity,
    listed,
)
from mengya.errors import UserError

__all__ = ["FORMATS", "Format", "FormatError", "convert", "guess_format"]

Kind = Literal["document", "conversation", "preference"]


def _document(text: str) -> list[Document]:
    if not text:
        raise FormatError("empty text")
    return [Document(text, source="")]


def text(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"text"}: SkyPile, C4, shibing624/medical, and nearly everything else."""
    return _document(as_text(field(row, "text"), repairs))


def wikipedia_cn(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"completion"}: wikipedia-cn-20230720-filtered."""
    return _document(as_text(field(row, "completion"), repairs))


def title_content(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"title", "content"}: WuDao. The title is the first line, unless the content opens with it."""
    title, content = as_text(field(row, "title"), repairs), as_text(field(row, "content"), repairs)
    return _document(content if content.startswith(title) else f"{title}\n{content}".strip() if content else "")


def baidubaike(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"title", "summary" (or null), "sections": [{"title", "content"}]}; a title alone is an empty text."""
    body = [as_text(row.get("summary"), repairs)]
    for section in listed(row, "sections"):
        heading, content = as_text(section.get("title"), repairs), as_text(section.get("content"), repairs)
        body.append(f"{heading}\n{content}" if heading and content else content)
    paragraphs = [paragraph for paragraph in body if paragraph]
    return _document("\n\n".join([as_text(field(row, "title"), repairs), *paragraphs]) if paragraphs else "")


DOCUMENTS: dict[str, tuple[Converter, Recogniser]] = {
    "baidubaike": (baidubaike, lambda row: "title" in row and isinstance(row.get("sections"), list)),
    "wikipedia_cn": (wikipedia_cn, lambda row: isinstance(row.get("completion"), str)),
    "title_content": (
        title_content,
        lambda row: isinstance(row.get("title"), str) and isinstance(row.get("content"), str),
    ),
    "text": (text, lambda row: isinstance(row.get("text"), str)),
}


@dataclass(frozen=True, slots=True)
class Format:
    """A layout: `converter` gives records without source and origin; `looks_like` judges one row by its fields."""

    name: str
    kind: Kind
    converter: Converter
    looks_like: Recogniser


_TABLES: dict[Kind, Mapping[str, tuple[Converter, Recogniser]]] = {
    "document": DOCUMENTS,
    "conversation": CONVERSATIONS,
    "preference": PREFERENCES,
}
# The narrower layout first: `guess_format` takes the first of those that fit equally well.
FORMATS: dict[str, Format] = {
    name: Format(name, kind, converter, looks_like)
    for kind, table in _TABLES.items()
    for name, (converter, looks_like) in table.items()
}


def convert(
    format_name: str,
    row: Row,
    columns: Mapping[str, str] | None = None,
    *,
    source: str = "",
    origin: str = "",
    identity: Mapping[str, str] | None = None,
    repairs: Counter[str] | None = None,
) -> list[TrainingRecord]:
    """The records of one row (a ranked list or a seed task gives several), with `source` and `origin` set.

    `columns` maps the layout's field names to the row's: {"output": "回答"}. `source` defaults to the row's own.
    Placeholders of name, author and date are filled from `identity`. What was mended on the way is counted in
    `repairs`, by the reasons that `turns.assemble` documents. FormatError, whose `reason` is countable: the row gives
    nothing, e.g. "missing field 'output' (has: instruction, answer)". UserError: no such format.
    """
    layout = FORMATS.get(format_name)
    if layout is None:
        raise UserError(f"unknown format {format_name!r}", where="format", mend=f"use one of {', '.join(FORMATS)}")
    if columns:
        row = {**row, **{ours: field(row, theirs) for ours, theirs in columns.items()}}
    own = row.get("source")
    source = source or (own if isinstance(own, str) else "")
    mended: Counter[str] = Counter()
    records = [_finished(record, source, origin, identity) for record in layout.converter(row, mended)]
    if repairs is not None:
        repairs.update(mended)  # only now: a row that was dropped in the end was not repaired
    return records


def _finished(record: TrainingRecord, source: str, origin: str, identity: Mapping[str, str] | None) -> TrainingRecord:
    def filled(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(Message(message.role, fill_identity(message.content, identity)) for message in messages)

    if isinstance(record, Conversation):
        return replace(record, messages=filled(record.messages), source=source, origin=origin)
    if isinstance(record, PreferencePair):
        chosen, rejected = fill_identity(record.chosen, identity), fill_identity(record.rejected, identity)
        prompt = filled(record.prompt)
        return replace(record, prompt=prompt, chosen=chosen, rejected=rejected, source=source, origin=origin)
    return replace(record, source=source, origin=origin)


def guess_format(rows: Iterable[Row], kind: Kind | None = None) -> str | None:
    """The name of the layout that most of `rows` (a file's first ones) look like; None when under half of them do."""
    rows = list(rows)
    best, best_count = None, 0
    for layout in FORMATS.values():
        if kind in (None, layout.kind):
            count = sum(layout.looks_like(row) for row in rows)
            if count > best_count:
                best, best_count = layout.name, count
    return best if best_count * 2 >= len(rows) else None
