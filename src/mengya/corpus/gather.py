"""Sources of a recipe → records: every file read, every layout converted, everything refused counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from mengya.console import say
from mengya.corpus import catalogue
from mengya.corpus.formats import FORMATS, convert, guess_format
from mengya.corpus.records import Conversation, Document, PreferencePair
from mengya.corpus.sources import Rejects, read_rows
from mengya.corpus.turns import FormatError
from mengya.errors import UserError
from mengya.settings import Identity, Source

Kind = Literal["document", "conversation", "preference"]

_ROWS_TO_GUESS_FROM = 50


def _format_of(source: Source, kind: Kind, rows: list[dict[str, Any]], said: set[str]) -> str:
    """The layout that the recipe names, or the guess from `rows`, which is told once (`said` remembers)."""
    if source.format is not None:
        if source.format not in FORMATS:
            known = [name for name, layout in FORMATS.items() if layout.kind == kind]
            raise UserError(
                f"unknown format {source.format!r}", where=source.dataset or source.path, mend=f"use {', '.join(known)}"
            )
        return source.format
    guessed = guess_format(rows, kind)
    if guessed is None:
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise UserError(
            f"no known {kind} layout fits its rows ({columns})",
            where=source.path,
            mend="name one by `format:` and, if columns are renamed, `columns:`",
        )
    if guessed not in said:
        said.add(guessed)
        say(f"{source.path} looks like {guessed!r}; say `format: {guessed}` to be sure")
    return guessed


def layouts_of(source: Source, kind: Kind, files: list[Path]) -> list[str | None]:
    """The layout of each file of a source, from its first rows where the recipe does not name it; None without rows."""
    said: set[str] = set()
    heads = ([row for _, row in islice(read_rows(file, Rejects()), _ROWS_TO_GUESS_FROM)] for file in files)
    return [_format_of(source, kind, rows, said) if rows else None for rows in heads]


def read_source(
    source: Source, kind: Kind, identity: Identity, rejects: Rejects, repairs: Counter[str]
) -> Iterator[Document | Conversation | PreferencePair]:
    """Records of one source, in file order; refused rows go to `rejects`, mended ones are counted in `repairs`."""
    source = catalogue.completed(source)
    names = identity.model_dump()
    said: set[str] = set()
    left = source.limit
    for file in catalogue.source_files(source):
        rows = islice(read_rows(file, rejects), left)
        head = list(islice(rows, _ROWS_TO_GUESS_FROM))
        if not head:
            continue
        layout = _format_of(source, kind, [row for _, row in head], said)
        for origin, row in chain(head, rows):
            if left is not None:
                left -= 1
            try:
                records = convert(
                    layout, row, source.columns, source=source.label, origin=origin, identity=names, repairs=repairs
                )
            except FormatError as error:
                rejects.add_at(error.reason, origin, str(row)[:200])
                continue
            for record in records:
                assert isinstance(record, Document | Conversation | PreferencePair)
                yield record
        if left == 0:
            return
