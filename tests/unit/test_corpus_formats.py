"""Every layout becomes the same records; what is out of order has one defined, counted outcome."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mengya.corpus.formats import FORMATS, FormatError, convert, guess_format
from mengya.corpus.records import Conversation, Document, Message, PreferencePair
from mengya.corpus.sources import Rejects, read_rows
from mengya.errors import UserError

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))

# One conversation, 问一/答一/问二/答二 or its first half, in each layout.
ONE = ["user:问一", "assistant:答一"]
TWO = [*ONE, "user:问二", "assistant:答二"]
HISTORY = [["问一", "答一"]]
CONVERSATIONS: dict[str, list[tuple[dict, list[str]]]] = {
    "alpaca": [
        ({"instruction": "问二", "input": "", "output": "答二", "history": HISTORY}, TWO),
        ({"instruction": "问", "input": "一", "output": "答一"}, ["user:问\n一", "assistant:答一"]),
        ({"instruct": "问一", "output": "答一"}, ONE),
        ({"instruction": "问一", "output": "答一", "history": "", "system": "你是"}, ["system:你是", *ONE]),
    ],
    "input_target": [
        ({"kind": "QA", "input": "问一", "target": "答一"}, ONE),
        ({"input": "问一", "output": "答一"}, ONE),
    ],
    "prompt_response": [
        ({"prompt": "问一", "response": "答一"}, ONE),
        ({"prompt": "问一", "answer": "答一"}, ONE),
        ({"query": "<s>问：\n问一\n答：\n", "response": "答一"}, ONE),
    ],
    "firefly": [
        (
            {"conversation": [{"human": "问一", "assistant": "答一"}, {"human": "问二", "assistant": "答二"}]},
            TWO,
        )
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "问一"}, {"from": "gpt", "value": "答一"}]}, ONE),
        (
            {
                "conversations": [
                    {"from": "human", "value": "问一"},
                    {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "晴"},
                    {"from": "gpt", "value": "答一"},
                ],
                "tools": "[]",
            },
            [
                "system:<tools>\n[]\n</tools>",
                "user:问一",
                "assistant:<tool_call>\n{}\n</tool_call>",
                "tool:晴",
                "assistant:答一",
            ],
        ),
    ],
    "messages": [
        ({"messages": [{"role": "user", "content": "问一"}, {"role": "assistant", "content": "答一"}]}, ONE),
        ({"conversations": [{"role": "user", "content": "问一"}, {"role": "assistant", "content": "答一"}]}, ONE),
    ],
    "belle_multiturn": [
        ({"instruction": "Human:问一\nAssistant:答一\nHuman:问二\nAssistant:", "input": "", "output": "答二"}, TWO),
        ({"instruction": " <user>: 问一 <bot>: 答一 <user>: 问二", "output": "答二", "input": ""}, TWO),
    ],
    "moss003": [
        (
            {
                "meta_instruction": "You are",
                "chat": {
                    f"turn_{number}": {
                        "Human": f"<|Human|>: 问{digit}<eoh>\n",
                        "Inner Thoughts": "<|Inner Thoughts|>: 想<eot>\n",
                        "Commands": "<|Commands|>: None<eoc>\n",
                        "Tool Responses": "<|Results|>: None<eor>\n",
                        "MOSS": f"<|MOSS|>: 答{digit}<sup><|1|></sup><eom>\n",
                    }
                    for number, digit in ((2, "二"), (1, "一"))
                },
            },
            TWO,
        ),
        (
            {
                "meta_instruction": "工具",
                "chat": {
                    "turn_1": {
                        "Human": "<|Human|>: 问一<eoh>",
                        "Commands": '<|Commands|>: Search("x")<eoc>',
                        "Tool Responses": "<|Results|>:\n结果\n<eor>",
                        "MOSS": "<|MOSS|>: 答一<eom>",
                    }
                },
            },
            [
                "system:工具",
                "user:问一",
                'assistant:<tool_call>\nSearch("x")\n</tool_call>',
                "tool:结果",
                "assistant:答一",
            ],
        ),
    ],
    "moss002": [
        ({"plain_text": "[Human]: 问一<eoh> [MOSS]: 答一<eoa> [Human]: 问二<eoh> [MOSS]: 答二<eoa>"}, TWO),
    ],
    "huatuo_lists": [({"instruction": ["问一", "另问"], "output": ["答一"], "input": ""}, ONE)],
    "smile": [({"dialog": [{"role": "client", "content": "问一"}, {"role": "counselor", "content": "答一"}]}, ONE)],
    "emollm": [
        (
            {
                "conversation": [
                    {"system": "医生", "input": "问一", "output": "答一"},
                    {"system": "医生", "input": "问二", "output": "答二"},
                ]
            },
            ["system:医生", *TWO],
        )
    ],
    "medical_csv": [({"department": "内科", "title": "问一", "ask": "问一", "answer": "答一"}, ONE)],
    "disc_med": [
        ({"conversation": [{"role": "patient", "content": "问一"}, {"role": "doctor", "content": "答一"}]}, ONE)
    ],
    "lawyer_history": [({"query": "问一", "history": ["[客户] 问一", "[律师] 答一"]}, ONE)],
    "huatuogpt": [({"data": ["问：问一", "答：答一", "问：问二", "答：答二"]}, TWO)],
    "belle_seed": [({"instruction": "问一", "instances": [{"input": "", "output": "答一"}]}, ONE)],
    "kdconv": [({"messages": [{"message": text} for text in ("问一", "答一", "问二", "答二")]}, TWO)],
}

HUMAN = {"from": "human", "value": "问一"}
USER = {"role": "user", "content": "问一"}
PREFERENCES: dict[str, list[dict]] = {
    "prompt_chosen_rejected": [
        {"prompt": "问一", "chosen": "好", "rejected": "坏"},
        {"question": "问一", "response_chosen": "好", "response_rejected": "坏"},
        {"instruction": "问一", "input": "", "chosen": "好", "rejected": "坏"},
    ],
    "answer_pair": [{"system": "", "prompt": "问一", "answer": ["好", "坏"]}],
    "sharegpt_pair": [
        {
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        {"conversations": [HUMAN], "chosen": "好", "rejected": "坏"},
    ],
    "hh_rlhf": [
        {
            "context": [{"role": "human", "text": "问一"}],
            "chosen": {"role": "assistant", "text": "好"},
            "rejected": {"role": "assistant", "text": "坏"},
        }
    ],
    "cvalues": [{"prompt": "问一", "pos_resp": "好", "neg_resp": "坏"}],
    "ranked": [{"instruction": "问一", "input": "", "output": ["好", "坏"], "history": []}],
    "comparison": [
        {
            "user_input": "问一",
            "responses_and_scores": [{"response": "坏", "score": 1}, {"response": "好", "score": 9}],
        },
        {"prompt": "问一", "responses": [{"text": "好", "score": 2.5}, {"text": "坏", "score": 2}]},
    ],
    "message_lists": [
        {
            "prompt": "问一",
            "chosen": [USER, {"role": "assistant", "content": "好"}],
            "rejected": [USER, {"role": "assistant", "content": "坏"}],
        }
    ],
}
DOCUMENTS: dict[str, tuple[dict, str]] = {
    "text": ({"text": "正文"}, "正文"),
    "wikipedia_cn": ({"completion": "正文", "source": "wikipedia"}, "正文"),
    "title_content": ({"title": "题", "content": "正文"}, "题\n正文"),
    "baidubaike": (
        {
            "title": "题",
            "summary": None,
            "sections": [{"title": "节", "content": "甲"}, {"title": "空", "content": ""}],
        },
        "题\n\n节\n甲",
    ),
}


def spoken(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role}:{message.content}" for message in messages]


def converted(row: dict, name: str = "sharegpt") -> tuple[list[str], Counter[str]]:
    repairs: Counter[str] = Counter()
    (record,) = convert(name, row, repairs=repairs)
    assert isinstance(record, Conversation)
    return spoken(record.messages), repairs


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == {*CONVERSATIONS, *PREFERENCES, *DOCUMENTS}


@pytest.mark.parametrize(
    ("name", "row", "expected"), [(n, *case) for n, cases in CONVERSATIONS.items() for case in cases]
)
def test_a_conversation_layout_is_converted_and_recognised(name: str, row: dict, expected: list[str]) -> None:
    assert converted(row, name)[0] == expected
    assert guess_format([row], "conversation") == name


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in PREFERENCES.items() for row in rows])
def test_a_preference_layout_is_converted_and_recognised(name: str, row: dict) -> None:
    pair = PreferencePair((Message("user", "问一"),), "好", "坏", source="s", origin="f:1")
    assert convert(name, row, source="s", origin="f:1") == [pair]
    assert guess_format([row]) == name


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_a_document_layout_is_converted_and_recognised(name: str) -> None:
    row, text = DOCUMENTS[name]
    assert convert(name, row, source="s") == [Document(text, "s")]
    assert guess_format([row], "document") == name


def turns(*pairs: str) -> dict:
    return {"conversations": [dict(zip(("from", "value"), pair.split(":"), strict=True)) for pair in pairs]}


@pytest.mark.parametrize(
    ("given", "kept", "repair"),
    [
        (["human:甲", "gpt:乙", "human:丙"], ["user:甲", "assistant:乙"], "trailing_turn_removed"),
        (["gpt:你好", "human:甲", "gpt:乙"], ["user:甲", "assistant:乙"], "leading_turn_removed"),
        (["human:甲", "gpt:乙", "gpt:丙"], ["user:甲", "assistant:乙\n丙"], "merged_same_role"),
        (["human:甲", "gpt:乙", "human: ", "gpt:丁"], ["user:甲", "assistant:乙"], "cut_at_empty_turn"),
    ],
)
def test_turns_out_of_order_have_a_defined_counted_outcome(given: list[str], kept: list[str], repair: str) -> None:
    messages, repairs = converted(turns(*given))
    assert messages == kept
    assert repairs == {repair: 1}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "问", "answer": "答"}, "missing field 'output'"),
        ("alpaca", {"instruction": "", "output": "答"}, "empty conversation"),
        ("alpaca", {"instruction": "问", "output": {"a": 1}}, "field is not text"),
        ("alpaca", {"instruction": "问", "output": "答", "history": ["问"]}, "history is not a list of pairs"),
        ("sharegpt", turns("human:甲"), "empty conversation"),
        ("sharegpt", turns("alien:甲"), "unknown role"),
        ("sharegpt", turns("human:甲", "gpt:乙", "system:丙"), "system message after the first turn"),
        ("sharegpt", {"conversations": "甲"}, "field 'conversations' is not a list"),
        ("text", {"text": " "}, "empty text"),
        ("answer_pair", {"prompt": "问", "answer": ["好"]}, "'answer' does not hold two answers"),
        ("cvalues", {"prompt": "问", "pos_resp": "好", "neg_resp": "好 "}, "chosen equals rejected"),
        ("cvalues", {"prompt": "问", "pos_resp": "好", "neg_resp": None}, "empty answer"),
        ("cvalues", {"prompt": "", "pos_resp": "好", "neg_resp": "坏"}, "prompt does not end with the user"),
    ],
)
def test_a_row_that_gives_nothing_says_why(name: str, row: dict, reason: str) -> None:
    with pytest.raises(FormatError) as error:
        convert(name, row)
    assert error.value.reason == reason


def test_a_missing_field_names_what_is_there() -> None:
    with pytest.raises(FormatError, match=r"missing field 'output' \(has: instruction, answer\)"):
        convert("alpaca", {"instruction": "问", "answer": "答"})


def test_columns_rename_fields() -> None:
    (record,) = convert("alpaca", {"问题": "问一", "回答": "答一"}, {"instruction": "问题", "output": "回答"})
    assert isinstance(record, Conversation)
    assert spoken(record.messages) == ONE
    with pytest.raises(FormatError, match="missing field '题'"):
        convert("alpaca", {"问题": "问一"}, {"instruction": "题"})


def test_a_ranking_gives_its_neighbours_and_ties_give_none() -> None:
    row = {"instruction": "问", "input": "", "output": ["甲", "乙", "丙"]}
    assert [(pair.chosen, pair.rejected) for pair in convert("ranked", row)] == [("甲", "乙"), ("乙", "丙")]
    tied = {
        "user_input": "问",
        "responses_and_scores": [{"response": "甲", "score": 1}, {"response": "乙", "score": 1}],
    }
    with pytest.raises(FormatError, match="no two answers"):
        convert("comparison", tied)


def test_identity_placeholders_are_filled_or_refused() -> None:
    row = {"instruction": "你是谁", "output": "我是 <NAME>，由 {{author}} 于 <DATE> 开发。"}
    identity = {"name": "萌芽", "author": "小林", "date": "今年"}
    (record,) = convert("alpaca", row, identity=identity)
    assert isinstance(record, Conversation)
    assert record.messages[-1].content == "我是萌芽，由小林于今年开发。"
    with pytest.raises(FormatError, match="without an identity"):
        convert("alpaca", row)


def test_spaces_stay_where_a_filled_name_meets_other_scripts() -> None:
    row = {"instruction": "who", "output": "I am <NAME>, made by {{author}} of X.\n{{name}} 是我。"}
    (record,) = convert("alpaca", row, identity={"name": "萌芽", "author": "Lin"})
    assert isinstance(record, Conversation)
    assert record.messages[-1].content == "I am 萌芽, made by Lin of X.\n萌芽是我。"


def test_an_unknown_format_and_an_unknown_layout() -> None:
    with pytest.raises(UserError, match="unknown format 'alpacca'"):
        convert("alpacca", {})
    assert guess_format([{"a": 1}, {"b": 2}]) is None


# What is no conversation or pair: titles, bitext, prompts without answers, several scored models, one labelled answer.
OTHER = ("ruozhiba-post", "ruozhiba-title", "bitext", "scored_dialogues", "responsibility_prompts", "kto", ".zip")


def real_files() -> list[tuple[str, Path]]:
    folders = (("conversation", "sft"), ("preference", "preference"))
    files = [(kind, file) for kind, folder in folders for file in sorted((DATA / folder).glob("*.*")) if file.is_file()]
    return [(kind, file) for kind, file in files if not any(part in file.name for part in OTHER)]


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
def test_the_first_rows_of_every_real_file_are_recognised_and_converted() -> None:
    files = real_files()
    assert len(files) > 50
    for kind, file in files:
        rejects, errors = Rejects(), Counter[str]()
        rows = [row for _, row in islice(read_rows(file, rejects), 200)]
        name = guess_format(rows[:20], kind)  # type: ignore[arg-type]
        assert name is not None, file.name
        for row in rows:
            try:
                convert(name, row, identity={"name": "萌芽", "author": "小林", "date": "今年"})
            except FormatError as error:
                errors[error.reason] += 1
        errors -= Counter({"chosen equals rejected": 200, "no two answers to compare": 200})
        assert errors.total() <= 0.02 * len(rows), (file.name, errors)
        assert not rejects.counts
