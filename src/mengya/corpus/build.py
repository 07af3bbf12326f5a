"""Conversations and preference pairs from their inputs to a finished corpus: parallel, bounded in memory, resumable.

    read    each input → parts of records with their messages cleaned, and a key each; unusable ones fall out
    copies  everything → which records are copies of which
    sign, near         where asked: signatures of prompts; which are near copies of which
    leaks   each part  → where asked: what evaluation sets hold
    weigh, balance     of pairs, where asked: which go so that length does not tell the better answer
    write   each part  → train.jsonl, validation.jsonl

Steps of parts are phases of independent tasks (see `phases`), and every file is whole or absent: after a kill, the
same call redoes only the tasks that were under way. The result depends on the inputs and the settings alone.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import zstandard

from mengya.corpus.funnel import Drop, Funnel, Manifest
from mengya.corpus.inputs import Input
from mengya.corpus.parts import read_zst
from mengya.corpus.record_job import COPIES, NEAR, UNBALANCED, Job
from mengya.corpus.record_phases import (
    balance,
    check_leaks,
    compare_prompts,
    find_copies,
    read,
    sign_prompts,
    weigh,
    write_split,
)
from mengya.corpus.split import check_parts
from mengya.corpus.steps import Steps, task_pipeline, what_changed
from mengya.corpus.streams import Rejects
from mengya.files import atomic_path, read_json, write_jsonl
from mengya.settings import CorpusSettings


def build_conversations(
    inputs: Sequence[Input],
    settings: CorpusSettings,
    seed: int,
    directory: Path,
    *,
    work: Path,
    rejects: Rejects,
    copies: Mapping[str, int] = MappingProxyType({}),
    grams: Path | None = None,
) -> tuple[Manifest, Counter[str]]:
    """(manifest, what was mended) of conversations; reasons of drops: "empty", "duplicate_prompt",
    "near_duplicate_prompt", "contaminated: SET".

    `directory` gets train.jsonl, validation.jsonl and dropped.jsonl (up to 20 samples a reason), `rejects` what was
    unreadable; the manifest has the shape that `funnel` describes, with "changed", "copies", "contamination", "speeds".

    Of conversations with one prompt (all before the last answer) the first is kept. Those that open with the same
    question fall on the same side of the split. `copies` {source: number} writes each training record of a source so
    many times; the counts are of records, whatever their copies. With `grams`, an npz of the evaluation sets' 13-grams,
    the manifest says what they share with these, and `settings.remove_contaminated` whether such records go.
    UserError when nothing is left or nothing is held out.
    """
    job = Job(work, settings, seed, "conversations", dict(copies), (), grams)
    return _build(job, inputs, directory, rejects)


def build_preferences(
    inputs: Sequence[Input],
    settings: CorpusSettings,
    seed: int,
    directory: Path,
    *,
    work: Path,
    rejects: Rejects,
    copies: Mapping[str, int] = MappingProxyType({}),
    balanced: Collection[str] = (),
    grams: Path | None = None,
) -> tuple[Manifest, Counter[str]]:
    """(manifest, what was mended) of preference pairs.

    Reasons of drops: "empty", "equal_answers", "duplicate_pair", "contaminated: SET", "length_balance". One prompt may
    have several pairs (a ranking gives them); only a pair that stood before is dropped. Of the sources in `balanced`,
    pairs are dropped until the better answer is the longer one as often as the shorter. Pairs whose prompts open with
    the same question fall on the same side of the split. All else as for conversations.
    """
    job = Job(work, settings, seed, "pairs", dict(copies), tuple(sorted(balanced)), grams)
    return _build(job, inputs, directory, rejects)


def _build(job: Job, inputs: Sequence[Input], directory: Path, rejects: Rejects) -> tuple[Manifest, Counter[str]]:
    steps = Steps(job.work, job.settings, job.unit)
    near = job.unit == "conversations" and job.settings.near_duplicate_prompts is not None

    def count() -> int:
        reports = (read_json(file) for file in (job.work / "read").glob("*/report.json"))
        return sum(sum(report["by_source"].values()) for report in reports)

    def phase(name: str, function: Any, num_tasks: int) -> None:
        steps.phase(name, partial(task_pipeline, function=function, job=job), num_tasks, count)

    def once(name: str, output: str, function: Any) -> None:
        steps.once(name, output, partial(function, job), count)

    steps.phase("read", partial(task_pipeline, function=read, job=(job, inputs)), len(inputs), count)
    num_parts = len(job.parts)
    if num_parts:
        once("copies", COPIES, find_copies)
        if near:
            phase("sign", sign_prompts, num_parts)
            once("near", NEAR, compare_prompts)
        if job.grams is not None:
            phase("leaks", check_leaks, num_parts)
        if job.balanced:
            phase("weigh", weigh, num_parts)
            once("balance", UNBALANCED, balance)
        phase("write", write_split, num_parts)

    reports = [read_json(job.work / "read" / f"{task:05d}" / "report.json") for task in range(len(inputs))]
    repairs = Counter[str]()
    for report in reports:
        rejects.absorb(report["rejects"])
        repairs.update(report["repairs"])
    manifest = _manifest(job, reports, directory, near)
    manifest["speeds"] = steps.speeds
    for split in ("train", "validation"):
        _join(sorted((job.work / "write").glob(f"*/{split}.jsonl.zst")), directory / f"{split}.jsonl")
    return manifest, repairs


def _join(files: Sequence[Path], to: Path) -> None:
    """The lines of compressed files, one after the other, in one plain file."""
    with atomic_path(to) as temporary, open(temporary, "wb") as out:
        for file in files:
            with open(file, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                shutil.copyfileobj(stream, out)


def _drops(job: Job) -> Iterator[Drop]:
    for phase in ("read", "write"):
        for file in sorted((job.work / phase).glob("*/drops.jsonl.zst")):
            for row in read_zst(file):
                yield Drop(**row)


def _manifest(job: Job, reports: Sequence[dict[str, Any]], directory: Path, near: bool) -> Manifest:
    funnel = Funnel(job.unit)
    for report in reports:
        funnel.read.update(report["by_source"])
    for drop in _drops(job):
        funnel.drop(drop)
    number = sum(funnel.read.values())
    characters = sum(report["normal_characters"] for report in reports)
    funnel.step("read", number, sum(report["read_characters"] for report in reports))
    funnel.step("normalise", number, characters)
    for step, reasons, is_done in (
        ("duplicates", ("empty", "equal_answers", "duplicate_prompt", "duplicate_pair"), True),
        ("near_duplicate_prompts", ("near_duplicate_prompt",), near),
        ("contamination", ("contaminated",), job.grams is not None and job.settings.remove_contaminated),
        ("length_balance", ("length_balance",), bool(job.balanced)),
    ):
        gone = [amount for reason, amount in funnel.dropped.items() if reason.split(":")[0] in reasons]
        number -= sum(amount[job.unit] for amount in gone)
        characters -= sum(amount["characters"] for amount in gone)
        if is_done:
            funnel.step(step, number, characters)

    parts = {split: Counter[str]() for split in ("train", "validation")}
    for file in sorted((job.work / "write").glob("*/report.json")):
        for split, counts in read_json(file).items():
            for key, amount in counts.items():
                what, source = key.split(" ", 1)
                parts[split][what] += amount
                funnel.kept[source] += amount if what == "records" else 0
    fraction = job.settings.validation_fraction
    check_parts(parts["train"]["records"], parts["validation"]["records"], fraction, job.unit)
    manifest = funnel.manifest(
        *({job.unit: part["records"], "characters": part["characters"]} for part in parts.values())
    )
    write_jsonl(directory / "dropped.jsonl", funnel.samples())
    contamination = job.contamination()
    if contamination:
        for file in sorted((job.work / "leaks").glob("*/contamination.json")):
            contamination.absorb(file.with_suffix(""))
        manifest["contamination"] = contamination.summary()
    manifest["changed"] = what_changed(reports, job.unit)
    manifest["copies"] = {source: times for source, times in job.copies.items() if times > 1}
    return manifest
