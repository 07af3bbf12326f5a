"""What each phase of building documents does with one task; `documents` runs them, and says what they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from mengya.corpus.blocks import Cleaner, PartsWriter, Reader
from mengya.corpus.boilerplate import Boilerplate
from mengya.corpus.contamination import Contamination
from mengya.corpus.dedup import exact_key, find_duplicates, write_signatures
from mengya.corpus.document_job import DUPLICATES, KINDS, Job, twins_in
from mengya.corpus.funnel import Drop
from mengya.corpus.inputs import Input
from mengya.corpus.parts import PartIndex, PartWriter, RowsWriter, read_part, write_zst
from mengya.corpus.records import Document, to_row
from mengya.corpus.rules import too_short
from mengya.corpus.sentence_phases import Stripper
from mengya.corpus.split import in_validation
from mengya.corpus.steps import save_arrays
from mengya.files import atomic_directory, write_json

_KEY_SLICES = 16
_BATCH = 500  # documents


# --- clean ------------------------------------------------------------------------------------------------------------


def clean_pipeline(task: int, job: Job, inputs: Sequence[Input]) -> list[PipelineStep]:
    reader = Reader(inputs[task])
    cleaner = Cleaner(job.settings.cleaning(inputs[task].rules))
    return [reader, cleaner, PartsWriter(job.clean_directory(task), reader, cleaner, job.settings.part_characters)]


# --- count ------------------------------------------------------------------------------------------------------------


def count_lines(part: int, job: Job) -> None:
    """How many of a part's documents each line stands in, copies left out: a text often copied is no boilerplate."""
    with np.load(job.work / "first.npz") as found:
        first = found["first"][PartIndex.of(job.cleaned).slice_of(part)]
    counter = Boilerplate(job.settings.boilerplate_documents, job.settings.boilerplate_share)
    for document, is_first in zip(read_part(job.cleaned[part]), first, strict=True):
        if is_first:
            counter.count(document.source, document.text)
    with atomic_directory(job.work / "lines" / f"{part:05d}") as directory:
        for number, (source, (documents, keys, counts)) in enumerate(sorted(counter.counts().items())):
            np.savez(directory / f"{number}.npz", source=source, documents=documents, keys=keys, counts=counts)


def find_firsts(job: Job) -> None:
    """first.npz: bool over all cleaned documents, whether none before has the same canonical text."""
    keys = np.concatenate([np.load(part.with_suffix(".key.npy")) for part in job.cleaned])
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    save_arrays(job.work / "first.npz", first=first)


def add_up_lines(job: Job) -> None:
    """lines.npz: of each source the lines that may be boilerplate, counted over all parts.

    A slice of the keys at a time, so that the lines of a large source need not fit in memory together.
    """
    by_source: dict[str, list[Path]] = {}
    documents: Counter[str] = Counter()
    for file in sorted((job.work / "lines").glob("*/*.npz")):
        with np.load(file) as counted:
            source = str(counted["source"])
            by_source.setdefault(source, []).append(file)
            documents[source] += int(counted["documents"])
    arrays: dict[str, Any] = {}
    for number, (source, files) in enumerate(sorted(by_source.items())):
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for slice_number in range(_KEY_SLICES):
            parts = []
            for file in files:
                with np.load(file) as counted:
                    mine = counted["keys"] // np.uint64(2**64 // _KEY_SLICES) == slice_number
                    parts.append((counted["keys"][mine], counted["counts"][mine]))
            keys, inverse = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts for _, counts in parts]), len(keys)).astype(np.int64)
            often = counts > job.settings.boilerplate_documents
            kept.append((keys[often], counts[often]))
        arrays |= {
            f"{number}.source": source,
            f"{number}.documents": documents[source],
            f"{number}.keys": np.concatenate([keys for keys, _ in kept]),
            f"{number}.counts": np.concatenate([counts for _, counts in kept]),
        }
    save_arrays(job.work / "lines.npz", **arrays)


