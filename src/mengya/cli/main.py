"""The command line: one command a stage and a few for looking; a stage's own code is imported when it is called."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mengya import __version__
from mengya.cli.common import OutOption, RecipeArgument, SetOption, run_stages
from mengya.cli.data import data
from mengya.cli.tokenizer import tokenizer
from mengya.errors import Interrupted, Terminated, UserError
from mengya.settings import STAGE_NAMES

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mengya 萌芽 grows a small Chinese chat model from nothing: raw text to an aligned model, in one command.",
)


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    stages: Annotated[str | None, typer.Option(help="only these, separated by commas")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="run nothing; hash again all that the run stands on")
    ] = False,
) -> None:
    """Run all stages of a recipe: finished ones are skipped, an interrupted one goes on."""
    if verify:
        _verify(recipe, out, set_)
        return
    run_stages(recipe, out, set_, [name.strip() for name in stages.split(",")] if stages is not None else None)


def _verify(recipe_path: Path, out: Path | None, overrides: list[str] | None) -> None:
    from mengya.corpus.provenance import verify
    from mengya.recipe import load_recipe

    directory = out or Path("runs") / load_recipe(recipe_path, overrides or []).name
    differences = verify(directory)
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise UserError(
            f"{len(differences)} differences from what the manifests say",
            where=directory,
            mend="run the recipe again: it makes again what is concerned",
        )
    typer.echo(f"{directory}: every input and output is what the manifests say")


def _add_stage(name: str) -> None:
    @app.command(name, help=f"Run the stage {name} of a recipe.", rich_help_panel="Stages")
    def stage(recipe: RecipeArgument, out: OutOption = None, set_: SetOption = None) -> None:
        run_stages(recipe, out, set_, [name])


for _name in STAGE_NAMES:
    if _name != "tokenizer":
        _add_stage(_name)
app.add_typer(tokenizer, name="tokenizer", rich_help_panel="Stages")
app.add_typer(data, name="data")


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(help="a run, a stage of it, or any transformers directory")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="answer this once and leave")] = None,
    stage: Annotated[str | None, typer.Option(help="pretrain, sft, dpo or ppo; the last there is when absent")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 256,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from mengya.serve.terminal import chat as talk

    talk(
        path,
        prompt=prompt,
        stage=stage,
        system=system,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


@app.command()
def report(path: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Write RUN/report.html from whatever stages are finished."""
    from mengya.report.page import write_report
    from mengya.run import Run

    typer.echo(write_report(Run.open(path)))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="a run, a stage, a model directory, or a file of records")],
    sample: Annotated[int | None, typer.Option(min=1, help="records to show; 5 of a file, 1 a part of a stage")] = None,
    seed: Annotated[int, typer.Option(help="which records: a seed draws the same ones every time")] = 0,
    reason: Annotated[str | None, typer.Option(help="only what was dropped for this reason")] = None,
) -> None:
    """Look inside a run, a stage, a model or data."""
    from mengya.serve.inspect import inspect as look

    look(path, sample, seed, reason)


@app.command()
def doctor() -> None:
    """Check this machine: Python, packages, memory, disk, bf16, accelerator."""
    from mengya.serve.doctor import doctor as examine

    examine()


@app.command()
def plan(
    recipe: Annotated[
        Path | None, typer.Argument(help="a recipe, e.g. recipes/quickstart.yaml", show_default=False)
    ] = None,
    set_: SetOption = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="[GPU=]PRICE", help="of an hour of this machine, or of a GPU")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="run directory to keep the plan in, for its report")] = None,
    claim: Annotated[
        str | None,
        typer.Option(help="judge a published one: tokens=64e9,parameters=1.1e9,hours=24,gpus=8,gpu=A800"),
    ] = None,
) -> None:
    """Parameters, tokens, FLOPs, memory, time and cost of a recipe, before spending any."""
    from mengya.recipe import load_recipe
    from mengya.serve.plan import plan_command

    plan_command(None if recipe is None else load_recipe(recipe, set_ or []), price or [], claim, out)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command line.

    Exit code 0: done; 2: the user's mistake, said in one line; 1: ours; 130: interrupted, state saved.
    """
    # OpenMP threads that spin for long while they wait starve each other when anything else wants a core (a training
    # step took twice as long beside one busy neighbour); threads that sleep at once lose a fifth on an idle machine.
    # A short spin costs neither. libgomp reads this when torch is loaded, so it stands here.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _terminate_cleanly()
    try:
        app()
    except UserError as error:
        _leave(str(error), 2)
    except (Interrupted, KeyboardInterrupt, Terminated) as error:
        _leave(str(error) or "interrupted; the same command goes on from there", 130)
    except Exception as error:
        # safetensors and pyarrow wrap the system's error in types of their own; its words they keep.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            name = getattr(error, "filename", None) or "the run directory"
            _leave(f"{name}: the disk is full — free some space; the same command goes on from there", 2)
        raise


def _terminate_cleanly() -> None:
    """Let SIGTERM end this process like Ctrl-C, through every `finally`; a forked helper dies of it as it would have."""
    own = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def _leave(line: str, code: int) -> NoReturn:
    print(f"mengya: {line}", file=sys.stderr)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from mengya.stages.ranks import end_process

        end_process(code)
    sys.exit(code)
