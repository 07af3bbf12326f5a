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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from mengya.console import say
from mengya.corpus.blocks import Cleaner, PartsWriter, Reader
from mengya.corpus.boilerplate import Boilerplate
from mengya.corpus.dedup import exact_key, find_duplicates, write_signatures
from mengya.corpus.funnel import Drop, Funnel, Manifest
from mengya.corpus.inputs import Input
from mengya.corpus.parts import PartIndex, PartWriter, RowsWriter, list_parts, read_part, read_zst, write_zst
from mengya.corpus.phases import PhaseResult, run_phase
from mengya.corpus.records import to_row
from mengya.corpus.rules import too_short
from mengya.corpus.split import check_parts, in_validation
from mengya.corpus.streams import Rejects
from mengya.files import atomic_directory, atomic_path, read_json, write_json, write_jsonl
from mengya.settings import CorpusSettings

_DUPLICATES = "duplicates.npz"
_KEY_SLICES = 16
_COMMONEST = 20  # boilerplate lines shown
_EXAMPLES = 5  # of what a transformation changed
_KINDS = ("", "exact_duplicate", "near_duplicate")


@dataclass(frozen=True)
class Job:
    """What every phase needs to know; it travels to the workers."""

    work: Path
    settings: CorpusSettings
    seed: int

    def clean_directory(self, task: int) -> Path:
        return self.work / "clean" / f"{task:05d}"

    @property
    def cleaned(self) -> list[Path]:
        return list_parts(self.work / "clean")

    @property
    def signed(self) -> list[Path]:
        return list_parts(self.work / "sign")


# --- clean ------------------------------------------------------------------------------------------------------------


def _clean_pipeline(task: int, job: Job, inputs: Sequence[Input]) -> list[PipelineStep]:
    reader = Reader(inputs[task])
    cleaner = Cleaner(job.settings.cleaning(inputs[task].rules))
    return [reader, cleaner, PartsWriter(job.clean_directory(task), reader, cleaner, job.settings.part_characters)]


class _OnPart(PipelineStep):
    """A phase's function on the part of the task's number."""

    type = "mengya"

    def __init__(self, function: Any, job: Job) -> None:
        self.name = function.__name__.strip("_").replace("_", " ")
        super().__init__()
        self.function, self.job = function, job

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.function(rank, self.job)
        yield from ()


def _part_pipeline(task: int, function: Any, job: Job) -> list[PipelineStep]:
    return [_OnPart(function, job)]


# --- count ------------------------------------------------------------------------------------------------------------


def _count_lines(part: int, job: Job) -> None:
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


def _find_firsts(job: Job) -> None:
    """first.npz: bool over all cleaned documents, whether none before has the same canonical text."""
    keys = np.concatenate([np.load(part.with_suffix(".key.npy")) for part in job.cleaned])
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    _save(job.work / "first.npz", first=first)


def _add_up_lines(job: Job) -> None:
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
    _save(job.work / "lines.npz", **arrays)


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


def _save(path: Path, **arrays: Any) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


# --- sign -------------------------------------------------------------------------------------------------------------


def _strip_and_sign(part: int, job: Job) -> None:
    """A part without its boilerplate, and the signatures of its documents."""
    boilerplate = _boilerplate(job)
    removed: Counter[str] = Counter()
    drops: list[dict[str, Any]] = []
    num_changed = 0
    with atomic_directory(job.work / "sign" / f"{part:05d}") as directory:
        with PartWriter(directory, part_characters=1 << 62) as writer:
            for document in read_part(job.cleaned[part]):
                text, lines = boilerplate.strip(document.source, document.text)
                removed.update(lines)
                num_changed += bool(lines)
                if lines and too_short(text, job.settings):
                    drops.append(asdict(Drop.of(document, "boilerplate")))
                else:
                    writer.write(replace(document, text=text))
        if writer.num_documents:
            write_signatures((d.text for d in read_part(directory / "part-000.jsonl")), directory / "part-000")
        write_zst(directory / "drops.jsonl.zst", drops)
        report = {
            "documents": writer.num_documents,
            "characters": writer.num_characters,
            "changed": num_changed,
            "removed": dict(removed),
        }
        write_json(directory / "report.json", report)


# --- compare ----------------------------------------------------------------------------------------------------------


