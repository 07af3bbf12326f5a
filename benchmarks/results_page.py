"""A page of figures from a finished run: `python benchmarks/results_page.py RUN [--notes FILE] > docs/results/NAME.md`.

Everything but the last section comes from the manifests of the run; what is weak and why is written by a person, in the
notes. Texts of others are quoted in at most 60 characters, with their source, and without telephone numbers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mengya.console import duration, number
from mengya.files import read_jsonl
from mengya.report.words import STAGES, as_value, interval, metric_words, shown
from mengya.run import Run

Row = dict[str, Any]

_EXCERPT = 60  # characters of someone else's text
_ANSWER = 160  # characters of a model's answer
_EXAMPLES = 2  # a reason
_LANGUAGE_MODELS = ("pretrain", "sft", "dpo", "ppo")
_PERSONAL = re.compile(r"[\d\-=_≈]{7,}")


def quoted(text: str, length: int) -> str:
    """`text` on one line of at most `length` characters, safe in a table, long numbers masked."""
    line = _PERSONAL.sub("#", " ".join(text.split()))
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return re.sub(r"([|<>*_`\\])", r"\\\1", line)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table, its first column to the left and the others to the right."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|---|{'---:|' * (len(names) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def count(value: float) -> str:
    return f"{value:,.0f}"


def head(run: Run, manifests: dict[str, Row]) -> Iterator[str]:
    recipe = run.recipe()
    last = list(manifests.values())[-1]
    machine, versions = last["hardware"], last["versions"]
    commits = sorted({str(manifest.get("commit")) for manifest in manifests.values()})
    yield f"# {recipe.name}: {recipe.description}"
    yield ""
    yield f"- Command: `mengya run recipes/{recipe.name}.yaml`"
    memory = machine["memory_bytes"] / 2**30
    yield f"- Machine: {machine['processor']}, {machine['cores']} cores, {memory:.0f} GiB; {machine['system']}"
    if "pretrain" in manifests:
        counts = manifests["pretrain"]["counts"]
        yield f"- Model: {counts['model']}; {counts['precision']}"
    yield f"- Seed {recipe.seed}; commit {', '.join(commits)}; Python {versions['python']}, torch {versions['torch']}"
    seconds = sum(manifest["seconds"] for manifest in manifests.values())
    yield f"- Time: {duration(seconds)} in all"
    yield ""
    yield from table(
        ["stage", "time", "peak memory so far"],
        (
            [STAGES[name].en, duration(m["seconds"]), f"{m['metrics'][f'{name}.peak_memory_bytes'] / 2**30:.1f} GiB"]
            for name, m in manifests.items()
        ),
    )


def examples(directory: Path) -> dict[str, list[str]]:
    """{reason: quoted excerpts with their sources}."""
    found: dict[str, list[str]] = {}
    for row in read_jsonl(directory / "dropped.jsonl"):
        shown = found.setdefault(row["reason"], [])
        if len(shown) < _EXAMPLES:
            like = f", {row['similarity']:.2f} like another" if row.get("similarity") not in (None, 1.0) else ""
            shown.append(f"“{quoted(row['excerpt'], _EXCERPT)}” ({row['source']}{like})")
    return found


def funnel(kind: str, counts: Row, directory: Path) -> Iterator[str]:
    unit = counts["unit"]
    yield f"### {kind.capitalize()}"
    yield ""
    yield from table(
        ["step", unit, "characters"],
        ([step["step"].replace("_", " "), count(step[unit]), count(step["characters"])] for step in counts["funnel"]),
    )
    if counts["dropped"]:
        shown = examples(directory)
        yield "| dropped as | " + unit + " | for example |"
        yield "|---|---:|---|"
        for reason, amount in counts["dropped"].items():
            yield f"| {reason.replace('_', ' ')} | {count(amount[unit])} | {'<br>'.join(shown.get(reason, []))} |"
        yield ""
    yield from table(
        ["source", "read", "kept", "dropped as"],
        (
            [
                source,
                count(row["read"]),
                count(row["kept"]),
                ", ".join(f"{reason.replace('_', ' ')} {number(n)}" for reason, n in row["dropped"].items()),
            ]
            for source, row in counts["by_source"].items()
        ),
    )


def corpus(manifest: Row, directory: Path) -> Iterator[str]:
    counts = manifest["counts"]
    yield "## Corpus"
    yield ""
    for kind in ("documents", "conversations", "preferences"):
        if kind in counts:
            yield from funnel(kind, counts[kind], directory / kind)
    boilerplate = counts["documents"]["boilerplate"]
    yield (
        f"Boilerplate: {count(boilerplate['characters'])} characters taken out of {count(boilerplate['documents'])} "
        "documents. The commonest lines:"
    )
    yield ""
    for line in boilerplate["lines"][:5]:
        yield f"- “{quoted(line['line'], _EXCERPT)}” × {count(line['count'])}"
    yield ""
    yield f"Of {count(counts['rows'])} rows read, refused: {spelt(counts['rejects'])}. Mended: {spelt(counts['repairs'])}."
    yield ""


def spelt(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count(n)}" for name, n in counts.items()) or "none"


def tokens(manifests: dict[str, Row]) -> Iterator[str]:
    yield "## Tokens"
    yield ""
    if "tokenizer" in manifests:
        counts = manifests["tokenizer"]["counts"]
        yield (
            f"Vocabulary {count(counts['vocab_size'])}; on held-out text {counts['characters_per_token']:.3f} characters "
            f"and {counts['bytes_per_token']:.3f} bytes a token, {counts['vocabulary_used']:.1%} of the vocabulary used."
        )
    if "shards" in manifests:
        counts = manifests["shards"]["counts"]
        parts = (f"{name} {count(part['tokens'])} in {count(part['documents'])}" for name, part in counts.items())
        yield f"Tokens of documents: {'; '.join(parts)}."
    yield ""


def training(manifests: dict[str, Row]) -> Iterator[str]:
    yield "## Training"
    yield ""
    names = [name for name in ("pretrain", "sft", "reward", "dpo", "ppo") if name in manifests]
    skipped = ("model", "precision", "guard", "parameters")
    for name in names:
        counts = {key: value for key, value in manifests[name]["counts"].items() if key not in skipped}
        facts = (
            f"{metric_words(key).en} {value if isinstance(value, str) else number(value)}"
            for key, value in counts.items()
            if isinstance(value, str | int | float)  # what is nested has a place of its own
        )
        yield f"- **{STAGES[name].en}**: {', '.join(facts)}"
    yield ""


def bits_by_source(metrics: Row) -> Iterator[str]:
    """One row a source, one column a stage."""
    prefix = re.compile(r"^(\w+)\.bits_per_byte\.(.+)$")
    found = {match.groups(): value for name, value in metrics.items() if (match := prefix.match(name))}
    stages = [stage for stage in _LANGUAGE_MODELS if any(key[0] == stage for key in found)]
    if not stages:
        return
    yield "## Bits per byte by source"
    yield ""
    yield from table(
        ["source", "documents", *(STAGES[stage].en for stage in stages)],
        (
            [
                source,
                count(found[stages[0], source]["n"]),
                *(cell("bits_per_byte", found.get((stage, source))) for stage in stages),
            ]
            for source in sorted({source for _, source in found})
        ),
    )


def stage_metrics(manifests: dict[str, Row]) -> Iterator[str]:
    """Every metric that a language-model stage measures, with its interval, one column a stage."""
    stages = [stage for stage in _LANGUAGE_MODELS if stage in manifests]
    left_out = {"seconds", "peak_memory_bytes"}
    names: dict[str, None] = {}
    for stage in stages:
        for key in manifests[stage]["metrics"]:
            name = key.removeprefix(f"{stage}.")
            if name not in left_out:
                names[name] = None
    yield "## Measures of each stage, with 95% intervals"
    yield ""
    yield from table(
        ["", *(STAGES[stage].en for stage in stages)],
        (
            [
                metric_words(name).en,
                *(cell(name, manifests[stage]["metrics"].get(f"{stage}.{name}")) for stage in stages),
            ]
            for name in names
        ),
    )


def cell(name: str, metric: Any) -> str:
    """`81.2% [78.1%, 84.0%]`; empty where the stage has no such metric."""
    value = as_value(metric)
    return "" if value is None else f"{shown(name, value.value)} {interval(name, value)}".strip()


def reward(manifest: Row) -> Iterator[str]:
    metrics = manifest["metrics"]
    yield "## Reward model"
    yield ""
    names = [name for name in metrics if "accuracy" in name]
    yield from table(
        ["held-out pairs", "pairs", "accuracy"],
        (
            [
                name.removeprefix("reward.").replace("pair_accuracy.", "of them, ").replace("_", " "),
                count(metrics[name]["n"]),
                cell("pair_accuracy", metrics[name]),
            ]
            for name in names
        ),
    )


def samples(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## The same questions, answered by each stage"
    yield ""
    for row in rows:
        yield f"**{quoted(row['prompt'][-1]['content'], _EXCERPT)}**"
        yield ""
        for stage, text in row["answers"].items():
            yield f"- {STAGES[stage].en}: {quoted(text, _ANSWER) or '(nothing)'}"
        yield ""


def page(run: Run, notes: str) -> str:
    """The page in Markdown, of whatever stages are finished."""
    manifests = {name: manifest for name in STAGES if (manifest := run.manifest(name)) is not None}
    lines = [*head(run, manifests)]
    if "corpus" in manifests:
        lines += corpus(manifests["corpus"], run.directory / "corpus")
    lines += tokens(manifests)
    lines += training(manifests)
    if "evaluate" in manifests:
        lines += bits_by_source(manifests["evaluate"]["metrics"])
    lines += stage_metrics(manifests)
    if "reward" in manifests:
        lines += reward(manifests["reward"])
    if "evaluate" in manifests:
        lines += samples(manifests["evaluate"]["samples"])
    lines += ["## What is weak, and why", "", notes.strip() or "(to be written)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--notes", type=Path, help="Markdown for the last section, written by hand")
    arguments = parser.parse_args()
    notes = arguments.notes.read_text(encoding="utf-8") if arguments.notes else ""
    print(page(Run.open(arguments.run), notes), end="")


if __name__ == "__main__":
    main()
