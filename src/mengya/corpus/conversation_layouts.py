"""Layouts of public Chinese instruction data: a row → conversations. One function a layout, named as in `formats`.

A converter gives records without source and origin. A recogniser looks at the fields of one row only; the table at the
end has the narrower layout before the wider one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from mengya.corpus.records import Conversation
from mengya.corpus.turns import (
    Converter,
    FormatError,
    Recogniser,
    Row,
    Turn,
    as_text,
    conversation_messages,
    field,
    listed,
    pairs,
    role_turns,
    tool_call,
)


def _conversation(turns: list[Turn], repairs: Counter[str], kind: Any = "") -> list[Conversation]:
    kind = kind if isinstance(kind, str) else ""
    return [Conversation(conversation_messages(turns, repairs), source="", kind=kind)]


def instruction_and_input(row: Row, repairs: Counter[str]) -> str:
    """An Alpaca question: instruction and input, one below the other, either of which may be absent or empty."""
    if "input" not in row:
        field(row, "instruction", "instruct")
    parts = [as_text(row.get(name), repairs) for name in ("instruction", "instruct", "input")]
    return "\n".join(part for part in parts if part)


def alpaca(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction", "input"?, "output", "history"? [[q, a], …], "system"?}; CMtMedQA's "instruct" too."""
    field(row, "instruction", "instruct")
    turns: list[Turn] = [("system", row.get("system")), *pairs(row.get("history"))]
    turns += [("user", instruction_and_input(row, repairs)), ("assistant", field(row, "output"))]
    return _conversation(turns, repairs)


def huatuo_lists(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction": [wordings of one question], "output": [answers]}: the first of each makes the conversation."""
    questions, answers = listed(row, "instruction"), listed(row, "output")
    if not questions or not answers:
        raise FormatError("empty conversation")
    if len(questions) > 1 or len(answers) > 1:
        repairs["first_of_list"] += 1
    return _conversation([("user", questions[0]), ("assistant", answers[0])], repairs)


def input_target(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"input", "target" or "output", "kind"?}: the first Firefly and BELLE layouts, lawyer-llama."""
    turns: list[Turn] = [("user", field(row, "input")), ("assistant", field(row, "target", "output"))]
    return _conversation(turns, repairs, row.get("kind", row.get("type")))


_QUESTION_WRAPPER = re.compile(r"^\s*(?:<s>)?\s*问[：:]\s*|\s*答[：:]\s*$")
_QUESTIONS = ("prompt", "query", "question", "INSTRUCTION")
_ANSWERS = ("response", "answer", "RESPONSE")


def prompt_response(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"prompt" | "query" | "question", "response" | "answer", "history"?}; ChatMed's "<s>问：…答：" is unwrapped."""
    question = as_text(field(row, *_QUESTIONS), repairs)
    turns: list[Turn] = [("system", row.get("system")), *pairs(row.get("history"))]
    turns += [("user", _QUESTION_WRAPPER.sub("", question)), ("assistant", field(row, *_ANSWERS))]
    return _conversation(turns, repairs)


def firefly(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"human", "assistant"}, …], "category"?}: Firefly, ShareGPT-90k, CodeChat."""
    turns: list[Turn] = []
    for turn in listed(row, "conversation"):
        turns += [("user", field(turn, "human")), ("assistant", field(turn, "assistant"))]
    return _conversation(turns, repairs, row.get("category"))


def emollm(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"system"?, "input", "output"}, …]}; a system text repeated at every turn counts once."""
    turns: list[Turn] = []
    systems: list[Turn] = []
    for turn in listed(row, "conversation"):
        if turn.get("system") and ("system", turn["system"]) not in systems:
            systems.append(("system", turn["system"]))
        turns += [("user", field(turn, "input")), ("assistant", field(turn, "output"))]
    return _conversation(systems + turns, repairs)


def _with_tools(row: Row, turns: list[Turn]) -> list[Turn]:
    """The row's system text and its list of tools, before its turns."""
    system: list[Turn] = [("system", row.get("system"))]
    tools = row.get("tools")
    if tools:
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        system.append(("system", f"<tools>\n{text}\n</tools>"))
    return system + turns


