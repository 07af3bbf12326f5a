"""`mengya tokenizer`: the stage of a recipe, or train, import and compare tokenizers without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from mengya.cli.common import OutOption, RecipeArgument, SetOption, run_stages

TemplateChoice = Literal["keep", "mengya"]


class _StageGroup(typer.core.TyperGroup):
    """A stage that has commands of its own: what is none of their names is the stage's recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["stage", *args]
        return super().parse_args(ctx, args)


tokenizer = typer.Typer(
    cls=_StageGroup, no_args_is_help=True, help="Run the stage tokenizer of a recipe; or train, import, compare."
)


@tokenizer.command("stage")
def stage(recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None) -> None:
    """Run the stage of a recipe; `mengya tokenizer RECIPE` for short."""
    run_stages(recipe, out, set_, ["tokenizer"])


@tokenizer.command("train")
def train(
    texts: Annotated[
        list[str], typer.Argument(help="files, folders or globs of text, or NAME=PATH", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="directory to write", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="tokens, special ones included")] = 6400,
    max_characters: Annotated[int, typer.Option(help="characters sampled", min=1)] = 50_000_000,
    max_memory_gib: Annotated[
        float | None, typer.Option(help="memory to stay within; makes the sample smaller")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SHARE", help="share of the sample a source gets")
    ] = None,
    seed: int = 1,
) -> None:
    """Train a tokenizer on a sampled mixture of texts."""
    from mengya.tokenizer.commands import train_command

    train_command(
        texts,
        out,
        vocab_size=vocab_size,
        max_characters=max_characters,
        max_memory_gib=max_memory_gib,
        shares=share or [],
        seed=seed,
    )


@tokenizer.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="a SentencePiece .model, a tokenizer.json, or a directory with one")],
    out: Annotated[Path, typer.Option("--out", help="directory to write", show_default=False)],
    template: Annotated[
        TemplateChoice, typer.Option(help="keep its own chat template (ours where it has none), or take ours")
    ] = "keep",
    eos: Annotated[str | None, typer.Option(help="the token that ends an answer, where the source names none")] = None,
) -> None:
    """Bring a tokenizer into our layout, with the ids that it gives; no remote code."""
    from mengya.tokenizer.commands import import_command

    import_command(source, out, chat_template=template, eos=eos)


@tokenizer.command("compare")
def compare(
    paths: Annotated[list[Path], typer.Argument(help="tokenizer or model directories", show_default=False)],
    text: Annotated[
        list[str] | None, typer.Option(metavar="KIND=FILE", help="texts by kind; the embedded ones else")
    ] = None,
    model: Annotated[str, typer.Option(help="preset of which the embedding's share is told")] = "26m",
    plot: Annotated[Path | None, typer.Option(help=".png or .svg to draw")] = None,
    json: Annotated[Path | None, typer.Option(help="file for all numbers")] = None,
) -> None:
    """Compare tokenizers: characters and bytes a token, unknown and partial tokens, embedding share, speed."""
    from mengya.tokenizer.commands import compare_command

    compare_command(paths, text or [], model=model, plot=plot, json=json)
