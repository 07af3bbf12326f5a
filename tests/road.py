"""The command line as a user calls it, in a process of its own, on the recipe that walks the whole road in seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TINY = REPOSITORY / "tests" / "e2e" / "tiny.yaml"
STAGES = ("corpus", "tokenizer", "shards", "pretrain", "sft", "reward", "dpo", "ppo", "evaluate")
MODEL_STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
GRPO = ("--set", f"grpo.rewards=[{{kind: function, function: '{TINY.parent / 'reward.py'}:score'}}]")
"""The reward of the user's own by which the tests have GRPO done: `mengya grpo TINY --out RUN *GRPO`."""
_LONGEST = 300.0
"""Seconds; a hang is a failure, not a night."""


def _environment() -> dict[str, str]:
    # Two xdist workers share two cores; threads that spin while they wait would take them from each other.
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "mengya", *map(str, arguments)]


def mengya(*arguments: object, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`mengya ARGUMENTS…`, finished: returncode, stdout, stderr."""
    return subprocess.run(
        _command(arguments),
        cwd=cwd,
        env=_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_LONGEST,
    )


class Started:
    """`mengya ARGUMENTS…`, under way in a session of its own, so that the whole group can be watched and ended."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            _command(arguments),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether `reached` came true before the process ended."""
        deadline = time.monotonic() + _LONGEST
        while not reached():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """`kill -9` of the command itself; its helpers are left to notice."""
        self.process.kill()
        self.process.wait()

    def send(self, number: signal.Signals) -> tuple[int, str]:
        """(exit code, stderr) after the signal."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=_LONGEST)
        return self.process.returncode, stderr

    def finish(self) -> tuple[int, str]:
        """(exit code, stderr) at its own end."""
        _, stderr = self.process.communicate(timeout=_LONGEST)
        return self.process.returncode, stderr

    def helpers_end(self, seconds: float = 20.0) -> bool:
        """Whether all processes that the command started are gone within `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stderr is not None:
            self.process.stderr.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def killed_and_resumed(recipe: Path, run: Path, completions: Path) -> None:
    """`mengya run` killed as soon as a task of a phase is marked in `completions`, then run to its end: no task done twice."""

    def done() -> dict[str, int]:
        """Finished tasks of the phase, and when each was."""
        return {path.name: path.stat().st_mtime_ns for path in completions.glob("*")}

    with Started("run", recipe, "--out", run) as started:
        assert started.wait_until(lambda: bool(done())), "the run ended before the phase came"
        started.kill()
        assert started.helpers_end(), "a worker outlives the killed run"
    before = done()
    with Started("run", recipe, "--out", run) as started:
        started.wait_until(lambda: len(done()) > len(before))
        assert {task: when for task, when in done().items() if task in before} == before
        code, stderr = started.finish()
    assert code == 0, stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_digests(run: Path) -> dict[str, str]:
    """SHA-256 of the weights of every stage that has any."""
    files = {stage: run / stage / "model" / "model.safetensors" for stage in MODEL_STAGES}
    return {stage: digest(file) for stage, file in files.items() if file.exists()}


def manifests(run: Path) -> dict[str, bytes]:
    """The manifests of finished stages, byte for byte."""
    return {stage: (run / stage / "manifest.json").read_bytes() for stage in STAGES if is_done(run, stage)}


def is_done(run: Path, stage: str) -> bool:
    return (run / stage / "manifest.json").exists()


def the_only_line(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that the user's mistake ended: one line, no traceback, exit code 2."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mengya: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0], done.stderr
    return lines[0]
