"""Pretrainings of small models that differ in a setting: the same documents, tokenizer and shards, one after another in this process.

What is finished is kept under a folder and not made again, so a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mengya.data.packing import PackedBatch
from mengya.data.token_files import open_tokens
from mengya.environment import hardware, source_commit, versions
from mengya.errors import UserError
from mengya.evaluate.likelihood import bits_per_byte
from mengya.files import read_json, sha256_of, write_json
from mengya.model.presets import depth_of
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.run import Context, Run
from mengya.settings import Recipe
from mengya.stages import STAGES
from mengya.stages.check import model_config
from mengya.stages.common import held_out, packed_loader, tokenizer_of, world_of
from mengya.train.loop import fit
from mengya.train.optimizer import Optimizer
from mengya.train.step import Objective, optimizer_step
from recipe_runs import run

Row = dict[str, Any]
DATA_STAGES = ["corpus", "tokenizer", "shards"]
TEXTS = "[elw]*_*.jsonl.zst"
"""Of the shared data's folder: encyclopaedia, everyday advice and web news."""
_NEVER = 10**9
_MEASURED_RATE = 1e-6
"""Factor of the rates while speed is measured: the work is the same, and the model stays where it is."""


def add_arguments(parser: argparse.ArgumentParser, *, tokens: int, seeds: str) -> None:
    """The options that such benchmarks share."""
    parser.add_argument("--data", type=Path, help=f"file, glob, or folder of {TEXTS}; absent: the embedded corpus")
    parser.add_argument("--limit", type=int, default=2000, help="rows to read of each file")
    parser.add_argument("--characters", type=int, default=2_500_000, help="of the embedded corpus")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--tokens", type=float, default=tokens, help="of a run")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=seeds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder where finished runs are kept and found again")
    parser.add_argument("--page", type=Path, help="the .md to write")


