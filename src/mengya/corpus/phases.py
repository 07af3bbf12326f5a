"""A phase: one function over numbered tasks, run by datatrove's executors on this machine, on Ray or on Slurm.

The executors bring process pools, queues, completion markers (a finished task is not run again after an interruption)
and statistics; nothing of that is home-made. A task gets its number and leaves files; it returns nothing, for on a
cluster there is nobody to return to. A task's UserError becomes a file, and so reaches the user from any machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import multiprocess.util
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from mengya.errors import UserError
from mengya.files import read_json, write_json
from mengya.settings import ExecutorSettings

PipelineOf = Callable[[int], Sequence[PipelineStep]]
_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class PhaseResult:
    """Seconds of this call, and how many of the phase's tasks it had to run."""

    seconds: float
    num_run: int


class _Task(PipelineStep):
    """The step that datatrove runs: the pipeline of the task's number, with its errors written down."""

    type = "mengya"

    def __init__(self, name: str, pipeline_of: PipelineOf, failures: Path) -> None:
        self.name = name
        super().__init__()
        self.pipeline_of, self.failures = pipeline_of, failures

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        try:
            with self.track_time(unit="task"):
                stream: Any = data
                for step in self.pipeline_of(rank):
                    stream = step(stream, rank, world_size)
                for _ in stream or ():
                    pass
        except UserError as error:
            failure = {"what": error.what, "where": error.where and str(error.where), "mend": error.mend}
            write_json(self.failures / f"{rank:05d}.json", failure)
            raise
        yield from ()


@cache
def _end_with(process: int) -> None:
    """End this worker when the command that started it is gone: kill -9 leaves nobody else to tell it."""

    def watch() -> None:
        while True:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(_WATCH_SECONDS)

    threading.Thread(target=watch, daemon=True).start()


class _Quiet(PipelineExecutor):
    """datatrove's log goes to its files only; the terminal is for what the user can use."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()  # datatrove leaves a handler on stderr behind, which is about to be closed


class _Local(_Quiet, LocalPipelineExecutor):
    main_process: int

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        if os.getpid() != self.main_process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and ends its workers
            os.environ["RAYON_NUM_THREADS"] = "1"  # the processes are the parallelism
            _end_with(self.main_process)
        return super()._run_for_rank(rank, local_rank, node_rank)

    def run(self) -> Any:
        self.main_process = os.getpid()
        # The process that holds the pool's queue is forked: it must not outlive the command either, nor hear its Ctrl-C.
        multiprocess.util.register_after_fork(self, _Local._in_a_child)
        return super().run()

    def _in_a_child(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with(self.main_process)


class _Ray(_Quiet, RayPipelineExecutor):
    pass


class _Slurm(_Quiet, SlurmPipelineExecutor):
    pass


def run_phase(
    name: str, pipeline_of: PipelineOf, num_tasks: int, settings: ExecutorSettings, directory: Path
) -> PhaseResult:
    """Run the tasks 0 … num_tasks - 1 that are not done; `directory` holds markers, logs and statistics.

    `pipeline_of(task)` gives the task's datatrove steps; it must pickle. UserError of a task is raised here, the first
    in the order of the tasks; any other failure of theirs too, as what it was where that is known.
    """
    place = directory / name
    failures = place / "failures"
    for old in failures.glob("*.json"):
        old.unlink()
    logger.remove()
    executor = _executor(name, [_Task(name, pipeline_of, failures)], num_tasks, settings, place)
    waiting = executor.get_incomplete_ranks(range(num_tasks))
    if isinstance(executor, _Local):
        executor.workers = min(executor.workers, len(waiting))
    started = time.monotonic()
    error: Exception | None = None
    if waiting:
        try:
            with _quiet_ray() if settings.executor == "ray" else contextlib.nullcontext():
                executor.run()
            if settings.executor == "slurm":
                _wait_for_slurm(executor, num_tasks, failures, settings)
        except Exception as raised:  # looked at below: what the task itself wrote down says more
            error = raised
    for file in sorted(failures.glob("*.json")):
        raise UserError(**read_json(file))
    if error is not None:
        raise error
    left = executor.get_incomplete_ranks(range(num_tasks))
    if left:
        raise RuntimeError(f"{name}: {len(left)} of {num_tasks} tasks did not finish; see {place / 'logs'}")
    return PhaseResult(time.monotonic() - started, len(waiting))


def _executor(
    name: str, pipeline: list[PipelineStep], num_tasks: int, settings: ExecutorSettings, place: Path
) -> PipelineExecutor:
    if settings.executor == "ray":
        _start_ray(settings.ray_address)
        return _Ray(pipeline, tasks=num_tasks, workers=settings.num_processes, logging_dir=str(place), mem_per_cpu_gb=1)
    if settings.executor == "slurm":
        assert settings.slurm is not None, "the recipe's validation asks for it"
        slurm = settings.slurm
        return _Slurm(
            pipeline,
            tasks=num_tasks,
            workers=settings.num_processes,
            time=slurm.time,
            partition=slurm.partition,
            qos=slurm.qos or "",
            mem_per_cpu_gb=slurm.mem_per_cpu_gb,
            env_command=slurm.env_command,
            sbatch_args=dict(slurm.sbatch_args),
            job_name=f"mengya-{name}",
            logging_dir=str(place),
        )
    return _Local(pipeline, tasks=num_tasks, workers=settings.num_processes, logging_dir=str(place))


# --- Ray --------------------------------------------------------------------------------------------------------------


def _start_ray(address: str | None) -> None:
    try:
        import ray
    except ImportError:
        raise UserError(
            "the package ray is not installed", where="corpus.executor", mend="pip install 'mengya[ray]'"
        ) from None
    if not ray.is_initialized():
        import logging

        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers ({error})",
                where="corpus.ray_address",
                mend="start one with `ray start --head`",
            ) from error


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _wait_for_slurm(executor: PipelineExecutor, num_tasks: int, failures: Path, settings: ExecutorSettings) -> None:
    """Return when all tasks are done, one has failed, or the queue no longer knows the job.

    The jobs do not need this process: stopped here and started again, the same command finds what they finished.
    """
    assert settings.slurm is not None
    while executor.get_incomplete_ranks(range(num_tasks)) and not any(failures.glob("*.json")):
        if not _in_queue(executor.job_id):
            return
        time.sleep(settings.slurm.poll_seconds)


def _in_queue(job: str) -> bool:
    try:
        answer = subprocess.run(["squeue", "-h", "-j", str(job)], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return True  # a controller that does not answer says nothing about the job
    return answer.returncode == 0 and bool(answer.stdout.strip())
