"""Layouts of public pretraining data: a row → documents. One function a layout, named as in `formats`."""

from __future__ import annotations

from collections import Counter

from mengya.corpus.records import Document
from mengya.corpus.turns import Converter, FormatError, Recogniser, Row, as_text, field, objects


def _document(text: str) -> list[Document]:
    if not text:
        raise FormatError("empty text")
    return [Document(text, source="")]


def _titled(title: str, body: str) -> list[Document]:
    """The title as the first line, unless the body opens with it; a title alone is an empty text."""
    return _document(body if body.startswith(title) else f"{title}\n{body}" if body else "")


def text(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"text"}: SkyPile, C4, shibing624/medical, MiniMind, Firefly, Zero-Chatgpt, and nearly everything else."""
    return _document(as_text(field(row, "text"), repairs))


def wikipedia_cn(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"completion"}: wikipedia-cn-20230720-filtered."""
    return _document(as_text(field(row, "completion"), repairs))


def title_text(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"id", "url", "title", "text"}: wiki2019zh."""
    return _titled(as_text(field(row, "title"), repairs), as_text(field(row, "text"), repairs))


def title_content(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"title", "content"}: WuDao."""
    return _titled(as_text(field(row, "title"), repairs), as_text(field(row, "content"), repairs))


def baidubaike(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"title", "summary" (or null), "sections": [{"title", "content"}]}; a title alone is an empty text."""
    body = [as_text(row.get("summary"), repairs)]
    for section in objects(row, "sections"):
        heading, content = as_text(section.get("title"), repairs), as_text(section.get("content"), repairs)
        body.append(f"{heading}\n{content}" if heading and content else content)
    paragraphs = [paragraph for paragraph in body if paragraph]
    return _document("\n\n".join([as_text(field(row, "title"), repairs), *paragraphs]) if paragraphs else "")


def title_answer(row: Row, repairs: Counter[str]) -> list[Document]:
    """{"title", "desc"?, "answer" or "content"}: baike_qa2019 and webtext2019zh, question and answer as one text."""
    title, answer = as_text(field(row, "title"), repairs), as_text(field(row, "answer", "content"), repairs)
    detail = as_text(row.get("desc"), repairs)
    question = f"{title}\n{detail}" if detail and detail not in title else title
    return _document(f"{question}\n{answer}".strip() if answer else "")


def _has(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


DOCUMENTS: dict[str, tuple[Converter, Recogniser]] = {
    "baidubaike": (baidubaike, lambda row: "title" in row and isinstance(row.get("sections"), list)),
    "wikipedia_cn": (wikipedia_cn, lambda row: _has(row, "completion") and "prompt" not in row),
    "title_answer": (
        title_answer,
        lambda row: _has(row, "title") and "desc" in row and (_has(row, "answer") or _has(row, "content")),
    ),
    "title_text": (title_text, lambda row: _has(row, "title", "text")),
    "title_content": (title_content, lambda row: _has(row, "title", "content")),
    "text": (text, lambda row: _has(row, "text")),
}
