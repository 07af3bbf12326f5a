"""What `mengya tokenizer train | import | compare` do: files in, a directory or a table out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mengya.console import say
from mengya.corpus.sources import Rejects, list_files, read_rows
from mengya.environment import peak_memory_bytes
from mengya.errors import UserError
from mengya.files import write_json
from mengya.tokenizer.compare import compare, default_texts, plot_comparison, print_comparison, read_texts
from mengya.tokenizer.convert import TemplateChoice, import_tokenizer
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.sample import characters_within, sample_mixture
from mengya.tokenizer.train import save_tokenizer, train_on_sample

_PLOTS = (".png", ".svg", ".pdf")


def _labelled(argument: str) -> tuple[str, str]:
    """(source's name, path) of `NAME=PATH`, or of a path alone, which is named by its file."""
    name, equals, path = argument.partition("=")
    return (name, path) if equals and name and not Path(argument).exists() else (Path(argument).name, argument)


def _shares(arguments: list[str]) -> dict[str, float]:
    shares = {}
    for argument in arguments:
        name, _, text = argument.partition("=")
        try:
            shares[name] = float(text)
        except ValueError:
            raise UserError(
                "not SOURCE=SHARE", where=f"--share {argument}", mend="for example --share law=0.2"
            ) from None
    return shares


def train_command(
    texts: list[str],
    out: Path,
    *,
    vocab_size: int,
    max_characters: int,
    max_memory_gib: float | None,
    shares: list[str],
    seed: int,
) -> None:
    """Train on a sampled mixture of files; training.json beside the tokenizer says on what, how fast, in what memory."""
    sources = dict(_labelled(argument) for argument in texts)
    wanted = _shares(shares)
    for name in wanted:
        if name not in sources:
            raise UserError(f"no source {name!r}", where="--share", mend=f"sources: {', '.join(sources)}")
    rejects = Rejects()

    def pairs() -> Iterator[tuple[str, str]]:
        for name, path in sources.items():
            for file in list_files(path):
                for _, row in read_rows(file, rejects):
                    if isinstance(row.get("text"), str):
                        yield name, row["text"]
                    else:
                        rejects.counts["no text"] += 1

    sample, sampled = sample_mixture(
        pairs(), characters_within(max_characters, max_memory_gib), seed=seed, shares=wanted
    )
    if rejects.counts:
        say(f"rows left out: {', '.join(f'{reason} {count}' for reason, count in rejects.counts.most_common())}")
    began = time.perf_counter()
    tokenizer = train_on_sample(sample, vocab_size)
    seconds = time.perf_counter() - began
    save_tokenizer(tokenizer, out)
    facts: dict[str, Any] = {"characters": sum(sampled.values()), "sources": sampled, "seconds": round(seconds, 3)}
    facts |= {"peak_memory_bytes": peak_memory_bytes(), "seed": seed, "rejects": dict(rejects.counts)}
    write_json(out / "training.json", facts)
    say(
        f"{out}: {vocab_size:,} tokens from {facts['characters']:,} characters in {seconds:.1f} s, "
        f"peak memory {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def import_command(source: Path, out: Path, *, chat_template: TemplateChoice, eos: str | None) -> None:
    """Import and say what came of it."""
    tokenizer = import_tokenizer(source, out, chat_template=chat_template, eos=eos)
    ends = f"documents end with {tokenizer.end_of_text_id}, answers with {tokenizer.end_id}"
    say(f"{out}: {tokenizer.vocab_size:,} tokens, {ends}; use it by `tokenizer: {{path: {out}}}` in a recipe")


def compare_command(paths: list[Path], texts: list[str], *, model: str, plot: Path | None, json: Path | None) -> None:
    """Measure and print; `plot` and `json` are files to write beside."""
    if plot is not None and plot.suffix not in _PLOTS:
        raise UserError(
            f"cannot draw a {plot.suffix or 'file without a suffix'}", where=plot, mend="name a .png or .svg"
        )
    tokenizers = {}
    for path in paths:
        name = path.name if path.name not in tokenizers else str(path)
        tokenizers[name] = (path, load_tokenizer(path))
    result = compare(tokenizers, read_texts(texts) if texts else default_texts(), model)
    print_comparison(result)
    if json is not None:
        write_json(json, result)
    if plot is not None:
        plot_comparison(result, plot)
