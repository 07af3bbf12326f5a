"""Training state on disk: whole or absent, checksummed, the last K kept; the newest sound one is found again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mengya.errors import UserError
from mengya.files import atomic_directory, read_json, sha256, sha256_of, write_json


@dataclass
class TrainState:
    """Everything that the rest of a stage depends on: named tensors, and numbers that JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


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


class Checkpoints:
    """The directory STAGE/checkpoints with its step-N entries."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = Path(directory), keep

    def _entries(self) -> list[tuple[int, Path]]:
        found = [(int(path.name.removeprefix("step-")), path) for path in self.directory.glob("step-*")]
        return sorted(found)

    def save(self, state: TrainState) -> None:
        with atomic_directory(self.directory / f"step-{state.step}") as partial:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
            save_file(tensors, partial / "state.safetensors")
            digest = sha256(partial / "state.safetensors")
            numbers = {"step": state.step, "sha256": digest, "numbers": state.numbers}
            write_json(partial / "state.json", {**numbers, "sha256_numbers": sha256_of(numbers)})
        entries = self._entries()
        # Those beyond this step were damaged, or training would have gone on from them: they may not count among the
        # K, or they would push the only sound one out.
        damaged = [path for step, path in entries if step > state.step]
        older = [path for step, path in entries if step <= state.step][: -self.keep]
        for path in damaged + older:
            shutil.rmtree(path)

    def latest(self, say: Any) -> TrainState | None:
        """The newest sound checkpoint; damaged ones are named through `say` and passed over.

        UserError when there are checkpoints and none is sound: starting afresh would hide the loss of work.
        """
        entries = self._entries()
        for step, path in reversed(entries):
            try:
                found = read_json(path / "state.json")
                if sha256_of({key: found[key] for key in ("step", "sha256", "numbers")}) != found["sha256_numbers"]:
                    raise ValueError("its numbers do not have their checksum")
                if sha256(path / "state.safetensors") != found["sha256"]:
                    raise ValueError("its tensors do not have their checksum")
                return TrainState(step, load_file(path / "state.safetensors"), found["numbers"])
            except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
                say(f"checkpoint {path} is damaged ({error}); trying the one before")
        if entries:
            raise UserError(
                "every checkpoint is damaged", where=self.directory, mend="remove this folder to train from the start"
            )
        return None

    def clear(self) -> None:
        """Remove what a finished stage no longer needs."""
        shutil.rmtree(self.directory, ignore_errors=True)
