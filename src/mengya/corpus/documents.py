"""Pretraining documents from their inputs to a finished corpus: parallel, bounded in memory, resumable, explained.

    clean   each input → parts of cleaned documents; what a rule drops, with its reason
    count   each part  → how often its lines stand in documents that are no copies (boilerplate, over a source)
    sign    each part  → boilerplate taken out; signatures for the comparison; overlap with evaluation sets
    compare everything → which documents are copies of which
    sentences          where asked: in how many of the documents that are left each sentence stands
    write   each part  → train-*.jsonl.zst, validation-*.jsonl.zst

Every step but `compare` is a phase of independent tasks (see `phases`), and every file is whole or absent: after a
kill, the same call redoes only the tasks that were under way. The result depends on the inputs and the settings alone,
not on executors or the number of processes. Working files are under `work` until the corpus is finished.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mengya.corpus.document_job import DUPLICATES, KINDS, SENTENCES, SHOWN, Job
from mengya.corpus.document_phases import (
    add_up_lines,
    clean_pipeline,
    compare,
    count_lines,
    find_firsts,
    strip_and_sign,
    write_split,
)
from mengya.corpus.funnel import Drop, Funnel, Manifest
from mengya.corpus.inputs import Input
from mengya.corpus.parts import read_zst
from mengya.corpus.sentence_phases import add_up_sentences, count_sentences, taken_sentences
from mengya.corpus.split import check_parts
from mengya.corpus.steps import Steps, task_pipeline, what_changed
from mengya.corpus.streams import Rejects
from mengya.files import read_json, write_jsonl
from mengya.settings import CorpusSettings


def build_documents(
    inputs: Sequence[Input],
    settings: CorpusSettings,
    seed: int,
    directory: Path,
    *,
    work: Path,
    rejects: Rejects,
    grams: Path | None = None,
) -> tuple[Manifest, Counter[str]]:
    """(manifest, what was mended) of the corpus that now stands in `directory`; `rejects` gets what was unreadable.

    The manifest has the shape that `funnel` describes, with "boilerplate" {"documents", "characters", "lines"},
    "changed" {transformation: {"documents", "examples"}}, "sentences" where asked for (as "boilerplate", with the number
    of "sentences"), "contamination" where `grams` (see Job) are given, and "speeds" {phase: {"documents", "seconds"}}.
    UserError when nothing is left, nothing is held out, or too much could not be read. `all_drops(work)` gives every
    drop until `work` is removed.
    """
    rules = {source.source: settings.cleaning(source.rules) for source in inputs}
    job = Job(work, settings, seed, grams, rules)
    steps = Steps(work, settings, "documents")

    def on_parts(name: str, function: Any, num_tasks: int) -> None:
        count = partial(_num_documents, job, name)
        steps.phase(name, partial(task_pipeline, function=function, job=job), num_tasks, count)

    def once(name: str, output: str, function: Any) -> None:
        steps.once(name, output, partial(function, job), partial(_num_documents, job, name))

    clean = partial(clean_pipeline, job=job, inputs=inputs)
    steps.phase("clean", clean, len(inputs), partial(_num_documents, job, "clean"))
    reports = [read_json(job.clean_directory(task) / "report.json") for task in range(len(inputs))]
    repairs = Counter[str]()
    for report in reports:
        rejects.absorb(report["rejects"])
        repairs.update(report["repairs"])
    rejects.check(settings.max_reject_share)  # before hours are spent on what is left
    if job.cleaned:
        if not (work / "first.npz").exists():
            find_firsts(job)
        on_parts("count", count_lines, len(job.cleaned))
        once("add up", "lines.npz", add_up_lines)
        on_parts("sign", strip_and_sign, len(job.cleaned))
        once("compare", DUPLICATES, compare)
        if settings.sentence_duplicates:
            on_parts("sentences", count_sentences, len(job.signed))
            once("add up sentences", SENTENCES, add_up_sentences)
        on_parts("write", write_split, len(job.signed))
    manifest = _manifest(job, reports, directory)
    manifest["speeds"] = steps.speeds
    for split in ("train", "validation"):
        for number, file in enumerate(sorted((work / "write").glob(f"*/{split}.jsonl.zst"))):
            _link(file, directory / f"{split}-{number:05d}.jsonl.zst")
    return manifest, repairs


def all_drops(work: Path) -> Iterator[Drop]:
    """Every dropped document of a build, in the order of its phases."""
    for phase in ("clean", "sign", "write"):
        for file in sorted((work / phase).glob("*/drops.jsonl.zst")):
            for row in read_zst(file):
                yield Drop(**row)


def _num_documents(job: Job, phase: str) -> int:
    reports = {"clean": "clean", "count": "clean", "add up": "clean"}.get(phase, "sign")
    key = "read" if reports == "clean" else "documents"
    return sum(read_json(file)[key] for file in (job.work / reports).glob("*/report.json"))


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, to)


def _manifest(job: Job, reports: list[dict[str, Any]], directory: Path) -> Manifest:
    funnel = Funnel("documents")
    for report in reports:
        funnel.read.update(report["by_source"])
    total = Counter[str]()
    for report in reports:
        total.update({name: report[name] for name in ("read", "read_characters", "normal_characters")})
    for drop in all_drops(job.work):
        funnel.drop(drop)
    signed = [read_json(file) for file in sorted((job.work / "sign").glob("*/report.json"))]
    late = ("boilerplate", "contaminated", "exact_duplicate", "near_duplicate", "repeated_sentences")
    left = total["read"] - sum(
        drop["documents"] for reason, drop in funnel.dropped.items() if not reason.startswith(late)
    )
    left_characters = sum(report["kept_characters"] for report in reports)
    funnel.step("read", total["read"], total["read_characters"])
    funnel.step("normalise", total["read"], total["normal_characters"])
    funnel.step("rules", left, left_characters)
    left, left_characters = (
        sum(report["documents"] for report in signed),
        sum(report["characters"] for report in signed),
    )
    none = {"documents": 0, "characters": 0}
    leaked = Counter[str]()
    for reason, amount in funnel.dropped.items():
        leaked.update(amount if reason.startswith("contaminated") else {})
    funnel.step("boilerplate", left + leaked["documents"], left_characters + leaked["characters"])
    if job.settings.remove_contaminated:
        funnel.step("contamination", left, left_characters)
    for kind in KINDS[1:]:
        gone = funnel.dropped.get(kind, none)
        left, left_characters = left - gone["documents"], left_characters - gone["characters"]
        funnel.step(f"{kind}s", left, left_characters)

    parts = {split: Counter[str]() for split in ("train", "validation")}
    for file in sorted((job.work / "write").glob("*/report.json")):
        for split, counts in read_json(file).items():
            for key, count in counts.items():
                what, source = key.split(" ", 1)
                parts[split][what] += count
                funnel.kept[source] += count if what == "documents" else 0
    taken = taken_sentences(job)
    if taken is not None:
        left, left_characters = (sum(part[what] for part in parts.values()) for what in ("documents", "characters"))
        funnel.step("repeated_sentences", left, left_characters)
    check_parts(
        parts["train"]["documents"], parts["validation"]["documents"], job.settings.validation_fraction, "documents"
    )
    manifest = funnel.manifest(
        *({"documents": part["documents"], "characters": part["characters"]} for part in parts.values())
    )
    write_jsonl(directory / "dropped.jsonl", funnel.samples())
    removed: Counter[str] = Counter()
    for report in signed:
        removed.update(report["removed"])
    manifest["boilerplate"] = {
        "documents": sum(report["changed"] for report in signed),
        "characters": sum(len(line) * count for line, count in removed.items()),
        "lines": [{"line": line, "count": count} for line, count in removed.most_common(SHOWN)],
    }
    if taken is not None:
        manifest["sentences"] = taken
    contamination = job.contamination()
    if contamination:
        for file in sorted((job.work / "sign").glob("*/contamination.json")):
            contamination.absorb(file.with_suffix(""))
        manifest["contamination"] = contamination.summary()
    manifest["changed"] = what_changed(reports, "documents")
    return manifest
