"""A corpus is what its manifest says: every document is kept once, or dropped with a reason."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mengya.corpus.build import build_conversations, build_preferences
from mengya.corpus.documents import all_drops, build_documents
from mengya.corpus.funnel import Drop, Manifest, score_dedup
from mengya.corpus.inputs import ListInput
from mengya.corpus.parts import read_documents
from mengya.corpus.records import (
    Conversation,
    Document,
    Message,
    PreferencePair,
    conversation,
    preference_pair,
)
from mengya.corpus.streams import Rejects
from mengya.errors import UserError
from mengya.files import read_jsonl
from mengya.settings import CorpusSettings

SETTINGS = CorpusSettings(validation_fraction=0.1, num_processes=1)
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
NOTICE = "版权声明：转载请注明出处，谢谢合作。"
ADVERTISEMENT = "限时优惠，全国包邮，加微信下单，名额有限，先到先得。"


def build_corpus(
    documents: list[Document], settings: CorpusSettings, seed: int, directory: Path
) -> tuple[Manifest, list[Drop]]:
    """The documents as inputs of 100, so that several tasks and parts are at work."""
    inputs = [ListInput("", documents[start : start + 100]) for start in range(0, len(documents), 100)]
    directory.mkdir(exist_ok=True)
    manifest, _ = build_documents(inputs, settings, seed, directory, work=directory / "work", rejects=Rejects())
    return manifest, list(all_drops(directory / "work"))


def build_records(
    build: Callable[..., tuple[Manifest, Counter[str]]],
    records: Iterable[Any],
    directory: Path,
    **options: Any,
) -> Manifest:
    """The records as inputs of 40 in parts of 200 characters, so that several tasks and parts are at work."""
    every = list(records)
    inputs = [ListInput("", every[start : start + 40]) for start in range(0, len(every), 40)]
    directory.mkdir(exist_ok=True)
    settings = SETTINGS.model_copy(update={"part_characters": 200})
    return build(inputs, settings, 0, directory, work=directory / "work", rejects=Rejects(), **options)[0]


def dropped(directory: Path) -> list[Drop]:
    return [Drop(**row) for row in read_jsonl(directory / "dropped.jsonl")]


def sentences(seed: str, count: int = 12) -> str:
    rng = random.Random(seed)
    return "".join("".join(rng.choices(HAN, k=10)) + "。" for _ in range(count))


def planted(count: int = 300) -> tuple[list[Document], dict[str, tuple[str, str | None]]]:
    """Clean documents, with copies, near copies, advertisements and notices of known origin among them."""
    rng = random.Random("planted")
    documents = [Document(sentences(f"{number}"), "甲乙"[number % 2], f"clean:{number}") for number in range(count)]
    truth: dict[str, tuple[str, str | None]] = {}
    for number in range(40):
        original = documents[number]
        exact = Document(original.text.replace("。", "！ \n", 3), original.source, f"exact:{number}")
        near = replace(
            documents[number + 50], text=documents[number + 50].text[:-3] + "改了。", origin=f"near:{number}"
        )
        truth[exact.origin] = ("exact_duplicate", original.origin)
        truth[near.origin] = ("near_duplicate", f"clean:{number + 50}")
        documents += [exact, near]
    for number in range(15):
        documents.append(Document(ADVERTISEMENT + str(number), "甲", f"advertisement:{number}"))
        truth[f"advertisement:{number}"] = ("advertisement", None)
        documents.append(Document(f"{NOTICE}\n短{number}。", "甲", f"boilerplate:{number}"))
        truth[f"boilerplate:{number}"] = ("boilerplate", None)
    for number in range(100, 130):
        documents[number] = replace(documents[number], text=f"{documents[number].text}\n{NOTICE}", source="甲")
    rng.shuffle(documents)
    return documents, truth


def test_planted_dirt_is_found_and_the_funnel_adds_up(tmp_path: Path) -> None:
    documents, truth = planted()
    manifest, drops = build_corpus(documents, SETTINGS, 0, tmp_path)
    score = score_dedup(truth, drops)
    assert score == {
        "num_exact_duplicates_planted": 40,
        "exact_duplicate_recall": 1.0,
        "num_near_duplicates_planted": 40,
        "near_duplicate_recall": 1.0,
        "num_near_duplicates_dropped": 40,
        "near_duplicate_precision": 1.0,
    }
    reasons = {drop.origin: drop.reason for drop in drops}
    for origin, (dirt, _) in truth.items():
        if dirt in ("advertisement", "boilerplate"):
            assert reasons[origin] == dirt

    train, validation = (list(read_documents(tmp_path, p)) for p in ("train", "validation"))
    kept = {record.origin for record in [*train, *validation]}
    assert kept.isdisjoint(reasons)
    assert kept | set(reasons) == {record.origin for record in documents}
    assert not any(NOTICE in record.text for record in [*train, *validation])
    assert manifest["boilerplate"]["lines"][0]["line"] == NOTICE

    assert manifest["funnel"][0]["documents"] == len(documents)
    assert [step["step"] for step in manifest["funnel"]] == [
        "read",
        "normalise",
        "rules",
        "boilerplate",
        "exact_duplicates",
        "near_duplicates",
    ]
    assert manifest["funnel"][-1]["documents"] == manifest["kept"]["documents"] == len(train) + len(validation)
    assert manifest["funnel"][-1]["characters"] == sum(len(record.text) for record in [*train, *validation])
    assert sum(entry["documents"] for entry in manifest["dropped"].values()) == len(drops)
    for counts in manifest["by_source"].values():
        assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())


def test_dropped_samples_name_the_twin_and_are_at_most_twenty_a_reason(tmp_path: Path) -> None:
    documents, _ = planted()
    build_corpus(documents, SETTINGS, 0, tmp_path)
    samples = list(read_jsonl(tmp_path / "dropped.jsonl"))
    counts = {reason: sum(row["reason"] == reason for row in samples) for reason in {row["reason"] for row in samples}}
    assert counts == {"exact_duplicate": 20, "near_duplicate": 20, "advertisement": 15, "boilerplate": 15}
    for row in samples:
        assert ("twin" in row) == row["reason"].endswith("_duplicate")


def test_the_corpus_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    documents = [Document(f"{sentences(str(number), 3)}　ＡＢＣ", "s", f"f:{number}") for number in range(600)]
    for processes in (1, 2):
        build_corpus(documents, SETTINGS.model_copy(update={"num_processes": processes}), 0, tmp_path / str(processes))
    files = sorted(path.name for path in (tmp_path / "1").iterdir() if path.is_file())
    assert len(files) > 10
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_added_documents_move_none_across_the_split(tmp_path: Path) -> None:
    documents = [Document(sentences(str(number)), "s", f"f:{number}") for number in range(200)]
    build_corpus(documents[:120], SETTINGS, 0, tmp_path / "few")
    build_corpus(documents[::-1], SETTINGS, 0, tmp_path / "many")
    few, many = ({record.text for record in read_documents(tmp_path / name, "validation")} for name in ("few", "many"))
    assert few
    assert few == many & {record.text for record in documents[:120]}


def test_many_copies_of_a_document_are_not_boilerplate(tmp_path: Path) -> None:
    text = "一篇被转载了很多次的好文章，第一行。\n它的第二行也写得很好，值得留下。"
    documents = [Document(text, "s", f"copy:{number}") for number in range(30)]
    documents += [Document(sentences(str(number)), "s", f"f:{number}") for number in range(60)]
    manifest, _ = build_corpus(documents, SETTINGS, 0, tmp_path)
    assert manifest["dropped"] == {"exact_duplicate": {"documents": 29, "characters": 29 * len(text)}}


def test_nothing_left_and_nothing_held_out_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no documents left to train on"):
        build_corpus([Document("短", "s", "f:1")], SETTINGS, 0, tmp_path / "short")
    with pytest.raises(UserError, match="held out"):
        build_corpus(
            [Document(sentences("1"), "s", "f:1")],
            SETTINGS.model_copy(update={"validation_fraction": 1e-9}),
            0,
            tmp_path / "all in training",
        )
    manifest, _ = build_corpus(
        [Document(sentences("1"), "s")],
        SETTINGS.model_copy(update={"validation_fraction": 0}),
        0,
        tmp_path / "none wanted",
    )
    assert manifest["kept"]["validation"]["documents"] == 0


def talk(question: str, answer: str, origin: str, opening: str | None = None) -> Conversation:
    head = [Message("user", opening), Message("assistant", "好。")] if opening else []
    return Conversation((*head, Message("user", question), Message("assistant", answer)), "s", "qa", origin)


def test_conversations_are_unique_by_prompt_and_split_by_opening(tmp_path: Path) -> None:
    talks = [talk(f"问题{number}?", "答", f"f:{number}") for number in range(100)]
    talks += [talk("还有呢", "答", f"g:{number}", opening=f"问题{number}?") for number in range(100)]
    talks += [
        talk("问题 3?", "另一个答案", "copy"),
        talk("3-1", "2", "a"),
        talk("3+1", "4", "b"),
        talk("空", " ", "empty"),
    ]
    manifest = build_records(build_conversations, talks, tmp_path)
    drops = dropped(tmp_path)
    assert {(drop.origin, drop.reason, drop.twin) for drop in drops} == {
        ("copy", "duplicate_prompt", "f:3"),
        ("empty", "empty", None),
    }
    parts = [[conversation(row) for row in read_jsonl(tmp_path / f"{p}.jsonl")] for p in ("train", "validation")]
    assert sorted(record.origin for part in parts for record in part) == sorted(
        record.origin for record in talks if record.origin not in ("copy", "empty")
    )
    openings = [{record.messages[0].content for record in part} for part in parts]
    assert openings[0].isdisjoint(openings[1])
    assert manifest["kept"]["conversations"] == 202


def test_copies_multiply_training_records_of_their_source_and_no_counts(tmp_path: Path) -> None:
    talks = [talk(f"问题{number}?", "答", f"f:{number}") for number in range(100)]
    plain = build_records(build_conversations, talks, tmp_path / "plain")
    manifest = build_records(build_conversations, talks, tmp_path / "copied", copies={talks[0].source: 3, "other": 2})
    rows = {name: list(read_jsonl(tmp_path / name / "train.jsonl")) for name in ("plain", "copied")}
    assert rows["copied"] == [row for row in rows["plain"] for _ in range(3)]
    held_out = [list(read_jsonl(tmp_path / name / "validation.jsonl")) for name in ("plain", "copied")]
    assert held_out[0] == held_out[1]
    assert manifest["kept"] == plain["kept"]


def test_preference_pairs_of_one_prompt_are_kept_unless_equal(tmp_path: Path) -> None:
    def pair(number: int, chosen: str, rejected: str, origin: str) -> PreferencePair:
        return PreferencePair((Message("user", f"问{number}"),), chosen, rejected, "s", "right", origin)

    pairs = [pair(number, "好", "坏", f"f:{number}") for number in range(60)]
    pairs += [pair(1, "更好", "坏", "second"), pair(1, "好", "坏 ", "copy"), pair(2, "好", "好", "equal")]
    manifest = build_records(build_preferences, pairs, tmp_path)
    drops = dropped(tmp_path)
    assert {(drop.origin, drop.reason) for drop in drops} == {("copy", "duplicate_pair"), ("equal", "equal_answers")}
    rows = [preference_pair(row) for p in ("train", "validation") for row in read_jsonl(tmp_path / f"{p}.jsonl")]
    assert sorted(rows, key=lambda row: row.origin) == sorted(pairs[:61], key=lambda row: row.origin)
    assert manifest["kept"]["pairs"] == 61


def test_a_balanced_source_has_the_longer_answer_better_as_often_as_the_shorter(tmp_path: Path) -> None:
    def pair(number: int, source: str, chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair((Message("user", f"问{number}"),), chosen, rejected, source, "", f"{source}:{number}")

    pairs = [pair(number, "long", "又长又好", "坏") for number in range(90)]
    pairs += [pair(number, "long", "好", "又长又坏") for number in range(90, 120)]
    pairs += [pair(number, "long", "好", "坏") for number in range(120, 130)]  # of one length: say nothing, stay
    pairs += [pair(number, "as is", "又长又好", "坏") for number in range(130, 150)]
    manifest = build_records(build_preferences, pairs, tmp_path, balanced={"long"})
    drops = dropped(tmp_path)
    again = build_records(build_preferences, reversed(pairs), tmp_path / "again", balanced={"long"})
    assert {(drop.reason, drop.source, drop.excerpt[-5]) for drop in drops} == {("length_balance", "long", "长")}
    assert manifest["funnel"][-1] == {"step": "length_balance", "pairs": 90, "characters": again["kept"]["characters"]}
    kept = {name: [row["origin"] for p in ("train", "validation") for row in read_jsonl(place / f"{p}.jsonl")]
            for name, place in (("one", tmp_path), ("other", tmp_path / "again"))}  # fmt: skip
    assert sorted(kept["one"]) == sorted(kept["other"]), "which pairs go must not depend on their order"
    assert sum(origin.startswith("as is") for origin in kept["one"]) == 20


def test_the_score_counts_misses_and_false_alarms() -> None:
    def drop(origin: str, reason: str, twin: str | None = None) -> Drop:
        return Drop(origin, "s", reason, 1, "", twin)

    truth = {
        "e": ("exact_duplicate", "a"),
        "missed": ("exact_duplicate", "b"),
        "n": ("near_duplicate", "a"),
        "ruled": ("near_duplicate", "c"),
        "x": ("broken", None),
    }
    drops = [
        drop("a", "near_duplicate", "n"),  # the original in favour of its copy
        drop("e", "exact_duplicate", "a"),
        drop("ruled", "too_short"),
        drop("innocent", "near_duplicate", "other"),
    ]
    score = score_dedup(truth, drops)
    assert score["exact_duplicate_recall"] == 0.5
    assert score["near_duplicate_recall"] == 1.0
    assert score["num_near_duplicates_planted"] == 1
    assert score["near_duplicate_precision"] == 0.5
    assert score_dedup({}, [])["near_duplicate_precision"] is None


def test_what_boilerplate_leaves_is_judged_by_the_rules_of_its_source(tmp_path: Path) -> None:
    notice = "版权声明：转载请注明出处，谢谢合作。"
    rest = [f"第{HAN[n]}日无事可记" for n in range(30)]
    documents = [Document(f"{text}\n{notice}", "diary", f"d:{n}") for n, text in enumerate(rest)]
    manifest, _ = build_documents(
        [ListInput("diary", documents, {"min_han": 5})],
        SETTINGS,
        0,
        tmp_path,
        work=tmp_path / "work",
        rejects=Rejects(),
    )
    assert manifest["kept"]["documents"] == 30, "seven characters are enough for this source"
