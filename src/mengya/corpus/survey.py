"""What a data file holds, before anything is trained on it: its format, what converts, what does not and why."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mengya.corpus.formats import FORMATS, Guess, convert, guess
from mengya.corpus.records import Conversation, Document, Message, PreferencePair
from mengya.corpus.sources import Rejects, container_of, read_rows
from mengya.corpus.turns import NOT_CONVERTIBLE, FormatError, Row, TrainingRecord

ROWS_TO_GUESS_FROM = 50
MAX_HASHED = 20_000_000  # prompts compared for equality; 16 bytes each
TURN_BINS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"), (1 << 30, "9+"))
_DAMAGE = ("truncated_file", "corrupt_file", "encrypted_file", "unknown_compression")
_SAMPLE_IDENTITY = {"name": "萌芽", "author": "作者", "date": "今年"}
_LENGTH_BIAS, _MANY_REPAIRS, _MANY_DUPLICATES, _ENOUGH = 0.65, 0.05, 0.05, 0.99


class Tally:
    """Counts by reason, each with the place and the wording of its first case."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[str, str]] = {}

    def add(self, reason: str, origin: str, detail: str = "", count: int = 1) -> None:
        self.counts[reason] += count
        self.first.setdefault(reason, (origin, detail))

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {reason: {"count": count, "first": self.first[reason][0]} for reason, count in self.counts.most_common()}


@dataclass
class Survey:
    """One file. Rows are `converted`, `rejected` (unreadable or out of the layout) or `unusable` (nothing to learn)."""

    file: Path
    container: str
    format_name: str | None = None
    guess: Guess | None = None
    columns: tuple[str, ...] = ()
    encodings: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_converted: int = 0  # rows that gave a record
    num_records: int = 0
    rejected: Tally = field(default_factory=Tally)
    unusable: Tally = field(default_factory=Tally)
    repaired: Tally = field(default_factory=Tally)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)  # conversations by number of answers (TURN_BINS)
    lengths: Counter[int] = field(
        default_factory=Counter
    )  # records by bit length of their characters: k holds 2^(k-1)…
    longest: int = 0
    num_chosen_longer: int = 0
    repeated_prompts: int = 0
    repeated_records: int = 0
    num_hashed: int = 0

    @property
    def kind(self) -> str | None:
        return FORMATS[self.format_name].kind if self.format_name else None

    @property
    def convertible(self) -> int:
        return self.num_rows - self.unusable.counts.total()

    @property
    def empty(self) -> int:
        return sum(count for reason, count in self.rejected.counts.items() if reason.startswith("empty"))

    def warnings(self) -> list[str]:
        """What should be looked at, a line each."""
        found: list[str] = []
        if damage := [reason for reason in _DAMAGE if self.rejected.counts[reason]]:
            found.append(f"{damage[0]}: what follows the damage is missing; download the file again")
        if self.format_name is None:
            columns = ", ".join(self.columns) or "no readable row"
            found.append(f"no known layout fits ({columns}): name one by `format:` and renamed fields by `columns:`")
            return found
        if self.num_rows and not self.convertible:
            found.append(f"{self.unusable.counts.most_common(1)[0][0]} ({self.num_rows} rows, none convertible)")
        elif self.num_converted < _ENOUGH * self.convertible:
            found.append(f"only {self.num_converted / self.convertible:.1%} of the convertible rows convert")
        if self.guess and self.guess.num_fitting < 0.9 * self.guess.num_rows:
            found.append(f"the format is a guess: {self.guess.num_fitting} of {self.guess.num_rows} first rows fit it")
        if others := [name for name in self.encodings if name != "utf-8"]:
            found.append(f"encoded as {', '.join(others)}; it is read as that")
        if filled := self.repaired.counts["placeholders_filled"]:
            found.append(f"{filled} rows name the model or its author by a placeholder: set `identity` in the recipe")
        for reason, count in self.repaired.counts.most_common():
            if reason != "placeholders_filled" and count > _MANY_REPAIRS * self.num_converted:
                found.append(f"{reason} in {count / self.num_converted:.0%} of the rows")
        if self.repeated_prompts > _MANY_DUPLICATES * self.num_hashed:
            found.append(f"{self.repeated_prompts / self.num_hashed:.0%} of the prompts were there before")
        if self.kind == "preference" and self.num_chosen_longer > _LENGTH_BIAS * self.num_records:
            share = self.num_chosen_longer / self.num_records
            found.append(
                f"the chosen answer is the longer one in {share:.0%} of the pairs: length alone tells them apart"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "bytes": self.file.stat().st_size,
            "container": self.container,
            "encodings": dict(self.encodings),
            "format": self.format_name,
            "kind": self.kind,
            "fitting": [self.guess.num_fitting, self.guess.num_rows] if self.guess else None,
            "columns": list(self.columns),
            "rows": self.num_rows,
            "convertible": self.convertible,
            "converted": self.num_converted,
            "records": self.num_records,
            "rejected": self.rejected.to_json(),
            "not_convertible": self.unusable.to_json(),
            "repaired": self.repaired.to_json(),
            "empty": self.empty,
            "roles": dict(self.roles),
            "answers_per_conversation": dict(self.turns),
            "repeated_prompts": self.repeated_prompts,
            "repeated_records": self.repeated_records,
            "compared": self.num_hashed,
            "chosen_longer": self.num_chosen_longer,
            "length_characters": {str(1 << (bits - 1)): count for bits, count in sorted(self.lengths.items())},
            "longest": self.longest,
            "warnings": self.warnings(),
        }


