"""What a corpus is read from: each file of each source is one input, so that files are read in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mengya.corpus import catalogue
from mengya.corpus.formats import convert
from mengya.corpus.gather import layouts_of
from mengya.corpus.records import Document
from mengya.corpus.sources import Rejects, read_rows
from mengya.corpus.turns import FormatError
from mengya.settings import Source


class Input(Protocol):
    """Documents of one source, to be read by one task in any process: it must pickle."""

    @property
    def source(self) -> str: ...
    @property
    def rules(self) -> Mapping[str, Any]:
        """Settings of cleaning that differ for this source from those of the corpus."""

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Document]: ...


@dataclass(frozen=True)
class FileInput:
    """Files of a source, each with its layout already known; at most `limit` rows of all together."""

    source: str
    files: tuple[tuple[Path, str], ...]
    rules: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[tuple[str, str], ...] = ()
    limit: int | None = None

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Document]:
        rows = ((origin, row, layout) for file, layout in self.files for origin, row in read_rows(file, rejects))
        for origin, row, layout in islice(rows, self.limit):
            try:
                records = convert(layout, row, dict(self.columns), source=self.source, origin=origin, repairs=repairs)
            except FormatError as error:
                rejects.add_at(error.reason, origin, str(row)[:200])
                continue
            for record in records:
                assert isinstance(record, Document)
                yield record


@dataclass(frozen=True)
class ListInput:
    """Documents that are in memory already: the embedded corpus."""

    source: str
    documents: Sequence[Document]
    rules: Mapping[str, Any] = field(default_factory=dict)

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Document]:
        yield from self.documents


def file_inputs(source: Source) -> list[FileInput]:
    """One input a file, in sorted order, so that tasks share them; one for all where their rows are limited."""
    source = catalogue.completed(source)
    paths = catalogue.source_files(source)
    # A file without a readable row has no layout; reading it counts what is wrong with it.
    layouts = [layout or "text" for layout in layouts_of(source, "document", paths)]
    files = tuple(zip(paths, layouts, strict=True))
    groups = [(file,) for file in files] if source.limit is None else [files]
    columns = tuple(source.columns.items())
    return [FileInput(source.label, group, source.rules, columns, source.limit) for group in groups]
