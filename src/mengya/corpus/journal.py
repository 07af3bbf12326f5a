"""The finished steps of a long job in a directory, so that a killed one goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mengya.files import atomic_path, read_json, remove_partials, write_json

Arrays = dict[str, npt.NDArray[Any]]


class Journal:
    """Steps of arrays by name, numbered as they were appended; each file is whole or absent.

    `identity` (JSON) says which job this is: what another job left in the directory is removed.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self.directory = directory
        job = directory / "job.json"
        if directory.exists() and not (job.exists() and read_json(job) == identity):
            shutil.rmtree(directory)
        if not directory.exists():
            directory.mkdir(parents=True)
            write_json(job, identity)
        remove_partials(directory)
        self._next: dict[str, int] = {}

    def read(self, name: str) -> Iterator[Arrays]:
        """The steps of `name` that are finished, in order; then `append` goes on after the last."""
        for number in count():
            self._next[name] = number
            path = self._path(name, number)
            if not path.exists():
                return
            with np.load(path) as arrays:
                yield dict(arrays)

    def append(self, name: str, arrays: Arrays) -> None:
        """One more step is finished; those before must have been read."""
        with atomic_path(self._path(name, self._next[name])) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._next[name] += 1

    def remove(self) -> None:
        shutil.rmtree(self.directory)

    def _path(self, name: str, number: int) -> Path:
        return self.directory / f"{name}-{number:05d}.npz"
