"""What docs/data.md shows of cleaning is what cleaning does, and its recipes are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mengya.corpus.clean import SETTING_OF, TRANSFORMATIONS, clean
from mengya.settings import CleaningSettings, CorpusSettings, ShardsSettings, TokenizerSettings

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


@pytest.mark.parametrize("page", PAGES)
def test_the_recipes_of_the_page_are_valid(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", text_of(page), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        for section, values in yaml.safe_load(block).items():
            SECTIONS[section].model_validate(values)
