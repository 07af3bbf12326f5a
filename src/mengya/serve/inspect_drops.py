"""What a corpus dropped, by reason, with samples; and duplicates as clusters with what differs in each copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mengya.corpus.sources import Rejects
from mengya.errors import UserError
from mengya.files import read_json
from mengya.serve.inspect_page import changes, cut, difference, harmless, heading, indented, one_line, table_of
from mengya.serve.inspect_rows import Row, read, split_files

_EXCERPT = 200  # characters of a dropped text that the corpus stage keeps
_COMPARED = 1200  # characters of two texts that are compared
_COPIES = 4  # shown of one cluster


@dataclass(frozen=True)
class Copy:
    """A text that was dropped, or could be, as a copy of another; `is_cut` when only its beginning is known."""

    text: str
    origin: str
    reason: str
    similarity: float | None
    is_cut: bool = False


@dataclass(frozen=True)
class Cluster:
    """Copies of one kept text, which is None where it is not in the files at hand."""

    origin: str
    kept: str | None
    copies: list[Copy]


def print_drops(
    console: Console, rows: Sequence[Row], counts: Mapping[str, Mapping[str, int]], num_sample: int, reason: str | None
) -> None:
    """A table of the reasons, and samples of each that is no duplicate; `counts` are the manifest's, {} without one."""
    by_reason: dict[str, list[Row]] = {}
    for row in rows:
        by_reason.setdefault(str(row["reason"]), []).append(row)
    if reason is not None:
        check_reason(dict.fromkeys([*counts, *by_reason]), reason)
    if not by_reason and not counts:
        console.print("nothing was dropped")
        return
    heading(console, "dropped, by reason")
    unit = next((key for entry in counts.values() for key in entry if key != "characters"), "")
    columns = ("reason", unit or "samples", *(("characters", "samples") if unit else ()))
    table = table_of(*columns, right=columns[1:])
    for name in dict.fromkeys([*counts, *by_reason]):
        if reason in (None, name):
            entry, samples = counts.get(name, {}), f"{len(by_reason.get(name, [])):,}"
            numbers = (
                (f"{entry[unit]:,}" if entry else "?", f"{entry['characters']:,}" if entry else "?") if unit else ()
            )
            table.add_row(harmless(name), *numbers, samples)
    console.print(table)
    for name, held in by_reason.items():
        shown = [row for row in held if row.get("twin") is None or reason == name]
        if reason in (None, name) and shown:
            heading(console, name)
            for row in shown[:num_sample]:
                _print_drop(console, row)


def check_reason(known: Iterable[str], reason: str) -> None:
    if reason not in known:
        raise UserError(f"nothing was dropped as {reason!r}", where="--reason", mend=f"there are: {', '.join(known)}")


def _print_drop(console: Console, row: Row) -> None:
    about = [str(row.get("source", "")), str(row.get("origin") or f"{row.get('file', '')}:{row.get('line', '')}")]
    if isinstance(row.get("characters"), int):
        about.append(f"{row['characters']:,} characters")
    indented(console, Text(" · ".join(part for part in map(harmless, about) if part), style="dim"))
    indented(console, Text(one_line(str(row["excerpt"]), _EXCERPT)))


# --- clusters ---------------------------------------------------------------------------------------------------------


def dropped_clusters(drops: Iterable[Row], files: Sequence[Path]) -> list[Cluster]:
    """Samples of dropped duplicates gathered by the text that was kept, the largest cluster first.

    `files` hold the kept texts. A copy whose twin was dropped as another's copy belongs to that one's cluster, as far
    as the samples tell.
    """
    copies = [row for row in drops if isinstance(row.get("twin"), str) and isinstance(row.get("origin"), str)]
    twins = {row["origin"]: row["twin"] for row in copies}

    def root(origin: str) -> str:
        seen = {origin}
        while (following := twins.get(origin)) is not None and following not in seen:
            seen.add(following)
            origin = following
        return origin

    gathered: dict[str, list[Copy]] = {}
    for row in copies:
        excerpt = str(row["excerpt"])
        length, similarity = row.get("characters"), row.get("similarity")
        is_cut = isinstance(length, int) and length > len(excerpt)
        alike = float(similarity) if isinstance(similarity, int | float) else None
        copy = Copy(excerpt, row["origin"], str(row["reason"]), alike, is_cut)
        gathered.setdefault(root(row["twin"]), []).append(copy)
    kept = _texts_of(set(gathered), files)
    clusters = [Cluster(origin, kept.get(origin), held) for origin, held in gathered.items()]
    return sorted(clusters, key=lambda cluster: (-len(cluster.copies), cluster.origin))