def sharegpt(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversations": [{"from": "human" | "gpt" | "function_call" | "observation", "value"}], "tools"?}."""
    return _conversation(_with_tools(row, role_turns(listed(row, "conversations"), "from", "value")), repairs)


def messages(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages" | "conversations": [{"role", "content"}, …]}: OpenAI's and MiniMind's; tool calls become text."""
    turns: list[Turn] = []
    for message in listed(row, "messages", "conversations"):
        role, content = field(message, "role"), message.get("content")
        calls = message.get("tool_calls")
        if calls:
            text = (
                calls if isinstance(calls, str) else "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
            )
            content = f"{content or ''}\n{tool_call(text)}"
        turns.append((role, content))
    return _conversation(_with_tools(row, turns), repairs)


def disc_med(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"role": "user" | "patient" | "assistant" | "doctor", "content"}]}."""
    return _conversation(role_turns(listed(row, "conversation"), "role", "content"), repairs)


def smile(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"dialog": [{"role": "client" | "counselor", "content"}]}; as a list of such objects, {"items": …}, too."""
    return _conversation(role_turns(listed(row, "dialog", "items"), "role", "content"), repairs)


_PACKED = re.compile(r"(?:^|\n|(?<=\s))(Human|Assistant|<user>|<bot>)\s*[:：]")
_PACKED_ROLES = {"Human": "user", "<user>": "user", "Assistant": "assistant", "<bot>": "assistant"}


