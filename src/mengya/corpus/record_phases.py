"""What each phase of building conversations or pairs does with one task; `build` runs them, and says what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mengya.corpus import records
from mengya.corpus.dedup import find_duplicates, write_signatures
from mengya.corpus.funnel import EXCERPT, Drop, hash64, num_characters
from mengya.corpus.inputs import Input
from mengya.corpus.messages import (
    MessageCleaner,
    Talk,
    opening_key,
    record_key,
    whole_text,
    why_unusable,
)
from mengya.corpus.near_prompts import compared_text, near_prompts, what_must_agree
from mengya.corpus.parts import PartWriter, RowsWriter, read_part
from mengya.corpus.record_job import COPIES, NEAR, UNBALANCED, Job, lost_in
from mengya.corpus.records import Conversation, PreferencePair, to_row
from mengya.corpus.split import in_validation
from mengya.corpus.steps import save_arrays
from mengya.corpus.streams import Rejects
from mengya.files import atomic_directory, read_json, write_json

_BATCH = 500  # records

Numbers = npt.NDArray[np.int64]


def _drop(record: Talk, reason: str, twin: str | None = None, similarity: float | None = None) -> dict[str, Any]:
    excerpt = whole_text(record)[:EXCERPT]
    return asdict(Drop(record.origin, record.source, reason, num_characters(record), excerpt, twin, similarity))


# --- read -------------------------------------------------------------------------------------------------------------


def read(task: int, job_and_inputs: tuple[Job, Sequence[Input]]) -> None:
    """An input's records in parts, their messages cleaned, with the key of each; what nothing can be learnt from goes."""
    job, inputs = job_and_inputs
    source = inputs[task]
    rejects, repairs, by_source, characters = Rejects(), Counter[str](), Counter[str](), Counter[str]()
    cleaner = MessageCleaner(job.settings.message_cleaning(source.rules))
    with atomic_directory(job.work / "read" / f"{task:05d}") as directory:
        with (
            RowsWriter(directory / "drops.jsonl.zst") as drops,
            PartWriter(directory, job.settings.part_characters, record_key) as writer,
        ):
            for raw in source.read(rejects, repairs):
                by_source[raw.source] += 1
                record = cleaner.clean(raw)
                characters.update(read=num_characters(raw), normal=num_characters(record))
                if reason := why_unusable(record):
                    drops.write(_drop(record, reason))
                else:
                    writer.write(record)
        report = {
            "rejects": rejects.dump(),
            "repairs": dict(repairs),
            "by_source": dict(by_source),
            "read_characters": characters["read"],
            "normal_characters": characters["normal"],
            **cleaner.report,
        }
        write_json(directory / "report.json", report)


# --- copies -----------------------------------------------------------------------------------------------------------


def find_copies(job: Job) -> None:
    """copies.npz: the numbers of the records whose key stood before, and of which each is a copy."""
    keys = np.concatenate([np.load(part.with_suffix(".key.npy")) for part in job.parts])
    order = np.lexsort((keys["low"], keys["high"]))  # stable: the first of equals stays first
    ordered = keys[order]
    copy = np.zeros(len(order), dtype=bool)
    copy[1:] = ordered[1:] == ordered[:-1]
    first = order[np.maximum.accumulate(np.where(copy, 0, np.arange(len(order))))]
    index, of = order[copy], first[copy]
    ascending = np.argsort(index)
    save_arrays(job.work / COPIES, index=index[ascending], of=of[ascending])


# --- near prompts -----------------------------------------------------------------------------------------------------


def sign_prompts(part: int, job: Job) -> None:
    """Signatures of a part's prompts, copies left out; with each the record's number and what `near_prompts` asks."""
    numbers = job.index().slice_of(part)
    lost = lost_in(job, COPIES, numbers)
    kept: list[int] = []
    agreeing: list[int] = []
    lengths: list[int] = []

    def texts() -> Iterator[str]:
        for number, record in enumerate(read_part(job.parts[part], records.conversation), numbers.start):
            if number not in lost:
                kept.append(number)
                agreeing.append(what_must_agree(record))
                lengths.append(len(record.messages[-1].content))
                yield compared_text(record)

    with atomic_directory(job.work / "sign" / f"{part:05d}") as directory:
        write_signatures(texts(), directory / "part")
        save_arrays(
            directory / "facts.npz",
            numbers=np.array(kept, dtype=np.int64),
            agreeing=np.array(agreeing, dtype=np.uint64),
            lengths=np.array(lengths, dtype=np.int64),
        )


def compare_prompts(job: Job) -> None:
    """near.npz: the numbers of the conversations whose prompts are near copies, of which, and how near."""
    threshold = job.settings.near_duplicate_prompts
    assert threshold is not None
    places = [job.work / "sign" / f"{part:05d}" for part in range(len(job.parts))]
    facts: dict[str, npt.NDArray[Any]] = {}
    for name in ("numbers", "agreeing", "lengths"):
        columns = []
        for place in places:
            with np.load(place / "facts.npz") as saved:
                columns.append(saved[name])
        facts[name] = np.concatenate(columns)
    numbers, lengths, index = facts["numbers"], facts["lengths"], job.index()

    def text_of(place: int) -> str:
        return compared_text(cast(Conversation, index[int(numbers[place])]))

    def agreeing(place: int) -> int:
        return int(facts["agreeing"][place])

    def rank(place: int) -> tuple[int, ...]:
        return (-int(lengths[place]), place) if job.settings.near_duplicate_prompts_keep == "longest" else (place,)

    found = find_duplicates(
        [place / "part" for place in places], text_of, threshold=threshold, directory=job.work / "compare"
    )
    near = sorted(near_prompts(found, agreeing, rank, text_of, threshold))
    save_arrays(
        job.work / NEAR,
        index=numbers[[place for place, _, _ in near]],
        of=numbers[[twin for _, twin, _ in near]],
        similarity=np.array([round(similarity, 4) for _, _, similarity in near], dtype=np.float64),
    )


