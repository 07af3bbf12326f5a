"""A leak from an evaluation set is found whatever its layout, clean text is not, and archives are read safely."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mengya.corpus import evaluation_sets
from mengya.corpus.contamination import (
    NGRAM,
    Contamination,
    EvaluationIndex,
    evaluation_grams,
    num_units,
    overlap,
)
from mengya.corpus.evaluation_sets import read_evaluation
from mengya.errors import UserError

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))
QUESTION = "在下列四种树木当中，哪一种的叶子到了秋天会由绿色变成红色，并且常常被写进古人的诗里？"
CLEAN = "老王每天清早挑着两筐青菜走到镇上的集市，卖完了就买一包点心带回家给孙女吃，日子过得平平淡淡。"


def grams_by_hand(text, n):
    """The distinct n-grams of a text of Han characters, by slicing."""
    letters = [character for character in text if character.isalnum()]
    return {tuple(letters[i : i + n]) for i in range(len(letters) - n + 1)}


@given(
    st.lists(st.text("甲乙丙丁，。 \n", max_size=40), max_size=6),
    st.lists(st.text("甲乙丙，", max_size=40), max_size=4),
)
def test_overlap_equals_sets_of_slices(texts, held_out):
    for n in (1, 3, 13):
        wanted = set().union(*(grams_by_hand(text, n) for text in held_out))
        grams = evaluation_grams(held_out, n)
        assert len(grams) == len(wanted)
        counts = overlap(texts, {"a": grams, "none": evaluation_grams([], n)}, n)
        assert counts.shape == (len(texts), 2)
        assert counts[:, 0].tolist() == [len(grams_by_hand(text, n) & wanted) for text in texts]
        assert not counts[:, 1].any()


def test_texts_over_several_batches_count_as_one_by_one(monkeypatch):
    from mengya.corpus import contamination

    rng = random.Random(5)
    texts = ["".join(rng.choices("天地玄黄", k=rng.randrange(60))) for _ in range(200)]
    grams = {"set": evaluation_grams(texts[:20], 5)}
    alone = [overlap([text], grams, 5)[0, 0] for text in texts]
    monkeypatch.setattr(contamination, "_BATCH_CHARACTERS", 100)
    assert overlap(texts, grams, 5)[:, 0].tolist() == alone
    assert (evaluation_grams(texts[:20], 5) == grams["set"]).all()


def test_a_planted_leak_is_found_in_any_layout_and_clean_text_is_not():
    index = EvaluationIndex({"quiz": evaluation_grams([QUESTION]), "other": evaluation_grams([CLEAN[::-1]])})
    spaced = "　".join(QUESTION.replace("，", "\n").replace("？", "?"))
    texts = [CLEAN, CLEAN + QUESTION + CLEAN, spaced, QUESTION[: len(QUESTION) // 4], ""]
    check = Contamination(index)
    assert check.check(texts, [f"f:{i}" for i in range(5)]) == [(), ("quiz",), ("quiz",), (), ()]
    summary = check.summary()["sets"]
    assert (summary["quiz"]["contaminated"], summary["quiz"]["touched"]) == (2, 2)
    assert summary["quiz"]["grams_met"] == summary["quiz"]["grams"] == len(grams_by_hand(QUESTION, NGRAM))
    assert summary["other"] == {
        "grams": len(grams_by_hand(CLEAN, NGRAM)), "grams_met": 0, "touched": 0, "contaminated": 0, "examples": [],
    }  # fmt: skip
    assert summary["quiz"]["examples"][0] == {
        "origin": "f:1",
        "grams": summary["quiz"]["grams"],
        "passage": QUESTION[:-1],
    }


def test_a_short_leaked_question_standing_alone_is_found_and_a_stock_phrase_is_not():
    short = "下列哪一个城市不是我国的直辖市重庆"
    check = Contamination(EvaluationIndex({"quiz": evaluation_grams([short])}))
    assert check.check([short + "？", CLEAN + short], ["a", "b"]) == [("quiz",), ()]
    assert check.summary()["sets"]["quiz"]["touched"] == 2


def test_words_and_numbers_are_units_so_that_one_long_word_is_no_overlap():
    assert num_units("internationalisation 2026年，iPhone17手机") == 6
    assert num_units("３．１４ ＡＢＣ") == 3
    grams = {"set": evaluation_grams(["see the documentation of the internationalisation"])}
    assert overlap(["documentation internationalisation"], grams).sum() == 0
    english = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
    fourteen_words = "IT IS A TRUTH universally acknowledged that a single man in possession of a"
    assert overlap([fourteen_words], {"set": evaluation_grams([english])}).tolist() == [[2]]
    assert len(evaluation_grams(["one", "two"], 1)) == 2  # no word goes on over the end of a text
    assert overlap(["twone", "one"], {"set": evaluation_grams(["one"], 1)}, 1).tolist() == [[0], [1]]
    assert overlap(["ab" * 9], {"set": evaluation_grams(["a b " * 9])}).sum() == 0


def test_counts_of_two_processes_add_up():
    index = EvaluationIndex({"quiz": evaluation_grams([QUESTION, CLEAN])})
    both, one, two = (Contamination(index) for _ in range(3))
    texts, origins = [CLEAN, QUESTION, CLEAN + QUESTION, "无关的文字"], ["a", "b", "c", "d"]
    both.check(texts, origins)
    one.check(texts[:2], origins[:2])
    two.check(texts[2:], origins[2:])
    one.merge(two)
    assert one.summary() == both.summary()


def archive(path, members, kind="w"):
    """A .tar.zst with these (name, bytes or TarInfo type) members."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, "/etc/passwd"
                tar.addfile(info)
    path.write_bytes(zstandard.compress(raw.getvalue()))
    return path


