"""The steps of one build, one after the other: phases of tasks and what is done once, timed, and told to the user."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from mengya.console import say
from mengya.corpus.phases import PhaseResult, run_phase
from mengya.files import atomic_path
from mengya.settings import ExecutorSettings

_EXAMPLES = 5  # of what a transformation changed


class _OnTask(PipelineStep):
    """A phase's function, called with the task's number and what `job` says."""

    type = "mengya"

    def __init__(self, function: Callable[[int, Any], None], job: Any) -> None:
        self.name = function.__name__.strip("_").replace("_", " ")
        super().__init__()
        self.function, self.job = function, job

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.function(rank, self.job)
        yield from ()


def task_pipeline(task: int, function: Callable[[int, Any], None], job: Any) -> list[PipelineStep]:
    return [_OnTask(function, job)]


class Steps:
    """What has been done of a build under `work`, and how fast: `speeds` {step: {unit: number, "seconds"}}.

    Whatever is on disk is not done again, and not timed.
    """

    def __init__(self, work: Path, settings: ExecutorSettings, unit: str) -> None:
        self.work, self.settings, self.unit = work, settings, unit
        self.speeds: dict[str, dict[str, float]] = {}

    def phase(
        self, name: str, pipeline_of: Callable[[int], Sequence[PipelineStep]], num_tasks: int, count: Callable[[], int]
    ) -> None:
        """Run the tasks of a phase; `count` says afterwards how many records they worked on."""
        result = run_phase(name, pipeline_of, num_tasks, self.settings, self.work / "phases")
        self._note(name, result, num_tasks, count)

    def once(self, name: str, output: str, function: Callable[[], None], count: Callable[[], int]) -> None:
        """Call what makes `output` under `work`, where that is not there."""
        started, is_there = time.monotonic(), (self.work / output).exists()
        if not is_there:
            function()
        self._note(name, PhaseResult(time.monotonic() - started, int(not is_there)), 1, count)

    def _note(self, name: str, result: PhaseResult, num_tasks: int, count: Callable[[], int]) -> None:
        """Say how fast it went, unless it was done before, or is done before a line is read."""
        if not result.num_run:
            return
        number = count()
        self.speeds[name] = {self.unit: number, "seconds": round(result.seconds, 3)}
        if result.seconds < 0.5:
            return
        line = f"corpus: {name}: {number:,} {self.unit} in {result.seconds:.1f} s"
        if result.num_run == num_tasks:
            line += f", {number / max(result.seconds, 1e-9):,.0f} {self.unit}/s"
        else:
            line += f"; {num_tasks - result.num_run} of {num_tasks} tasks were done before"
        say(line)


def save_arrays(path: Path, **arrays: Any) -> None:
    """`path` as an npz of the arrays, whole or absent."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


def what_changed(reports: Iterable[dict[str, Any]], unit: str) -> dict[str, dict[str, Any]]:
    """{transformation: {unit: number, "examples"}}, the commonest first, from the reports of tasks."""
    changed: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for report in reports:
        changed.update(report["changed"])
        for step, found in report["examples"].items():
            examples[step] = [*examples.get(step, []), *found][:_EXAMPLES]
    return {step: {unit: count, "examples": examples[step]} for step, count in changed.most_common()}