# --- contamination ----------------------------------------------------------------------------------------------------


def check_leaks(part: int, job: Job) -> None:
    """What the records of a part that are left share with evaluation sets: counts, and the sets of each by its number."""
    contamination = job.contamination()
    assert contamination is not None
    numbers = job.index().slice_of(part)
    gone = lost_in(job, COPIES, numbers).keys() | lost_in(job, NEAR, numbers).keys()
    found: dict[int, list[str]] = {}
    left = (pair for pair in enumerate(read_part(job.parts[part], job.of_row), numbers.start) if pair[0] not in gone)
    while batch := list(islice(left, _BATCH)):
        texts = [whole_text(record) for _, record in batch]
        leaks = contamination.check(texts, [record.origin for _, record in batch])
        found |= {number: list(sets) for (number, _), sets in zip(batch, leaks, strict=True) if sets}
    with atomic_directory(job.work / "leaks" / f"{part:05d}") as directory:
        contamination.save(directory / "contamination")
        write_json(directory / "found.json", found)


def _leaks(job: Job, part: int) -> dict[int, str]:
    """{number: reason} of the records that are to go because evaluation sets hold them."""
    if job.grams is None or not job.settings.remove_contaminated:
        return {}
    found = read_json(job.work / "leaks" / f"{part:05d}" / "found.json")
    return {int(number): f"contaminated: {', '.join(sets)}" for number, sets in found.items()}


# --- balance ----------------------------------------------------------------------------------------------------------


def weigh(part: int, job: Job) -> None:
    """Which answer is the longer one, of the pairs that are left of balanced sources, with a hash to choose among them."""
    numbers = job.index().slice_of(part)
    gone = lost_in(job, COPIES, numbers).keys() | _leaks(job, part).keys()
    rows: list[tuple[int, int, bool, int]] = []
    for number, pair in enumerate(read_part(job.parts[part], records.preference_pair), numbers.start):
        if number not in gone and pair.source in job.balanced and len(pair.chosen) != len(pair.rejected):
            key = hash64(f"balance {job.seed}", f"{pair.prompt}\0{pair.chosen}\0{pair.rejected}".encode())
            rows.append((number, job.balanced.index(pair.source), len(pair.chosen) > len(pair.rejected), key))
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    (job.work / "weigh").mkdir(exist_ok=True)
    save_arrays(
        job.work / "weigh" / f"{part:05d}.npz",
        numbers=np.array(columns[0], dtype=np.int64),
        sources=np.array(columns[1], dtype=np.int32),
        longer=np.array(columns[2], dtype=bool),
        keys=np.array(columns[3], dtype=np.uint64),
    )


def balance(job: Job) -> None:
    """unbalanced.npz: the pairs to drop so that length does not tell the better answer; which is decided by their hash."""
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    for file in sorted((job.work / "weigh").glob("*.npz")):
        with np.load(file) as weighed:
            for name in weighed.files:
                columns.setdefault(name, []).append(weighed[name])
    numbers, sources, longer, keys = (
        np.concatenate(columns[name]) for name in ("numbers", "sources", "longer", "keys")
    )
    gone: list[Numbers] = []
    for source in range(len(job.balanced)):
        sides = [np.flatnonzero((sources == source) & (longer == side)) for side in (False, True)]
        fewer, more = sorted(sides, key=len)
        gone.append(numbers[more[np.argsort(keys[more], kind="stable")][len(fewer) :]])
    save_arrays(job.work / UNBALANCED, index=np.sort(np.concatenate(gone)))


# --- write ------------------------------------------------------------------------------------------------------------


def write_split(part: int, job: Job) -> None:
    """A part's records that are left, split, training records as often as their source's copies; and all that fell out."""
    index = job.index()
    numbers = index.slice_of(part)
    copies, near, leaks = lost_in(job, COPIES, numbers), lost_in(job, NEAR, numbers), _leaks(job, part)
    unbalanced = lost_in(job, UNBALANCED, numbers)
    counts = {"train": Counter[str](), "validation": Counter[str]()}
    with atomic_directory(job.work / "write" / f"{part:05d}") as directory, ExitStack() as files:
        writers = {
            name: files.enter_context(RowsWriter(directory / f"{name}.jsonl.zst")) for name in (*counts, "drops")
        }
        for number, record in enumerate(read_part(job.parts[part], job.of_row), numbers.start):
            if number in copies:
                kind = "duplicate_pair" if isinstance(record, PreferencePair) else "duplicate_prompt"
                writers["drops"].write(_drop(record, kind, index[copies[number][0]].origin))
            elif number in near:
                twin, similarity = near[number]
                writers["drops"].write(_drop(record, "near_duplicate_prompt", index[twin].origin, similarity))
            elif number in leaks:
                writers["drops"].write(_drop(record, leaks[number]))
            elif number in unbalanced:
                writers["drops"].write(_drop(record, "length_balance"))
            else:
                held_out = in_validation(opening_key(record), job.settings.validation_fraction, job.seed)
                split = "validation" if held_out else "train"
                for _ in range(1 if held_out else job.copies.get(record.source, 1)):
                    writers[split].write(to_row(record))
                counts[split].update(
                    {f"records {record.source}": 1, f"characters {record.source}": num_characters(record)}
                )
        files.close()  # before the directory appears
        write_json(directory / "report.json", {split: dict(count) for split, count in counts.items()})
