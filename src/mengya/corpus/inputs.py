"""What a corpus is read from: each file of each source is one input, so that files are read in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from mengya.console import say
from mengya.corpus import catalogue
from mengya.corpus.formats import FORMATS, convert, guess_format
from mengya.corpus.sources import Rejects, read_rows
from mengya.corpus.turns import FormatError
from mengya.errors import UserError
from mengya.settings import Identity, Source

Kind = Literal["document", "conversation", "preference"]

_ROWS_TO_GUESS_FROM = 50


class Input(Protocol):
    """Records of one source, to be read by one task in any process: it must pickle."""

    @property
    def source(self) -> str: ...
    @property
    def rules(self) -> Mapping[str, Any]:
        """Settings of cleaning that differ for this source from those of the corpus."""

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Any]: ...


@dataclass(frozen=True)
class FileInput:
    """Files of a source, each with its layout already known; at most `limit` rows of all together."""

    source: str
    files: tuple[tuple[Path, str], ...]
    rules: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[tuple[str, str], ...] = ()
    limit: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    """Fills <NAME>, <AUTHOR> and <DATE>."""

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Any]:
        """Records of the layouts' kind; refused rows go to `rejects`, mended ones are counted in `repairs`."""
        rows = ((origin, row, layout) for file, layout in self.files for origin, row in read_rows(file, rejects))
        for origin, row, layout in islice(rows, self.limit):
            try:
                records = convert(
                    layout,
                    row,
                    dict(self.columns),
                    source=self.source,
                    origin=origin,
                    identity=self.identity or None,
                    repairs=repairs,
                )
            except FormatError as error:
                rejects.add_at(error.reason, origin, str(row)[:200])
                continue
            yield from records


@dataclass(frozen=True)
class ListInput:
    """Records that are in memory already: the embedded corpus."""

    source: str
    records: Sequence[Any]
    rules: Mapping[str, Any] = field(default_factory=dict)

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Any]:
        yield from self.records

    def __deepcopy__(self, memo: dict[int, Any]) -> ListInput:
        """Itself: an executor copies its pipeline for every task, and nobody changes the records."""
        return self


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


def file_inputs(source: Source, kind: Kind = "document", identity: Identity | None = None) -> list[FileInput]:
    """One input a file, in sorted order, so that tasks share them; one for all where their rows are limited."""
    source = catalogue.completed(source)
    paths = catalogue.source_files(source)
    # A file without a readable row has no layout; reading it counts what is wrong with it.
    layouts = [layout or "text" for layout in layouts_of(source, kind, paths)]
    files = tuple(zip(paths, layouts, strict=True))
    groups = [(file,) for file in files] if source.limit is None else [files]
    columns = tuple(source.columns.items())
    names = {} if identity is None else identity.model_dump()
    return [FileInput(source.label, group, source.rules, columns, source.limit, names) for group in groups]
