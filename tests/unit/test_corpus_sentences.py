"""A sentence that too many documents share stands in the first of them alone; all else stays as it was."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mengya.corpus.documents import all_drops, build_documents
from mengya.corpus.funnel import Manifest
from mengya.corpus.inputs import ListInput
from mengya.corpus.parts import read_documents
from mengya.corpus.records import Document
from mengya.corpus.sentences import SentenceCounter, add_up, spans
from mengya.corpus.streams import Rejects
from mengya.report.funnel import funnel
from mengya.serve.inspect import inspect
from mengya.settings import CorpusSettings

HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
SETTINGS = CorpusSettings(
    validation_fraction=0.2, num_processes=1, part_characters=3000, sentence_duplicates=5, boilerplate_share=1.0
)
CODE = "public static void main(String[] args) { // 程序从这里开始"


def sentence(seed: str, length: int = 24) -> str:
    return "".join(random.Random(seed).choices(HAN, k=length)) + "。"


SHARED = [sentence(f"shared {n}") for n in range(8)]
SHORT = sentence("short", 12)  # as often, but too short to be asked about


def documents() -> list[Document]:
    """160 documents; sentence k of SHARED in 3 + k of them, in the midst of a paragraph, in several sources."""
    made = []
    for n in range(160):
        own = [sentence(f"{n}.{m}", 30) for m in range(5)]
        for k, shared in enumerate(SHARED):
            if n % 17 == k and n // 17 < 3 + k:
                own.insert(2, shared)
        text = "".join(own[:3]) + "\n" + "".join(own[3:]) + (f"\n{CODE}\n{SHORT}" if n % 4 == 0 else "")
        made.append(Document(text, "甲乙丙"[n % 3], f"f:{n}"))
    return made


def build(records: list[Document], directory: Path, settings: CorpusSettings = SETTINGS) -> tuple[Manifest, dict]:
    inputs = [ListInput("", records[start : start + 50]) for start in range(0, len(records), 50)]
    directory.mkdir(exist_ok=True)
    work = directory / "work"
    manifest, _ = build_documents(inputs, settings, 0, directory, work=work, rejects=Rejects())
    texts = {d.origin: (split, d.text) for split in ("train", "validation") for d in read_documents(directory, split)}
    return manifest, texts


def test_sentences_of_too_many_documents_stay_in_the_first_alone(tmp_path: Path) -> None:
    before = documents()
    where = defaultdict(list)
    for document in before:
        for shared in SHARED:
            if shared in document.text:
                where[shared].append(document.origin)
    manifest, after = build(before, tmp_path)
    assert sorted(map(len, where.values())) == [3, 4, 5, 6, 7, 8, 9, 9]
    for document in before:
        text = document.text
        for shared, origins in where.items():
            if len(origins) > 5 and document.origin in origins[1:]:
                text = text.replace(shared, "")
        assert after[document.origin][1] == text
    gone = sum(len(origins) - 1 for origins in where.values() if len(origins) > 5)
    assert {name: manifest["sentences"][name] for name in ("documents", "sentences", "characters")} == {
        "documents": gone,
        "sentences": gone,
        "characters": 25 * gone,
    }
    assert {row["line"]: row["count"] for row in manifest["sentences"]["lines"]} == {
        shared: len(origins) for shared, origins in where.items() if len(origins) > 5
    }
    characters = sum(len(text) for _, text in after.values())
    assert manifest["funnel"][-1] == {"step": "repeated_sentences", "documents": 160, "characters": characters}

    # Off, nothing goes, and the split is the same: it does not hang on what others say.
    plain, untouched = build(before, tmp_path / "off", SETTINGS.model_copy(update={"sentence_duplicates": None}))
    assert "sentences" not in plain
    assert {origin: split for origin, (split, _) in untouched.items()} == {o: split for o, (split, _) in after.items()}
    assert all(untouched[document.origin][1] == document.text for document in before)


def test_a_line_goes_whole_and_a_document_of_nothing_else_is_dropped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "本店的紫砂壶由宜兴的老师傅手工制成。欢迎选购。谢谢。"  # three short sentences, one long line
    stock = "这一批紫砂壶的容量是三百毫升，颜色有朱泥和段泥两种可以选择。"
    records = [Document(f"{sentence(f'{n}', 40)}\n{line}", "甲乙"[n % 2], f"f:{n}") for n in range(12)]
    only = [Document(f"{line}\n{stock}" if n else f"{stock}\n{line}", "丙", f"only:{n}") for n in range(2)]
    # Two of the same canonical order would be copies; what tells these apart is the order of their lines.
    more = [Document(f"{sentence(f'more {n}', 40)}\n{stock}", "丙", f"more:{n}") for n in range(12)]
    settings = SETTINGS.model_copy(update={"near_duplicate_threshold": 1.0, "boilerplate_documents": 50})
    manifest, after = build([*records, *more, *only], tmp_path, settings)
    assert after["f:0"][1] == records[0].text
    assert after["f:7"][1] == sentence("7", 40)
    drops = {drop.origin: drop.reason for drop in all_drops(tmp_path / "work")}
    assert drops == {"only:0": "repeated_sentences", "only:1": "repeated_sentences"}
    assert manifest["dropped"]["repeated_sentences"]["documents"] == 2
    assert manifest["funnel"][-1]["documents"] == len(after) == 24

    view = funnel("documents", manifest, tmp_path)
    assert view is not None
    assert [row["zh"] for row in view["dropped"]] == ["反复出现的句子"]
    assert view["sentences"]["lines"][0] == {"line": line, "count": 14}
    inspect(tmp_path, reason="repeated_sentences")
    assert "only:1" in capsys.readouterr().out


def test_counts_added_up_over_parts_and_slices_are_those_of_one_count(tmp_path: Path, monkeypatch) -> None:
    texts = ["".join(sentence(str(random.Random(n * 10 + m).randrange(60))) for m in range(5)) for n in range(200)]
    whole = SentenceCounter()
    files = []
    for start in range(0, 200, 30):
        counter = SentenceCounter()
        for number, text in enumerate(texts[start : start + 30], start):
            counter.count(number, text)
            whole.count(number, text)
        files.append(tmp_path / f"{start:03d}.npy")
        np.save(files[-1], counter.table())
    table = whole.table()
    expected = table[table["count"] > 12]
    found = defaultdict(set)
    for number, text in enumerate(texts):
        for span in spans(text):
            found[span].add(number)
    assert sorted((len(n), min(n)) for n in found.values() if len(n) > 12) == sorted(
        zip(expected["count"].tolist(), expected["first"].tolist(), strict=True)
    )
    for slice_keys in (1 << 21, 50):
        monkeypatch.setattr("mengya.corpus.sentences._SLICE_KEYS", slice_keys)
        assert (add_up(files, 12) == expected).all()
    assert len(add_up([], 12)) == 0