def survey(file: Path, format_name: str | None = None, columns: Mapping[str, str] | None = None) -> Survey:
    """All of a file, read once, in bounded memory (one row, and 16 bytes a row up to MAX_HASHED rows).

    The format is guessed from the first rows unless given. UserError: the file cannot be read, or no such format.
    """
    result = Survey(file, container_of(file), format_name)
    rejects = Rejects()
    rows = read_rows(file, rejects)
    head = list(islice(rows, ROWS_TO_GUESS_FROM))
    if head:
        result.columns = tuple(map(str, head[0][1]))
    if format_name is None:
        result.guess = guess([row for _, row in head]) if head else None
        result.format_name = result.guess.name if result.guess else None
    prompts, whole = array("Q"), array("Q")
    for origin, row in chain(head, rows):
        if result.format_name is not None:
            _look_at(result, origin, row, columns, prompts, whole)
    result.num_rows, result.encodings = rejects.num_rows, rejects.encodings
    for reason, count in rejects.counts.items():
        sample = next(sample for sample in rejects.samples if sample.reason == reason)
        result.rejected.add(reason, f"{sample.file}:{sample.line}", sample.excerpt[:80], count)
    result.num_hashed = len(prompts)
    result.repeated_prompts, result.repeated_records = _num_repeated(prompts), _num_repeated(whole)
    return result


def _look_at(
    result: Survey, origin: str, row: Row, columns: Mapping[str, str] | None, prompts: array[int], whole: array[int]
) -> None:
    assert result.format_name is not None
    repairs: Counter[str] = Counter()
    try:
        try:
            records = convert(result.format_name, row, columns, repairs=repairs)
        except FormatError as error:
            if not error.reason.startswith("placeholder of"):
                raise
            records = convert(result.format_name, row, columns, identity=_SAMPLE_IDENTITY, repairs=repairs)
            repairs["placeholders_filled"] = 1
    except FormatError as error:
        tally = result.unusable if error.reason in NOT_CONVERTIBLE else result.rejected
        tally.add(error.reason, origin, str(error)[:120])
        return
    result.num_converted += 1
    result.num_records += len(records)
    for reason in repairs:
        result.repaired.add(reason, origin)  # rows, not cases: a share of the rows is what matters
    for record in records:
        _measure(result, record)
    if len(prompts) < MAX_HASHED:
        prompts.extend({_hash(_prompt_of(record)) for record in records})
        whole.extend({_hash(_all_of(record)) for record in records})


def _measure(result: Survey, record: TrainingRecord) -> None:
    if isinstance(record, Document):
        length = len(record.text)
    elif isinstance(record, Conversation):
        length = sum(len(message.content) for message in record.messages)
        result.roles.update(message.role for message in record.messages)
        answers = sum(message.role == "assistant" for message in record.messages)
        result.turns[next(name for most, name in TURN_BINS if answers <= most)] += 1
    else:
        length = sum(len(message.content) for message in record.prompt) + len(record.chosen)
        result.roles.update(message.role for message in record.prompt)
        answers = 1 + sum(message.role == "assistant" for message in record.prompt)
        result.turns[next(name for most, name in TURN_BINS if answers <= most)] += 1
        result.num_chosen_longer += len(record.chosen) > len(record.rejected)
    result.lengths[max(length, 1).bit_length()] += 1
    result.longest = max(result.longest, length)


def _said(messages: Iterable[Message]) -> list[str]:
    return [text for message in messages for text in (message.role, message.content)]


def _prompt_of(record: TrainingRecord) -> list[str]:
    """What stands before the first answer; all of a document."""
    if isinstance(record, Document):
        return [record.text]
    if isinstance(record, PreferencePair):
        return _said(record.prompt)
    first = next(index for index, message in enumerate(record.messages) if message.role == "assistant")
    return _said(record.messages[:first])


def _all_of(record: TrainingRecord) -> list[str]:
    if isinstance(record, PreferencePair):
        return [*_said(record.prompt), record.chosen, record.rejected]
    return _said(record.messages) if isinstance(record, Conversation) else [record.text]


def _hash(texts: list[str]) -> int:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def _num_repeated(hashes: array[int]) -> int:
    """How many of them were there before."""
    import numpy as np

    return len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if hashes else 0
