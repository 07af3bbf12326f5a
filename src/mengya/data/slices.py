"""Numbers read from files where they are asked for, never mapped: resident memory stays flat over any amount of data.

A page of a mapping that was once touched stays in the process's resident memory, so a pass over 20 GB of shards would
count as 20 GB; read with `pread`, the same pages stay in the system's cache alone. A file that shrinks under a mapping
kills the process with SIGBUS; here it is an error that names the file.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mengya.errors import UserError

_MOST_OPEN = 256
"""Files that one reader holds open: 20 GB are some 600 shards, and a process may often open no more than 1,024."""


class FileReader:
    """Bytes of several files by number, position and size; safe to use from several threads."""

    def __init__(self, files: Sequence[Path], mend: str) -> None:
        self._files, self._mend = list(files), mend
        self._open: OrderedDict[int, int] = OrderedDict()  # the least recently read first
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; UserError where the file has fewer, or is gone."""
        with self._lock:
            descriptor = self._open.get(number)
            try:
                if descriptor is None:
                    if len(self._open) >= _MOST_OPEN:
                        os.close(self._open.popitem(last=False)[1])
                    descriptor = self._open[number] = os.open(self._files[number], os.O_RDONLY | os.O_CLOEXEC)
                else:
                    self._open.move_to_end(number)
                found = os.pread(descriptor, size, offset)
                while 0 < len(found) < size:  # Linux gives at most 2 GiB at once
                    more = os.pread(descriptor, size - len(found), offset + len(found))
                    if not more:
                        break
                    found += more
            except FileNotFoundError:
                raise UserError("this file is no longer there", where=self._files[number], mend=self._mend) from None
        if len(found) != size:
            raise UserError("this file has been cut since it was opened", where=self._files[number], mend=self._mend)
        return found

    def numbers(self, number: int, dtype: np.dtype[Any], base: int, first: int, stop: int) -> np.ndarray:
        """The numbers first … stop - 1 of those that begin at byte `base`."""
        count = max(0, stop - first)
        return np.frombuffer(self.read(number, base + first * dtype.itemsize, count * dtype.itemsize), dtype)


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def npy_start(file: Path, shape: tuple[int, ...], mend: str) -> int:
    """Where the int64 numbers of a .npy file begin, in bytes; UserError unless it is whole and of this shape."""
    try:
        with open(file, "rb") as handle:
            version = np.lib.format.read_magic(handle)
            if version != (1, 0):
                raise ValueError(f"version {version} of the format")
            found, by_columns, dtype = np.lib.format.read_array_header_1_0(handle)
            start = handle.tell()
            size = handle.seek(0, os.SEEK_END)
    except (ValueError, EOFError) as error:
        raise UserError(f"damaged ({error})", where=file, mend=mend) from error
    if found != shape or dtype != np.dtype("<i8") or (by_columns and len(shape) > 1):
        raise UserError(f"{dtype} of shape {found} where the index says {shape}", where=file, mend=mend)
    expected = start + int(np.prod(shape)) * 8
    if size != expected:
        raise UserError(f"damaged ({size} bytes instead of {expected})", where=file, mend=mend)
    return start


class Column:
    """Numbers on disk that are read by the slice: len(), column[first:stop], or all of them by numpy.asarray()."""

    def __init__(self, length: int, read: Callable[[int, int], np.ndarray]) -> None:
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, chosen: slice) -> np.ndarray:
        first, stop, step = chosen.indices(self._length)
        assert step == 1
        return self._read(first, max(first, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)
