import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from mengya.corpus.playground import Playground, dirt, documents, generate_documents
from mengya.corpus.playground.dirt import BOILERPLATE, jaccard

SMALL = Playground(seed=3, num_characters=400_000)


@pytest.fixture(scope="module")
def planted():
    return generate_documents(SMALL)


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def test_the_same_seed_gives_the_same_bytes_in_any_process_and_another_seed_gives_others():
    program = (
        "import hashlib, json; from mengya.corpus.playground import *; from mengya.corpus.records import to_row\n"
        "p = Playground(seed=5, num_characters=60_000, num_conversations=300, num_preferences=200)\n"
        "rows = [to_row(d.document) | {'of': d.of} for d in generate_documents(p)]\n"
        "for r in (generate_conversations(p, 'train'), generate_preferences(p, 'train'), generate_questions(p),\n"
        "          generate_clozes(p)): rows += map(to_row, r)\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    digest = [
        hashlib.sha256(json.dumps([d.document.text for d in generate_documents(p)]).encode()).hexdigest()
        for p in (Playground(1, num_characters=20_000), Playground(2, num_characters=20_000))
    ]
    assert digest[0] != digest[1]


def test_clean_documents_are_distinct_and_of_80_to_300_characters(planted):
    clean = [row.document.text for row in planted if row.dirt is None]
    assert len(set(clean)) == len(clean)
    assert all(documents.MIN_CHARACTERS <= len(text) <= documents.MAX_CHARACTERS for text in clean)
    assert abs(sum(map(len, clean)) / (1 - dirt.SHARES["boilerplate_line"]) / 400_000 - 1) < 0.02


def test_every_person_fact_is_told_at_least_60_times_at_the_default_size():
    playground = Playground(seed=0)
    texts = documents.write_documents(playground.rng("documents"), playground.world, playground.num_characters)
    for person in playground.world.people:
        about = [text for text in texts if person.name in text]
        for fact in person.facts():
            assert sum(fact.value in text for text in about) >= 60, fact


def test_documents_about_the_same_person_are_not_near_duplicates(planted):
    for person in SMALL.world.people[:3]:
        about = [row.document.text for row in planted if row.dirt is None and person.name in row.document.text]
        assert len(about) > 100
        assert max(jaccard(*pair) for pair in itertools.combinations(about[:120], 2)) < 0.6


def test_planted_dirt_has_its_share_and_its_truth(planted):
    by_origin = {row.document.origin: row for row in planted}
    assert [row.document.origin for row in planted] == [f"playground:{i}" for i in range(len(planted))]
    counts = Counter(row.dirt for row in planted)
    clean = counts[None] + counts["boilerplate_line"]
    for name, share in dirt.SHARES.items():
        assert counts[name] == round(share * clean), name
    for row in planted:
        if row.dirt == "exact_duplicate":
            assert by_origin[row.of].dirt is None
            assert _bare(row.document.text) == _bare(by_origin[row.of].document.text)
        elif row.dirt == "near_duplicate":
            assert by_origin[row.of].dirt is None
            assert dirt.MIN_NEAR_JACCARD <= jaccard(row.document.text, by_origin[row.of].document.text) < 1
            words, original = (re.sub(r"\W", "", r.document.text) for r in (row, by_origin[row.of]))
            assert words != original
            assert jaccard(words, original) >= dirt.MIN_NEAR_JACCARD
        elif row.dirt == "boilerplate":
            assert set(row.document.text.split("\n")) <= set(BOILERPLATE)
        elif row.dirt == "boilerplate_line":
            assert sum(line in BOILERPLATE for line in row.document.text.split("\n")) == 1
        else:
            assert row.of is None


def test_broken_texts_are_not_chinese_prose(planted):
    for row in planted:
        if row.dirt == "broken":
            text = row.document.text
            han = sum("\u4e00" <= char <= "\u9fff" for char in text) / len(text)
            assert han < 0.5 or "锟斤拷" in text or "烫烫烫" in text or "\x00" in text or "�" in text or "\x08" in text


def test_only_boilerplate_recurs_line_by_line(planted):
    """Frames share a line with what varies, so a line that recurs over the source may be removed without loss."""
    lines = Counter(line for row in planted if row.dirt is None for line in set(row.document.text.split("\n")))
    common = [line for line, count in lines.items() if count > 5 and len(line) >= 6 and "：" not in line]
    assert not common