def _compare(job: Job) -> None:
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
    _save(
        job.work / _DUPLICATES,
        index=np.array([duplicate.index for duplicate in found], dtype=np.int64),
        of=np.array([duplicate.of for duplicate in found], dtype=np.int64),
        kind=np.array([_KINDS.index(duplicate.kind) for duplicate in found], dtype=np.int8),
        similarity=np.array([duplicate.similarity for duplicate in found], dtype=np.float64),
    )


# --- write ------------------------------------------------------------------------------------------------------------


def _write_split(part: int, job: Job) -> None:
    """A part's documents that are left, split, and its duplicates with the origin of their twin."""
    index = PartIndex.of(job.signed)
    numbers = index.slice_of(part)
    with np.load(job.work / _DUPLICATES) as found:
        low, high = np.searchsorted(found["index"], (numbers.start, numbers.stop))
        mine = {name: found[name][low:high] for name in found.files}
    twins = {
        int(number): (index[int(of)].origin, _KINDS[kind], float(similarity))
        for number, of, kind, similarity in zip(
            mine["index"], mine["of"], mine["kind"], mine["similarity"], strict=True
        )
    }
    counts = {"train": Counter[str](), "validation": Counter[str]()}
    with atomic_directory(job.work / "write" / f"{part:05d}") as directory, ExitStack() as files:
        writers = {
            name: files.enter_context(RowsWriter(directory / f"{name}.jsonl.zst")) for name in (*counts, "drops")
        }
        for number, document in enumerate(read_part(job.signed[part]), numbers.start):
            if number in twins:
                origin, kind, similarity = twins[number]
                writers["drops"].write(asdict(Drop.of(document, kind, origin, similarity)))
                continue
            held_out = in_validation(exact_key(document.text), job.settings.validation_fraction, job.seed)
            split = "validation" if held_out else "train"
            writers[split].write(to_row(document))
            counts[split].update(
                {f"documents {document.source}": 1, f"characters {document.source}": len(document.text)}
            )
        files.close()  # before the directory appears
        write_json(directory / "report.json", {split: dict(count) for split, count in counts.items()})


# --- all of it --------------------------------------------------------------------------------------------------------


def build_documents(
    inputs: Sequence[Input], settings: CorpusSettings, seed: int, directory: Path, *, work: Path, rejects: Rejects
) -> tuple[Manifest, Counter[str]]:
    """(manifest, what was mended) of the corpus that now stands in `directory`; `rejects` gets what was unreadable.

    The manifest has the shape that `funnel` describes, with "boilerplate" {"documents", "characters", "lines"},
    "changed" {transformation: {"documents", "examples"}} and "speeds" {phase: {"documents", "seconds"}}. UserError when
    nothing is left, nothing is held out, or too much could not be read. `all_drops(work)` gives every drop until `work` is removed.
    """
    job = Job(work, settings, seed)
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

    phase("clean", partial(_clean_pipeline, job=job, inputs=inputs), len(inputs))
    reports = [read_json(job.clean_directory(task) / "report.json") for task in range(len(inputs))]
    repairs = Counter[str]()
    for report in reports:
        rejects.absorb(report["rejects"])
        repairs.update(report["repairs"])
    rejects.check(settings.max_reject_share)  # before hours are spent on what is left
    if job.cleaned:
        if not (work / "lines.npz").exists():
            _find_firsts(job)
        phase("count", partial(_part_pipeline, function=_count_lines, job=job), len(job.cleaned))
        once("add up", "lines.npz", _add_up_lines)
        phase("sign", partial(_part_pipeline, function=_strip_and_sign, job=job), len(job.cleaned))
        once("compare", _DUPLICATES, _compare)
        phase("write", partial(_part_pipeline, function=_write_split, job=job), len(job.signed))
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
    """Say how fast a phase went; of one that was done before there is nothing to say."""
    if not result.num_run:
        return
    speeds[name] = {"documents": num_documents, "seconds": round(result.seconds, 3)}
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
    late = ("boilerplate", "exact_duplicate", "near_duplicate")
    left = total["read"] - sum(drop["documents"] for reason, drop in funnel.dropped.items() if reason not in late)
    left_characters = sum(report["kept_characters"] for report in reports)
    funnel.step("read", total["read"], total["read_characters"])
    funnel.step("normalise", total["read"], total["normal_characters"])
    funnel.step("rules", left, left_characters)
    left, left_characters = (
        sum(report["documents"] for report in signed),
        sum(report["characters"] for report in signed),
    )
    funnel.step("boilerplate", left, left_characters)
    for kind in _KINDS[1:]:
        gone = funnel.dropped.get(kind, {"documents": 0, "characters": 0})
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
