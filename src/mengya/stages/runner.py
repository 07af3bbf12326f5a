"""Run stages in dependency order: skip what is done, say why a stage is stale, resume what was interrupted."""

from __future__ import annotations

from pathlib import Path

from mengya.console import duration, say
from mengya.errors import UserError
from mengya.run import Run
from mengya.settings import Recipe, StageName
from mengya.stages import STAGES, downstream
from mengya.stages.check import check_recipe
from mengya.stages.dial import with_dial
from mengya.stages.summary import write_summary


def choose(recipe: Recipe, only: list[str] | None) -> list[StageName]:
    """The stages to run, in dependency order."""
    for name in only or []:
        if name not in STAGES:
            raise UserError(f"unknown stage {name!r}", where="--stages", mend=f"known stages: {', '.join(STAGES)}")
    wanted = only if only is not None else recipe.stages
    return [name for name in STAGES if name in wanted]


def run_recipe(recipe: Recipe, directory: Path, only: list[str] | None = None) -> Run:
    """The run at `directory` with the chosen stages done."""
    recipe = with_dial(recipe)
    check_recipe(recipe)
    names = choose(recipe, only)
    run = Run(directory)
    if directory.exists() and not directory.is_dir():
        raise UserError("this is a file, not a run directory", where=directory, mend="give another --out")
    if directory.exists() and any(directory.iterdir()) and not (directory / "recipe.yaml").exists():
        raise UserError("this folder holds something that is not a run", where=directory, mend="give another --out")
    with run.lock():
        run.save_recipe(recipe)
        did_something = False
        for name in names:
            stage = STAGES[name]
            reason = run.why_stale(recipe, stage)
            if reason is None:
                say(f"{name}: done already, nothing has changed")
                continue
            if run.take_back(recipe, stage):
                say(f"{name}: taken back from earlier work with these very settings and inputs")
                did_something = True
                continue
            later = [later for later in downstream(name, recipe) if run.manifest(later) is not None]
            behind = f"; stale with it, if its result differs: {', '.join(later)}" if later else ""
            if run.stays_trained(recipe, stage):
                say(f"{name}: {reason}: it is measured again, not trained again")
            elif reason not in ("not yet run", "interrupted"):
                say(f"{name}: stale, {reason}{behind}")
            elif reason == "interrupted":
                say(f"{name}: goes on where it was interrupted")
            else:
                say(f"{name}: starts")
            manifest = run.execute(recipe, stage)
            did_something = True
            say(f"{name}: done in {duration(manifest['seconds'])}")
        # Written in any case: a run killed between its last manifest and here has nothing left to do but this.
        write_summary(run)
        if not did_something:
            say("nothing to do: every stage is done and unchanged")
    return run