def _texts_of(origins: set[str], files: Sequence[Path]) -> dict[str, str]:
    """{origin: text} of the records of these origins, as far as they are in the files."""
    found: dict[str, str] = {}
    for row in chain.from_iterable(read([file], Rejects(0)) for file in files):
        if row.get("origin") in origins:
            found[row["origin"]] = _whole_text(row)
            if len(found) == len(origins):
                break
    return found


def _whole_text(row: Row) -> str:
    """The text that a dropped record's excerpt would be the beginning of (see `corpus.messages`)."""
    if "text" in row:
        return str(row["text"])
    turns = [str(turn["content"]) for turn in row.get("prompt") or row.get("messages") or []]
    return "\n".join([*turns, *(str(row[key]) for key in ("chosen", "rejected") if key in row)])


def found_clusters(rows: Sequence[Row], threshold: float) -> list[Cluster]:
    """Exact and near duplicates among documents that nobody has deduplicated yet, the largest cluster first."""
    from mengya.corpus.dedup import exact_duplicates, near_duplicates

    texts = [row["text"] if isinstance(row.get("text"), str) else "" for row in rows]
    exact = [duplicate for duplicate in exact_duplicates(texts) if texts[duplicate.index]]
    copied = {duplicate.index for duplicate in exact}
    left = [index for index in range(len(texts)) if index not in copied]
    gathered: dict[int, list[Copy]] = {}

    def add(index: int, of: int, reason: str, similarity: float) -> None:
        copy = Copy(texts[index], f"row {index + 1:,}", reason, similarity)
        gathered.setdefault(of, []).append(copy)

    for duplicate in exact:
        add(duplicate.index, duplicate.of, duplicate.kind, duplicate.similarity)
    for duplicate in near_duplicates([texts[index] for index in left], threshold):
        add(left[duplicate.index], left[duplicate.of], duplicate.kind, duplicate.similarity)
    clusters = [Cluster(f"row {of + 1:,}", texts[of], copies) for of, copies in gathered.items()]
    return sorted(clusters, key=lambda cluster: -len(cluster.copies))


def print_clusters(console: Console, clusters: Sequence[Cluster], num_shown: int, among: str) -> None:
    """Each cluster's kept text, and each copy as what differs from it."""
    heading(console, "duplicates", f"{sum(len(c.copies) for c in clusters):,} in {len(clusters):,} clusters", among)
    if not console.is_terminal and clusters:
        console.print("[-only in the kept text-] {+only in the copy+}")
    for cluster in clusters[:num_shown]:
        missing = "" if cluster.kept is not None else "   (not in these files)"
        console.print(Text(f"  kept  {harmless(cluster.origin)}{missing}", style="bold"))
        if cluster.kept is not None:
            indented(console, Text(" ".join(cut(cluster.kept, _EXCERPT).split())))
        for copy in cluster.copies[:_COPIES]:
            alike = "" if copy.similarity is None else f" · {copy.similarity:.0%} alike"
            console.print(Text(f"  copy  {harmless(copy.origin)} · {harmless(copy.reason)}{alike}", style="dim"))
            indented(console, _difference(console, cluster, copy))
        if len(cluster.copies) > _COPIES:
            console.print(Text(f"  … and {len(cluster.copies) - _COPIES:,} copies more", style="dim"))


def _difference(console: Console, cluster: Cluster, copy: Copy) -> Text:
    if cluster.kept is None:
        return Text(one_line(copy.text, _EXCERPT))
    after = harmless(copy.text)[:_COMPARED]
    before = harmless(cluster.kept)[: _COMPARED if len(after) >= _COMPARED else len(after) + _EXCERPT]
    is_cut = copy.is_cut or len(copy.text) > _COMPARED
    if not is_cut:
        before = harmless(cluster.kept)[: 2 * _COMPARED]
    found = changes(before, after, after_is_cut=is_cut)
    if all(kind == "equal" for kind, _, _ in found):
        return Text("no difference" + (f" in the first {len(after):,} characters" if is_cut else ""), style="dim")
    return difference(found, colour=console.is_terminal)


def counts_of(path: Path) -> dict[str, dict[str, int]]:
    """{reason: {unit: number, "characters": number}} as the corpus stage counted for its directory `path`; {} without."""
    manifest = path.parent / "manifest.json"
    if not manifest.is_file():
        return {}
    section = read_json(manifest).get("counts", {}).get(path.name, {})
    dropped = section.get("dropped", {}) if isinstance(section, dict) else {}
    return {str(reason): dict(entry) for reason, entry in dropped.items()}


def dropped_rows(directory: Path) -> list[Row]:
    """The samples of what was dropped, in a directory of the corpus stage."""
    files = [file for file in split_files(directory, "dropped") if file.stat().st_size]
    return [row for row in read(files, Rejects(0)) if "reason" in row and "excerpt" in row]
