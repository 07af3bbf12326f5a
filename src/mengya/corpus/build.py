"""From records to a corpus on disk: clean, deduplicated, split, with every drop counted and explained.

All three builders hold their records in memory (a 50 MB corpus takes a few hundred MB) and write `train.jsonl`,
`validation.jsonl` and `dropped.jsonl` (up to 20 samples a reason) under `directory`. Their manifest has one shape:
{"unit", "funnel": [{"step", unit, "characters"}], "dropped": {reason: {unit, "characters"}},
"kept": {unit, "characters", "train": {…}, "validation": {…}}, "by_source": {source: {"read", "kept", "dropped"}}},
where `unit` is "documents", "conversations" or "pairs".
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from mengya.corpus.boilerplate import Boilerplate
from mengya.corpus.clean import clean_batch, too_short
from mengya.corpus.dedup import Duplicate, exact_duplicates, exact_key, near_duplicates
from mengya.corpus.funnel import Drop, Funnel, Manifest, hash64, num_characters, score_dedup
from mengya.corpus.records import Conversation, Document, Message, PreferencePair, Record, to_row
from mengya.errors import UserError
from mengya.files import write_jsonl
from mengya.settings import CorpusSettings

__all__ = ["Drop", "Manifest", "build_conversations", "build_corpus", "build_preferences", "score_dedup"]

_BATCH = 500  # documents a task of a process
_COMMONEST = 20  # boilerplate lines shown
_EXCERPT = 200  # characters


class Split(Protocol):
    @property
    def validation_fraction(self) -> float: ...


def in_validation(key: bytes, fraction: float, seed: int) -> bool:
    """Whether the record of this key is held out: a function of key and seed alone, so added data moves nothing."""
    return hash64(f"split {seed}", key) < fraction * 2**64


def _write(
    funnel: Funnel,
    train: Sequence[Record],
    validation: Sequence[Record],
    directory: Path,
    copies: Mapping[str, int] = MappingProxyType({}),
) -> Manifest:
    trained_on = [record for record in train for _ in range(copies.get(record.source, 1))]
    for name, records in (("train", trained_on), ("validation", validation)):
        write_jsonl(directory / f"{name}.jsonl", map(to_row, records))
    write_jsonl(directory / "dropped.jsonl", funnel.samples())
    return funnel.manifest(train, validation)


def _check_parts(num_train: int, num_validation: int, fraction: float, unit: str) -> None:
    if num_train == 0:
        raise UserError(f"no {unit} left to train on", mend="see dropped.jsonl for the reasons, and relax the rules")
    if num_validation == 0 and fraction > 0:
        raise UserError(
            f"none of {num_train} {unit} fell to the {fraction:.2%} that are held out by their hash",
            where="corpus.validation_fraction",
            mend="raise it, or give more data",
        )


def _cleaned(documents: Iterator[Document], settings: CorpusSettings) -> Iterator[tuple[Document, str, str | None]]:
    """(document, normalised text, reason to drop it) in order; with several processes when there is work for them."""
    work = partial(clean_batch, settings=settings)
    batches = iter(lambda: list(islice(documents, _BATCH)), [])
    first = list(islice(batches, 4))
    if settings.num_processes <= 1 or len(first) < 4:
        for batch in chain(first, batches):
            for document, cleaned in zip(batch, work([document.text for document in batch]), strict=True):
                yield document, cleaned.text, cleaned.reason
        return
    # spawn, not fork: the parent may hold threads (torch, pyarrow) whose locks a fork would copy.
    with multiprocessing.get_context("spawn").Pool(settings.num_processes) as pool:
        pending: list[tuple[list[Document], Any]] = []
        for batch in chain(first, batches, [[]] * (2 * settings.num_processes)):
            if batch:
                pending.append((batch, pool.apply_async(work, ([document.text for document in batch],))))
            # So many tasks and no more are under way: Pool.imap would read the whole input ahead of the workers.
            if pending and (not batch or len(pending) > 2 * settings.num_processes):
                ready, result = pending.pop(0)
                for document, cleaned in zip(ready, result.get(), strict=True):
                    yield document, cleaned.text, cleaned.reason


def build_corpus(
    documents: Iterable[Document], settings: CorpusSettings, seed: int, directory: Path
) -> tuple[Manifest, list[Drop]]:
    """The manifest of a pretraining corpus, and every drop; the files are described at the head of this module.

    Normalise → rules → boilerplate lines (over a source) → exact → near duplicates (over everything) → split by the
    hash of the document. The result does not depend on the number of processes. The manifest also has
    "boilerplate": {"documents", "characters", "lines": the commonest}. UserError when nothing is left, or
    nothing is held out.
    """
    funnel = Funnel("documents")
    alive: list[Document] = []
    read_characters = normal_characters = 0

    def drop(
        document: Document, text: str, reason: str, twin: str | None = None, similarity: float | None = None
    ) -> None:
        funnel.drops.append(
            Drop(document.origin, document.source, reason, len(text), text[:_EXCERPT], twin, similarity)
        )

    for document, text, reason in _cleaned(iter(documents), settings):
        funnel.read[document.source] += 1
        read_characters += len(document.text)
        normal_characters += len(text)
        if reason:
            drop(document, text, reason)
        else:
            alive.append(replace(document, text=text))
    num_read = sum(funnel.read.values())
    funnel.step("read", num_read, read_characters)
    funnel.step("normalise", num_read, normal_characters)
    funnel.left("rules", alive)

    boilerplate = Boilerplate(settings.boilerplate_documents, settings.boilerplate_share)
    copies = {duplicate.index for duplicate in exact_duplicates([document.text for document in alive])}
    for index, document in enumerate(alive):
        if index not in copies:  # or a document copied often enough would be boilerplate line by line
            boilerplate.count(document.source, document.text)
    stripped: list[Document] = []
    removed_lines: Counter[str] = Counter()
    num_changed = 0
    for document in alive:
        text, removed = boilerplate.strip(document.source, document.text)
        removed_lines.update(removed)
        num_changed += bool(removed)
        if removed and too_short(text, settings):
            drop(document, document.text, "boilerplate")
        else:
            stripped.append(replace(document, text=text) if removed else document)
    alive = stripped
    funnel.left("boilerplate", alive)

    finders: tuple[tuple[str, Callable[[list[str]], list[Duplicate]]], ...] = (
        ("exact_duplicates", exact_duplicates),
        ("near_duplicates", partial(near_duplicates, threshold=settings.near_duplicate_threshold)),
    )
    for name, find in finders:
        found = find([document.text for document in alive])
        for duplicate in found:
            document, twin = alive[duplicate.index], alive[duplicate.of]
            drop(document, document.text, duplicate.kind, twin.origin, duplicate.similarity)
        gone = {duplicate.index for duplicate in found}
        alive = [document for index, document in enumerate(alive) if index not in gone]
        funnel.left(name, alive)

    train: list[Document] = []
    validation: list[Document] = []
    for document in alive:
        funnel.kept[document.source] += 1
        held_out = in_validation(exact_key(document.text), settings.validation_fraction, seed)
        (validation if held_out else train).append(document)
    _check_parts(len(train), len(validation), settings.validation_fraction, "documents")
    manifest = _write(funnel, train, validation, directory)
    manifest["boilerplate"] = {
        "documents": num_changed,
        "characters": sum(len(line) * count for line, count in removed_lines.items()),
        "lines": [{"line": line, "count": count} for line, count in removed_lines.most_common(_COMMONEST)],
    }
    return manifest, funnel.drops


_SPACE = re.compile(r"\s+")


def _prompt_key(messages: Iterable[Message]) -> bytes:
    """White space and case aside, nothing is ignored here: 3-1 and 3+1, 是吗 and 是吗？ are different questions."""
    text = "\0".join(f"{message.role}\1{_SPACE.sub('', message.content).lower()}" for message in messages)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def build_conversations(
    conversations: Iterable[Conversation],
    settings: Split,
    seed: int,
    directory: Path,
    copies: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Manifest, list[Drop]]:
    """The manifest of a set of conversations, and every drop ("empty", "duplicate_prompt").

    Of conversations with one prompt (all before the last answer) the first is kept. Those that open with the same
    question fall on the same side of the split. `copies` {source: number} writes each training record of a source so
    many times; the counts are of records, whatever their copies.
    """
    return _build(conversations, "conversations", settings, seed, directory, copies)


def build_preferences(
    preferences: Iterable[PreferencePair],
    settings: Split,
    seed: int,
    directory: Path,
    copies: Mapping[str, int] = MappingProxyType({}),
    balanced: Collection[str] = (),
) -> tuple[Manifest, list[Drop]]:
    """The manifest of a set of preference pairs, and every drop.

    Reasons: "empty", "equal_answers", "duplicate_pair", "length_balance". One prompt may have several pairs (a ranking
    gives them); only a pair that stood before is dropped. Of the sources in `balanced`, pairs are dropped until the
    better answer is the longer one as often as the shorter. Pairs whose prompts open with the same question fall on
    the same side of the split. `copies` as for conversations.
    """
    return _build(preferences, "pairs", settings, seed, directory, copies, balanced)


def _unbalanced(pairs: Iterable[PreferencePair], seed: int) -> list[PreferencePair]:
    """The pairs to drop so that length does not tell the better answer; which of them is decided by their hash."""
    longer: list[PreferencePair] = []
    shorter: list[PreferencePair] = []
    for pair in pairs:
        if len(pair.chosen) != len(pair.rejected):
            (longer if len(pair.chosen) > len(pair.rejected) else shorter).append(pair)
    more, fewer = (longer, shorter) if len(longer) > len(shorter) else (shorter, longer)
    more.sort(key=lambda pair: hash64(f"balance {seed}", f"{pair.prompt}\0{pair.chosen}\0{pair.rejected}".encode()))
    return more[len(fewer) :]


def _build(
    records: Iterable[Conversation] | Iterable[PreferencePair],
    unit: str,
    settings: Split,
    seed: int,
    directory: Path,
    copies: Mapping[str, int],
    balanced: Collection[str] = (),
) -> tuple[Manifest, list[Drop]]:
    funnel = Funnel(unit)
    first: dict[bytes, str] = {}
    alive: list[Conversation | PreferencePair] = []
    read_characters = 0
    for record in records:
        funnel.read[record.source] += 1
        read_characters += num_characters(record)
        prompt, answers = (
            (record.prompt, [record.chosen, record.rejected])
            if isinstance(record, PreferencePair)
            else (record.messages[:-1], [message.content for message in record.messages[-1:]])
        )
        key = _prompt_key(prompt)
        if isinstance(record, PreferencePair):
            key += _prompt_key(Message("assistant", answer) for answer in answers)
        reason, twin = None, None
        if not prompt or not all(text.strip() for text in [*answers, *(message.content for message in prompt)]):
            reason = "empty"
        elif len(answers) == 2 and answers[0].strip() == answers[1].strip():
            reason = "equal_answers"
        elif key in first:
            reason = "duplicate_pair" if len(answers) == 2 else "duplicate_prompt"
            twin = first[key]
        if reason:
            excerpt = "\n".join([*(message.content for message in prompt), *answers])[:_EXCERPT]
            funnel.drops.append(Drop(record.origin, record.source, reason, num_characters(record), excerpt, twin))
            continue
        first[key] = record.origin
        alive.append(record)
    funnel.step("read", sum(funnel.read.values()), read_characters)
    funnel.left("duplicates", alive)
    if balanced:
        gone: set[int] = set()
        for source in sorted(balanced):
            pairs = [record for record in alive if isinstance(record, PreferencePair) and record.source == source]
            for pair in _unbalanced(pairs, seed):
                excerpt = f"{pair.prompt[-1].content}\n{pair.chosen}\n{pair.rejected}"[:_EXCERPT]
                funnel.drops.append(Drop(pair.origin, source, "length_balance", num_characters(pair), excerpt))
                gone.add(id(pair))
        alive = [record for record in alive if id(record) not in gone]
        funnel.left("length_balance", alive)
    train: list[Conversation | PreferencePair] = []
    validation: list[Conversation | PreferencePair] = []
    for record in alive:
        funnel.kept[record.source] += 1
        prompt = record.prompt if isinstance(record, PreferencePair) else record.messages[:-1]
        opening = [message for message in prompt if message.role == "user"][:1]
        held_out = in_validation(_prompt_key(opening), settings.validation_fraction, seed)
        (validation if held_out else train).append(record)
    _check_parts(len(train), len(validation), settings.validation_fraction, unit)
    manifest = _write(funnel, train, validation, directory, copies)
    manifest["copies"] = {source: number for source, number in copies.items() if number > 1}
    return manifest, funnel.drops
