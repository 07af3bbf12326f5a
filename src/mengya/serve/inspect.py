"""`mengya inspect PATH`: what a run, a stage, a model directory or a file of records holds."""

from __future__ import annotations

from pathlib import Path

from mengya.corpus.sources import is_readable
from mengya.errors import UserError
from mengya.run import Run
from mengya.serve.inspect_data import is_data_directory, print_corpus, print_directory, print_file
from mengya.serve.inspect_page import make_console
from mengya.serve.inspect_run import print_model, print_run, print_stage, stage_state

__all__ = ["inspect", "stage_state"]

_SAMPLE = 5
_CORPUS_SAMPLE = 1  # of each of its three kinds: a stage is one screen or two, a file may be more


def inspect(path: Path | str, sample: int | None = None, seed: int = 0, reason: str | None = None) -> None:
    """Print what is at PATH to stdout; UserError where it is nothing that Mengya writes or reads.

    Of records, `sample` are shown, drawn with `seed`; `reason` shows only what was dropped for it.
    """
    path = Path(path)
    console = make_console()
    if not path.exists():
        raise UserError("no such file or directory", where=path, mend="give a run, a stage, a model or a file of data")
    is_stage = (path / "manifest.json").is_file() or (path / "started.json").is_file()
    is_data = (
        is_data_directory(path)
        or (path.is_file() and is_readable(path))
        or (path / "documents").is_dir()
        or (path / "pairs").is_dir()
    )
    if reason is not None and not is_data:
        raise UserError(
            "only what was dropped has a reason",
            where=path,
            mend="give RUN/corpus, RUN/preferences, a directory in them, or a dropped.jsonl",
        )
    if (path / "recipe.yaml").is_file():
        print_run(console, Run.open(path))
    elif is_stage:
        if reason is None:
            print_stage(console, path)
        if (path / "documents").is_dir():
            print_corpus(console, path, _CORPUS_SAMPLE if sample is None else sample, seed, reason)
        elif is_data_directory(path / "pairs"):
            print_directory(console, path / "pairs", _SAMPLE if sample is None else sample, seed, reason)
    elif (path / "config.json").is_file():
        print_model(console, path)
    elif is_data_directory(path):
        print_directory(console, path, _SAMPLE if sample is None else sample, seed, reason)
    elif path.is_file() and is_readable(path):
        if path.stat().st_size == 0:
            raise UserError("an empty file", where=path, mend="nothing to see; was its stage interrupted?")
        print_file(console, path, _SAMPLE if sample is None else sample, seed, reason)
    else:
        raise UserError(
            "neither a run, a stage, a model directory nor a file of records (jsonl, json, csv, tsv, parquet)",
            where=path,
            mend="a run has recipe.yaml, a stage manifest.json, a model config.json",
        )
