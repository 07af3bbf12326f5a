"""Conversations and pairs: cleaned without harm, one of near copies kept, the same bytes however the work is cut."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mengya.corpus.build import build_conversations, build_preferences
from mengya.corpus.contamination import evaluation_grams, save_index
from mengya.corpus.funnel import Manifest
from mengya.corpus.inputs import ListInput, file_inputs
from mengya.corpus.messages import MessageCleaner, outer_white_space
from mengya.corpus.records import Conversation, Message, PreferencePair, conversation
from mengya.corpus.streams import Rejects
from mengya.errors import UserError
from mengya.files import read_jsonl, write_json
from mengya.recipe import load_recipe
from mengya.report.funnel import funnel
from mengya.serve.inspect import inspect
from mengya.settings import CorpusSettings, Source

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800) if chr(code) not in "一七万三上下不两中九二五亿"]
SETTINGS = CorpusSettings(validation_fraction=0.1, num_processes=1, part_characters=4000)


def prose(seed: str, length: int = 120) -> str:
    return "".join(random.Random(seed).choices(HAN, k=length))


def talk(question: str, answer: str, origin: str, system: str = "") -> Conversation:
    head = (Message("system", system),) if system else ()
    return Conversation((*head, Message("user", question), Message("assistant", answer)), "s", "qa", origin)


def build(talks: list[Conversation], directory: Path, settings: CorpusSettings = SETTINGS) -> Manifest:
    inputs = [ListInput("s", talks[start : start + 60]) for start in range(0, len(talks), 60)]
    directory.mkdir(exist_ok=True)
    work = directory / "work"
    return build_conversations(inputs, settings, 0, directory, work=work, rejects=Rejects())[0]


def kept(directory: Path) -> dict[str, Conversation]:
    rows = (row for split in ("train", "validation") for row in read_jsonl(directory / f"{split}.jsonl"))
    return {row["origin"]: conversation(row) for row in rows}


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_messages_lose_dirt_and_keep_code_punctuation_and_digits(tmp_path: Path) -> None:
    code = "    if x:\n\tprint('你好,世界!!!')  \n\n\n\n    # １２３ [1] ,\n```"
    talks = [talk(f"{prose(str(n))}?", "好的。", f"clean:{n}") for n in range(40)]
    talks += [
        talk("\u3000\u3000请看\u200b这段代码：", code, "code"),
        talk("ä¸–ç•Œã€‚是什么", "世界。\u00a0 ", "mojibake"),
        talk("打电话\u200b给谁", "\u200b\ufeff", "only invisible"),
        talk("怎么联系", "电话13812345678，价格１２元", "personal"),
    ]
    manifest = build(talks, tmp_path)
    found = kept(tmp_path)
    assert [message.content for message in found["code"].messages] == ["请看这段代码：", code]
    assert [message.content for message in found["mojibake"].messages] == ["世界。是什么", "世界。"]
    assert found["personal"].messages[-1].content == "电话13812345678，价格１２元"
    assert manifest["dropped"] == {"empty": {"conversations": 1, "characters": len("打电话给谁")}}
    assert {step: entry["conversations"] for step, entry in manifest["changed"].items()} == {
        "control_characters": 3,
        "white_space": 2,
        "mojibake": 1,
    }
    example = manifest["changed"]["mojibake"]["examples"][0]
    assert (example["origin"], example["after"]) == ("mojibake", "世界。是什么")
    assert [step["step"] for step in manifest["funnel"]] == ["read", "normalise", "duplicates"]
    assert manifest["funnel"][-1]["characters"] == manifest["kept"]["characters"]

    masked = build(talks, tmp_path / "masked", SETTINGS.model_copy(update={"personal_data": True}))
    assert kept(tmp_path / "masked")["personal"].messages[-1].content == "电话〔手机号〕，价格１２元"
    assert masked["changed"]["personal_data"]["conversations"] == 1


def test_rules_of_a_source_add_transformations_by_name(tmp_path: Path) -> None:
    pair = PreferencePair((Message("user", "价格？"),), "１２元", "电话13812345678", "s", "", "p")
    rules = {"half_width": True, "personal_data": True}
    manifest, _ = build_preferences(
        [ListInput("s", [pair], rules)],
        CorpusSettings(validation_fraction=0),
        0,
        tmp_path,
        work=tmp_path / "work",
        rejects=Rejects(),
    )
    (row,) = read_jsonl(tmp_path / "train.jsonl")
    assert (row["chosen"], row["rejected"]) == ("12元", "电话〔手机号〕")
    assert {step: entry["pairs"] for step, entry in manifest["changed"].items()} == {
        "half_width": 1,
        "personal_data": 1,
    }


@pytest.mark.parametrize("rules", ["web", "{min_han: 5}"])
def test_rules_that_judge_documents_are_refused_for_conversations(tmp_path: Path, rules: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: r\ncorpus:\n  conversations:\n    - {{path: a.jsonl, rules: {rules}}}\n")
    with pytest.raises(UserError, match=r"recipe.yaml:4: .*for documents, leave it out"):
        load_recipe(recipe)


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("OpenLMLab__moss-003_without_plugins.jsonl.zst", "moss003"),
        ("hiyouga__LLaMA-Factory__alpaca_zh_demo.json.zst", "alpaca"),
    ],
)
def test_of_real_conversations_only_invisible_characters_and_outer_space_go(name: str, layout: str) -> None:
    (source,) = file_inputs(Source(path=str(DATA / "sft" / name), format=layout), "conversation")
    cleaner = MessageCleaner(CorpusSettings(mojibake=False).message_cleaning())
    invisible = re.compile(
        "[\\s\x00-\x1f\x7f-\xa0\xad\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\uf8ff\ufeff]"
    )
    count = 0
    for before in source.read(Rejects(), Counter()):
        after = cleaner.clean(before)
        for old, new in zip(before.messages, after.messages, strict=True):
            assert invisible.sub("", old.content) == invisible.sub("", new.content)
            assert len(old.content.strip().splitlines()) == len(new.content.strip().splitlines())
            assert outer_white_space(new.content) == new.content
            count += 1
    assert count > 500


# --- near prompts -----------------------------------------------------------------------------------------------------


def grams(text: str) -> set[str]:
    text = re.sub(r"[^\w]", "", text)
    return {text[start : start + 5] for start in range(len(text) - 4)}


def alike(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def near_talks() -> list[Conversation]:
    """200 conversations of one kind each; of 30 a near copy, of others a look-alike that asks something else."""
    talks = [talk(prose(f"{n}"), prose(f"answer {n}", 20), f"f:{n}") for n in range(200)]
    for n in range(30):  # half of the copies have the longer answer
        talks.append(talk(prose(f"{n}") + "呢", prose(f"copy {n}", 10 if n % 2 else 40), f"copy:{n}"))
    for n in range(30, 50):
        talks.append(talk(f"{prose(f'{n}')}第3题", "甲乙", f"three:{n}"))
        talks.append(talk(f"{prose(f'{n}')}第5题", "丙丁", f"five:{n}"))
    talks += [talk(prose(f"{n}") + "呢", "是", f"role:{n}", system=f"你是{n}号医生") for n in range(50, 60)]
    shared = prose("a long system message", 2000)
    talks += [talk(prose(f"short {n}", 30), "是", f"system:{n}", system=shared) for n in range(20)]
    random.Random(1).shuffle(talks)
    return talks


@pytest.mark.parametrize("keep", ["longest", "first"])
def test_of_near_copies_of_a_prompt_one_is_kept_unless_numbers_or_roles_differ(tmp_path: Path, keep: str) -> None:
    talks = near_talks()
    near = {"near_duplicate_prompts": 0.9, "near_duplicate_prompts_keep": keep}
    manifest = build(talks, tmp_path, SETTINGS.model_copy(update=near))
    by_origin = {record.origin: record for record in talks}
    place = {record.origin: number for number, record in enumerate(talks)}
    left = kept(tmp_path)
    lost = by_origin.keys() - left.keys()
    expected = set()
    for n in range(30):
        pair = [f"f:{n}", f"copy:{n}"]
        assert alike(*(by_origin[origin].messages[0].content for origin in pair)) >= 0.9
        answers = {origin: len(by_origin[origin].messages[-1].content) for origin in pair}
        expected.add(min(pair, key=answers.__getitem__) if keep == "longest" else max(pair, key=place.__getitem__))
    assert lost == expected
    assert manifest["dropped"]["near_duplicate_prompt"]["conversations"] == 30
    last = manifest["funnel"][-1]
    assert last.pop("step") == "near_duplicate_prompts"
    assert last == {unit: manifest["kept"][unit] for unit in ("conversations", "characters")}
    for row in read_jsonl(tmp_path / "dropped.jsonl"):
        texts = [by_origin[row[name]].messages[0].content for name in ("origin", "twin")]
        assert row["reason"] == "near_duplicate_prompt"
        assert row["twin"] in left
        assert row["similarity"] == pytest.approx(alike(*texts), abs=1e-4)


def test_the_reason_shows_in_the_report_and_in_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "conversations"
    manifest = build(near_talks(), place, SETTINGS.model_copy(update={"near_duplicate_prompts": 0.9}))
    write_json(tmp_path / "manifest.json", {"counts": {"conversations": manifest}})
    view = funnel("conversations", manifest, place)
    assert view is not None
    (row,) = view["dropped"]
    assert (row["name"], row["zh"], row["count"], len(row["examples"])) == (
        "near_duplicate_prompt",
        "近似重复的问题",
        "30",
        3,
    )
    assert all(step["zh"] for step in view["steps"])
    inspect(place, reason="near_duplicate_prompt")
    shown = capsys.readouterr().out
    assert re.search(r"near_duplicate_prompt\s+30\s", shown)
    assert "99% alike" in shown


def test_near_copies_stay_where_they_were_not_asked_for(tmp_path: Path) -> None:
    assert build(near_talks(), tmp_path)["dropped"] == {}


# --- evaluation sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove", [False, True])
def test_a_leaked_question_is_counted_and_goes_when_asked(tmp_path: Path, remove: bool) -> None:
    exam = [prose(f"exam {n}", 40) for n in range(10)]
    save_index({"exam": evaluation_grams(exam)}, tmp_path / "grams.npz")
    prompts = [f"{prose(f'{n}')}{exam[n // 20] if n % 20 == 0 else ''}" for n in range(160)]
    settings = SETTINGS.model_copy(update={"remove_contaminated": remove})

    def made(name: str, build: Any, records: list[Any], **options: Any) -> tuple[Manifest, set[str]]:
        place = tmp_path / name
        place.mkdir()
        manifest, _ = build(
            [ListInput("s", records[:90]), ListInput("s", records[90:])],
            settings,
            0,
            place,
            work=place / "work",
            rejects=Rejects(),
            grams=tmp_path / "grams.npz",
            **options,
        )
        rows = [row for split in ("train", "validation") for row in read_jsonl(place / f"{split}.jsonl")]
        return manifest, {f"f:{n}" for n in range(160)} - {row["origin"] for row in rows}

    leaked = {f"f:{n}" for n in range(0, 160, 20)}
    talks = [talk(prompt, "好。", f"f:{n}") for n, prompt in enumerate(prompts)]
    manifest, gone = made("talks", build_conversations, [*talks, talk(prompts[0], "copy", "copy")])
    assert gone == (leaked if remove else set())
    found = manifest["contamination"]
    assert (found["texts"], found["sets"]["exam"]["contaminated"]) == (160, 8)  # the copy is not asked about
    assert manifest["dropped"].get("contaminated: exam", {"conversations": 0})["conversations"] == len(gone)

    # What has leaked is not weighed: of the pairs that are left, as many have the longer answer better as the shorter.
    pairs = [
        PreferencePair((Message("user", prompt),), "好" * (1 + n % 2), "坏" * (2 - n % 2), "s", "", f"f:{n}")
        for n, prompt in enumerate(prompts)
    ]
    manifest, gone = made("pairs", build_preferences, pairs, balanced={"s"})
    steps = {step["step"]: step["pairs"] for step in manifest["funnel"]}
    if remove:
        assert leaked < gone
        assert (steps["contamination"], steps["length_balance"]) == (152, 2 * 72)
    else:
        assert gone == set()
        assert steps == {"read": 160, "normalise": 160, "duplicates": 160, "length_balance": 160}


# --- wherever it is made ----------------------------------------------------------------------------------------------


def test_processes_and_parts_make_the_same_bytes(tmp_path: Path) -> None:
    near = SETTINGS.model_copy(update={"near_duplicate_prompts": 0.9})
    one = build(near_talks(), tmp_path / "one", near.model_copy(update={"part_characters": 1 << 25}))
    many = build(near_talks(), tmp_path / "many", near.model_copy(update={"num_processes": 2}))
    assert len(list((tmp_path / "many" / "work" / "write").iterdir())) > 5
    for name in ("train.jsonl", "validation.jsonl", "dropped.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert one.pop("speeds").keys() == many.pop("speeds").keys()
    assert one == many
