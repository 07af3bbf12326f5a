"""A conversation with every trained token coloured, and a preference pair side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mengya.corpus.records import ROLES, Message
from mengya.errors import UserError
from mengya.serve.inspect_page import cut, harmless, heading, labelled
from mengya.serve.inspect_rows import Row, num_characters, run_of
from mengya.tokenizer.encode import ChatTokenizer, StreamDecoder, load_tokenizer
from mengya.tokenizer.template import HEADERS

_MAX_TOKENS = 1500  # of one conversation
_HEADERS = frozenset(HEADERS.values())
_COLOURS = ("green", "cyan")  # in turn, so that one token ends where the colour changes


def tokenizer_for(path: Path) -> ChatTokenizer | None:
    """The tokenizer of the run that `path` lies in; None outside of a run, and before it has one."""
    run = run_of(path)
    directory = run / "tokenizer" / "model" if run else None
    return load_tokenizer(directory) if directory and (directory / "tokenizer.json").is_file() else None


def messages_of(turns: Sequence[dict[str, str]]) -> tuple[Message, ...] | None:
    """The turns as messages; None when a role is none of ours, so that no template can be asked."""
    if any(turn["role"] not in ROLES for turn in turns):
        return None
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]


def pieces(tokenizer: ChatTokenizer, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """(text, whether it is trained on) of each token; tokens that hold parts of one character come as one piece."""
    decoder = StreamDecoder(tokenizer, skip_special=False)
    for index, is_trained in zip(ids, trained, strict=True):
        if text := decoder.push(index):
            yield text, is_trained
    if text := decoder.flush():
        yield text, bool(trained[-1])


def coloured(tokens: Sequence[tuple[str, bool]], *, colour: bool) -> Text:
    """The pieces as one text: trained ones in colours, the others dim; `⟦trained⟧` without colour."""
    text = Text()
    for is_trained, group in groupby(tokens, key=lambda piece: piece[1]):
        parts = [harmless(piece) for piece, _ in group]
        if not is_trained:
            for part in parts:  # Mengya's template writes no newline after a message's end; a reader wants one
                begins = part in _HEADERS and text.plain and not text.plain.endswith("\n")
                text.append("\n" if begins else "").append(part, style="dim")
        elif colour:
            for place, part in enumerate(parts):
                text.append(part, style=_COLOURS[place % 2])
        else:
            text.append("⟦" + "".join(parts) + "⟧")
    return text


def print_conversation(console: Console, number: int, row: Row, tokenizer: ChatTokenizer | None) -> None:
    about = [f"{number:,}", str(row.get("source", "")), str(row.get("kind", "")), f"{num_characters(row):,} characters"]
    messages = messages_of(row["messages"])
    note = ""
    if tokenizer is not None and messages is not None:
        try:
            ids, trained = tokenizer.render(messages)
        except UserError as error:
            note = f"the chat template refuses it: {error.what}"
        else:
            heading(console, *about, f"{len(ids):,} tokens, {sum(trained):,} trained")
            shown = list(pieces(tokenizer, ids[:_MAX_TOKENS], trained[:_MAX_TOKENS]))
            console.print(coloured(shown, colour=console.is_terminal))
            if len(ids) > _MAX_TOKENS:
                console.print(Text(f"… {len(ids) - _MAX_TOKENS:,} tokens more", style="dim"))
            return
    heading(console, *about)
    for turn in row["messages"]:
        labelled(console, harmless(turn["role"]), cut(turn["content"]))
    if note:
        console.print(Text(harmless(note), style="yellow"))


def legend(console: Console, tokenizer: ChatTokenizer | None) -> None:
    if tokenizer is None:
        console.print(Text("no tokenizer: tokens are shown for conversations of a run that has one", style="dim"))
    elif console.is_terminal:
        line = Text("trained: ", style="dim")
        console.print(
            line.append("token", _COLOURS[0]).append("token", _COLOURS[1]).append("   not trained: dim", "dim")
        )
    else:
        console.print("⟦trained⟧, the rest is not")


def print_pair(console: Console, number: int, row: Row, tokenizer: ChatTokenizer | None) -> None:
    """The prompt, why the chosen answer is better, and the two answers beside each other with their lengths."""
    reason = f"because {row['reason']}" if row.get("reason") else ""
    heading(console, f"{number:,}", str(row.get("source", "")), reason, _which_is_longer(row))
    for turn in row["prompt"]:
        labelled(console, harmless(turn["role"]), cut(turn["content"]))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), expand=True, header_style="bold")
    for side, style in (("chosen", "green"), ("rejected", "red")):
        tokens = f" · {len(tokenizer.encode(row[side])):,} tokens" if tokenizer is not None else ""
        title = Text(f"{side} · {len(row[side]):,} characters{tokens}", style=style)
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(Text(cut(row["chosen"])), Text(cut(row["rejected"])))
    console.print(table, soft_wrap=False)


def _which_is_longer(row: Row) -> str:
    difference = len(row["chosen"]) - len(row["rejected"])
    if difference == 0:
        return "equally long"
    return f"the {'chosen' if difference > 0 else 'rejected'} one is longer by {abs(difference):,}"
