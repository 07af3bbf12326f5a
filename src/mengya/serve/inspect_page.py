"""How `mengya inspect` lays things out: a console that shows data as data, headings, cut texts, differences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MAX_CHARACTERS = 600  # of one text
_CONTEXT = 12  # characters of what is equal left standing beside a difference
_BIDI = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def make_console() -> Console:
    """A console on stdout for texts of strangers: no markup, no emoji codes; lines are broken on a terminal alone."""
    console = Console(markup=False, highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    return console


def harmless(text: str) -> str:
    """`text` with control characters and marks that turn the direction of writing shown as U+FFFD.

    Neither may a text move the cursor, nor look like another one.
    """
    return _BIDI.sub("\ufffd", _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))


def cut(text: str, limit: int = MAX_CHARACTERS) -> str:
    """`text`, harmless, of at most `limit` characters; what is missing is said."""
    text = harmless(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def one_line(text: str, limit: int) -> str:
    text = " ".join(harmless(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def table_of(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def heading(console: Console, *parts: str) -> None:
    """`── part · part ─────`, dim and over the width on a terminal, a short line elsewhere."""
    line = Text("── " + " · ".join(part for part in map(harmless, parts) if part) + " ", style="bold")
    if console.is_terminal:
        line.append("─" * max(console.width - line.cell_len, 0), style="dim")
        console.print(line, no_wrap=True, overflow="ellipsis")
    else:
        console.print(line.append("─" * 20))


def labelled(console: Console, label: str, text: str, style: str = "") -> None:
    """One text after its label, both as plain text."""
    line = Text(f"{label:>9}  ", style="dim") if label else Text()
    console.print(line.append(text, style=style))


def indented(console: Console, text: Text) -> None:
    """`text` two columns in, all its lines on a terminal."""
    console.print(Padding(text, (0, 0, 0, 2)) if console.is_terminal else Text("  ").append_text(text))


# --- differences ------------------------------------------------------------------------------------------------------

Change = tuple[str, str, str]  # (kind, before, after): difflib's opcodes with their texts


def changes(before: str, after: str, *, after_is_cut: bool = False) -> list[Change]:
    """What turns `before` into `after`, as difflib sees it; of a cut `after`, what it lacks at its end is none."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    found: list[Change] = [(kind, before[i1:i2], after[j1:j2]) for kind, i1, i2, j1, j2 in matcher.get_opcodes()]
    if after_is_cut and found and found[-1][0] == "delete":
        found.pop()
    return found


def difference(found: Iterable[Change], *, colour: bool) -> Text:
    """Changes as one text: removed red, added green, long equal stretches as "…"; `[-removed-]{+added+}` without colour.

    The marks without colour are those of GNU wdiff.
    """
    text = Text()
    found = [(kind, before.replace("\n", "⏎"), after.replace("\n", "⏎")) for kind, before, after in found]
    for place, (kind, before, after) in enumerate(found):
        if kind == "equal":
            start = before[:_CONTEXT] if place > 0 else ""
            end = before[-_CONTEXT:] if place + 1 < len(found) else ""
            whole = len(before) <= len(start) + len(end) + 2 or len(found) == 1
            text.append(before if whole else f"{start}…{end}", style="dim")
            continue
        for part, style, opening, closing in ((before, "red strike", "[-", "-]"), (after, "green", "{+", "+}")):
            if part:
                text.append(part if colour else f"{opening}{part}{closing}", style=style)
    return text
