"""`mengya data list | show | get`: the catalogue in a terminal, and a dataset's files brought here."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mengya.console import Progress, say
from mengya.corpus.catalogue import DATASETS, data_home, find, how_to_get, read_source
from mengya.corpus.dataset import Dataset
from mengya.corpus.download import RemoteFile, fetch
from mengya.corpus.hub import Listing, list_dataset
from mengya.corpus.sources import SOURCE_FILE
from mengya.errors import UserError
from mengya.files import write_json

_TITLES = {"document": "pretraining", "tokens": "tokens", "conversation": "instruction", "preference": "preference"}
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_MEGABYTE = 1 << 20
_SPARE_BYTES = 64 << 20


def _console() -> Console:
    # markup and highlight off: names and notes are data.
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


def in_bytes(count: int) -> str:
    """`512 B`, `1.4 GiB`."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def list_datasets() -> None:
    """Print the catalogue to stdout by kind, one dataset a line, with what is here, the hubs and the licence."""
    console = _console()
    widest = max(map(len, DATASETS))
    for kind, title in _TITLES.items():
        console.print(Text(title, style="bold"))
        for dataset in DATASETS.values():
            if dataset.kind != kind:
                continue
            hubs = [short for short, hub in (("HF", dataset.huggingface), ("MS", dataset.modelscope)) if hub]
            line = f"{dataset.name:<{widest}}  {_state(dataset):<7}  {' '.join(hubs) or 'path:':<5}  {dataset.licence}"
            # On a screen a line is a line; a pipe gets it whole.
            text = Text(line)
            if console.is_terminal:
                text.truncate(console.width, overflow="ellipsis")
            console.print(text)
        console.print()
    console.print(f"HF: Hugging Face, MS: ModelScope, path: yours to fetch. They are put into {data_home()}.")
    console.print("`mengya data show NAME` says more of one, `mengya data get NAME` downloads it.")


def _state(dataset: Dataset) -> str:
    record = read_source(data_home() / dataset.name)
    return "" if record is None else "yes" if record["complete"] else "in part"


def show_dataset(name: str) -> None:
    """Print all that the catalogue knows of a dataset to stdout, and how a recipe names it."""
    dataset = find(name)
    place = data_home() / dataset.name
    record = read_source(place)
    here = f"not here; {how_to_get(dataset)}"
    if record is not None:
        total = sum(file["bytes"] for file in record["files"])
        state = "" if record["complete"] else ", not finished: run the same `mengya data get` again"
        here = f"{place}: {len(record['files'])} files, {in_bytes(total)}"
        if record.get("repository"):
            here += f", from {record.get('from')} {record['repository']}"
        if record.get("revision"):
            here += f" at {record['revision']}"
        here += state
    rows = {
        "name": dataset.name,
        "kind": _TITLES[dataset.kind],
        "format": dataset.format,
        "columns": ", ".join(f"{ours}: {theirs}" for ours, theirs in dataset.columns.items()) or None,
        "files": " ".join(dataset.files),
        "language": dataset.language,
        "size": dataset.size,
        "licence": dataset.licence,
        "huggingface": _repository(dataset),
        "modelscope": dataset.modelscope,
        "homepage": dataset.homepage,
        "note": dataset.note,
        "here": here,
        "recipe": _recipe_line(dataset),
    }
    console = _console()
    for key, value in rows.items():
        if value is not None:
            console.print(Text.assemble((f"{key:<12}", "bold"), str(value)))


def _repository(dataset: Dataset) -> str | None:
    if dataset.huggingface is None:
        return None
    return dataset.huggingface + (" (a model's repository)" if dataset.huggingface_kind == "model" else "")


def _recipe_line(dataset: Dataset) -> str:
    if dataset.kind == "tokens":
        return "shards: {token_files: [PATH, …]}"
    path = "" if dataset.huggingface or dataset.modelscope else ", path: …"
    return f"corpus.{dataset.kind}s: [{{dataset: {dataset.name}{path}}}]"