def test_every_string_of_any_layout_is_read_and_the_rest_counted(tmp_path):
    rows = {"q.json": [[[QUESTION], [{"choice": ["短", CLEAN]}]]], "r.jsonl": {"a": {"b": [QUESTION + "二"]}, "n": 1}}
    for name, value in rows.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "s.csv").write_text(f"id,Question\n1,{QUESTION}三\n2,短\n")
    (tmp_path / "README.txt").write_text(CLEAN + "说明")
    (tmp_path / "model.bin").write_text("x")
    tally = Counter()
    assert sorted(read_evaluation(tmp_path, tally=tally)) == sorted([QUESTION, CLEAN, QUESTION + "二", QUESTION + "三"])
    assert (tally["texts"], tally["rows"], tally["rows_without_text"], tally["members_not_data"]) == (4, 4, 1, 1)
    members = [(f"set/{file.name}", file.read_bytes()) for file in sorted(tmp_path.iterdir())]
    packed = archive(tmp_path / "set.tar.zst", members)
    assert sorted(read_evaluation(packed)) == sorted([QUESTION, CLEAN, QUESTION + "二", QUESTION + "三"])


def test_no_name_or_link_in_an_archive_reaches_the_disk(tmp_path, monkeypatch):
    row = json.dumps({"q": QUESTION}).encode()
    members = [
        ("../../outside.jsonl", row),
        ("/tmp/absolute.jsonl", row),
        ("link.jsonl", tarfile.SYMTYPE),
        ("hard.jsonl", tarfile.LNKTYPE),
        ("pipe.jsonl", tarfile.FIFOTYPE),
    ]
    written = []
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda file, *rest, **more: written.append(str(file)) or real(file, *rest, **more)
    )
    assert list(read_evaluation(archive(tmp_path / "a.tar.zst", members))) == [QUESTION, QUESTION]
    assert {Path(file).name for file in written} <= {"member.jsonl", "a.tar.zst"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.zst"]


def test_a_broken_or_empty_or_huge_set_is_the_users_error(tmp_path, monkeypatch):
    whole = archive(tmp_path / "whole.tar.zst", [("a.jsonl", json.dumps({"q": QUESTION}).encode())])
    (tmp_path / "broken.tar.zst").write_bytes(b"no archive")
    archive(tmp_path / "short.tar.zst", [("a.jsonl", b'{"q": "1 + 1"}')])
    for name, message in (("broken", "a broken archive"), ("short", "no text of 13"), ("absent", "no such file")):
        with pytest.raises(UserError, match=message):
            list(read_evaluation(tmp_path / f"{name}.tar.zst"))
    monkeypatch.setattr(evaluation_sets, "MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(UserError, match="when unpacked"):
        list(read_evaluation(whole))


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
def test_a_real_question_planted_in_a_document_is_found():
    sets = {name: list(read_evaluation(DATA / "eval" / f"{name}.tar.zst")) for name in ("CMMLU", "CMATH")}
    index = EvaluationIndex({name: evaluation_grams(texts) for name, texts in sets.items()})
    asked = 0
    for name, texts in sets.items():
        for text in texts[::97]:
            if num_units(text) < 40:
                continue
            asked += 1
            check = Contamination(index)
            assert name in check.check([CLEAN + text + CLEAN], ["planted"])[0]
            assert check.check([CLEAN + text[::-1] + CLEAN], ["reversed"]) == [()]
    assert asked >= 5
