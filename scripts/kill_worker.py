"""A worker is killed with -9 in the middle of a stage: the group restarts from the last checkpoint, with the same bits.

    python scripts/kill_worker.py [--ranks 2] [--stages pretrain,sft,ppo] [--shard 1] [--work DIR]

Two runs of tests/e2e/tiny.yaml under `torchrun --max-restarts 3`, the second with one worker killed in each of up to three
stages, once rank 0 and once another. Exit code 0 when every stage's weights are the same bytes in both, else 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torchrun_trials import (
    STAGES,
    copy_start,
    digests,
    end,
    environment,
    last_step,
    mengya,
    prepare,
    wait_for,
    workers,
)

LONGEST = 600.0
"""Seconds; a hang is a failure."""


def start(run: Path, ranks: int, stages: str, settings: list[str]) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, "--max-restarts", "3", "-m", *mengya(stages, run, *settings)]
    log = open(run / "torchrun.log", "w")  # noqa: SIM115 - open as long as the command
    return subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", default="pretrain,sft,ppo", help="at most three, for three restarts are allowed")
    parser.add_argument("--shard", default="1")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kill-worker-")) if options.work is None else options.work
    work.mkdir(parents=True, exist_ok=True)
    settings = [f"parallel.shard={options.shard}", "pretrain.checkpoint_every=2", "reward.epochs=0.3"]
    undisturbed, disturbed = work / "undisturbed", work / "disturbed"
    prepare(undisturbed, *settings)
    copy_start(undisturbed, disturbed)
    stages = options.stages.split(",")
    all_stages = ",".join(s for s in STAGES if s in stages or (s == "reward" and "ppo" in stages))

    began = time.monotonic()
    torchrun = start(undisturbed, options.ranks, all_stages, settings)
    assert torchrun.wait(LONGEST) == 0, f"the undisturbed run failed, see {undisturbed}/torchrun.log"
    print(f"undisturbed: {time.monotonic() - began:.0f} s")

    began = time.monotonic()
    torchrun = start(disturbed, options.ranks, all_stages, settings)
    try:
        for number, stage in enumerate(stages):
            wait_for(lambda stage=stage: last_step(disturbed, stage) > 0, f"a checkpoint of {stage}", LONGEST, torchrun)
            rank = number % 2 * (options.ranks - 1)
            step, victim = last_step(disturbed, stage), workers(torchrun.pid)[rank]
            os.kill(victim, signal.SIGKILL)
            print(f"{stage}: rank {rank} (process {victim}) killed after checkpoint {step}")
            wait_for(
                lambda old=victim, rank=rank: workers(torchrun.pid).get(rank, old) != old, "the restart", 120, torchrun
            )
        code = torchrun.wait(LONGEST)
    finally:
        end(torchrun)
    restarts = (disturbed / "torchrun.log").read_text().count("restart")
    print(
        f"disturbed: {time.monotonic() - began:.0f} s, exit code {code}, {len(stages)} kills, {restarts} lines on restarts"
    )
    expected, found = digests(undisturbed), digests(disturbed)
    for stage, digest in expected.items():
        print(f"{stage}: {digest[:16]} {'the same' if found.get(stage) == digest else f'DIFFERENT {found.get(stage)}'}")
    same = code == 0 and expected == found and set(stages) <= set(expected)
    print("the same bits" if same else f"NOT the same; see {work}")
    if same and options.work is None:
        shutil.rmtree(work)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
