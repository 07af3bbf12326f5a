"""Documents as `mengya inspect` shows them: random ones, the longest, the shortest, the nearest to each threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from mengya.corpus.clean import RULES, Rule, clean_batch
from mengya.run import Run
from mengya.serve.inspect_page import cut, harmless, heading, indented, one_line, table_of
from mengya.serve.inspect_rows import Look, Row, run_of
from mengya.settings import CorpusSettings

_EXTREME_CHARACTERS = 160
_THRESHOLD_DOCUMENTS, _THRESHOLD_CHARACTERS = 500, 1_000_000
_STEPS = 40  # halvings, until whole numbers are told apart

# Threshold of the recipe → (rule, its largest sensible value, whether the rule drops what is above it). Rules that are
# only on or off have none.
LIMITS: dict[str, tuple[str, float, bool]] = {
    "min_han": ("too_short", 1 << 16, False),
    "max_characters": ("too_long", 1 << 24, True),
    "min_han_share": ("low_han_share", 1.0, False),
    "max_mojibake_share": ("mojibake", 1.0, True),
    "max_symbol_share": ("many_symbols", 1.0, True),
    "max_url_share": ("many_urls", 1.0, True),
    "max_digit_share": ("many_digits", 1.0, True),
    "max_repeated_line_share": ("repeated_lines", 1.0, True),
    "max_repeated_ngram_share": ("repeated_ngrams", 1.0, True),
    "max_notice_share": ("notices", 1.0, True),
    "min_common_share": ("few_common_characters", 1.0, False),
    "min_stop_share": ("few_stops", 1.0, False),
    "max_advertising_terms": ("advertisement", 64, True),
}


class Nearest(NamedTuple):
    """Of the texts that a rule keeps, the one nearest to its threshold, and where on the threshold's scale it lies."""

    threshold: str
    limit: float
    value: float
    text: str


def print_document(console: Console, number: int, row: Row, limit: int) -> None:
    heading(console, f"{number:,}", *_about(row))
    indented(console, Text(cut(row["text"], limit)))


def _about(row: Row) -> list[str]:
    origin = str(row.get("origin", ""))
    return [str(row.get("source", "")), Path(origin).name, f"{len(row['text']):,} characters"]


def print_extremes(console: Console, look: Look) -> None:
    for title, rows in (("the longest", look.longest), ("the shortest", look.shortest)):
        heading(console, title)
        for number, row in rows:
            if isinstance(row.get("text"), str):
                line = Text(f"{number:>9,}  {len(row['text']):>9,} characters  ", style="dim")
                room = max(console.width - line.cell_len, 40) if console.is_terminal else _EXTREME_CHARACTERS
                console.print(line.append(_fitting(row["text"], room), style="not dim"))


def _fitting(text: str, cells: int) -> str:
    """The beginning of `text` on one line of so many terminal cells; a Han character takes two."""
    line = Text(one_line(text, _EXTREME_CHARACTERS))
    line.truncate(cells, overflow="ellipsis")
    return line.plain


def settings_for(path: Path) -> CorpusSettings:
    """The thresholds of the run that `path` lies in; the default ones elsewhere."""
    run = run_of(path)
    return Run(run).recipe().corpus if run else CorpusSettings()


def _drops(rule: Rule, text: str, settings: CorpusSettings, threshold: str, value: float) -> bool:
    whole = isinstance(getattr(settings, threshold), int)
    limit: Any = int(value) if whole else value
    return rule(text, settings.model_copy(update={threshold: limit})) is not None


def _measured(rule: Rule, text: str, settings: CorpusSettings, threshold: str, largest: float, above: bool) -> float:
    """Where the rule's verdict on `text` turns, by halving: the rules say yes or no, not how much."""
    low, high = 0.0, largest  # on the way up, "above" rules turn from dropping to keeping, the others the other way
    whole = isinstance(getattr(settings, threshold), int)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _drops(rule, text, settings, threshold, middle) == above:
            low = middle
        else:
            high = middle
    value = high if above else low  # the last limit at which the rule keeps the text
    return float(int(value)) if whole else value


def nearest_to_thresholds(texts: Sequence[str], settings: CorpusSettings) -> list[Nearest]:
    """For every threshold of the rules, the text nearest to it on the side that is kept; none where all are far off.

    `texts` are normalised ones that the rules keep.
    """
    rules = {rule.__name__: rule for rule in RULES}
    found = []
    for threshold, (name, largest, above) in LIMITS.items():
        rule, limit = rules[name], getattr(settings, threshold)
        if limit is None:
            continue  # this recipe has the rule off
        best: Nearest | None = None
        for text in texts:
            # Only a text that is nearer than the best so far is measured: one question instead of _STEPS.
            bound = (0.0 if above else largest) if best is None else best.value
            if _drops(rule, text, settings, threshold, bound):
                value = _measured(rule, text, settings, threshold, largest, above)
                if best is None or (value > best.value) == above:
                    best = Nearest(threshold, float(limit), value, text)
        if best is not None:
            found.append(best)
    return found


def print_thresholds(console: Console, look: Look, settings: CorpusSettings) -> None:
    """What the rules would drop among the first documents, and which of the others are nearest to being dropped."""
    texts: list[str] = []
    for row in look.head[:_THRESHOLD_DOCUMENTS]:
        if isinstance(row.get("text"), str) and sum(map(len, texts)) < _THRESHOLD_CHARACTERS:
            texts.append(row["text"])
    if not texts:
        return
    cleaned = clean_batch(texts, settings)
    reasons = Counter(found.reason for found in cleaned if found.reason)
    heading(console, "the nearest to a threshold", f"among the first {len(texts):,}")
    if reasons:
        console.print("the rules would drop " + ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common()))
    table = table_of("threshold", "limit", "nearest kept", "text", right=("limit", "nearest kept"))
    for nearest in nearest_to_thresholds([found.text for found in cleaned if not found.reason], settings):
        share = LIMITS[nearest.threshold][1] == 1.0
        values = [f"{value:.1%}" if share else f"{value:,.0f}" for value in (nearest.limit, nearest.value)]
        room = max(console.width - 58, 16)
        table.add_row(nearest.threshold, *values, Text(_fitting(harmless(nearest.text), room)))
    console.print(table, soft_wrap=False)
