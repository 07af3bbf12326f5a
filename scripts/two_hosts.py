"""Two hosts for real: two network namespaces joined by a cable (veth), torchrun's rendezvous between them, the cable cut.

    sudo python scripts/two_hosts.py [--work DIR] [--shard 2]

Needs root and iproute2; it leaves no namespace behind. One run of tests/e2e/tiny.yaml, pretraining and SFT, on two hosts of
one rank each, three times:

1. undisturbed;
2. the link down for 4 s in mid-training, less than a collective waits: training stands still and goes on, nobody restarts;
3. the link down for 40 s, more than a collective waits (`parallel.timeout_seconds`): both ranks give up, the link is healed,
   the hosts meet again and go on from the last checkpoint. An agent that lost its rendezvous is started again, as systemd
   or Slurm would (`--requeue`).

Exit code 0 when all three leave the same weights, byte for byte, and the second took no restart; else 1. Both hosts
see one file system, as a cluster's do.
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
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from torchrun_trials import copy_start, digests, end, environment, last_step, mengya, prepare, wait_for

LONGEST = 400.0
HOSTS = ("a", "b")
ADDRESS = {"a": "10.213.47.1", "b": "10.213.47.2"}
PORT = 29471


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def namespace(host: str) -> str:
    return f"mengya-{host}"


def cable(host: str) -> str:
    return f"mengya-veth-{host}"


@contextmanager
def two_hosts():
    """Two namespaces, each with its end of the cable; removed at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the namespaces would stay
    try:
        for host in HOSTS:
            ip("netns", "delete", namespace(host), check=False)
            ip("netns", "add", namespace(host))
        ip(
            "link",
            "add",
            cable("a"),
            "netns",
            namespace("a"),
            "type",
            "veth",
            "peer",
            cable("b"),
            "netns",
            namespace("b"),
        )
        for host in HOSTS:
            ip("-n", namespace(host), "address", "add", f"{ADDRESS[host]}/24", "dev", cable(host))
            for device in ("lo", cable(host)):
                ip("-n", namespace(host), "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "delete", namespace(host), check=False)


def set_link(state: str) -> None:
    ip("-n", namespace("b"), "link", "set", cable("b"), state)


class Agent:
    """torchrun on one host, started again when it fails, as a supervisor would."""

    def __init__(self, host: str, run: Path, settings: list[str]) -> None:
        self.host, self.run, self.settings = host, run, settings
        self.log = open(run / f"host-{host}.log", "a")  # noqa: SIM115 - open as long as the commands
        self.num_starts = 0
        self.start()

    def start(self) -> None:
        self.num_starts += 1
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESS['a']}:{PORT}", "--rdzv-id", self.run.name]
        torchrun += ["--rdzv-conf", f"is_host={int(self.host == 'a')},join_timeout=300,read_timeout=30"]
        torchrun += ["--local-addr", ADDRESS[self.host], "--max-restarts", "3"]
        command = [*torchrun, "-m", *mengya("pretrain,sft", self.run, *self.settings)]
        # A store of its own for each meeting: an agent that is started again counts its restarts from 0, and torchrun's
        # shared store would let the hosts look for each other under different keys.
        variables = {"GLOO_SOCKET_IFNAME": cable(self.host), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace(self.host), *command],
            env=environment(**variables),
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def done(self) -> bool:
        """Whether it has succeeded; it is started again where it has failed."""
        code = self.process.poll()
        if code not in (None, 0):
            assert self.num_starts < 6, f"host {self.host} fails again and again, see {self.log.name}"
            self.start()
        return code == 0

    def restarts(self) -> int:
        # By what the workers say: torchrun tells of a restarted group at a log level that few see.
        return self.num_starts - 1 + Path(self.log.name).read_text().count("lost contact with another rank")


def trial(run: Path, settings: list[str], disturb: Callable[[list[Agent]], None] | None = None) -> int:
    """The run on both hosts, disturbed once; how often a group or an agent was started again."""
    began = time.monotonic()
    agents = [Agent(host, run, settings) for host in HOSTS]
    try:
        if disturb is not None:
            disturb(agents)
        deadline = time.monotonic() + LONGEST
        while sum(agent.done() for agent in agents) < len(agents):  # each is looked at, and started again if it failed
            assert time.monotonic() < deadline, f"{run.name} hangs, see {run}/host-*.log"
            time.sleep(0.1)
    finally:
        for agent in agents:
            end(agent.process)
    restarts = sum(agent.restarts() for agent in agents)
    print(f"{run.name}: {time.monotonic() - began:.0f} s, {restarts} restarts", flush=True)
    return restarts


def cut(run: Path, seconds: float) -> Callable[[list[Agent]], None]:
    def disturb(agents: list[Agent]) -> None:
        alive = [agent.process for agent in agents]
        wait_for(lambda: last_step(run, "pretrain") > 0, "a checkpoint", LONGEST, *alive)
        set_link("down")
        step = last_step(run, "pretrain")
        print(f"{run.name}: link down after checkpoint {step} for {seconds:.0f} s", flush=True)
        time.sleep(seconds)
        assert last_step(run, "pretrain") <= step + 1, "training went on without the other host"
        set_link("up")

    return disturb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--shard", default="2")
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("this needs root and iproute2 (ip netns)")
    work = Path(tempfile.mkdtemp(prefix="two-hosts-")) if options.work is None else options.work
    settings = [f"parallel.shard={options.shard}", "parallel.timeout_seconds=15", "pretrain.checkpoint_every=1"]
    prepared = work / "prepared"
    prepare(prepared, *settings)
    runs = {name: work / name for name in ("undisturbed", "short-cut", "long-cut")}
    for run in runs.values():
        copy_start(prepared, run)
    restarts = {}
    with two_hosts():
        restarts["undisturbed"] = trial(runs["undisturbed"], settings)
        restarts["short-cut"] = trial(runs["short-cut"], settings, cut(runs["short-cut"], 4))
        restarts["long-cut"] = trial(runs["long-cut"], settings, cut(runs["long-cut"], 40))
    expected = digests(runs["undisturbed"])
    same = {"pretrain", "sft", "pretrain's state"} <= set(expected) and all(
        digests(run) == expected for run in runs.values()
    )
    as_told = restarts["undisturbed"] == restarts["short-cut"] == 0 < restarts["long-cut"]
    for name, run in runs.items():
        print(f"{name}: " + ", ".join(f"{stage} {digest[:16]}" for stage, digest in digests(run).items()))
    print(
        "the same bits" if same else f"NOT the same; see {work}", "" if as_told else f"unexpected restarts: {restarts}"
    )
    if same and as_told and options.work is None:
        shutil.rmtree(work)
    return 0 if same and as_told else 1


if __name__ == "__main__":
    sys.exit(main())