def get_dataset(
    name: str, origin: str | None = None, to: Path | None = None, only: str | None = None
) -> dict[str, Any]:
    """What SOURCE.json says once the dataset's files are here, each verified; an interrupted call is gone on from.

    `origin`: huggingface, modelscope or a folder; `to`: the folder to put them into, that of the data home when None;
    `only`: a glob, for a part of a large dataset (parts add up). Licence, size and place are said first. UserError:
    what `hub` and `download` raise, and too little free space.
    """
    dataset = find(name)
    listing = list_dataset(dataset, origin, only)
    place = Path(to) if to is not None else data_home() / dataset.name
    sizes = [file.size for file in listing.files]
    total = sum(size or 0 for size in sizes)
    unknown = f" and {sizes.count(None)} files of unknown size" if None in sizes else ""
    say(f"{dataset.name}: {len(sizes)} files, {in_bytes(total)}{unknown}")
    said = f" (its card says: {listing.licence})" if listing.licence else ""
    say(f"licence: {dataset.licence}{said}")
    say(f"from: {listing.origin} {listing.repository}" + (f" at {listing.revision}" if listing.revision else ""))
    say(f"to: {place}")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"cannot make this folder: {why}", where=place, mend="give another --to") from None
    with _locked(place):
        record = _record(dataset, listing, place, whole=only is None)
        _check_space(listing.files, place)
        write_json(place / SOURCE_FILE, record)
        _fetch_all(dataset, listing, place, record, total)
        record["complete"] = True
        write_json(place / SOURCE_FILE, record)
    say(f"{dataset.name} is complete: {len(record['files'])} files in {place}")
    return record


def _record(dataset: Dataset, listing: Listing, place: Path, *, whole: bool) -> dict[str, Any]:
    """The record of a download that begins: with the files of earlier parts, unless the whole is fetched now."""
    earlier = read_source(place) or {"dataset": dataset.name, "files": []}
    if earlier.get("dataset") != dataset.name:
        raise UserError(
            f"this folder holds another dataset, {earlier.get('dataset')}", where=place, mend="give another --to"
        )
    coming = {file.path for file in listing.files}
    kept = [
        file
        for file in earlier["files"]
        if not whole
        and file["path"] not in coming
        and (place / file["path"]).is_file()
        and (place / file["path"]).stat().st_size == file["bytes"]
    ]
    return {
        "dataset": dataset.name,
        "from": listing.origin,
        "repository": listing.repository,
        "revision": listing.revision,
        "licence": listing.licence or dataset.licence,
        "complete": False,
        "files": kept,
    }


def _fetch_all(dataset: Dataset, listing: Listing, place: Path, record: dict[str, Any], total: int) -> None:
    before = 0
    # In megabytes, for a bar of ten digits tells nobody anything.
    with Progress(f"{dataset.name} MB", total=max(1, total // _MEGABYTE)) as bar:

        def show(done: int) -> None:
            bar.update((before + done) // _MEGABYTE)

        for file in listing.files:
            digest = fetch(file, place / file.path, listing.headers, show)
            size = (place / file.path).stat().st_size
            before += size
            entry = {"path": file.path, "bytes": size, "sha256": digest}
            entry |= {"repository": listing.repository, "revision": listing.revision}
            record["files"] = sorted([*record["files"], entry], key=lambda one: str(one["path"]))
            write_json(place / SOURCE_FILE, record)


def _check_space(files: tuple[RemoteFile, ...], place: Path) -> None:
    """UserError when what is still to come does not fit; what an interrupted call left counts as there."""
    needed = 0
    for file in files:
        target = place / file.path
        there = target.stat().st_size if target.is_file() else 0
        if there != file.size and target.parent.is_dir():
            parts = [part for part in target.parent.iterdir() if part.name.startswith(f".{target.name}.")]
            there = sum(part.stat().st_size for part in parts if part.name.endswith(".download"))
        needed += max((file.size or 0) - there, 0)
    free = shutil.disk_usage(place).free
    if needed and needed + _SPARE_BYTES > free:
        raise UserError(
            f"{in_bytes(needed)} to come, {in_bytes(free)} free",
            where=place,
            mend="free some space, say --to another disk, or take a part by --files GLOB",
        )


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with open(place / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "another mengya process downloads into this folder", where=place, mend="wait for it"
            ) from None
        yield
