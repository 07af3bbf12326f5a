"""The funnel of a corpus as it is being filled: what came in, what was left after each step, what fell out and why."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mengya.corpus.records import Conversation, Document, PreferencePair, Record

EXCERPT = 200  # characters of a dropped record that are shown
_SAMPLES = 20  # of dropped records, a reason

Manifest = dict[str, Any]


def hash64(salt: str, content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(salt.encode() + b"\0" + content, digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Drop:
    """One dropped record; a duplicate names the origin of its kept `twin` and their Jaccard similarity."""

    origin: str
    source: str
    reason: str
    characters: int
    excerpt: str
    twin: str | None = None
    similarity: float | None = None

    @classmethod
    def of(cls, document: Document, reason: str, twin: str | None = None, similarity: float | None = None) -> Drop:
        text = document.text
        return cls(document.origin, document.source, reason, len(text), text[:EXCERPT], twin, similarity)


class Funnel:
    """Counts of one build in its `unit` ("documents", "conversations" or "pairs"), and samples of what fell out.

    `manifest` gives {"unit", "funnel": [{"step", unit, "characters"}], "dropped": {reason: {unit, "characters"}},
    "kept": {unit, "characters", "train": {…}, "validation": {…}}, "by_source": {source: {"read", "kept", "dropped"}}}.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.steps: list[dict[str, Any]] = []
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: dict[str, dict[str, int]] = {}
        self._by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._samples: defaultdict[str, list[tuple[int, int, Drop]]] = defaultdict(list)

    def drop(self, drop: Drop) -> None:
        entry = self.dropped.setdefault(drop.reason, {self.unit: 0, "characters": 0})
        entry[self.unit] += 1
        entry["characters"] += drop.characters
        self._by_source[drop.source][drop.reason] += 1
        # The lowest hashes: spread over the sources, the same every time, and no more of them in memory than are shown.
        samples = self._samples[drop.reason]
        heapq.heappush(samples, (-hash64("sample", drop.origin.encode()), -entry[self.unit], drop))
        if len(samples) > _SAMPLES:
            heapq.heappop(samples)

    def step(self, name: str, count: int, characters: int) -> None:
        self.steps.append({"step": name, self.unit: count, "characters": characters})

    def left(self, name: str, records: Sequence[Record]) -> None:
        """A step after which `records` are left."""
        self.step(name, len(records), sum(map(num_characters, records)))

    def manifest(self, train: dict[str, int], validation: dict[str, int]) -> Manifest:
        """The shape above, of {unit: …, "characters": …} for both sides of the split."""
        total = {key: train[key] + validation[key] for key in (self.unit, "characters")}
        return {
            "unit": self.unit,
            "funnel": self.steps,
            "dropped": dict(sorted(self.dropped.items(), key=lambda item: (-item[1][self.unit], item[0]))),
            "kept": {**total, "train": train, "validation": validation},
            "by_source": {
                source: {
                    "read": count,
                    "kept": self.kept[source],
                    "dropped": dict(sorted(self._by_source[source].items(), key=lambda item: (-item[1], item[0]))),
                }
                for source, count in sorted(self.read.items())
            },
        }

    def counts(self, records: Sequence[Record]) -> dict[str, int]:
        return {self.unit: len(records), "characters": sum(map(num_characters, records))}

    def samples(self) -> Iterator[dict[str, Any]]:
        """Up to 20 drops a reason, for dropped.jsonl."""
        for reason in sorted(self._samples):
            for _, _, drop in sorted(self._samples[reason], key=lambda sample: (-sample[0], -sample[1])):
                row = {"reason": reason, "origin": drop.origin, "source": drop.source, "characters": drop.characters}
                if drop.twin is not None:
                    row |= {"twin": drop.twin, "similarity": drop.similarity}
                yield {**row, "excerpt": drop.excerpt}


def num_characters(record: Record) -> int:
    """Characters of text in a record."""
    if isinstance(record, Document):
        return len(record.text)
    if isinstance(record, PreferencePair):
        return sum(len(message.content) for message in record.prompt) + len(record.chosen) + len(record.rejected)
    assert isinstance(record, Conversation)
    return sum(len(message.content) for message in record.messages)


def score_dedup(truth: Mapping[str, tuple[str, str | None]], drops: Iterable[Drop]) -> dict[str, float | int | None]:
    """Recall and precision of duplicate removal against planted truth {origin: (dirt, origin of the original)}.

    A planted copy is found when it and its original ended in one kept document: one was dropped in favour of the
    other, or both in favour of a third. Copies that a rule dropped, or whose original it dropped, are not asked
    about. Precision is the strict one: of the documents dropped as near duplicates, the share whose twin belongs to
    the same planted cluster. None where there was nothing to find.
    """
    twins: dict[str, str] = {}
    near: list[str] = []
    ruled_out: set[str] = set()
    for drop in drops:
        if drop.twin is None:
            ruled_out.add(drop.origin)
        else:
            twins[drop.origin] = drop.twin
            if drop.reason == "near_duplicate":
                near.append(drop.origin)

    def kept(origin: str) -> str:
        while origin in twins:
            origin = twins[origin]
        return origin

    planted = {origin: of for origin, (dirt, of) in truth.items() if of and dirt.endswith("_duplicate")}

    def cluster(origin: str) -> str:
        while origin in planted:
            origin = planted[origin]
        return origin

    score: dict[str, float | int | None] = {}
    for dirt in ("exact_duplicate", "near_duplicate"):
        asked = [
            origin
            for origin, of in planted.items()
            if truth[origin][0] == dirt and origin not in ruled_out and of not in ruled_out
        ]
        num_found = sum(kept(origin) == kept(planted[origin]) for origin in asked)
        score[f"num_{dirt}s_planted"] = len(asked)
        score[f"{dirt}_recall"] = num_found / len(asked) if asked else None
    num_right = sum(cluster(origin) == cluster(twins[origin]) for origin in near)
    score["num_near_duplicates_dropped"] = len(near)
    score["near_duplicate_precision"] = num_right / len(near) if near else None
    return score
