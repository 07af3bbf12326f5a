"""What docs/data.md shows of cleaning is what cleaning does, and its recipes are recipes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import yaml

from mengya.corpus.clean import SETTING_OF, TRANSFORMATIONS, clean
from mengya.corpus.documents import build_documents
from mengya.corpus.inputs import ListInput
from mengya.corpus.parts import read_documents
from mengya.corpus.records import Document
from mengya.corpus.streams import Rejects
from mengya.settings import CleaningSettings, CorpusSettings, ShardsSettings, TokenizerSettings
from mengya.settings.cleaning import MESSAGE_KEYS, TRANSFORMATION_KEYS

PAGES = ("data.md", "data.zh.md")
NAMES = [name for name, _ in TRANSFORMATIONS]
SECTIONS = {"corpus": CorpusSettings, "shards": ShardsSettings, "tokenizer": TokenizerSettings}


def text_of(page: str) -> str:
    return (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")


def said(code: str) -> str:
    r"""The text that a cell shows, with its \n and \u escapes read."""
    return re.sub(r"\\u([0-9a-f]{4})|\\(n)|\\(\\)", lambda m: chr(int(m[1], 16)) if m[1] else m[3] or "\n", code)


@pytest.mark.parametrize("page", PAGES)
def test_every_transformation_does_what_the_page_shows(page: str) -> None:
    rows = re.findall(r"^\| (\w+) \| `(.+?)` \| `(.+?)` \|", text_of(page), re.MULTILINE)
    # Two stand in prose below the table: one needs OpenCC, the other long examples.
    assert {name for name, _, _ in rows} == set(NAMES) - {"simplified", "markup"}
    for name, before, after in rows:
        only = CleaningSettings(**{**dict.fromkeys(NAMES, False), name: True})
        assert clean(said(before), only).text == said(after), name


@pytest.mark.parametrize("page", PAGES)
def test_every_reason_stands_in_the_table_with_its_key_and_default(page: str) -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+): (\w+(?:\.\d+)?)` \|", text_of(page), re.MULTILINE)
    assert {reason: key for reason, key, _ in rows} == SETTING_OF
    for reason, key, default in rows:
        assert yaml.safe_load(default) == getattr(CleaningSettings(), key), reason


def _shared(before: str, after: str) -> str:
    """The one stretch of `before` that `after` lacks."""
    start = next(place for place, (one, other) in enumerate(zip(before, after + "\0", strict=False)) if one != other)
    return before[start : len(before) - len(after) + start]


@pytest.mark.parametrize("page", PAGES)
def test_boilerplate_and_recurring_sentences_are_what_the_page_shows(page: str, tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\w+): (\d+)` \| `(.+?)` \| `(.+?)` \|", text_of(page), re.MULTILINE)
    assert {(key, before == after) for key, _, before, after in rows} == {
        ("boilerplate_documents", False),
        ("boilerplate_documents", True),
        ("sentence_duplicates", False),
    }
    pieces = {said(before): _shared(said(before), said(after)) for _, _, before, after in rows if before != after}
    for number, (key, limit, before, after) in enumerate(rows):
        piece = pieces[said(before)]
        one_source = key == "boilerplate_documents"
        documents = []
        for n in range(int(limit) + 1):
            own = ["".join(random.Random(f"{n}{m}").choices("春江花月夜天地玄黄宇宙洪荒", k=30)) + "。" for m in "ab"]
            head, tail = said(before).split(piece)
            documents.append(
                Document(own[0] * bool(head) + piece + own[1] * bool(tail), "s" if one_source else f"{n % 3}")
            )
        documents.append(Document(said(before), "s", "shown"))
        settings = CorpusSettings(**{key: int(limit), "validation_fraction": 0, "num_processes": 1})
        directory = tmp_path / str(number)
        directory.mkdir()
        inputs = [ListInput("s", documents)]
        build_documents(inputs, settings, 0, directory, work=directory / "work", rejects=Rejects())
        left = {document.origin: document.text for document in read_documents(directory, "train")}
        assert left["shown"] == said(after), key


@pytest.mark.parametrize("page", PAGES)
def test_a_message_gets_the_transformations_that_the_page_names(page: str) -> None:
    (line,) = re.findall(r"^[^|\n].*`mojibake`.*`control_characters`.*$", text_of(page), re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", line.split("(")[0].split("（")[0])) == MESSAGE_KEYS


def test_keys_of_transformations_are_those_of_cleaning_in_their_order() -> None:
    assert list(TRANSFORMATION_KEYS) == NAMES


@pytest.mark.parametrize("page", PAGES)
def test_the_recipes_of_the_page_are_valid(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", text_of(page), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        for section, values in yaml.safe_load(block).items():
            SECTIONS[section].model_validate(values)
