"""What a corpus is read from: each file of each source is one input, so that files are read in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mengya.corpus.formats import convert
from mengya.corpus.gather import layouts_of
from mengya.corpus.records import Document
from mengya.corpus.sources import Rejects, list_files, read_rows
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
    """One file of a source, its layout already known."""

    source: str
    file: Path
    layout: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[tuple[str, str], ...] = ()
    limit: int | None = None

    def read(self, rejects: Rejects, repairs: Counter[str]) -> Iterator[Document]:
        for origin, row in islice(read_rows(self.file, rejects), self.limit):
            try:
                records = convert(
                    self.layout, row, dict(self.columns), source=self.source, origin=origin, repairs=repairs
                )
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
    """One input a file, in sorted order; a layout that the recipe does not name is guessed from the first rows."""
    assert source.path is not None
    files = list_files(source.path)
    # A file without a readable row has no layout; reading it counts what is wrong with it.
    return [
        FileInput(source.label, file, layout or "text", source.rules, tuple(source.columns.items()), source.limit)
        for file, layout in zip(files, layouts_of(source, "document", files), strict=True)
    ]
