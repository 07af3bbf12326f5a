"""The next steps' batches made by a thread while a step runs; the position stays that of what was handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from mengya.data.loader import EpochLoader


class Pinnable(Protocol):
    """Tensors that can be put into memory that a GPU copies from."""

    def pin_memory(self) -> Any: ...


Row = TypeVar("Row")
Batch = TypeVar("Batch", bound=Pinnable)


class Prefetch(Generic[Row, Batch]):
    """The same steps as `loader` gives, `depth` of them made ahead of their use.

    The thread has work only after a step was taken, and never waits for room: dropping this object ends it. An error in
    it is raised where its step would have come. Only what is said here may be asked of the loader meanwhile. `pin`: into
    memory that a GPU copies from while it computes; without, a step's copies would wait for all that is queued.
    """

    def __init__(self, loader: EpochLoader[Row, Batch], depth: int = 1, *, pin: bool = False) -> None:
        assert depth > 0
        self._loader, self._depth, self._pin = loader, depth, pin
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: deque[Future[tuple[list[Batch], dict[str, Any]]]] = deque()
        self._state = loader.state_dict()

    def _make(self) -> tuple[list[Batch], dict[str, Any]]:
        batches = next(self._loader)
        if self._pin:
            batches = [batch.pin_memory() for batch in batches]
        return batches, self._loader.state_dict()

    def _fill(self, depth: int) -> None:
        while len(self._coming) < depth:
            self._coming.append(self._pool.submit(self._make))

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        self._fill(1)
        batches, self._state = self._coming.popleft().result()
        self._fill(self._depth)
        return batches

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; what was made ahead is thrown away."""
        self._drop()
        self._loader.load_state_dict(state)
        self._state = self._loader.state_dict()

    def skip(self, num_steps: int) -> None:
        """Go on by so many steps without reading their data."""
        self._drop()
        self._loader.load_state_dict(self._state)
        self._loader.skip(num_steps)
        self._state = self._loader.state_dict()

    def origin_of(self, index: int) -> str:
        return self._loader.origin_of(index)

    def _drop(self) -> None:
        while self._coming:
            future = self._coming.popleft()
            if not future.cancel():
                future.exception()  # waits; an error of a step that nobody asked for is nobody's

    def close(self) -> None:
        """End the thread; a step in the making is finished first."""
        self._drop()
        self._pool.shutdown()
