"""Ctrl-C and SIGTERM in a training: heard between two steps, so that what is saved is whole."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM wait for the end of the step; the callable says whether one came."""
    came: list[int] = []
    try:
        old = {s: signal.signal(s, lambda number, _: came.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        old = {}
    try:
        yield lambda: bool(came)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
