"""Mengya's first steps as datatrove blocks: read an input, clean it for Chinese, write what is left in parts.

They may stand in any datatrove pipeline: a document's source is in `metadata["source"]`, its origin is its `id`.
What a block counted is in its `report` when its documents have run through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep

from mengya.corpus.clean import clean_batch
from mengya.corpus.dedup import exact_key
from mengya.corpus.funnel import EXCERPT, Drop
from mengya.corpus.inputs import Input
from mengya.corpus.parts import PartWriter, RowsWriter
from mengya.corpus.records import Document
from mengya.corpus.streams import Rejects
from mengya.files import atomic_directory, write_json
from mengya.settings import CleaningSettings

_BATCH = 500  # documents
_EXAMPLES = 3  # before and after, a transformation and input

Documents = Iterable[TroveDocument]


class Reader(PipelineStep):
    """An input's documents; what could not be read is counted, with samples."""

    type, name = "reader", "mengya reader"

    def __init__(self, source: Input) -> None:
        super().__init__()
        self.source = source
        self.rejects, self.repairs = Rejects(), Counter[str]()

    def run(self, data: Documents | None, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        for document in self.source.read(self.rejects, self.repairs):
            self.stat_update("documents")
            yield TroveDocument(document.text, document.origin, metadata={"source": document.source})

    @property
    def report(self) -> dict[str, Any]:
        return {"rejects": self.rejects.dump(), "repairs": dict(self.repairs)}


class Cleaner(PipelineStep):
    """Documents as `clean.clean` leaves them, without those that a rule drops; `on_drop` is told of each of these."""

    type, name = "filter", "mengya cleaner"

    def __init__(self, rules: CleaningSettings) -> None:
        super().__init__()
        self.rules = rules
        self.on_drop: Callable[[dict[str, Any]], None] = lambda row: None
        self.num_read: Counter[str] = Counter()  # by source
        self.read_characters = self.normal_characters = 0
        self.changed: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def run(self, data: Documents | None, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        documents = iter(data or ())
        while batch := list(islice(documents, _BATCH)):
            cleaned = clean_batch([document.text for document in batch], self.rules)
            for document, result in zip(batch, cleaned, strict=True):
                self.num_read[document.metadata["source"]] += 1
                self.read_characters += len(document.text)
                self.normal_characters += len(result.text)
                self._note(document, result.changed, result.text)
                if result.reason:
                    self.stat_update(f"dropped {result.reason}")
                    source = document.metadata["source"]
                    excerpt = result.text[:EXCERPT]
                    self.on_drop(asdict(Drop(document.id, source, result.reason, len(result.text), excerpt)))
                else:
                    document.text = result.text
                    yield document

    def _note(self, document: TroveDocument, steps: tuple[str, ...], text: str) -> None:
        self.changed.update(steps)
        for step in steps:
            examples = self.examples.setdefault(step, [])
            if len(examples) < _EXAMPLES:
                examples.append({"origin": document.id, **around_first_change(document.text, text)})

    @property
    def report(self) -> dict[str, Any]:
        return {
            "read": self.num_read.total(),
            "by_source": dict(self.num_read),
            "read_characters": self.read_characters,
            "normal_characters": self.normal_characters,
            "changed": dict(self.changed),
            "examples": self.examples,
        }


def around_first_change(before: str, after: str) -> dict[str, str]:
    """Some characters of both texts from shortly before they first differ."""
    first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    start = max(first - 20, 0)
    return {"before": before[start : start + 80], "after": after[start : start + 80]}


def _key(document: Document) -> bytes:
    return exact_key(document.text)


class PartsWriter(PipelineStep):
    """Documents → parts, the drops and the reports of the blocks before, in a directory that appears at once."""

    type, name = "writer", "mengya parts"

    def __init__(self, directory: Path, reader: Reader, cleaner: Cleaner, part_characters: int) -> None:
        super().__init__()
        self.directory, self.reader, self.cleaner, self.part_characters = directory, reader, cleaner, part_characters

    def run(self, data: Documents | None, rank: int = 0, world_size: int = 1) -> Iterator[TroveDocument]:
        with atomic_directory(self.directory) as directory:
            with (
                RowsWriter(directory / "drops.jsonl.zst") as drops,
                PartWriter(directory, self.part_characters, _key) as writer,
            ):
                self.cleaner.on_drop = drops.write  # as they come: of a bad file there are more than memory holds
                for document in data or ():
                    self.stat_update("documents")
                    writer.write(Document(document.text, document.metadata["source"], document.id))
            report = {**self.reader.report, **self.cleaner.report, "kept_characters": writer.num_characters}
            write_json(directory / "report.json", report)
        yield from ()
