"""A row as each public dataset documents it, with all its fields, is named and converted without being told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mengya.corpus.formats import convert, guess_format
from mengya.corpus.records import Conversation, Document, PreferencePair

Q, A, B = "问题在这里", "回答在这里", "较差的回答"
ASK = {"instruction": Q, "input": "", "output": A}
HISTORY = [["先前的问题", "先前的回答"]]
USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", Q), ("assistant", A), ("assistant", B)))
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": A}
MOSS_TURN = {
    "Human": f"<|Human|>: {Q}<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": f"<|MOSS|>: {A}<eom>\n",
}

PRETRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "wikipedia-cn-20230720-filtered": ("wikipedia_cn", {"completion": A, "source": "wikipedia.zh2307"}),
    "baidubaike-563w": (
        "baidubaike",
        {"title": Q, "summary": A, "sections": [{"title": "节", "content": "文"}], "tags": ["人物"], "url": "u"},
    ),
    "shibing624/medical": ("text", {"text": A}),
    "c4-zh": ("text", {"text": A, "url": "u", "timestamp": "2020"}),
    "skypile": ("text", {"text": A}),
    "wudao": (
        "title_content",
        {"id": 1, "uniqueKey": "k", "titleUkey": "k", "dataType": "百科", "title": Q, "content": A},
    ),
    "wiki2019zh": ("title_text", {"id": "13", "url": "u", "title": Q, "text": f"{Q}\n\n{A}"}),
    "webtext2019zh": (
        "title_answer",
        {
            "qid": 1,
            "title": Q,
            "desc": "",
            "topic": "生活",
            "star": 3,
            "content": A,
            "answer_id": 2,
            "answerer_tags": "",
        },
    ),
    "baike_qa2019": ("title_answer", {"qid": "q", "category": "生活", "title": Q, "desc": "", "answer": A}),
    "zero-chatgpt": ("text", {"text": A, "source": "baidubaike"}),
}
INSTRUCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "self_cognition": ("self_cognition", {**ASK, "output": f"{A}，我是<NAME>，<AUTHOR>于<DATE>开发"}),
    "identity": ("self_cognition", {**ASK, "output": f"{A}，我是 {{{{name}}}}，由 {{{{author}}}} 开发"}),
    "alpaca-zh": ("alpaca", ASK),
    "alpaca with its prompt": ("alpaca", {**ASK, "text": f"Below is … {Q} {A}"}),
    "belle 0.5M": ("alpaca", ASK),
    "belle 0.5M, first form": ("input_target", {"input": Q, "target": A}),
    "belle multiturn_chat": (
        "belle_multiturn",
        {**ASK, "instruction": f"Human:先\nAssistant:后\nHuman:{Q}\nAssistant:"},
    ),
    "belle 3.5M": ("sharegpt", {"id": "1", "conversations": [HUMAN, {"from": "assistant", "value": A}]}),
    "firefly 1.1M": ("input_target", {"kind": "NLI", "input": Q, "target": A}),
    "firefly": (
        "firefly",
        {"conversation_id": 1, "category": "QA", "conversation": [{"human": Q, "assistant": A}], "dataset": "moss"},
    ),
    "CodeChat, ShareGPT-90k": (
        "firefly",
        {"conversation_id": "x", "category": "computer", "conversation": [{"human": Q, "assistant": A}]},
    ),
    "moss-002": ("moss002", {"plain_text": f"[Human]: {Q}<eoh> [MOSS]: {A}<eoa>", "prefix": "meta", "num_turns": 1}),
    "moss-003": (
        "moss003",
        {
            "conversation_id": "1",
            "meta_instruction": "m",
            "num_turns": 1,
            "chat": {"turn_1": MOSS_TURN},
            "category": "c",
        },
    ),
    "sharegpt": ("sharegpt", {"conversations": [HUMAN, GPT], "system": "", "tools": ""}),
    "deepctrl": (
        "alpaca",
        {**ASK, "id": 1, "history": HISTORY, "language": "zh", "data_source": "x", "input_len": 4, "type": "对话"},
    ),
    "ruozhiba": ("alpaca", {"instruction": Q, "output": A}),
    "COIG-CQIA": (
        "alpaca",
        {
            **ASK,
            "task_type": {"major": ["问答"], "minor": ["x"]},
            "domain": ["通用"],
            "metadata": "x",
            "answer_from": "human",
            "human_verified": True,
            "copyright": "x",
        },
    ),
    "shibing624/medical, English": ("alpaca", {"instruction": "", "input": Q, "output": A}),
    "HuatuoGPT-sft": ("huatuogpt", {"data": [f"问：{Q}", f"答：{A}"]}),
    "DISC-Med-SFT": ("disc_med", {"_id": 1, "source": "s", "conversation": [USER, GOOD]}),
    "ChatMed": ("prompt_response", {"query": Q, "response": A}),
    "Chinese-medical-dialogue": ("medical_csv", {"department": "内科", "title": Q, "ask": Q, "answer": A}),
    "CMtMedQA": ("alpaca", {"id": "1", "cate1": "外科", "cate2": "普外", **ASK, "history": HISTORY}),
    "huatuo26M": ("huatuo_lists", {"id": "", "instruction": [Q], "input": "", "output": [A]}),
    "SMILE": ("smile", {"id": "1", "dialog": [{"role": "client", "content": Q}, {"role": "counselor", "content": A}]}),
    "EmoLLM": ("emollm", {"conversation": [{"system": "s", "input": Q, "output": A}]}),
    "lawyer-llama v2": ("prompt_response", {"query": Q, "laws": ["法"], "response": A}),
    "lawyer-llama, many turns": ("lawyer_history", {"query": Q, "laws": [], "history": [f"[客户] {Q}", f"[律师] {A}"]}),
    "Zhihu-KOL": ("prompt_response", {"INSTRUCTION": Q, "RESPONSE": A, "SOURCE": "知乎", "METADATA": "{}"}),
    "Zero-Chatgpt": ("prompt_response", {"prompt": Q, "answer": A}),
    "minimind": ("messages", {"conversations": [USER, GOOD]}),
    "OpenAI": ("messages", {"messages": [{"role": "system", "content": "s"}, USER, GOOD]}),
    "KTO": ("kto", {"messages": [USER, GOOD], "label": True}),
}
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPO-En-Zh-20k, first form": ("answer_pair", {"system": "", "prompt": Q, "answer": [A, B]}),
    "DPO-En-Zh-20k": (
        "sharegpt_pair",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": B}},
    ),
    "hh_rlhf_cn": (
        "hh_rlhf",
        {
            "context": [{"role": "human", "text": Q}],
            "chosen": {"role": "assistant", "text": A},
            "rejected": {"role": "assistant", "text": B},
        },
    ),
    "CValues": ("cvalues", {"pos_type": "1", "neg_type": "2", "prompt": Q, "pos_resp": A, "neg_resp": B}),
    "rlhf-reward, zhihu_rlhf_3k": ("prompt_chosen_rejected", {"prompt": Q, "chosen": A, "rejected": B}),
    "comparison_gpt4_zh": ("prompt_chosen_rejected", {"instruction": Q, "input": "", "chosen": A, "rejected": B}),
    "comparison_gpt4_zh 2023": ("ranked", {"instruction": Q, "input": "", "output": [A, B]}),
    "comparison_data_v2": (
        "comparison",
        {
            "user_input": Q,
            "completion_a": A,
            "completion_b": B,
            "responses_and_scores": [
                {"response": B, "source": "x", "score": 3.0},
                {"response": A, "source": "y", "score": 9.0},
            ],
        },
    ),
    "oaast_rm": ("ranked", {"instruction": Q, "input": "", "output": [A, B], "history": HISTORY}),
    "shibing624/medical reward": (
        "prompt_chosen_rejected",
        {"question": Q, "response_chosen": A, "response_rejected": B},
    ),
    "MedicalGPT dpo": ("sharegpt_pair", {"conversations": [HUMAN], "chosen": A, "rejected": B}),
    "UltraFeedback": (
        "message_lists",
        {
            "prompt": Q,
            "prompt_id": "x",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 9.0,
            "score_rejected": 3.0,
        },
    ),
    "minimind dpo": ("message_lists", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "Zero-Chatgpt step 2": (
        "templated_pair",
        {
            "prompt": f"<|im_start|>system\n你是<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n",
            "response": f"{A}<|im_end|>",
            "chosen": f"{A}<|im_end|>",
            "rejected": f"{B}<|im_end|>",
        },
    ),
}
ALL = {**PRETRAINING, **INSTRUCTIONS, **PAIRS}


@pytest.mark.parametrize("dataset", ALL)
def test_a_documented_row_is_named_and_converted(dataset: str) -> None:
    name, row = ALL[dataset]
    assert guess_format([row] * 5) == name
    repairs: Counter[str] = Counter()
    (record,) = convert(name, row, repairs=repairs, identity={"name": "萌芽", "author": "小林", "date": "今年"})
    assert not repairs
    if dataset in PRETRAINING:
        assert isinstance(record, Document)
        assert A in record.text
    elif dataset in INSTRUCTIONS:
        assert isinstance(record, Conversation)
        question, answer = record.messages[-2:]
        assert (question.role, question.content, answer.role) == ("user", Q, "assistant")
        assert answer.content.startswith(A)
    else:
        assert isinstance(record, PreferencePair)
        assert (record.prompt[-1].role, record.prompt[-1].content) == ("user", Q)
        assert (record.chosen, record.rejected) == (A, B)
