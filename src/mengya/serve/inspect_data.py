"""`mengya inspect` of data: a file of records in any layout, a directory of the corpus stage, or the whole stage."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mengya.errors import UserError
from mengya.serve.inspect_chat import legend, print_conversation, print_pair, tokenizer_for
from mengya.serve.inspect_documents import print_document, print_extremes, print_thresholds, settings_for
from mengya.serve.inspect_drops import (
    check_reason,
    counts_of,
    dropped_clusters,
    dropped_rows,
    found_clusters,
    print_clusters,
    print_drops,
)
from mengya.serve.inspect_page import MAX_CHARACTERS, cut, harmless, heading, labelled
from mengya.serve.inspect_rows import Look, Row, kind_of, layout_of, look_at, split_files
from mengya.tokenizer.encode import ChatTokenizer

_UNITS = {"document": "documents", "conversation": "conversations", "pair": "preference pairs", "drop": "samples"}
_PARTS = ("documents", "conversations", "preferences")
_NUM_SOURCES = 6


def is_data_directory(path: Path) -> bool:
    """Whether `path` is a directory as the corpus stage writes them: training records in one file or in parts."""
    return path.is_dir() and bool(split_files(path, "train"))


def print_corpus(console: Console, path: Path, num_sample: int, seed: int, reason: str | None) -> None:
    """Every directory of a corpus stage, one after the other; with a reason, those where something was dropped for it."""
    parts = [path / name for name in _PARTS if is_data_directory(path / name)]
    known = {part: dict.fromkeys([*counts_of(part), *(row["reason"] for row in dropped_rows(part))]) for part in parts}
    if reason is not None:
        check_reason(dict.fromkeys(name for names in known.values() for name in names), reason)
    for part in parts:
        if reason is None or reason in known[part]:
            console.print()
            print_directory(console, part, num_sample, seed, reason)


def print_directory(console: Console, path: Path, num_sample: int, seed: int, reason: str | None) -> None:
    """A directory of the corpus stage: its training records, what was dropped and why, duplicates as clusters."""
    files = [file for file in split_files(path, "train") if file.stat().st_size]
    drops = dropped_rows(path)
    if reason is None and files:
        look = look_at(files, num_sample, seed)
        _print_overview(console, path, look)
        _print_look(console, path, look, seed)
    counts = counts_of(path)
    print_drops(console, drops, counts, num_sample, reason)
    wanted = [row for row in drops if reason in (None, row["reason"])]
    held = [*files, *(file for file in split_files(path, "validation") if file.stat().st_size)]
    if clusters := dropped_clusters(wanted, held):
        print_clusters(console, clusters, num_sample, "among the samples")


def print_file(console: Console, path: Path, num_sample: int, seed: int, reason: str | None) -> None:
    """A file of records in any layout that a recipe could name."""
    look = look_at([path], num_sample, seed)
    _print_overview(console, path, look)
    if look.kind == "drop":
        every = look_at([path], look.num_rows, seed)
        rows = [row for _, row in every.sample if kind_of(row) == "drop"]
        print_drops(console, rows, counts_of(path.parent), num_sample, reason)
        held = [file for split in ("train", "validation") for file in split_files(path.parent, split)]
        wanted = [row for row in rows if reason in (None, row["reason"])]
        if clusters := dropped_clusters(wanted, [file for file in held if file.stat().st_size]):
            print_clusters(console, clusters, num_sample, "among the samples")
        return
    if reason is not None:
        raise UserError(
            "only what was dropped has a reason", where=path, mend="give a corpus stage or its dropped.jsonl"
        )
    _print_look(console, path, look, seed)
    if look.kind == "document" and not split_files(path.parent, "dropped"):
        clusters = found_clusters(look.head, settings_for(path).near_duplicate_threshold)
        if clusters:
            print_clusters(console, clusters, num_sample, f"among the first {len(look.head):,}")


def _print_overview(console: Console, path: Path, look: Look) -> None:
    if not look.num_rows:
        why = ", ".join(f"{reason} {count:,}" for reason, count in look.rejects.counts.most_common())
        raise UserError(f"no row can be read ({why or 'there is none'})", where=path, mend="give a file of records")
    layout = layout_of(path) if path.is_file() else None
    total = f"{look.num_rows:,} {_UNITS.get(look.kind, 'rows')}"
    console.print(Text(" · ".join(filter(None, (harmless(str(path)), total, layout or ""))), style="bold"))
    shares = [
        f"{name} {look.quantile(share):,}" for name, share in (("median", 0.5), ("90% up to", 0.9), ("99%", 0.99))
    ]
    console.print(f"{sum(look.lengths):,} characters; {', '.join(shares)}")
    if len(look.sources) > _NUM_SOURCES and look.sources.most_common(1)[0][1] == 1:
        console.print(f"{len(look.sources):,} sources of one record each")
    elif look.sources:
        most = [f"{harmless(name)} {count:,}" for name, count in look.sources.most_common(_NUM_SOURCES)]
        rest = len(look.sources) - len(most)
        console.print("sources: " + ", ".join(most) + (f" and {rest:,} more" if rest > 0 else ""))
    for reason, count in look.rejects.counts.most_common():
        first = next((sample for sample in look.rejects.samples if sample.reason == reason), None)
        where = f" (first: {Path(first.file).name}:{first.line})" if first else ""
        console.print(Text(f"{count:,} refused: {harmless(reason)}{where}", style="yellow"))


def _print_look(console: Console, path: Path, look: Look, seed: int) -> None:
    tokenizer = tokenizer_for(path) if {"conversation", "pair"} & set(look.kinds) else None
    heading(console, "random", f"{len(look.sample):,} of {look.num_rows:,} rows", f"seed {seed}")
    if look.kind == "conversation":
        legend(console, tokenizer)
    for number, row in look.sample:
        print_row(console, number, row, tokenizer)
    if look.kind == "document":
        print_extremes(console, look)
        print_thresholds(console, look, settings_for(path))


def print_row(console: Console, number: int, row: Row, tokenizer: ChatTokenizer | None) -> None:
    """One record as what it is; its JSON when it is none of ours."""
    kind = kind_of(row)
    if kind == "document":
        print_document(console, number, row, MAX_CHARACTERS)
        shown = {"text", "source", "origin"}
    elif kind == "conversation":
        print_conversation(console, number, row, tokenizer)
        shown = {"messages", "source", "kind", "origin"}
    elif kind == "pair":
        print_pair(console, number, row, tokenizer)
        shown = {"prompt", "chosen", "rejected", "source", "reason", "origin"}
    elif kind == "cloze":
        heading(console, f"{number:,}")
        labelled(console, "prefix", cut(str(row["prefix"])))
        for place, choice in enumerate(row["choices"]):
            labelled(console, "right" if place == row.get("answer") else "wrong", cut(str(choice)))
        shown = {"prefix", "choices", "answer"}
    else:
        heading(console, f"{number:,}")
        console.print(Text(cut(json.dumps(row, ensure_ascii=False, default=str))))
        return
    rest = " · ".join(
        f"{harmless(key)} {cut(str(value), 80)}" for key, value in row.items() if key not in shown and value
    )
    if rest:
        labelled(console, "", f"           {rest}", "dim")
