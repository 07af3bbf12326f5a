"""Layouts that pack turns into strings, told apart by marks inside the text: MOSS, BELLE multi-turn, HuatuoGPT, …"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mengya.corpus.records import Conversation
from mengya.corpus.turns import (
    FormatError,
    Row,
    Turn,
    as_text,
    conversation_messages,
    field,
    listed,
    tool_call,
)


def conversation(turns: list[Turn], repairs: Counter[str], kind: Any = "") -> list[Conversation]:
    kind = kind if isinstance(kind, str) else ""
    return [Conversation(conversation_messages(turns, repairs), source="", kind=kind)]


_PACKED = re.compile(r"(?:^|\n|(?<=\s))(Human|Assistant|<user>|<bot>)\s*[:：]")
_PACKED_ROLES = {"Human": "user", "<user>": "user", "Assistant": "assistant", "<bot>": "assistant"}
_CHATML = re.compile(r"<\|im_start\|>\s*(\w+)\n(.*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|\Z)", re.DOTALL)
_END_MARKS = re.compile(r"(?:\s*(?:<\|im_end\|>|<\|endoftext\|>|</s>|<eos>|<\|im_start\|>assistant))+\s*$")


def is_packed(text: Any) -> bool:
    """Whether a text begins with the mark of a turn: "Human:", "<user>:"."""
    return isinstance(text, str) and bool(_PACKED.match(text.lstrip()))


def is_chatml(text: Any) -> bool:
    return isinstance(text, str) and "<|im_start|>" in text


def packed_turns(text: str, repairs: Counter[str]) -> list[Turn]:
    """Turns of "Human: … Assistant: …" or "<user>: … <bot>: …", without the empty mark that asks for the answer."""
    before, *parts = _PACKED.split(text)
    if not parts:
        raise FormatError("no packed turns", text[:40])
    if before.strip():
        repairs["text_before_first_turn_removed"] += 1
    turns: list[Turn] = [
        (_PACKED_ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == ("assistant", "") else turns


def template_turns(text: str, repairs: Counter[str]) -> list[Turn]:
    """Turns of a text that has been through a chat template (ChatML, or "Human: …"), or one user turn when not."""
    if is_chatml(text):
        turns: list[Turn] = [(role, content.strip()) for role, content in _CHATML.findall(text)]
        return turns[:-1] if turns and turns[-1] == ("assistant", "") else turns
    text = without_end_marks(text)
    return packed_turns(text, repairs) if is_packed(text) else [("user", text)]


def without_end_marks(text: str) -> str:
    """`text` without the end-of-sequence tokens that a tokenizer's template put behind it."""
    return _END_MARKS.sub("", text).strip()


def belle_multiturn(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction": "Human: …\\nAssistant: …\\nHuman: …\\nAssistant:", "output"}; Huatuo's "<user>: … <bot>: …".

    A row without such marks, of which these files have some, is one question. "input" goes below the last question.
    """
    text, more = as_text(field(row, "instruction"), repairs), as_text(row.get("input"), repairs)
    turns: list[Turn] = packed_turns(text, repairs) if _PACKED.search(text) else [("user", text)]
    if more and turns[-1][0] == "user":
        turns[-1] = ("user", f"{turns[-1][1]}\n{more}".strip())
    elif more:
        turns.append(("user", more))
    return conversation([*turns, ("assistant", field(row, "output"))], repairs)


_MOSS_MARK = re.compile(r"<\|(?:Human|MOSS|Commands|Results|Inner Thoughts)\|>:?|<eo[a-z]>")
_CITATION = re.compile(r"<sup>.*?</sup>", re.DOTALL)


def _moss_text(turn: Row, name: str, repairs: Counter[str]) -> str:
    text, num_citations = _CITATION.subn("", _MOSS_MARK.sub("", as_text(turn.get(name), repairs)))
    if num_citations:
        repairs["citations_removed"] += 1
    return text.strip()


def moss003(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"meta_instruction", "chat": {"turn_1": {"Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"}, …}}.

    Inner thoughts and <sup> citations are left out and counted. Commands become a tool call and its result; only then
    is the meta instruction kept, since it says which tools there are and is the same English text everywhere else.
    """
    chat = field(row, "chat")
    if not isinstance(chat, dict) or not all(isinstance(turn, dict) for turn in chat.values()):
        raise FormatError("field 'chat' is not an object of objects")
    numbered: dict[int, Row] = {}
    for name, turn in chat.items():
        number = name.rpartition("_")[2]
        if not number.isdecimal():
            raise FormatError("turn without a number", name[:40])
        numbered[int(number)] = turn
    turns: list[Turn] = []
    uses_tools = False
    for _, turn in sorted(numbered.items()):
        turns.append(("user", _moss_text(turn, "Human", repairs)))
        if _moss_text(turn, "Inner Thoughts", Counter()) not in ("", "None"):
            repairs["inner_thoughts_left_out"] += 1
        command = _moss_text(turn, "Commands", repairs)
        if command not in ("", "None"):
            uses_tools = True
            turns += [("assistant", tool_call(command)), ("tool", _moss_text(turn, "Tool Responses", repairs))]
        turns.append(("assistant", _moss_text(turn, "MOSS", repairs)))
    system: list[Turn] = [("system", row.get("meta_instruction"))] if uses_tools else []
    return conversation(system + turns, repairs, row.get("category"))


_MOSS002 = re.compile(r"\[(Human|MOSS)\]\s*[:：]")


def moss002(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"plain_text": "[Human]: …<eoh> [MOSS]: …<eoa> …"}."""
    before, *parts = _MOSS002.split(as_text(field(row, "plain_text"), repairs))
    if before.strip():
        repairs["text_before_first_turn_removed"] += 1
    turns: list[Turn] = [
        ("user" if name == "Human" else "assistant", _MOSS_MARK.sub("", text))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return conversation(turns, repairs)


_SPEAKER = re.compile(r"^\s*\[(客户|律师)\]\s*")


def lawyer_history(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"history": ["[客户] …", "[律师] …", …]}: lawyer-llama's multi-turn counsel."""
    turns: list[Turn] = []
    for text in listed(row, "history"):
        speaker = _SPEAKER.match(text) if isinstance(text, str) else None
        if speaker is None:
            raise FormatError("turn without a speaker", str(text)[:40])
        turns.append((speaker[1], text[speaker.end() :]))
    return conversation(turns, repairs)


def huatuogpt(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"data": ["问：…", "答：…", …]}: HuatuoGPT-sft-data-v1."""
    turns: list[Turn] = []
    for text in listed(row, "data"):
        if not isinstance(text, str) or text[:2] not in ("问：", "答：", "问:", "答:"):
            raise FormatError("turn without a speaker", str(text)[:40])
        turns.append((text[0], text[2:]))
    return conversation(turns, repairs)
