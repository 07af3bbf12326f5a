"""From a row of any public layout to records: the registry of layouts, `convert`, and the guess for an unknown file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mengya.corpus.conversation_layouts import CONVERSATIONS, PROMPTS
from mengya.corpus.document_layouts import DOCUMENTS
from mengya.corpus.preference_layouts import PREFERENCES
from mengya.corpus.records import Conversation, Message, PreferencePair
from mengya.corpus.turns import Converter, FormatError, Recogniser, Row, TrainingRecord, field, fill_identity
from mengya.errors import UserError

__all__ = ["FORMATS", "Format", "FormatError", "Guess", "convert", "guess", "guess_format"]

Kind = Literal["document", "conversation", "preference"]


@dataclass(frozen=True, slots=True)
class Format:
    """A layout: `converter` gives records without source and origin; `looks_like` judges one row by its fields."""

    name: str
    kind: Kind
    converter: Converter
    looks_like: Recogniser


_TABLES: tuple[tuple[Kind, Mapping[str, tuple[Converter, Recogniser]]], ...] = (
    ("preference", PREFERENCES),
    ("conversation", CONVERSATIONS),
    ("document", DOCUMENTS),
    ("conversation", PROMPTS),
)
# The narrower layout first: of those that fit about equally well, `guess` takes the first.
FORMATS: dict[str, Format] = {
    name: Format(name, kind, converter, looks_like)
    for kind, table in _TABLES
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


@dataclass(frozen=True, slots=True)
class Guess:
    """The layout `name` fits `num_fitting` of `num_rows` rows."""

    name: str
    num_fitting: int
    num_rows: int


def guess(rows: Iterable[Row], kind: Kind | None = None) -> Guess | None:
    """The narrowest layout that fits `rows` (a file's first ones); None when none fits half of them.

    A wider layout is taken only where it fits clearly more of them (a tenth): a few rows of a multi-turn file look
    like plain Alpaca, and every narrow converter has an outcome for such a row.
    """
    rows = list(rows)
    counts = {
        layout.name: sum(layout.looks_like(row) for row in rows)
        for layout in FORMATS.values()
        if kind in (None, layout.kind)
    }
    most = max(counts.values())
    if not rows or most * 2 < len(rows):
        return None
    name = next(name for name, count in counts.items() if count >= 0.9 * most)
    return Guess(name, counts[name], len(rows))


def guess_format(rows: Iterable[Row], kind: Kind | None = None) -> str | None:
    """The name that `guess` gives, or None."""
    best = guess(rows, kind)
    return best.name if best else None
