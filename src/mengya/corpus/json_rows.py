"""Rows of JSON: lines, one big array, one big object, a single row; read one element at a time, broken ones counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from mengya.corpus.streams import LONE_SURROGATE, MAX_LINE_BYTES, SNIFF_BYTES, BrokenFile, Rejects, TextStream
from mengya.corpus.turns import ROLE_NAMES

Row = dict[str, Any]
Layout = Literal[
    "JSON lines", "JSON array", "JSON object of objects", "one JSON object", "one dialogue as a JSON array"
]

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[\s\ufeff]*")
_KEY = re.compile(r'"(?:[^"\\]|\\.)*"\s*:\s*')
_FIRST_KEY = re.compile(r'(\[?)\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:')
_MEMBERS_TO_SEE = 3  # of an object of objects: one with two may be a row, {"chosen": {…}, "rejected": {…}}
_OVERLAP = 4096  # kept when text is skipped: what separates two elements is shorter than this
_DECODER = json.JSONDecoder()


def as_row(value: Any) -> Row | None:
    """An object as it is, a list of one object as that object (lawyer-llama), another list as {"items": list}."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value:
        return value[0] if len(value) == 1 and isinstance(value[0], dict) else {"items": value}
    return None


def json_line_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    for text in stream.lines(rejects):
        if text and not text.isspace() and (row := _parse(text, stream.line, stream, rejects)) is not None:
            yield stream.line, row


def json_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    """(line, row) of a `.json` file, by its content (`json_layout`); an element that is a list as in `as_row`.

    An object of objects gives a row a member, its key as "id" where the row has none (CrossWOZ). A list of messages is
    one row, {"items": list} (SMILE, a file a dialogue).
    """
    layout = json_layout(stream)
    if layout in ("JSON array", "JSON object of objects"):
        yield from _element_rows(stream, rejects, keyed=layout == "JSON object of objects")
    elif layout == "JSON lines":
        yield from json_line_rows(stream, rejects)
    elif (row := _parse(stream.whole_text(), 1, stream, rejects)) is not None:
        yield 1, row


def json_layout(stream: TextStream) -> Layout:
    """How a JSON file is laid out, judged by its first MiB."""
    head = stream.head.decode(stream.encoding, "replace").lstrip("\ufeff \t\r\n")
    first, _, rest = head.partition("\n")
    rest = rest.lstrip()
    if head.startswith("["):
        if rest.startswith("[") and _decoded(first) is not None:
            return "JSON lines"
        return "one dialogue as a JSON array" if _is_message(_element(head, 1)) else "JSON array"
    if not head.startswith("{") or (rest.startswith("{") and _decoded(first) is not None):
        return "JSON lines"
    if _is_object_of_objects(head):
        return "JSON object of objects"
    return "one JSON object" if rest and not rest.startswith("{") and _decoded(first) is None else "JSON lines"


def _decoded(text: str) -> Any:
    """The value of a JSON text; None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _element(text: str, position: int) -> tuple[Any, int] | None:
    """(value, end) of the JSON value at `position` after white space; None when it is broken or not all there."""
    try:
        return _DECODER.raw_decode(text, _after_space(text, position))
    except (ValueError, RecursionError):
        return None


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None, "the pattern matches nothing as well"
    return space.end()


def _is_message(element: tuple[Any, int] | None) -> bool:
    message = element[0] if element else None
    return (
        isinstance(message, dict)
        and str(message.get("role")).strip().lower() in ROLE_NAMES
        and isinstance(message.get("content"), str)
    )


def _is_object_of_objects(head: str) -> bool:
    position, keys = 1, None
    for _ in range(_MEMBERS_TO_SEE):
        key = _KEY.match(head, _after_space(head, position))
        element = _element(head, key.end()) if key else None
        if element is None or not isinstance(element[0], dict) or keys not in (None, set(element[0])):
            return False
        keys, position = set(element[0]), _after_space(head, element[1])
        if head[position : position + 1] != ",":
            return False
        position += 1
    return True


def _parse(text: str, line: int, stream: TextStream, rejects: Rejects) -> Row | None:
    """The row of one JSON text, or None after counting why there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        rejects.num_rows += 1
        rejects.add("invalid_json", stream.file, line, text)
        return None
    return _accept(value, text, line, stream, rejects)


def _accept(value: Any, text: str, line: int, stream: TextStream, rejects: Rejects) -> Row | None:
    """The row that the JSON value of `text` is, or None after counting why it is none."""
    rejects.num_rows += 1
    row, reason = as_row(value), None
    if LONE_SURROGATE.search(text) or ("\ufffd" in text and stream.encoding.startswith("utf-16")):
        reason = "undecodable"
    elif row is None:
        reason = "not_an_object"
    elif _SURROGATE_ESCAPE.search(text) and LONE_SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        reason = "lone_surrogate"  # it could never be written as UTF-8 again
    if reason:
        rejects.add(reason, stream.file, line, text)
        return None
    return row


