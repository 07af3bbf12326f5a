"""PATH → the directory of a model: PATH is a run, a stage of a run, or any transformers directory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mengya.errors import UserError

CHAT_STAGES = ("grpo", "ppo", "dpo", "sft", "pretrain")
"""Stages that leave a model to talk to, the most finished first."""


class Found(NamedTuple):
    """A model directory; the stage that made it ("" for a foreign one); the run it belongs to, if any."""

    directory: Path
    stage: str
    run: Path | None


def find_model(path: Path | str, stage: str | None = None) -> Found:
    """The model at PATH; for a run that of `stage`, or of the last chat stage there is.

    UserError where there is none, and where a stage is asked of something that is no run.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such directory", where=path, mend="give a run, a stage of it, or a transformers directory")
    if (path / "recipe.yaml").is_file():
        return _in_run(path, stage)
    if stage is not None:
        raise UserError("a stage can be chosen only in a run", where=path, mend="give runs/NAME, or leave --stage out")
    for directory in (path / "model", path):
        if (directory / "config.json").is_file():
            holder = directory.resolve().parent
            run = holder.parent if (holder.parent / "recipe.yaml").is_file() else None
            return Found(directory, holder.name if run else "", run)
    raise UserError(
        "no model here (no config.json)", where=path, mend="give a run, a stage, or a transformers directory"
    )


def _in_run(run: Path, stage: str | None) -> Found:
    there = [name for name in CHAT_STAGES if (run / name / "model" / "config.json").is_file()]
    if stage is None:
        if not there:
            raise UserError("no stage of this run has a model yet", where=run, mend="`mengya run` it up to pretrain")
        stage = there[0]
    if stage not in there:
        known = ", ".join(there) or "none"
        raise UserError(f"no chat model of stage {stage!r} in this run", where=run, mend=f"there are: {known}")
    return Found(run / stage / "model", stage, run)
