"""The public datasets by name, and what `{dataset: NAME}` in a recipe stands for: their format, and their files here.

A dataset lives under the data home in a folder of its name, beside a SOURCE.json that says where each file came from.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mengya.corpus.catalogue_instruction import INSTRUCTION
from mengya.corpus.catalogue_medicine import MEDICINE
from mengya.corpus.catalogue_preference import PREFERENCES
from mengya.corpus.catalogue_pretraining import PRETRAINING
from mengya.corpus.dataset import Dataset
from mengya.corpus.sources import SOURCE_FILE, list_files
from mengya.errors import UserError
from mengya.files import read_json
from mengya.settings import Source

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {dataset.name: dataset for dataset in (*PRETRAINING, *INSTRUCTION, *MEDICINE, *PREFERENCES)}
)


def data_home() -> Path:
    """$MENGYA_DATA_HOME, else ~/.cache/mengya/data."""
    home = os.environ.get("MENGYA_DATA_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "mengya" / "data"


def find(name: str, where: object = None) -> Dataset:
    """The dataset of that name; case, `_` and `/` for `-` are forgiven. UserError: none, with the nearest names."""
    key = name.strip().lower().replace("_", "-").replace("/", "-")
    dataset = DATASETS.get(key)
    if dataset is None:
        close = difflib.get_close_matches(key, DATASETS, n=3, cutoff=0.5)
        mend = f"did you mean {' or '.join(map(repr, close))}?" if close else "`mengya data list` shows all"
        raise UserError(f"no dataset {name!r} in the catalogue", where=where, mend=mend)
    return dataset


def how_to_get(dataset: Dataset) -> str:
    """What a user does to have its files: an instruction for a message."""
    if dataset.huggingface or dataset.modelscope:
        return f"run `mengya data get {dataset.name}`"
    if dataset.kind == "tokens":
        return f"get them from {dataset.homepage} and name them in `shards.token_files`"
    return f"get it from {dataset.homepage} and say `path:` beside `dataset:`"


def completed(source: Source) -> Source:
    """`source` with its dataset's format and columns where it says none of its own; as it is without a dataset."""
    if source.dataset is None:
        return source
    dataset = find(source.dataset)
    if source.format is not None:
        return source  # another format has columns of its own
    return source.model_copy(
        update={"format": dataset.format, "columns": {**dataset.columns, **source.columns}},
    )


def source_files(source: Source, where: object = None) -> list[Path]:
    """The files of a source, sorted: those of its `path`, or those that `mengya data get` left for its dataset.

    With `dataset` and a folder as `path`, those of the folder's files that are the dataset's. UserError, which names
    `where` (the recipe's key): no such file; a dataset unknown, not downloaded, half downloaded, or altered since.
    """
    if source.dataset is None:
        assert source.path is not None, "checked with the recipe"
        return list_files(source.path)
    dataset = find(source.dataset, where)
    if source.path is not None:
        return _files_in(dataset, Path(source.path), where)
    return _downloaded(dataset, where)


def check(source: Source, kind: str, where: str) -> None:
    """UserError where a recipe's `{dataset: …}` is of another kind than its section (`kind`), or has no files here."""
    assert source.dataset is not None
    dataset = find(source.dataset, f"{where}.dataset")
    if dataset.kind == "tokens":
        raise UserError(
            f"{dataset.name} is token ids, not text",
            where=f"{where}.dataset",
            mend="name its files in `shards.token_files`",
        )
    if dataset.kind != kind:
        raise UserError(
            f"{dataset.name} holds {dataset.kind}s, not {kind}s",
            where=f"{where}.dataset",
            mend=f"put it under corpus.{_SECTIONS[dataset.kind]}",
        )
    source_files(source, f"{where}.dataset")


_SECTIONS = {"document": "documents", "conversation": "conversations", "preference": "preferences"}


def _files_in(dataset: Dataset, path: Path, where: object) -> list[Path]:
    if not path.is_dir():
        return list_files(path)
    files = [file for file in path.rglob("*") if file.is_file() and dataset.holds(file.relative_to(path).as_posix())]
    files = [file for file in files if file.name != SOURCE_FILE and not file.name.startswith(".")]
    if not files:
        raise UserError(
            f"no file of {dataset.name} in {path} ({', '.join(dataset.files)})",
            where=where,
            mend="give the file itself as `path:`, or leave `dataset:` out and say `format:`",
        )
    return sorted(files)


def read_source(directory: Path) -> dict[str, Any] | None:
    """What SOURCE.json of a download says, None where there is none; UserError where it cannot be read."""
    path = directory / SOURCE_FILE
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if not _is_record(found):
        raise UserError("not a record of a download", where=path, mend="remove it and download again")
    return dict(found)


def _is_record(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("complete"), bool):
        return False
    files = found.get("files")
    return isinstance(files, list) and all(
        isinstance(file, dict) and isinstance(file.get("path"), str) and isinstance(file.get("bytes"), int)
        for file in files
    )


def _downloaded(dataset: Dataset, where: object) -> list[Path]:
    directory = data_home() / dataset.name
    record = read_source(directory)
    if record is None:
        raise UserError(f"{dataset.name} is not downloaded (no {directory})", where=where, mend=how_to_get(dataset))
    if not record["complete"]:
        raise UserError(f"the download of {dataset.name} is not finished", where=where, mend=how_to_get(dataset))
    files = []
    for entry in record["files"]:
        file = directory / entry["path"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            what = "is missing" if not file.is_file() else f"is no longer {entry['bytes']:,} bytes long"
            raise UserError(f"{file} {what}", where=where, mend=how_to_get(dataset))
        files.append(file)
    return sorted(files)