class _Window:
    """The part of a text that is held in memory: `text` from `position` on is unread, `line` the line it is on."""

    def __init__(self, stream: TextStream) -> None:
        self._chunks = stream.text_chunks()
        self._stream = stream
        self.text, self.position, self.line = "", 0, 1
        self.ended = False
        self.broken: BrokenFile | None = None  # to be raised once all before the break has been read

    def more(self) -> None:
        """Read on. Doubling keeps a long element from being parsed over and over."""
        wanted = max(SNIFF_BYTES, len(self.text) - self.position)
        parts, size = [self.text[self.position :]], 0
        self.position = 0
        while size < wanted and not self.ended:
            try:
                text = next(self._chunks, None)
            except BrokenFile as error:
                text, self.broken = None, error
            if text is None:
                self.ended = True
            else:
                parts.append(text)
                size += len(text)
        self.text = "".join(parts)

    def advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position
        self._stream.line = self.line

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Advance to the next match; past it, or to its beginning when it ends in a lookahead."""
        while True:
            match = pattern.search(self.text, self.position)
            if match and (match.end() < len(self.text) or self.ended):
                return self.advance(match.end())
            if self.ended:
                return self.advance(len(self.text))
            self.advance(max(self.position, (match.start() if match else len(self.text) - _OVERLAP)))
            self.more()

    def unread(self) -> str:
        """The next characters, at least one unless all has been read; BrokenFile when the file breaks off here."""
        while self.position >= len(self.text) and not self.ended:
            self.more()
        if self.position >= len(self.text) and self.broken:
            raise self.broken
        return self.text[self.position : self.position + 80]


_SEPARATOR = re.compile(r"(?=[^\s,\ufeff])")
_VISIBLE = re.compile(r"(?=\S)")


def _element_rows(stream: TextStream, rejects: Rejects, keyed: bool) -> Iterator[tuple[int, Row]]:
    """Elements of one big array, or with `keyed` the members of one big object, read one at a time.

    After a broken element reading goes on at the next that begins like the one before it (with the same first key): a
    list inside the broken one must not be taken for the array.
    """
    window = _Window(stream)
    window.more()
    window.skip(_VISIBLE)
    window.skip(re.compile(r"[\[{]"))
    closing = "}" if keyed else "]"
    beginning: re.Match[str] | None = None  # of the element before
    while True:
        window.skip(_SEPARATOR)
        unread = window.unread()
        if not unread:
            return  # an array that is not closed has lost nothing else
        if unread[0] == closing:
            window.advance(window.position + 1)
            window.skip(_VISIBLE)
            if rest := window.unread():
                rejects.num_rows += 1
                rejects.add("text_after_the_array", stream.file, window.line, rest)
            return
        key = _KEY.match(window.text, window.position) if keyed else None
        begin = key.end() if key else window.position
        try:
            if keyed and not key:
                raise json.JSONDecodeError("Unterminated string: no key", window.text, window.position)
            value, end = _DECODER.raw_decode(window.text, begin)
        except (ValueError, RecursionError) as error:
            whole = window.ended or len(window.text) - window.position >= MAX_LINE_BYTES
            if not whole and not _is_broken(error, window.text):
                window.more()
                continue
            if window.ended and window.broken:
                raise window.broken from None
            beginning = beginning or _FIRST_KEY.match(window.text, begin)
            rejects.num_rows += 1
            rejects.add("invalid_json", stream.file, window.line, window.text[window.position : window.position + 800])
            window.skip(_next_element(beginning, keyed))
            continue
        line, text = window.line, window.text[begin:end]
        beginning = _FIRST_KEY.match(text) or beginning
        row = _accept(value, text, line, stream, rejects)
        if row is not None:
            if key:
                row = {"id": json.loads(key[0].rstrip().removesuffix(":")), **row}
            yield line, row
        window.advance(end)


def _is_broken(error: Exception, text: str) -> bool:
    """Whether a value that could not be decoded is broken in itself, rather than not all there yet."""
    if not isinstance(error, json.JSONDecodeError):
        return True
    return not error.msg.startswith("Unterminated") and error.pos < len(text) - 16


def _next_element(beginning: re.Match[str] | None, keyed: bool) -> re.Pattern[str]:
    """What ends an element and is followed by one that begins as `beginning`."""
    if beginning is None:
        return re.compile(r"\}\s*,\s*(?=[{\"])|\]\s*,\s*(?=\[)")
    bracket, key = beginning[1], re.escape(beginning[2])
    first = rf'\{{\s*"{key}"\s*:'
    if keyed:
        return re.compile(r'\}\s*,\s*(?="(?:[^"\\]|\\.){0,500}"\s*:\s*' + first + ")")
    if bracket:
        return re.compile(rf"\]\s*,\s*(?=\[\s*{first})")
    return re.compile(rf"\}}\s*,\s*(?={first})")
