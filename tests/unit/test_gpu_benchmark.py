"""The script that measures a GPU, run on a CPU with tiny shapes: so it works when there is a GPU for a few minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_part_runs_without_pydantic():
    """A machine that is lent for an hour has torch, and perhaps not what recipes are read with."""
    pytest.importorskip("transformers")
    script = ROOT / "benchmarks" / "gpu.py"
    run = "import runpy, sys; sys.modules['pydantic'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = {[str(script), '--tiny', '--device', 'cpu']}; {run}"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{script.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads(found.stdout.splitlines()[-1])
    assert not [part for part, result in results.items() if "failed" in result]
    assert set(results) > {"attention", "waits", "curves", "resume", "0.2b", "generation", "8gb", "1.1b"}
    assert results["resume"]["same_bits"]
    assert results["0.2b"]["mengya"]["tokens_per_second"] > 0
    assert results["0.2b"]["transformers"]["tokens_per_second"] > 0
    assert results["generation"]["2"]["mengya"] > 0
