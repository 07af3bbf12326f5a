"""Settings of every test, and the finished tiny run that many of them look at."""

import fcntl
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from road import GRPO, TINY, mengya

# The same examples each time, and a busy machine fails no deadline.
settings.register_profile("mengya", deadline=None, derandomize=True, database=None)
settings.load_profile("mengya")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, worker_id) -> Path:
    """The finished run of tiny.yaml, to be read only; made once, whichever xdist worker asks first."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    run = shared / "tiny_run"
    with open(shared / "tiny_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "report.html").exists():
            done = mengya("run", TINY, "--out", run)
            assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def tiny_copy(tiny_run, tmp_path) -> Path:
    """A copy of the finished run that the test may spoil."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def grpo_run(tiny_run) -> Path:
    """The finished tiny run with the stage grpo, by a reward function of the user's own; to be read only."""
    run = tiny_run.with_name("grpo_run")
    with open(tiny_run.with_name("grpo_run.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "grpo" / "manifest.json").exists():
            shutil.copytree(tiny_run, run, dirs_exist_ok=True)
            done = mengya("grpo", TINY, "--out", run, *GRPO)
            assert done.returncode == 0, done.stderr
    return run