@contextmanager
def folder_of(out: Path | None) -> Iterator[Path]:
    """`--out`, or a folder that is gone afterwards."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def shape_of(width: int) -> Row:
    """The dial's shape of a width, in heads of 64."""
    if width % 64:
        raise UserError(f"a width of {width}", where="--width", mend="give a multiple of 64")
    return {"width": width, "num_layers": round(depth_of(width)), "num_heads": width // 64, "max_positions": 256}


def texts(data: Path) -> list[Path]:
    """The files of `--data`, in order; UserError where there is none."""
    folder, pattern = (data, TEXTS) if data.is_dir() else (data.parent, data.name)
    if not (files := sorted(folder.glob(pattern))):
        raise UserError("no such file", where=f"--data {data}", mend=f"give a file, a glob, or a folder of {TEXTS}")
    return files


def base_recipe(arguments: argparse.Namespace, name: str) -> Row:
    """What all runs of a benchmark have in common; model and pretraining are not in it."""
    sources: list[Any] = ["playground"]
    if arguments.data is not None:
        # A source each: a limit is of a source, however many files it has.
        limits = {"format": "text", "limit": arguments.limit}
        sources = [{"path": str(file.resolve()), **limits} for file in texts(arguments.data)]
    return {
        "name": name,
        "threads": arguments.threads,
        "corpus": {"documents": sources, "max_digit_share": 0.5, "validation_fraction": 0.03},
        "playground": {"num_characters": arguments.characters},
        "tokenizer": {"vocab_size": arguments.vocab_size, "max_characters": 3_000_000},
        "shards": {"num_workers": 1},
        "pretrain": {
            "tokens": int(arguments.tokens),
            "batch_tokens": arguments.batch_tokens,
            "micro_batch_tokens": min(4096, arguments.batch_tokens),
            "checkpoint_every": _NEVER,
            "evaluate_every": _NEVER,
        },
    }


def varied(base: Row, seed: int, model: Row, pretrain: Row) -> Recipe:
    """The recipe of one run."""
    return Recipe.model_validate({**base, "seed": seed, "model": model, "pretrain": {**base["pretrain"], **pretrain}})


def prepared(base: Row, folder: Path) -> Run:
    """Corpus, tokenizer and shards of `base`, made once: seed 1's, whatever the seeds of the runs that learn from them."""
    directory = folder / "data"
    run({**base, "seed": 1, "stages": DATA_STAGES}, directory)
    return Run.open(directory)


def fresh_model(context: Context, change: Callable[[nn.Module], None] | None = None) -> Transformer:
    """The model that pretraining begins with, and `change` made to its first weights."""
    world = world_of(context)
    torch.manual_seed(context.recipe.seed)
    model = Transformer(model_config(context.recipe, tokenizer_of(context).vocab_size), world.dtype).to(world.device)
    if change is not None:
        change(model)
    return model


def trained(
    recipe: Recipe,
    data: Run,
    objective: Objective = next_token_loss,
    change: Callable[[nn.Module], None] | None = None,
) -> Row:
    """{"bits_per_byte", "steps", "skipped_steps", "tokens", "seconds"} of the pretraining that `mengya run` would do, without
    the rest of the stage; bits per byte of `evaluate.num_documents` validation documents."""
    context = Context(recipe, data, STAGES["pretrain"])
    world, tokenizer, settings = world_of(context), tokenizer_of(context), recipe.pretrain
    model = fresh_model(context, change)
    train = open_tokens(context.path("shards/tokens"), "train")
    with tempfile.TemporaryDirectory() as temporary:
        totals = fit(
            model,
            packed_loader(context, train, settings, tokenizer, world),
            objective,
            settings,
            num_steps=max(1, settings.tokens // settings.batch_tokens),
            directory=Path(temporary) / "pretrain",
            world=world,
        )
    bits, _ = bits_per_byte(model, held_out(context).validation, recipe.evaluate.num_documents)
    return {
        "bits_per_byte": bits["value"],
        "steps": totals["step"],
        "skipped_steps": totals["skipped_steps"],
        "tokens": totals["tokens"],
        "seconds": round(totals["train_seconds"], 2),
    }


class Kept:
    """Results in a folder, a file each: found again where they are of the same settings and data, made where they are not."""

    def __init__(self, folder: Path, data: Run) -> None:
        self.folder = folder / "results"
        self.folder.mkdir(exist_ok=True)
        shards = data.manifest("shards")
        assert shards is not None
        self.data = shards["outputs"]
        self.commits: set[str] = set()

    def get(self, name: str, settings: Any, make: Callable[[], Row]) -> Row:
        """What `make` gives or once gave; `settings`, JSON, decide it beside the data."""
        path, identity = self.folder / f"{name}.json", sha256_of([name, settings, self.data])
        if path.exists() and (kept := read_json(path))["identity"] == identity:
            found: Row = kept
        else:
            found = {**make(), "identity": identity, "commit": source_commit()}
            write_json(path, found)
        self.commits.add(str(found["commit"]))
        return found


def decides(recipe: Recipe) -> Row:
    """The sections that decide a pretraining on given data."""
    dumped = recipe.model_dump(mode="json")
    return {key: dumped[key] for key in ("seed", "model", "pretrain", "evaluate", "precision", "device")}


def stepper(
    recipe: Recipe,
    data: Run,
    objective: Objective = next_token_loss,
    change: Callable[[nn.Module], None] | None = None,
) -> Callable[[], None]:
    """Calls of it are optimizer steps of that pretraining on the loader's batches, for timing."""
    context = Context(recipe, data, STAGES["pretrain"])
    world, settings = world_of(context), recipe.pretrain
    model = fresh_model(context, change).train()
    optimizer = Optimizer(model, settings)
    train = open_tokens(context.path("shards/tokens"), "train")
    steps: Iterator[Sequence[PackedBatch]] = iter(packed_loader(context, train, settings, tokenizer_of(context), world))

    def step() -> None:
        batches = next(steps)
        optimizer_step(
            model,
            optimizer,
            batches,
            objective,
            rate=_MEASURED_RATE,
            gradient_clip=settings.gradient_clip,
            world=world,
        )

    return step


def paired_speeds(
    steppers: dict[str, Callable[[], None]],
    base: str,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """{name: speed over that of `base`}: the median over rounds of one step of each, compared within the round.

    A machine that slows down slows all of a round; who is first in it changes from round to round.
    """
    for step in steppers.values():
        step()
    names, ratios = list(steppers), {name: list[float]() for name in steppers}
    for number in range(rounds):
        seconds: dict[str, float] = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = clock()
            steppers[name]()
            seconds[name] = clock() - began
        for name in names:
            ratios[name].append(seconds[base] / seconds[name])
    return {name: statistics.median(found) for name, found in ratios.items()}


def head(title: str, command: str, data: str, kept: Kept) -> Iterator[str]:
    """The first lines of a page of results."""
    machine, made = hardware(), versions()
    yield f"# {title}"
    yield ""
    yield f"- Command: `{command}`"
    yield f"- Data: {data}"
    memory = machine["memory_bytes"] / 2**30
    yield f"- Machine: {machine['processor']}, {machine['cores']} cores, {memory:.0f} GiB; {machine['system']}"
    yield f"- Commit {', '.join(sorted(kept.commits))}; Python {made['python']}, torch {made['torch']}"
    yield ""


def command_of(script: str, arguments: argparse.Namespace, options: Sequence[str]) -> str:
    """The command that makes the numbers anywhere: this machine's folders are left out."""
    words = [f"python benchmarks/{script}.py"]
    words += [f"--data DATA --limit {arguments.limit}"] if arguments.data is not None else []
    for option in (*options, "vocab_size", "tokens", "batch_tokens", "seeds", "threads"):
        value = getattr(arguments, option)
        shown = ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
        words.append(f"--{option.replace('_', '-')} {shown}")
    return " ".join(words)


def data_line(arguments: argparse.Namespace, data: Run) -> str:
    """What the runs learn from, in words."""
    shards = data.manifest("shards")
    assert shards is not None
    tokens = {split: shards["counts"][split]["tokens"] for split in ("train", "validation")}
    whence = (
        "the embedded corpus"
        if arguments.data is None
        else f"the first {arguments.limit:,} rows each of {', '.join(f.name.split('.')[0] for f in texts(arguments.data))}"
    )
    return (
        f"{whence}; a tokenizer of {arguments.vocab_size:,}; {tokens['train']:,} tokens to train on, the same documents held "
        "out in all runs"
    )


def users_mistakes(main: Callable[[], None], name: str) -> None:
    """`main`, its UserError one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except subprocess.CalledProcessError as error:  # it has said why
        raise SystemExit(error.returncode) from None
