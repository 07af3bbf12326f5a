"""Pretraining documents from their inputs to a finished corpus: parallel, bounded in memory, resumable, explained.

    clean   each input → parts of cleaned documents; what a rule drops, with its reason
    count   each part  → how often its lines stand in documents that are no copies (boilerplate, over a source)
    sign    each part  → boilerplate taken out; signatures for the comparison; overlap with evaluation sets
    compare everything → which documents are copies of which
    write   each part  → train-*.jsonl.zst, validation-*.jsonl.zst

Every step but `compare` is a phase of independent tasks (see `phases`), and every file is whole or absent: after a
kill, the same call redoes only the tasks that were under way. The result depends on the inputs and the settings alone,
not on executors or the number of processes. Working files are under `work` until the corpus is finished.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mengya.console import say
from mengya.corpus.document_phases import (
    DUPLICATES,
    KINDS,
    Job,
    add_up_lines,
    clean_pipeline,
    compare,
    count_lines,
    find_firsts,
    part_pipeline,
    strip_and_sign,
    write_split,
)
from mengya.corpus.funnel import Drop, Funnel, Manifest
from mengya.corpus.inputs import Input
from mengya.corpus.parts import read_zst
from mengya.corpus.phases import PhaseResult, run_phase
from mengya.corpus.split import check_parts
from mengya.corpus.streams import Rejects
from mengya.files import read_json, write_jsonl
from mengya.settings import CorpusSettings

_COMMONEST = 20  # boilerplate lines shown
_EXAMPLES = 5  # of what a transformation changed


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
    "changed" {transformation: {"documents", "examples"}}, "contamination" where `grams` (see Job) are given, and
    "speeds" {phase: {"documents", "seconds"}}. UserError when nothing is left, nothing is held out, or too much could
    not be read. `all_drops(work)` gives every drop until `work` is removed.
    """
    rules = {source.source: settings.cleaning(source.rules) for source in inputs}
    job = Job(work, settings, seed, grams, rules)
    speeds: dict[str, dict[str, float]] = {}

    def phase(name: str, pipeline_of: Any, num_tasks: int) -> None:
        result = run_phase(name, pipeline_of, num_tasks, settings, work / "phases")
        _note(name, result, num_tasks, _num_documents(job, name), speeds)

    def once(name: str, output: str, function: Callable[[Job], None]) -> None:
        started, is_there = time.monotonic(), (work / output).exists()
        if not is_there:
            function(job)
        result = PhaseResult(time.monotonic() - started, int(not is_there))
        _note(name, result, 1, _num_documents(job, name), speeds)

    phase("clean", partial(clean_pipeline, job=job, inputs=inputs), len(inputs))
    reports = [read_json(job.clean_directory(task) / "report.json") for task in range(len(inputs))]
    repairs = Counter[str]()
    for report in reports:
        rejects.absorb(report["rejects"])
        repairs.update(report["repairs"])
    rejects.check(settings.max_reject_share)  # before hours are spent on what is left
    if job.cleaned:
        if not (work / "first.npz").exists():
            find_firsts(job)
        phase("count", partial(part_pipeline, function=count_lines, job=job), len(job.cleaned))
        once("add up", "lines.npz", add_up_lines)
        phase("sign", partial(part_pipeline, function=strip_and_sign, job=job), len(job.cleaned))
        once("compare", DUPLICATES, compare)
        phase("write", partial(part_pipeline, function=write_split, job=job), len(job.signed))
    manifest = _manifest(job, reports, directory)
    manifest["speeds"] = speeds
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


def _note(
    name: str, result: PhaseResult, num_tasks: int, num_documents: int, speeds: dict[str, dict[str, float]]
) -> None:
    """Say how fast a phase went, unless it was done before, or is done before a line is read."""
    if not result.num_run:
        return
    speeds[name] = {"documents": num_documents, "seconds": round(result.seconds, 3)}
    if result.seconds < 0.5:
        return
    line = f"corpus: {name}: {num_documents:,} documents in {result.seconds:.1f} s"
    if result.num_run == num_tasks:
        line += f", {num_documents / max(result.seconds, 1e-9):,.0f} documents/s"
    else:
        line += f"; {num_tasks - result.num_run} of {num_tasks} tasks were done before"
    say(line)


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
    late = ("boilerplate", "contaminated", "exact_duplicate", "near_duplicate")
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
        "lines": [{"line": line, "count": count} for line, count in removed.most_common(_COMMONEST)],
    }
    contamination = job.contamination()
    if contamination:
        for file in sorted((job.work / "sign").glob("*/contamination.json")):
            contamination.absorb(file.with_suffix(""))
        manifest["contamination"] = contamination.summary()
    changed: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for report in reports:
        changed.update(report["changed"])
        for step, found in report["examples"].items():
            examples[step] = [*examples.get(step, []), *found][:_EXAMPLES]
    manifest["changed"] = {
        step: {"documents": count, "examples": examples[step]} for step, count in changed.most_common()
    }
    return manifest
