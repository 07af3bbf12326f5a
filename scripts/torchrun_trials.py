"""What the trials on many processes share: a recipe that takes long enough to be disturbed, and its weights' hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "tests" / "e2e" / "tiny.yaml"
STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
BEFORE = ("recipe.yaml", "corpus", "tokenizer", "shards")


def environment(**more: str) -> dict[str, str]:
    paths = [str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | more


def mengya(stages: str, out: Path, *settings: str) -> list[str]:
    """Arguments of `python -m`, the same for one process and for many."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    return ["mengya", "run", str(RECIPE), "--out", str(out), "--stages", stages, *chosen]


def prepare(out: Path, *settings: str) -> None:
    """Corpus, tokenizer and shards of a run, by one process: no trial is about them."""
    command = [sys.executable, "-m", *mengya("corpus,tokenizer,shards", out, *settings)]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)


def copy_start(prepared: Path, run: Path) -> None:
    """A run that has what `prepare` made in another."""
    run.mkdir(parents=True)
    for name in BEFORE:
        copy = shutil.copytree if (prepared / name).is_dir() else shutil.copy2
        copy(prepared / name, run / name)


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every stage's model and of its last state, which the guard of PPO cannot replace by an earlier policy."""
    files = {stage: run / stage / "model" / "model.safetensors" for stage in STAGES}
    files |= {
        f"{stage}'s state": run / stage / "checkpoints" / f"step-{last_step(run, stage)}" / "state.safetensors"
        for stage in STAGES
    }
    return {stage: hashlib.sha256(f.read_bytes()).hexdigest() for stage, f in files.items() if f.exists()}


def workers(above: int) -> dict[int, int]:
    """{rank: process id} of the workers that the process `above` started."""
    found = {}
    for directory in Path("/proc").iterdir():
        try:
            fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) != above or fields[0] == "Z":
                continue
            variables = (directory / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(directory.name)
    return found


def last_step(run: Path, stage: str) -> int:
    """The newest checkpoint of a stage; 0 where there is none yet."""
    steps = [int(p.name.removeprefix("step-")) for p in (run / stage / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def wait_for(reached, what: str, seconds: float, *alive: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        for process in alive:
            assert process.poll() is None, f"a process ended ({process.returncode}) before {what}"
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.02)


def _descendants(above: int) -> list[int]:
    children = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((directory / "stat").read_text().rsplit(")", 1)[1].split()[1]) == above:
                children.append(int(directory.name))
    return [pid for child in children for pid in (child, *_descendants(child))]


def end(process: subprocess.Popen) -> None:
    """End a command and all that it started; torchrun's workers lead sessions of their own, so a group is not enough."""
    for pid in (*_descendants(process.pid), process.pid) if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
