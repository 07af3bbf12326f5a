"""The documents of a corpus are the same bytes wherever they were made and however often the work was cut short."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from mengya.corpus.documents import build_documents
from mengya.corpus.inputs import file_inputs
from mengya.corpus.playground import Playground, generate_documents
from mengya.corpus.streams import Rejects
from mengya.errors import UserError
from mengya.files import sha256
from mengya.settings import CorpusSettings, SlurmSettings, Source
from road import killed_and_resumed, mengya

NUM_FILES = 5
SMALL = {"part_characters": 20_000, "validation_fraction": 0.1}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Files of the playground's documents with its planted dirt, copies lying in other files than their originals."""
    folder = tmp_path_factory.mktemp("texts")
    planted = generate_documents(Playground(seed=5, num_people=20, num_characters=120_000))
    for number in range(NUM_FILES):
        rows = [{"text": plant.document.text} for plant in planted[number::NUM_FILES]]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        lines.insert(3, "{not json")
        (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def built(texts: Path, directory: Path, **settings) -> tuple[str, dict, Rejects]:
    """(SHA-256 of the corpus, its manifest, what was refused)."""
    rejects = Rejects()
    made = directory / "documents"
    made.mkdir(parents=True)
    manifest, _ = build_documents(
        file_inputs(Source(path=str(texts))),
        CorpusSettings(**{**SMALL, **settings}),
        1,
        made,
        work=directory / "work",
        rejects=rejects,
    )
    manifest.pop("speeds")
    return sha256(made), manifest, rejects


@pytest.fixture(scope="module")
def alone(texts, tmp_path_factory) -> tuple[str, dict, Rejects]:
    return built(texts, tmp_path_factory.mktemp("alone"), num_processes=1)


def test_several_files_and_parts_are_really_at_work(alone, texts):
    _, manifest, rejects = alone
    assert rejects.counts == {"invalid_json": NUM_FILES}
    assert manifest["dropped"]["exact_duplicate"]["documents"] > 10
    assert manifest["dropped"]["near_duplicate"]["documents"] > 10
    assert manifest["dropped"]["advertisement"]["documents"] > 0
    assert manifest["boilerplate"]["documents"] > 0


def test_two_processes_make_the_same_corpus_as_one(alone, texts, tmp_path):
    digest, manifest, _ = built(texts, tmp_path, num_processes=2)
    assert (digest, manifest) == (alone[0], alone[1])


def test_a_ray_cluster_of_two_workers_makes_the_same_corpus(texts, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    # Few tasks a phase: for each of them Ray starts a process that imports everything.
    few, size = tmp_path / "texts", 40_000
    few.mkdir()
    for name in ("0.jsonl", "1.jsonl"):
        shutil.copy(texts / name, few)
    digest, manifest, rejects = built(few, tmp_path / "here", num_processes=1, part_characters=size)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        again, same, refused = built(few, tmp_path / "ray", executor="ray", num_processes=2, part_characters=size)
    finally:
        ray.shutdown()
    assert manifest["dropped"]["near_duplicate"]["documents"] > 0
    assert (again, same) == (digest, manifest)
    assert refused.counts == rejects.counts == {"invalid_json": 2}


def _fake_slurm(folder: Path) -> None:
    """sbatch that keeps the script and runs its array here and now; squeue of an empty queue; srun that just runs."""
    sbatch = f"""
        #!{sys.executable}
        import os, re, shutil, subprocess, sys
        from pathlib import Path
        script = Path(sys.argv[-1])
        kept = Path({str(folder)!r}) / f"job-{{len(list(Path({str(folder)!r}).glob('job-*')))}}.sh"
        shutil.copy(script, kept)
        array = re.search(r"--array=0-(\\d+)", script.read_text())
        if array and "launch_pickled_pipeline" in script.read_text():
            for task in range(int(array[1]) + 1):
                subprocess.run(["bash", kept], env={{**os.environ, "SLURM_ARRAY_TASK_ID": str(task),
                    "SLURM_JOB_ID": "7", "SLURM_NODELIST": "here"}}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print("Submitted batch job 7")
    """
    srun = """
        #!/usr/bin/env bash
        while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
        exec "$@"
    """
    for name, script in {
        "sbatch": sbatch,
        "srun": srun,
        "squeue": "#!/bin/sh\n",
        "scontrol": "#!/bin/sh\necho here\n",
    }.items():
        (folder / name).write_text(textwrap.dedent(script).lstrip(), encoding="utf-8")
        (folder / name).chmod(stat.S_IRWXU)


def test_slurm_gets_array_jobs_whose_tasks_make_the_same_corpus(alone, texts, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    _fake_slurm(programs)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    slurm = SlurmSettings(partition="cpu", time="1:00:00", env_command="export MENGYA_TEST=1", poll_seconds=0.1)
    digest, manifest, _ = built(texts, tmp_path, executor="slurm", num_processes=3, slurm=slurm)
    assert (digest, manifest) == (alone[0], alone[1])
    first = (programs / "job-0.sh").read_text()
    for line in (
        "#SBATCH --partition=cpu",
        "#SBATCH --time=1:00:00",
        f"#SBATCH --array=0-{NUM_FILES - 1}%3",
        "#SBATCH --job-name=mengya-clean",
        "export MENGYA_TEST=1",
    ):
        assert line in first


def test_a_users_error_in_a_worker_is_the_users_error(texts, tmp_path):
    folder = shutil.copytree(texts, tmp_path / "texts")
    inputs = file_inputs(Source(path=str(folder)))
    (folder / "3.jsonl").write_bytes(b"")  # emptied after it was looked at
    with pytest.raises(UserError, match=r"3\.jsonl: the file is empty"):
        build_documents(
            inputs,
            CorpusSettings(num_processes=2),
            1,
            tmp_path / "documents",
            work=tmp_path / "work",
            rejects=Rejects(),
        )


@pytest.fixture(scope="module")
def recipe(texts, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "texts.yaml"
    corpus = {"documents": [{"path": str(texts), "format": "text"}], "num_processes": 2, **SMALL}
    file.write_text(yaml.safe_dump({"name": "texts", "stages": ["corpus"], "corpus": corpus}), encoding="utf-8")
    return file


@pytest.mark.parametrize("phase", ["clean", "lines", "sign", "write"])
def test_killed_in_any_phase_only_what_was_under_way_is_done_again(alone, recipe, tmp_path, phase):
    run = tmp_path / "run"
    work = run / "corpus" / "work"
    killed_and_resumed(recipe, run, work / "phases" / {"lines": "count"}.get(phase, phase) / "completions")
    assert sha256(run / "corpus" / "documents") == alone[0]
    assert not work.exists()
    assert "nothing to do" in mengya("run", recipe, "--out", run).stderr
