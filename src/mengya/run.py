"""The run directory: which stages are done, which are stale and why, and the manifest that says so.

A stage is *done* when its manifest exists, was made from the same settings and the same inputs (SHA-256, never dates),
and its outputs are what it left. Inputs are compared by content, so a stage upstream that is made again with the same
result leaves everything downstream untouched. What a changed recipe replaces is set aside under `.stale/`, and taken
back when the recipe returns to it: trying a setting costs nothing that was already paid for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mengya import __version__
from mengya.environment import hardware, peak_memory_bytes, source_commit, versions
from mengya.errors import UserError
from mengya.files import read_json, remove_partials, sha256, sha256_of, write_json, write_text
from mengya.settings import HOW_NOT_WHAT, Recipe, StageName


@dataclass(frozen=True)
class Stage:
    """What a stage is made from and what it leaves; `stages.STAGES` holds them all.

    `settings` are recipe sections; `needs` and `makes` are paths in the run directory; `files` lists the user's own
    files that it reads; `execute` does the work.
    """

    name: StageName
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    execute: Callable[[Context], Outcome]
    files: Callable[[Recipe], list[Path]] = lambda recipe: []
    # Used where the run has them, as `evaluate` measures whichever stages there are.
    uses: tuple[str, ...] = ()
    # Needed besides where the recipe says so, as the pairs that a run made for itself.
    asks: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    # Of the settings and needs those that decide only what is measured once training has ended: where nothing else
    # changed, the trained state stands, and the stage goes on from its last checkpoint.
    measured_by: tuple[str, ...] = ()

    def all_needs(self, recipe: Recipe) -> tuple[str, ...]:
        """What must be there before the stage begins."""
        return (*self.needs, *self.asks(recipe))


@dataclass
class Outcome:
    """What a stage reports: `metrics` {name: {"value", "low", "high", "n"} or a number}, `counts` (the funnel, tokens,
    examples), `delta` (rows of the table against the stage before) and `samples`."""

    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    delta: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """What a stage gets: the recipe, the run, and its own directory."""

    recipe: Recipe
    run: Run
    stage: Stage

    @property
    def directory(self) -> Path:
        return self.run.directory / self.stage.name

    def path(self, artifact: str) -> Path:
        """An artifact of this run, e.g. `context.path("pretrain/model")`."""
        return self.run.directory / artifact

    def has(self, artifact: str) -> bool:
        return self.path(artifact).exists()


class Run:
    """A run directory opened for work (locked against a second process) or for reading (`Run.open`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run at `path`; UserError where there is none."""
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            raise UserError("not a run directory (no recipe.yaml in it)", where=path, mend="give runs/NAME")
        return cls(path)

    def recipe(self) -> Recipe:
        text = (self.directory / "recipe.yaml").read_text(encoding="utf-8")
        return Recipe.model_validate(yaml.safe_load(text))

    def save_recipe(self, recipe: Recipe) -> None:
        text = yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
        path = self.directory / "recipe.yaml"
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)  # its date says when the recipe changed: the report goes by it

    def manifest(self, stage: str) -> dict[str, Any] | None:
        path = self.directory / stage / "manifest.json"
        return read_json(path) if path.is_file() else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of this directory."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot make this directory: {why}", where=self.directory, mend="give another --out"
            ) from None
        with open(self.directory / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another mengya process is working in this run",
                    where=self.directory,
                    mend="wait for it, or give another --out",
                ) from None
            yield

    # -------------------------------------------------------------------------------------------- done or stale?

    def wanted(self, recipe: Recipe, stage: Stage) -> dict[str, Any]:
        """What the stage would be made from now: {"settings": {...}, "inputs": {artifact or file: sha256}}."""
        dumped = recipe.model_dump(mode="json")
        artifacts = [*stage.all_needs(recipe), *(name for name in stage.uses if (self.directory / name).exists())]
        inputs = {name: sha256(self.directory / name) for name in artifacts if (self.directory / name).exists()}
        inputs |= {str(file): sha256(file) for file in stage.files(recipe)}
        settings = {name: what_decides(name, dumped[name]) for name in stage.settings}
        return {"settings": settings, "inputs": inputs}

    def why_stale(self, recipe: Recipe, stage: Stage) -> str | None:
        """None when the stage is done; else the reason in words."""
        manifest = self.manifest(stage.name)
        if manifest is None:
            started = self.directory / stage.name / "started.json"
            return "interrupted" if started.exists() else "not yet run"
        wanted = self.wanted(recipe, stage)
        for key, old, new in _differences(manifest["settings"], wanted["settings"]):
            return f"{key} changed from {_short(old)} to {_short(new)}"
        for name in {**manifest["inputs"], **wanted["inputs"]}:
            if manifest["inputs"].get(name) != wanted["inputs"].get(name):
                return f"its input {name} changed"
        for name, digest in manifest["outputs"].items():
            path = self.directory / name
            if not path.exists():
                return f"its output {name} is missing"
            if sha256(path) != digest:
                return f"its output {name} was altered"
        return None

    def stays_trained(self, recipe: Recipe, stage: Stage) -> bool:
        """Whether the stage has trained, and all that changed since is how the result is measured."""
        manifest = self.manifest(stage.name)
        if not stage.measured_by or manifest is None:
            return False  # before `wanted`, which hashes every input
        wanted = self.wanted(recipe, stage)
        return manifest["identity"] != sha256_of(wanted) and self._same_training(stage, wanted)

    def _same_training(self, stage: Stage, wanted: dict[str, Any]) -> bool:
        """Whether the stage's checkpoints are of a training that `wanted` asks for too, its `measured_by` left out."""
        directory = self.directory / stage.name
        begun = directory / "started.json"
        if not stage.measured_by or not begun.is_file() or not any(directory.glob("checkpoints/step-*")):
            return False
        old = read_json(begun)
        return all(
            {name: value for name, value in old[part].items() if name not in stage.measured_by}
            == {name: value for name, value in wanted[part].items() if name not in stage.measured_by}
            for part in ("settings", "inputs")
        )

    # ------------------------------------------------------------------------------------------------ execution

    def execute(self, recipe: Recipe, stage: Stage) -> dict[str, Any]:
        """Run or resume `stage` and write its manifest last; the manifest."""
        directory = self.directory / stage.name
        for name in stage.all_needs(recipe):
            if not (self.directory / name).exists():
                raise UserError(
                    f"the stage {stage.name} needs {name}, which is not there",
                    where=self.directory,
                    mend=f"run the stage {name.split('/')[0]} first, or `mengya run` for all of them",
                )
        wanted = self.wanted(recipe, stage)
        identity = sha256_of(wanted)
        self._make_room(stage, wanted, identity)
        resumed = (directory / "started.json").exists()
        spent = _seconds_spent(directory) if resumed else 0.0
        remove_partials(directory)
        started = time.time()
        write_json(
            directory / "started.json", {**wanted, "identity": identity, "began": started, "seconds_before": spent}
        )
        outcome = stage.execute(Context(recipe, self, stage))
        seconds = spent + time.time() - started
        manifest = {
            "stage": stage.name,
            "mengya": __version__,
            "seed": recipe.seed,
            **wanted,
            "identity": identity,
            "outputs": {name: sha256(self.directory / name) for name in stage.makes if self._exists(name)},
            "resumed": resumed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
            "seconds": round(seconds, 3),
            "metrics": {
                **outcome.metrics,
                f"{stage.name}.seconds": round(seconds, 3),
                f"{stage.name}.peak_memory_bytes": peak_memory_bytes(),
            },
            "counts": outcome.counts,
            "delta": outcome.delta,
            "samples": outcome.samples,
            "commit": source_commit(),
            "versions": versions(),
            "hardware": hardware(),
        }
        write_json(directory / "manifest.json", manifest)
        return manifest

    def _exists(self, artifact: str) -> bool:
        return (self.directory / artifact).exists()

    def _make_room(self, stage: Stage, wanted: dict[str, Any], identity: str) -> None:
        """Leave in the stage's directory only work that belongs to `identity`; other work is set aside."""
        directory = self.directory / stage.name
        if (directory / "started.json").exists():
            old = read_json(directory / "started.json")["identity"]
            if old == identity and not (directory / "manifest.json").exists():
                return  # interrupted: go on with it
            if old != identity and self._same_training(stage, wanted):
                (directory / "manifest.json").unlink(missing_ok=True)  # as if interrupted before it measured
                return
            if old != identity:
                self._set_aside(directory, old)
            else:
                # Same identity but not done: its outputs were lost or altered, so nothing in it can be trusted.
                shutil.rmtree(directory)
        elif directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)

    def _set_aside(self, directory: Path, identity: str) -> None:
        place = self.directory / ".stale" / f"{directory.name}-{identity[:12]}"
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(directory, place)

    def take_back(self, recipe: Recipe, stage: Stage) -> bool:
        """Bring finished work of just these settings and inputs back from `.stale/`; whether there was any."""
        if not all(self._exists(name) for name in stage.all_needs(recipe)):
            return False
        place = self.directory / ".stale" / f"{stage.name}-{sha256_of(self.wanted(recipe, stage))[:12]}"
        if not (place / "manifest.json").is_file():
            return False
        directory = self.directory / stage.name
        if (directory / "started.json").exists():
            old = read_json(directory / "started.json")["identity"]
            self._set_aside(directory, old)
        elif directory.exists():
            shutil.rmtree(directory)
        os.replace(place, directory)
        return True


def what_decides(section: str, values: Any) -> Any:
    """A section's settings without those that cannot change a result."""
    how = HOW_NOT_WHAT.get(section)
    return {key: value for key, value in values.items() if key not in how} if how else values


def _seconds_spent(directory: Path) -> float:
    """Seconds that an interrupted stage had run: until the last sign of life in its directory, for kill -9 says none."""
    begun = read_json(directory / "started.json")
    last = max(path.stat().st_mtime for path in directory.rglob("*"))
    return float(begun["seconds_before"] + max(last - begun["began"], 0.0))


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of every leaf that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{prefix}.{index}")
    elif old != new:
        yield prefix, old, new


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
