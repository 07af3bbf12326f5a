"""Training state on disk: whole or absent, checksummed, the last K and the best kept; the newest sound one is found again."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mengya.errors import UserError
from mengya.files import atomic_directory, read_json, sha256, sha256_of, write_json

Say = Callable[[str], object]


@dataclass
class TrainState:
    """Everything that the rest of a stage depends on: named tensors, and numbers that JSON can hold.

    `best` is the step of the best checkpoint so far: it is kept as long as this one is.
    """

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    best: int | None = None


def random_state() -> dict[str, Tensor]:
    """The state of PyTorch's generators (the only global ones in use; every other choice has a seed of its own)."""
    state = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random/cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class Checkpoints:
    """The directory STAGE/checkpoints with its step-N entries, one of which a thread may be writing.

    Use it as a context: leaving it waits for that write. An error of the thread (a full disk) is raised by the next
    `check`, `wait` or save, in the caller's thread; the entries that were there before are as they were.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = Path(directory), keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}

    def _entries(self) -> list[tuple[int, Path]]:
        found = [(int(path.name.removeprefix("step-")), path) for path in self.directory.glob("step-*")]
        return sorted(found)

    # ---------------------------------------------------------------------------------------------------- writing

    def save(self, state: TrainState) -> None:
        """Write `state`; on return it is on disk."""
        self.wait()
        self._write(state)

    def save_behind(self, state: TrainState) -> None:
        """Copy `state` and write the copy while the caller goes on; waits first for an earlier write under way.

        The copy costs a second state of memory, which stays allocated: the next one goes to the same place.
        """
        self.wait()
        copied = TrainState(state.step, self._copied(state.tensors), copy.deepcopy(state.numbers), state.best)
        self._writing = self._thread.submit(self._write, copied)

    def check(self) -> None:
        """Raise what a finished write failed of; never waits."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raises what the write failed of."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"the checkpoint that was being written failed too: {failure}")
        finally:
            self._thread.shutdown()

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in CPU memory of our own; pinned where they come from a GPU, so that they travel at full speed."""
        copies = {}
        for name, tensor in tensors.items():
            place = self._copies.get(name)
            if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
                place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = place.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        self._copies = copies
        return copies

    def _write(self, state: TrainState) -> None:
        with atomic_directory(self.directory / f"step-{state.step}") as partial:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
            save_file(tensors, partial / "state.safetensors")
            digest = sha256(partial / "state.safetensors")
            numbers = {"step": state.step, "sha256": digest, "numbers": state.numbers, "best": state.best}
            write_json(partial / "state.json", {**numbers, "sha256_numbers": sha256_of(numbers)})
        entries = self._entries()
        # Those beyond this step were damaged or given up, or training would have gone on from them: they may not count
        # among the K, or they would push the only sound one out.
        beyond = [path for step, path in entries if step > state.step]
        before = [(step, path) for step, path in entries if step <= state.step]
        best = {_best_beside(path) for _, path in before[-self.keep :]}
        for path in beyond + [path for step, path in before[: -self.keep] if step not in best]:
            shutil.rmtree(path)

    # ---------------------------------------------------------------------------------------------------- reading

    def latest(self, say: Say, before: int | None = None) -> TrainState | None:
        """The newest sound checkpoint (of a step less than `before`); damaged ones are named and passed over.

        UserError when there are checkpoints and none is sound: starting afresh would hide the loss of work.
        """
        entries = [(step, path) for step, path in self._entries() if before is None or step < before]
        found = _first_sound((path for _, path in reversed(entries)), say)
        if found is None and entries and before is None:
            raise UserError(
                "every checkpoint is damaged", where=self.directory, mend="remove this folder to train from the start"
            )
        return found

    def at(self, step: int) -> TrainState:
        """The checkpoint of `step`; UserError if it is damaged or gone."""
        path = self.directory / f"step-{step}"
        try:
            return _read(path)
        except _DAMAGE as error:
            raise UserError(
                f"this checkpoint is damaged ({error})", where=path, mend="set best_checkpoint: keep, or train again"
            ) from None

    def clear(self) -> None:
        """Remove what a finished stage no longer needs."""
        shutil.rmtree(self.directory, ignore_errors=True)


_DAMAGE = (OSError, ValueError, KeyError, json.JSONDecodeError)


def _read(path: Path) -> TrainState:
    """The state in `path`; one of _DAMAGE when it is not what was written."""
    found = read_json(path / "state.json")
    if sha256_of({key: value for key, value in found.items() if key != "sha256_numbers"}) != found["sha256_numbers"]:
        raise ValueError("its numbers do not have their checksum")
    if sha256(path / "state.safetensors") != found["sha256"]:
        raise ValueError("its tensors do not have their checksum")
    return TrainState(found["step"], load_file(path / "state.safetensors"), found["numbers"], found.get("best"))


def _first_sound(paths: Iterable[Path], say: Say) -> TrainState | None:
    for path in paths:
        try:
            return _read(path)
        except _DAMAGE as error:
            say(f"checkpoint {path} is damaged ({error}); trying the one before")
    return None


def _best_beside(path: Path) -> int | None:
    """The step that the checkpoint in `path` names as the best; None also where it cannot be read."""
    try:
        found = read_json(path / "state.json").get("best")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None
