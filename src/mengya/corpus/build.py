"""Conversations and preference pairs to a corpus on disk: deduplicated, split, with every drop counted and explained.

They are held in memory (a million conversations take about 2 GB; documents, of which there are more, have
`documents`). Both builders write `train.jsonl`, `validation.jsonl` and `dropped.jsonl` (up to 20 samples a reason)
under `directory`; their manifest has the shape that `funnel` describes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from mengya.corpus.contamination import Contamination
from mengya.corpus.funnel import EXCERPT, Drop, Funnel, Manifest, hash64, num_characters
from mengya.corpus.records import Conversation, Message, PreferencePair, Record, to_row
from mengya.corpus.split import check_parts, in_validation
from mengya.files import write_jsonl


class Split(Protocol):
    @property
    def validation_fraction(self) -> float: ...
    @property
    def remove_contaminated(self) -> bool: ...


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
    return funnel.manifest(funnel.counts(train), funnel.counts(validation))


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
    contamination: Contamination | None = None,
) -> Manifest:
    """The manifest of a set of conversations; reasons of drops: "empty", "duplicate_prompt", "contaminated: SET".

    Of conversations with one prompt (all before the last answer) the first is kept. Those that open with the same
    question fall on the same side of the split. `copies` {source: number} writes each training record of a source so
    many times; the counts are of records, whatever their copies. With `contamination` the manifest says what they share
    with evaluation sets, and `settings.remove_contaminated` whether such records go.
    """
    return _build(conversations, "conversations", settings, seed, directory, copies, contamination=contamination)


def build_preferences(
    preferences: Iterable[PreferencePair],
    settings: Split,
    seed: int,
    directory: Path,
    copies: Mapping[str, int] = MappingProxyType({}),
    balanced: Collection[str] = (),
    contamination: Contamination | None = None,
) -> Manifest:
    """The manifest of a set of preference pairs.

    Reasons of drops: "empty", "equal_answers", "duplicate_pair", "contaminated: SET", "length_balance". One prompt may
    have several pairs (a ranking gives them); only a pair that stood before is dropped. Of the sources in `balanced`,
    pairs are dropped until the better answer is the longer one as often as the shorter. Pairs whose prompts open with
    the same question fall on the same side of the split. `copies` and `contamination` as for conversations.
    """
    return _build(preferences, "pairs", settings, seed, directory, copies, balanced, contamination)


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


def _text(record: Conversation | PreferencePair) -> str:
    """All that is said in a record, a line each."""
    if isinstance(record, PreferencePair):
        return "\n".join([*(message.content for message in record.prompt), record.chosen, record.rejected])
    return "\n".join(message.content for message in record.messages)


def _without(
    alive: list[Conversation | PreferencePair], reasons: Mapping[int, str], funnel: Funnel, step: str
) -> list[Conversation | PreferencePair]:
    """`alive` without the records of these ids, which fall out for these reasons."""
    for record in alive:
        if id(record) in reasons:
            reason, excerpt = reasons[id(record)], _text(record)[:EXCERPT]
            funnel.drop(Drop(record.origin, record.source, reason, num_characters(record), excerpt))
    left = [record for record in alive if id(record) not in reasons]
    funnel.left(step, left)
    return left


def _build(
    records: Iterable[Conversation] | Iterable[PreferencePair],
    unit: str,
    settings: Split,
    seed: int,
    directory: Path,
    copies: Mapping[str, int],
    balanced: Collection[str] = (),
    contamination: Contamination | None = None,
) -> Manifest:
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
            excerpt = _text(record)[:EXCERPT]
            funnel.drop(Drop(record.origin, record.source, reason, num_characters(record), excerpt, twin))
            continue
        first[key] = record.origin
        alive.append(record)
    funnel.step("read", sum(funnel.read.values()), read_characters)
    funnel.left("duplicates", alive)
    if contamination:
        leaks = contamination.check([_text(record) for record in alive], [record.origin for record in alive])
        if settings.remove_contaminated:
            found = {
                id(record): f"contaminated: {', '.join(sets)}"
                for record, sets in zip(alive, leaks, strict=True)
                if sets
            }
            alive = _without(alive, found, funnel, "contamination")
    if balanced:
        gone: dict[int, str] = {}
        for source in sorted(balanced):
            pairs = [record for record in alive if isinstance(record, PreferencePair) and record.source == source]
            gone |= {id(pair): "length_balance" for pair in _unbalanced(pairs, seed)}
        alive = _without(alive, gone, funnel, "length_balance")
    train: list[Conversation | PreferencePair] = []
    validation: list[Conversation | PreferencePair] = []
    for record in alive:
        funnel.kept[record.source] += 1
        prompt = record.prompt if isinstance(record, PreferencePair) else record.messages[:-1]
        opening = [message for message in prompt if message.role == "user"][:1]
        held_out = in_validation(_prompt_key(opening), settings.validation_fraction, seed)
        (validation if held_out else train).append(record)
    check_parts(len(train), len(validation), settings.validation_fraction, unit)
    manifest = _write(funnel, train, validation, directory, copies)
    if contamination:
        manifest["contamination"] = contamination.summary()
    manifest["copies"] = {source: number for source, number in copies.items() if number > 1}
    return manifest
