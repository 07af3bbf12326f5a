"""`mengya doctor`: whether this machine is ready, and what to do where it is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_GIB = 2**30
_LEAST_MEMORY_GIB, _LEAST_DISK_GIB = 4, 5


class Finding(NamedTuple):
    """One line: `ok` is None for a remark that needs nothing done."""

    what: str
    ok: bool | None
    text: str
    mend: str = ""


def doctor() -> bool:
    """Print a line for each finding to stdout; whether everything that Mengya needs is there."""
    all_found = findings()
    for finding in all_found:
        mark = {True: "ok", False: "!!", None: "--"}[finding.ok]
        print(f"{mark}  {finding.what:<12} {finding.text}" + (f" — {finding.mend}" if finding.mend else ""))
    return all(finding.ok is not False for finding in all_found)


def findings() -> list[Finding]:
    return [_python(), *_packages(), *_torch(), _memory(), _disk()]


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding("Python", ok, platform.python_version(), "" if ok else "install Python 3.11 or newer")


def _packages() -> list[Finding]:
    """What the installed distribution asks for: its dependencies in one line, its extras in one each."""
    try:
        requirements = metadata.requires("mengya") or []
    except metadata.PackageNotFoundError:
        return [Finding("packages", None, "mengya runs from its source tree", "pip install -e . to check them")]
    groups: dict[str, list[str]] = {"": []}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        assert name, requirement
        groups.setdefault(extra[1] if extra else "", []).append(name[0])
    found = []
    for group, names in groups.items():
        missing = [name for name in names if not _is_installed(name)]
        if not group:
            text = f"{len(names) - len(missing)} of {len(names)} present"
            mend = f"pip install {' '.join(missing)}" if missing else ""
            found.append(Finding("packages", not missing, text, mend))
        else:
            text = f"without {', '.join(missing)}" if missing else "present"
            mend = f"pip install 'mengya[{group}]', if wanted" if missing else ""
            found.append(Finding(f"[{group}]", None if missing else True, text, mend))
    return found


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", False, "absent", "pip install torch")]
    import torch

    found = [Finding("torch", True, torch.__version__)]
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    found.append(Finding("cores", True, f"{usable} usable of {cores}, {threads} threads"))
    flags = _cpu_flags()
    native = [name for name, flag in (("AVX512-BF16", "avx512_bf16"), ("AMX", "amx_bf16")) if flag in flags]
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / _GIB
        found.append(Finding("accelerator", True, f"{torch.cuda.device_count()} × {device}, {memory:.0f} GiB"))
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(Finding("bf16", bf16 or None, "native" if bf16 else "not native: training runs in fp32"))
    else:
        found.append(Finding("accelerator", None, "none; training runs on the CPU"))
        text = f"native ({', '.join(native)})" if native else "not native: training runs in fp32, about half as fast"
        found.append(Finding("bf16", True if native else None, text))
    return found


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    line = next((line for line in path.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    ok = total >= _LEAST_MEMORY_GIB
    mend = "" if ok else f"the quickstart wants {_LEAST_MEMORY_GIB} GiB: close other programs or lower batch_tokens"
    return Finding("memory", ok, f"{total:.1f} GiB", mend)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    ok = free >= _LEAST_DISK_GIB
    return Finding("disk", ok, f"{free:.1f} GiB free here", "" if ok else "free some space, or give another --out")