def belle_multiturn(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction": "Human: …\\nAssistant: …\\nHuman: …\\nAssistant:", "output"}; Huatuo's "<user>: … <bot>: …"."""
    text = as_text(field(row, "instruction"), repairs)
    _, *parts = _PACKED.split(text)
    if not parts:
        raise FormatError("no packed turns in 'instruction'", text[:40])
    turns: list[Turn] = [
        (_PACKED_ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == ("assistant", ""):
        turns.pop()  # the "Assistant:" that asks for the output
    return _conversation([*turns, ("assistant", field(row, "output"))], repairs)


_MOSS_MARK = re.compile(r"<\|(?:Human|MOSS|Commands|Results|Inner Thoughts)\|>:?|<eo[a-z]>")
_CITATION = re.compile(r"<sup>.*?</sup>", re.DOTALL)


def _moss_text(turn: Row, name: str, repairs: Counter[str]) -> str:
    text = _MOSS_MARK.sub("", as_text(turn.get(name), repairs))
    return _CITATION.sub("", text).strip()


def moss003(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"meta_instruction", "chat": {"turn_1": {"Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"}, …}}.

    Inner thoughts and <sup> citations are left out. Commands become a tool call and its result; only then is
    the meta instruction kept, since it says which tools there are and is the same English text everywhere else.
    """
    chat = field(row, "chat")
    if not isinstance(chat, dict):
        raise FormatError("field 'chat' is not an object")
    turns: list[Turn] = []
    uses_tools = False
    for name in sorted(chat, key=lambda name: int(name.rpartition("_")[2])):
        turn = chat[name]
        turns.append(("user", _moss_text(turn, "Human", repairs)))
        command = _moss_text(turn, "Commands", repairs)
        if command not in ("", "None"):
            uses_tools = True
            turns += [("assistant", tool_call(command)), ("tool", _moss_text(turn, "Tool Responses", repairs))]
        turns.append(("assistant", _moss_text(turn, "MOSS", repairs)))
    system: list[Turn] = [("system", row.get("meta_instruction"))] if uses_tools else []
    return _conversation(system + turns, repairs, row.get("category"))


_MOSS002 = re.compile(r"\[(Human|MOSS)\]\s*[:：]")


def moss002(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"plain_text": "[Human]: …<eoh> [MOSS]: …<eoa> …"}."""
    _, *parts = _MOSS002.split(as_text(field(row, "plain_text"), repairs))
    turns = [
        ("user" if name == "Human" else "assistant", _MOSS_MARK.sub("", text))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return _conversation(turns, repairs)


def medical_csv(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"department", "title", "ask", "answer"}: the question is the title and, where it says more, the ask."""
    title, ask = as_text(field(row, "title"), repairs), as_text(field(row, "ask"), repairs)
    question = ask if title in ask or not title else title if ask in title else f"{title}\n{ask}"
    return _conversation([("user", question), ("assistant", field(row, "answer"))], repairs, row.get("department"))


_SPEAKER = re.compile(r"^\s*\[(客户|律师)\]\s*")


def lawyer_history(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"history": ["[客户] …", "[律师] …", …]}: lawyer-llama's multi-turn counsel."""
    turns: list[Turn] = []
    for text in listed(row, "history"):
        speaker = _SPEAKER.match(text) if isinstance(text, str) else None
        if speaker is None:
            raise FormatError("turn without a speaker", str(text)[:40])
        turns.append((speaker[1], text[speaker.end() :]))
    return _conversation(turns, repairs)


def huatuogpt(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"data": ["问：…", "答：…", …]}: HuatuoGPT-sft-data-v1."""
    turns: list[Turn] = []
    for text in listed(row, "data"):
        if not isinstance(text, str) or text[:2] not in ("问：", "答：", "问:", "答:"):
            raise FormatError("turn without a speaker", str(text)[:40])
        turns.append((text[0], text[2:]))
    return _conversation(turns, repairs)


def belle_seed(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction", "instances": [{"input", "output"}, …]}: one conversation an instance."""
    records: list[Conversation] = []
    for instance in listed(row, "instances"):
        records += alpaca({"instruction": field(row, "instruction"), **instance}, repairs)
    return records


def kdconv(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages": [{"message"}, …]}: two people in turn, of whom the second becomes the assistant."""
    return _conversation(
        [
            (("user", "assistant")[index % 2], field(message, "message"))
            for index, message in enumerate(listed(row, "messages"))
        ],
        repairs,
    )


def _has(row: Row, name: str, type_: type | tuple[type, ...] = str) -> bool:
    return isinstance(row.get(name), type_)


def _first(row: Row, name: str) -> Row:
    """The first object of a list, {} when there is none."""
    value = row.get(name)
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}


def _any(row: Row, names: tuple[str, ...]) -> bool:
    return any(_has(row, name) for name in names)


def _no_pair(row: Row) -> bool:
    return "chosen" not in row and "rejected" not in row and not isinstance(row.get("label"), bool)


CONVERSATIONS: dict[str, tuple[Converter, Recogniser]] = {
    "moss003": (moss003, lambda row: _has(row, "chat", dict) and "turn_1" in row["chat"]),
    "moss002": (moss002, lambda row: _has(row, "plain_text") and "[MOSS]" in row["plain_text"]),
    "belle_multiturn": (
        belle_multiturn,
        lambda row: (
            _has(row, "output") and _has(row, "instruction") and bool(_PACKED.match(row["instruction"].lstrip()))
        ),
    ),
    "firefly": (firefly, lambda row: "human" in _first(row, "conversation")),
    "emollm": (emollm, lambda row: "input" in _first(row, "conversation")),
    "disc_med": (disc_med, lambda row: "role" in _first(row, "conversation")),
    "smile": (smile, lambda row: "role" in _first(row, "dialog") or "role" in _first(row, "items")),
    "sharegpt": (sharegpt, lambda row: "from" in _first(row, "conversations") and _no_pair(row)),
    "messages": (
        messages,
        lambda row: ("role" in _first(row, "messages") or "role" in _first(row, "conversations")) and _no_pair(row),
    ),
    "kdconv": (kdconv, lambda row: "message" in _first(row, "messages")),
    "lawyer_history": (
        lawyer_history,
        lambda row: _has(row, "history", list) and bool(row["history"]) and isinstance(row["history"][0], str),
    ),
    "huatuogpt": (
        huatuogpt,
        lambda row: _has(row, "data", list) and bool(row["data"]) and str(row["data"][0]).startswith("问"),
    ),
    "belle_seed": (belle_seed, lambda row: _has(row, "instruction") and _has(row, "instances", list)),
    "huatuo_lists": (huatuo_lists, lambda row: _has(row, "instruction", list) and _has(row, "output", list)),
    "medical_csv": (medical_csv, lambda row: all(_has(row, name) for name in ("title", "ask", "answer"))),
    "alpaca": (alpaca, lambda row: (_has(row, "instruction") or _has(row, "instruct")) and _has(row, "output")),
    "input_target": (
        input_target,
        lambda row: _has(row, "input") and (_has(row, "target") or _has(row, "output")) and "instruction" not in row,
    ),
    "prompt_response": (prompt_response, lambda row: _any(row, _QUESTIONS) and _any(row, _ANSWERS) and _no_pair(row)),
}
