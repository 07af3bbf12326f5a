"""`mengya data check`: every file's format, what of it converts, and what should be looked at before training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mengya.corpus.sources import list_files
from mengya.corpus.survey import Survey, Tally, survey
from mengya.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

_BARS = " ▁▂▃▄▅▆▇█"
_LABEL_WIDTH = 12
_MOST_REASONS = 8


def check_files(
    files: Sequence[Path],
    *,
    as_json: bool = False,
    format_name: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> int:
    """Print a block for each file (of each directory or glob), or with `as_json` one JSON object a line; then 0.

    UserError, after all others have been shown: a file cannot be read at all.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    first_error: UserError | None = None
    for file in [found for path in files for found in list_files(path)]:
        try:
            result = survey(file, format_name, columns)
        except UserError as error:
            first_error = first_error or error
            if not as_json:
                console.print(f"{file}\n  ! {error.what}", style="red")
            continue
        if as_json:
            print(json.dumps(result.to_json(), ensure_ascii=False))
        else:
            _print(result, console)
    if first_error:
        raise first_error
    return 0


def _print(result: Survey, console: Console) -> None:
    def line(label: str, text: str) -> None:
        if text:
            console.print(f"  {label:<{_LABEL_WIDTH}}{text}")

    console.print(str(result.file), style="bold")
    encodings = ", ".join(result.encodings) or "binary"
    line("file", f"{result.container} · {encodings} · {result.num_rows:,} rows")
    line("format", _format(result))
    noun = {"document": "documents", "conversation": "conversations", "preference": "pairs", None: "records"}
    line("converted", f"{result.num_converted:,} rows → {result.num_records:,} {noun[result.kind]}")
    for label, tally in (("rejected", result.rejected), ("not usable", result.unusable), ("mended", result.repaired)):
        for text in _reasons(tally, result.file):
            line(label, text)
            label = ""
    line("empty", f"{result.empty:,} rows" if result.empty else "")
    line("roles", " · ".join(f"{role} {count:,}" for role, count in result.roles.most_common()))
    line("answers", " · ".join(f"{name}: {count:,}" for name, count in sorted(result.turns.items())))
    line("repeated", _repeated(result))
    line("length", _histogram(result))
    for warning in result.warnings():
        console.print(f"  ! {warning}", style="yellow")


def _format(result: Survey) -> str:
    if result.format_name is None:
        return "unknown"
    if result.guess is None:
        return f"{result.format_name} ({result.kind}), as you said"
    guess = result.guess
    return f"looks like `{guess.name}` ({result.kind}): {guess.num_fitting} of the first {guess.num_rows} rows fit"


def _reasons(tally: Tally, file: Path) -> list[str]:
    """Each reason with its count and where it is first met; the rest summed up."""
    texts = []
    for reason, count in tally.counts.most_common(_MOST_REASONS):
        origin, detail = tally.first[reason]
        place = origin.removeprefix(str(file)).lstrip("/")
        said = f" {detail!r}" if detail and not detail.startswith(reason) else detail.removeprefix(reason)
        texts.append(f"{count:,} {reason}, first at {place}{said}")
    rest = tally.counts.total() - sum(count for _, count in tally.counts.most_common(_MOST_REASONS))
    return [*texts, f"{rest:,} for {len(tally.counts) - _MOST_REASONS} other reasons"] if rest else texts


def _repeated(result: Survey) -> str:
    if not result.repeated_prompts:
        return ""
    what = "texts" if result.kind == "document" else f"prompts ({result.repeated_records:,} with the same answer)"
    compared = f" (of the first {result.num_hashed:,})" if result.num_hashed < result.num_records else ""
    return f"{what}: {result.repeated_prompts:,} were there before{compared}"


def _histogram(result: Survey) -> str:
    """Bars from the shortest to the longest, a doubling each, and the doubling that holds the median."""
    if not result.lengths:
        return ""
    low, high = min(result.lengths), max(result.lengths)
    most = max(result.lengths.values())
    bars = "".join(_BARS[-(-result.lengths[bits] * 8 // most)] for bits in range(low, high + 1))
    seen, median = 0, low
    for bits in range(low, high + 1):
        seen += result.lengths[bits]
        if seen * 2 >= result.lengths.total():
            median = bits
            break
    return f"{1 << (low - 1)} {bars} {result.longest:,} characters; median {1 << (median - 1)}–{(1 << median) - 1}"
