"""The phases that find sentences which recur over the documents that are left, and take them out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from mengya.corpus.document_job import SENTENCES, SHOWN, Job, twins_in
from mengya.corpus.parts import PartIndex, read_part
from mengya.corpus.records import Document
from mengya.corpus.sentences import RecurringSentences, SentenceCounter, add_up, sentence_key
from mengya.files import atomic_path, read_json


def count_sentences(part: int, job: Job) -> None:
    """In how many of a part's documents each sentence stands, copies left out."""
    numbers = PartIndex.of(job.signed).slice_of(part)
    twins = twins_in(job, numbers)
    counter = SentenceCounter()
    for number, document in enumerate(read_part(job.signed[part]), numbers.start):
        if number not in twins:
            counter.count(number, document.text)
    with atomic_path(job.work / "sentences" / f"{part:05d}.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, counter.table())


def add_up_sentences(job: Job) -> None:
    """sentences.npy: those that stand in too many documents of all parts."""
    assert job.settings.sentence_duplicates is not None
    table = add_up(sorted((job.work / "sentences").glob("*.npy")), job.settings.sentence_duplicates)
    with atomic_path(job.work / SENTENCES) as temporary, open(temporary, "wb") as handle:
        np.save(handle, table)


class Stripper:
    """A part's documents without recurring sentences; the texts of those that recur most over the whole corpus."""

    def __init__(self, job: Job) -> None:
        table = np.load(job.work / SENTENCES)
        self.sentences = RecurringSentences(table)
        most = table[np.argsort(table["count"], kind="stable")[::-1][:SHOWN]]
        self._counts = dict(zip(most["key"].tolist(), most["count"].tolist(), strict=True))
        self.lines: dict[str, int] = {}
        self.num_changed = self.num_removed = self.num_characters = 0

    def strip(self, number: int, document: Document) -> Document:
        text, removed = self.sentences.strip(number, document.text)
        if removed:
            self.num_changed += 1
            self.num_removed += len(removed)
            self.num_characters += len(document.text) - len(text)
            self.lines |= {
                line: count for line in removed if (count := self._counts.get(sentence_key(line))) is not None
            }
        return replace(document, text=text)

    @property
    def report(self) -> dict[str, Any]:
        return {
            "documents": self.num_changed,
            "sentences": self.num_removed,
            "characters": self.num_characters,
            "lines": self.lines,
        }


def taken_sentences(job: Job) -> dict[str, Any] | None:
    """What the manifest says of recurring sentences; None where they were not asked for."""
    if not job.settings.sentence_duplicates:
        return None
    total = Counter[str]()
    lines: dict[str, int] = {}
    for file in sorted((job.work / "write").glob("*/sentences.json")):
        report = read_json(file)
        lines |= report.pop("lines")
        total.update(report)
    most = sorted(lines.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return {
        **{name: total[name] for name in ("documents", "sentences", "characters")},
        "lines": [{"line": line, "count": count} for line, count in most],
    }
