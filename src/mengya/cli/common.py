"""What the commands share: how a recipe is named, and running some of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(help="a recipe, e.g. recipes/quickstart.yaml", show_default=False)]
OutOption = Annotated[Path | None, typer.Option("--out", help="run directory; runs/NAME when absent")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the recipe")]


def run_stages(recipe_path: Path, out: Path | None, overrides: list[str] | None, only: list[str] | None) -> None:
    """Run these stages (all: None) of a recipe and print where its report is."""
    from mengya.recipe import load_recipe
    from mengya.report.page import update_report
    from mengya.stages.ranks import with_all_ranks
    from mengya.stages.runner import run_recipe

    def lead() -> None:
        recipe = load_recipe(recipe_path, overrides or [])
        run = run_recipe(recipe, out or Path("runs") / recipe.name, only)
        typer.echo(update_report(run))

    with_all_ranks(lead)
