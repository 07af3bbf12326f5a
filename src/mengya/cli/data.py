"""`mengya data`: the catalogue of public datasets, and checks of files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True, help="Public datasets: what there is, get one, check files of your own.")
DatasetArgument = Annotated[str, typer.Argument(help="a name of `mengya data list`", show_default=False)]


@data.command("list")
def list_() -> None:
    """The datasets of the catalogue, one a line."""
    from mengya.serve.data_commands import list_datasets

    list_datasets()


@data.command("show")
def show(name: DatasetArgument) -> None:
    """All that is known of a dataset: hubs, files, format, licence, size, and what is odd about it."""
    from mengya.serve.data_commands import show_dataset

    show_dataset(name)


@data.command("get")
def get(
    name: DatasetArgument,
    from_: Annotated[str | None, typer.Option("--from", help="huggingface, modelscope or a folder")] = None,
    to: Annotated[Path | None, typer.Option(help="folder; $MENGYA_DATA_HOME/NAME when absent")] = None,
    files: Annotated[str | None, typer.Option(metavar="GLOB", help="only these files of the repository")] = None,
) -> None:
    """Download a dataset, verified; the same command goes on with an interrupted download."""
    from mengya.serve.data_commands import get_dataset

    get_dataset(name, from_, to, files)


@data.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(help="files to be read as a recipe would", show_default=False)],
) -> None:
    """Say how files of your own would be read: encoding, format, columns, and rows that would be refused."""
    from mengya.serve.check_data import check_files

    raise typer.Exit(check_files(files) or 0)
