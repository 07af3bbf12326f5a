"""Layouts that hold a conversation as a list, one element a turn: ShareGPT, OpenAI's messages, Firefly, KTO, …"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from mengya.corpus.packed_layouts import conversation
from mengya.corpus.records import Conversation
from mengya.corpus.turns import FormatError, Row, Turn, as_text, field, listed, objects, role_turns, tool_call


def firefly(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"human", "assistant"}, …], "category"?}: Firefly, ShareGPT-90k, CodeChat."""
    turns: list[Turn] = []
    for turn in objects(row, "conversation"):
        turns += [("user", field(turn, "human")), ("assistant", field(turn, "assistant"))]
    return conversation(turns, repairs, row.get("category"))


def emollm(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"system"?, "input", "output"}, …]}; a system text repeated at every turn counts once."""
    turns: list[Turn] = []
    systems: list[Turn] = []
    for turn in objects(row, "conversation"):
        if turn.get("system") and ("system", turn["system"]) not in systems:
            systems.append(("system", turn["system"]))
        turns += [("user", field(turn, "input")), ("assistant", field(turn, "output"))]
    return conversation(systems + turns, repairs)


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
    return conversation(_with_tools(row, role_turns(listed(row, "conversations"), "from", "value")), repairs)


def messages(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages" | "conversations": [{"role", "content"}, …]}: OpenAI's and MiniMind's; tool calls become text.

    MiniMind's "reasoning_content" is left out ("reasoning_left_out"); its "tools" stand in the system message's object.
    """
    turns: list[Turn] = []
    for message in objects(row, "messages", "conversations"):
        role, content = field(message, "role"), message.get("content")
        if message.get("reasoning_content"):
            repairs["reasoning_left_out"] += 1
        calls = message.get("tool_calls")
        if calls:
            many = calls if isinstance(calls, list) else [calls]
            text = "\n".join(call if isinstance(call, str) else json.dumps(call, ensure_ascii=False) for call in many)
            content = f"{as_text(content, repairs)}\n{tool_call(text)}"
        turns.append((role, content))
        if message.get("tools"):
            turns += _with_tools({"tools": message["tools"]}, [])
    return conversation(_with_tools(row, turns), repairs)


def kto(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages", "label": bool} or {"prompt", "completion", "label"}: the answers that are labelled good."""
    label = field(row, "label")
    if not isinstance(label, bool):
        raise FormatError("label is neither true nor false", str(label)[:40])
    if not label:
        raise FormatError("rejected answer alone")
    if "messages" in row or "conversations" in row:
        return messages(row, repairs)
    sides = (("user", field(row, "prompt")), ("assistant", field(row, "completion")))
    turns: list[Turn] = []
    for role, value in sides:
        turns += role_turns(value, "role", "content") if isinstance(value, list) else [(role, value)]
    return conversation(turns, repairs)


def disc_med(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"conversation": [{"role": "user" | "patient" | "assistant" | "doctor", "content"}]}."""
    return conversation(role_turns(listed(row, "conversation"), "role", "content"), repairs)


def smile(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"dialog": [{"role": "client" | "counselor", "content"}]}; a file that is such a list, {"items": …}, too."""
    return conversation(role_turns(listed(row, "dialog", "items"), "role", "content"), repairs)


_CROSSWOZ_ROLES = {"usr": "user", "sys": "assistant"}


def crosswoz(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages": [{"role": "usr" | "sys", "content"}], "goal", …}: CrossWOZ, whose "sys" is the one who answers."""
    turns = role_turns(listed(row, "messages"), "role", "content")
    return conversation(
        [(_CROSSWOZ_ROLES.get(str(role), role), text) for role, text in turns], repairs, row.get("type")
    )


def _in_turn(texts: list[Any]) -> list[Turn]:
    """Two people who speak in turn, of whom the second becomes the assistant."""
    return [(("user", "assistant")[index % 2], text) for index, text in enumerate(texts)]


def kdconv(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"messages": [{"message"}, …]}: two people in turn."""
    return conversation(_in_turn([field(message, "message") for message in objects(row, "messages")]), repairs)


def chatterbot(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"items": ["question", "answer", …], "category"?}: an entry of ChatterBot's YAML corpora; two people in turn."""
    return conversation(_in_turn(listed(row, "items")), repairs, row.get("category"))
