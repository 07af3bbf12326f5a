"""Every layout becomes the same records; what is out of order has one defined, counted outcome."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mengya.corpus.formats import FORMATS, FormatError, convert, guess_format
from mengya.corpus.records import Conversation, Document, Message, PreferencePair
from mengya.errors import UserError

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
        ({"INSTRUCTION": "问一", "RESPONSE": "答一", "SOURCE": "知乎", "METADATA": "{}"}, ONE),
        ({"history": '[["问一", "答一"]]', "q": "问二", "a": "答二"}, TWO),
        ({"prompt": "问一", "completion": "答一"}, ONE),
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
            {"id": "1", "conversations": [{"from": "human", "value": "问一"}, {"from": "assistant", "value": "答一"}]},
            ONE,
        ),
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
        (
            {
                "conversations": [
                    {"role": "system", "content": "你是", "tools": "[]"},
                    {"role": "user", "content": [{"type": "text", "text": "问一"}]},
                    {"role": "assistant", "content": None, "reasoning_content": "想", "tool_calls": [{"name": "查"}]},
                    {"role": "tool", "content": "晴"},
                    {"role": "assistant", "content": "答一"},
                ]
            },
            [
                "system:你是\n<tools>\n[]\n</tools>",
                "user:问一",
                'assistant:<tool_call>\n{"name": "查"}\n</tool_call>',
                "tool:晴",
                "assistant:答一",
            ],
        ),
    ],
    "belle_multiturn": [
        ({"instruction": "Human:问一\nAssistant:答一\nHuman:问二\nAssistant:", "input": "", "output": "答二"}, TWO),
        ({"instruction": " <user>: 问一 <bot>: 答一 <user>: 问二", "output": "答二", "input": ""}, TWO),
        ({"instruction": "Human:问\nAssistant:", "input": "一", "output": "答一"}, ["user:问\n一", "assistant:答一"]),
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
    "smile": [
        ({name: [{"role": "client", "content": "问一"}, {"role": "counselor", "content": "答一"}]}, ONE)
        for name in ("dialog", "items")
    ],
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
    "crosswoz": [
        ({"messages": [{"role": "usr", "content": "问一"}, {"role": "sys", "content": "答一"}], "goal": []}, ONE)
    ],
    "chatterbot": [({"items": ["问一", "答一", "问二", "答二"], "category": "AI"}, TWO)],
    "classical_bitext": [
        (
            {"classical": "静不露机，云雷屯也。", "modern": "静静地等待。", "book": "三十六计"},
            ["user:下面的古文是什么意思？\n静不露机，云雷屯也。", "assistant:静静地等待。"],
        )
    ],
    "self_cognition": [
        ({"instruction": "你是谁？", "output": f"我是{name}。"}, ["user:你是谁？", "assistant:我是萌芽。"])
        for name in ("<NAME>", "{{name}}", " {{ name }} ", " NAME ")
    ],
    "kto": [
        (
            {
                "messages": [{"role": "user", "content": "问一"}, {"role": "assistant", "content": "答一"}],
                "label": True,
            },
            ONE,
        ),
        ({"prompt": "问一", "completion": [{"role": "assistant", "content": "答一"}], "label": True}, ONE),
    ],
    "kdconv": [({"messages": [{"message": text} for text in ("问一", "答一", "问二", "答二")]}, TWO)],
}

HUMAN = {"from": "human", "value": "问一"}
USER = {"role": "user", "content": "问一"}
PREFERENCES: dict[str, list[dict]] = {
    "prompt_chosen_rejected": [
        {"prompt": "问一", "chosen": "好", "rejected": "坏"},
        {"question": "问一", "response_chosen": "好", "response_rejected": "坏"},
        {"instruction": "问一", "input": "", "chosen": "好", "rejected": "坏"},
        {"user_input": "问一", "completion_a": "好", "completion_b": "坏"},
    ],
    "templated_pair": [
        {
            "prompt": "<|im_start|>user\n问一<|im_end|>\n<|im_start|>assistant\n",
            "response": "好",
            "chosen": "好<|im_end|>",
            "rejected": "坏<|im_end|>\n",
        },
        {"prompt": "\n\nHuman: 问一\n\nAssistant:", "chosen": "好</s>", "rejected": "坏</s>"},
        {"chosen": "\n\nHuman: 问一\n\nAssistant: 好", "rejected": "\n\nHuman: 问一\n\nAssistant: 坏"},
    ],
    "scored_dialogues": [
        {
            "source": "CMD",
            "candidates": [
                {
                    "mean": mean,
                    "conversation": [{"role": "patient", "content": "问一"}, {"role": "doctor", "content": text}],
                }
                for mean, text in ((3.0, "坏"), (4.5, "好"), (4.5, "也好"))
            ],
        }
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
        },
        {
            "prompt": [USER],
            "chosen": [{"role": "assistant", "content": "好"}],
            "rejected": [{"role": "assistant", "content": "坏"}],
        },
    ],
}
DOCUMENTS: dict[str, tuple[dict, str]] = {
    "text": ({"text": "正文"}, "正文"),
    "wikipedia_cn": ({"completion": "正文", "source": "wikipedia"}, "正文"),
    "title_text": ({"id": "1", "url": "", "title": "题", "text": "题\n\n正文"}, "题\n\n正文"),
    "title_answer": ({"qid": "1", "category": "", "title": "题", "desc": "详", "answer": "正文"}, "题\n详\n正文"),
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


IDENTITY = {"name": "萌芽", "author": "小林", "date": "今年"}
PROMPTS = (
    {"id_": 1, "prompt": "问一", "domain_en": "law", "domain_zh": "法律"},
    {"title": "问一", "abs": None, "href": "/p/1", "lz": "某人", "n_reply": "182"},
    {"author": "某人", "content": "问一", "l_num": 2, "ctime": "2018-12-24 00:02"},
)


def spoken(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role}:{message.content}" for message in messages]


def converted(row: dict, name: str = "sharegpt") -> tuple[list[str], Counter[str]]:
    repairs: Counter[str] = Counter()
    (record,) = convert(name, row, repairs=repairs, identity=IDENTITY)
    assert isinstance(record, Conversation)
    return spoken(record.messages), repairs


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == {*CONVERSATIONS, *PREFERENCES, *DOCUMENTS, "prompts_only"}


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
    assert guess_format([row]) == name


@pytest.mark.parametrize("row", PROMPTS)
def test_prompts_without_answers_are_named_so(row: dict) -> None:
    assert guess_format([row]) == "prompts_only"
    with pytest.raises(FormatError, match="prompts only: nothing to train on"):
        convert("prompts_only", row)


def test_a_text_field_of_an_unknown_name_may_be_the_answer() -> None:
    assert guess_format([{"prompt": "问一", "reply": "答一"}]) is None
    assert guess_format([{"prompt": "问一", "replies": ["答一"]}]) is None


def test_the_narrower_layout_wins_though_a_few_rows_fit_the_wider_only() -> None:
    packed, plain = (
        {"instruction": "Human:问一\nAssistant:", "output": "答一"},
        {"instruction": "问一", "output": "答一"},
    )
    assert guess_format([packed] * 19 + [plain]) == "belle_multiturn"
    assert guess_format([packed] + [plain] * 19) == "alpaca"
    assert converted(plain, "belle_multiturn") == (ONE, Counter())


def test_what_a_layout_leaves_out_is_counted() -> None:
    turn = {"Human": "问一", "Inner Thoughts": "<|Inner Thoughts|>: 想<eot>", "MOSS": "答一<sup><|1|></sup>"}
    assert converted({"chat": {"turn_1": turn}}, "moss003")[1] == {"inner_thoughts_left_out": 1, "citations_removed": 1}
    answer = {"role": "assistant", "content": "答一", "reasoning_content": "想"}
    assert converted({"messages": [USER, answer]}, "messages")[1] == {"reasoning_left_out": 1}
    assert converted({"instruction": ["问一", "另问"], "output": ["答一"]}, "huatuo_lists")[1] == {"first_of_list": 1}
    assert converted({"plain_text": "前言 [Human]: 问一 [MOSS]: 答一"}, "moss002")[1] == {
        "text_before_first_turn_removed": 1
    }


def changed(value: Any, at: int, new: Any) -> tuple[Any, int]:
    """`value` with its `at`-th part (itself first, then what it holds) replaced; and the parts still to pass."""
    if at == 0:
        return new, -1
    at -= 1
    if isinstance(value, dict | list):
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        for index, (key, item) in enumerate(pairs):
            if at >= 0:
                item, at = changed(item, at, new)
                pairs[index] = (key, item)
        return (dict(pairs) if isinstance(value, dict) else [item for _, item in pairs]), at
    return value, at


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
EXAMPLES = [(name, row) for name, cases in CONVERSATIONS.items() for row, _ in cases]
EXAMPLES += [(name, row) for name, rows in PREFERENCES.items() for row in rows]
EXAMPLES += [(name, row) for name, (row, _) in DOCUMENTS.items()]


@settings(max_examples=400)
@given(st.sampled_from(EXAMPLES), st.integers(1, 25), JUNK)
def test_a_spoiled_row_gives_records_or_a_reason_and_nothing_else(
    example: tuple[str, dict], at: int, new: object
) -> None:
    name, row = example[0], changed(example[1], at, new)[0]
    guess_format([row])
    with contextlib.suppress(FormatError):
        for record in convert(name, row, identity=IDENTITY):
            if isinstance(record, Conversation):
                assert record.messages[-1].role == "assistant"
                assert all(message.content for message in record.messages)
            elif isinstance(record, PreferencePair):
                assert record.prompt[-1].role in ("user", "tool")
                assert record.chosen
                assert record.chosen != record.rejected


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
        ("kto", {"prompt": "问", "completion": "答", "label": False}, "rejected answer alone"),
        ("kto", {"prompt": "问", "completion": "答", "label": "好"}, "label is neither true nor false"),
        ("moss003", {"chat": {"turn_x": {"Human": "问", "MOSS": "答"}}}, "turn without a number"),
        ("firefly", {"conversation": ["问", "答"]}, "field 'conversation' is not a list of objects"),
        ("ranked", {"instruction": "", "output": ["甲", "乙"]}, "prompt does not end with the user"),
        ("ranked", {"instruction": "问", "output": ["甲"]}, "no two answers to compare"),
        (
            "templated_pair",
            {"chosen": "Human: 甲\n\nAssistant: 好", "rejected": "Human: 乙\n\nAssistant: 坏"},
            "chosen and rejected answer different prompts",
        ),
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


def test_a_ranking_gives_all_its_pairs_that_weigh_one_together_and_ties_give_none() -> None:
    row = {"instruction": "问", "input": "", "output": ["甲", "乙", "丙"]}
    pairs = convert("ranked", row)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("甲", "乙"), ("甲", "丙"), ("乙", "丙")]
    assert [pair.weight for pair in pairs] == [1 / 3] * 3
    (only,) = convert("ranked", row | {"output": ["甲", "乙"]})
    assert only.weight == 1.0
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