def _boilerplate(job: Job) -> Boilerplate:
    boilerplate = Boilerplate(job.settings.boilerplate_documents, job.settings.boilerplate_share)
    with np.load(job.work / "lines.npz") as counted:
        for number in range(len(counted.files) // 4):
            boilerplate.restore(
                str(counted[f"{number}.source"]),
                int(counted[f"{number}.documents"]),
                counted[f"{number}.keys"],
                counted[f"{number}.counts"],
            )
    return boilerplate


# --- sign -------------------------------------------------------------------------------------------------------------


def _leaks(documents: list[Document], contamination: Contamination | None) -> list[tuple[str, ...]]:
    """The evaluation sets whose passages stand in each document."""
    if contamination is None:
        return [()] * len(documents)
    return contamination.check([document.text for document in documents], [document.origin for document in documents])


def strip_and_sign(part: int, job: Job) -> None:
    """A part without its boilerplate and what evaluation sets hold, and the signatures of its documents."""
    boilerplate, contamination = _boilerplate(job), job.contamination()
    removed: Counter[str] = Counter()
    drops: list[dict[str, Any]] = []
    num_changed = 0
    with atomic_directory(job.work / "sign" / f"{part:05d}") as directory:
        with PartWriter(directory, part_characters=1 << 62) as writer:
            documents = read_part(job.cleaned[part])
            while batch := list(islice(documents, _BATCH)):
                stripped: list[Document] = []
                for document in batch:
                    text, lines = boilerplate.strip(document.source, document.text)
                    removed.update(lines)
                    num_changed += bool(lines)
                    if lines and too_short(text, job.rules.get(document.source, job.settings)):
                        drops.append(asdict(Drop.of(document, "boilerplate")))
                    else:
                        stripped.append(replace(document, text=text))
                for document, sets in zip(stripped, _leaks(stripped, contamination), strict=True):
                    if sets and job.settings.remove_contaminated:
                        drops.append(asdict(Drop.of(document, f"contaminated: {', '.join(sets)}")))
                    else:
                        writer.write(document)
        if contamination:
            contamination.save(directory / "contamination")
        if writer.num_records:
            write_signatures((d.text for d in read_part(directory / "part-000.jsonl")), directory / "part-000")
        write_zst(directory / "drops.jsonl.zst", drops)
        report = {
            "documents": writer.num_records,
            "characters": writer.num_characters,
            "changed": num_changed,
            "removed": dict(removed),
        }
        write_json(directory / "report.json", report)


# --- compare ----------------------------------------------------------------------------------------------------------


def compare(job: Job) -> None:
    """duplicates.npz: the numbers of the documents that are copies, of which each is one, its kind and likeness."""
    index = PartIndex.of(job.signed)
    found = list(
        find_duplicates(
            [part.with_suffix("") for part in job.signed],
            lambda number: index[number].text,
            threshold=job.settings.near_duplicate_threshold,
            directory=job.work / "compare",
        )
    )
    found.sort(key=lambda duplicate: duplicate.index)
    save_arrays(
        job.work / DUPLICATES,
        index=np.array([duplicate.index for duplicate in found], dtype=np.int64),
        of=np.array([duplicate.of for duplicate in found], dtype=np.int64),
        kind=np.array([KINDS.index(duplicate.kind) for duplicate in found], dtype=np.int8),
        similarity=np.array([duplicate.similarity for duplicate in found], dtype=np.float64),
    )


# --- write ------------------------------------------------------------------------------------------------------------


def write_split(part: int, job: Job) -> None:
    """A part's documents that are left, split, and its duplicates with the origin of their twin."""
    index = PartIndex.of(job.signed)
    numbers = index.slice_of(part)
    twins = twins_in(job, numbers)
    stripper = Stripper(job) if job.settings.sentence_duplicates else None
    counts = {"train": Counter[str](), "validation": Counter[str]()}
    with atomic_directory(job.work / "write" / f"{part:05d}") as directory, ExitStack() as files:
        writers = {
            name: files.enter_context(RowsWriter(directory / f"{name}.jsonl.zst")) for name in (*counts, "drops")
        }
        for number, document in enumerate(read_part(job.signed[part]), numbers.start):
            if number in twins:
                of, kind, similarity = twins[number]
                writers["drops"].write(asdict(Drop.of(document, kind, index[of].origin, similarity)))
                continue
            # By the text before sentences go: which ones do depends on the other documents.
            held_out = in_validation(exact_key(document.text), job.settings.validation_fraction, job.seed)
            if stripper:
                whole, document = document, stripper.strip(number, document)
                rules = job.rules.get(document.source, job.settings)
                if document.text != whole.text and too_short(document.text, rules):
                    writers["drops"].write(asdict(Drop.of(whole, "repeated_sentences")))
                    continue
            split = "validation" if held_out else "train"
            writers[split].write(to_row(document))
            counts[split].update(
                {f"documents {document.source}": 1, f"characters {document.source}": len(document.text)}
            )
        files.close()  # before the directory appears
        write_json(directory / "report.json", {split: dict(count) for split, count in counts.items()})
        if stripper:
            write_json(directory / "sentences.json", stripper.report)
