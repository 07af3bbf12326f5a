"""Layouts of public Chinese instruction data with one field a question or answer, and the table of all of them.

One function a layout, named as in `formats`; those with lists of turns are in `dialogue_layouts`, those with turns
packed into one string in `packed_layouts`.

A converter gives records without source and origin. A recogniser looks at the fields of one row only; the table at the
end has the narrower layout before the wider one.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any

from mengya.corpus.dialogue_layouts import (
    chatterbot,
    crosswoz,
    disc_med,
    emollm,
    firefly,
    kdconv,
    kto,
    messages,
    sharegpt,
    smile,
)
from mengya.corpus.packed_layouts import (
    belle_multiturn,
    conversation,
    huatuogpt,
    is_packed,
    lawyer_history,
    moss002,
    moss003,
)
from mengya.corpus.records import Conversation
from mengya.corpus.turns import (
    Converter,
    FormatError,
    Recogniser,
    Row,
    Turn,
    as_text,
    field,
    listed,
    objects,
    pairs,
)


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
    return conversation(turns, repairs)


_BARE_PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_<])(NAME|AUTHOR|DATE)(?![A-Za-z0-9_>])")
_ANY_PLACEHOLDER = re.compile(
    rf"<(?:NAME|AUTHOR|DATE)>|\{{\{{\s*(?:name|author|date)\s*\}}\}}|{_BARE_PLACEHOLDER.pattern}"
)


def self_cognition(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """As `alpaca`, for the files that teach a model its name: a bare NAME, AUTHOR or DATE is a placeholder as well.

    In every other layout only <NAME> and {{name}} are placeholders, for "NAME" may be a column of SQL.
    """

    def marked(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text, count = _BARE_PLACEHOLDER.subn(r"<\1>", value)
        if count:
            repairs["bare_placeholder_marked"] += 1
        return text

    return alpaca({name: marked(value) for name, value in row.items()}, repairs)


def huatuo_lists(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction": [wordings of one question], "input", "output": [answers]}: the first of each is taken."""
    questions, answers = listed(row, "instruction"), listed(row, "output")
    if not questions or not answers:
        raise FormatError("empty conversation")
    if len(questions) > 1 or len(answers) > 1:
        repairs["first_of_list"] += 1
    question = as_text([questions[0], as_text(row.get("input"), repairs)], Counter())
    return conversation([("user", question), ("assistant", answers[0])], repairs)


def input_target(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"input", "target" or "output", "kind"?}: the first Firefly and BELLE layouts, lawyer-llama."""
    turns: list[Turn] = [("user", field(row, "input")), ("assistant", field(row, "target", "output"))]
    return conversation(turns, repairs, row.get("kind", row.get("type")))


_QUESTION_WRAPPER = re.compile(r"^\s*(?:<s>)?\s*问[：:]\s*|\s*答[：:]\s*$")
_QUESTIONS = ("prompt", "query", "question", "INSTRUCTION", "q")
_ANSWERS = ("response", "answer", "RESPONSE", "completion", "a")


def prompt_response(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"prompt" | "query" | "question", "response" | "answer", "history"?}: Zhihu-KOL, ChatLM-mini, ChatMed, MiniMind's
    first {"history", "q", "a"}. ChatMed's "<s>问：…答：" is unwrapped.
    """
    question = as_text(field(row, *_QUESTIONS), repairs)
    turns: list[Turn] = [("system", row.get("system")), *pairs(row.get("history"))]
    turns += [("user", _QUESTION_WRAPPER.sub("", question)), ("assistant", field(row, *_ANSWERS))]
    return conversation(turns, repairs)


_TRANSLATE = (
    "把下面的文言文译成现代汉语：\n{}",
    "请将这段文言文翻译成白话文：\n{}",
    "{}\n\n这句话用现代汉语怎么说？",
    "下面的古文是什么意思？\n{}",
)


def classical_bitext(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"classical", "modern", "book"}: NiuTrans. The question asks for a translation, in a wording fixed by the text."""
    classical = as_text(field(row, "classical"), repairs)
    if not classical:
        raise FormatError("empty conversation")
    wording = _TRANSLATE[zlib.crc32(classical.encode("utf-8", "replace")) % len(_TRANSLATE)]
    turns: list[Turn] = [("user", wording.format(classical)), ("assistant", field(row, "modern"))]
    return conversation(turns, repairs, "translation")


def medical_csv(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"department", "title", "ask", "answer"}: the question is the title and, where it says more, the ask."""
    title, ask = as_text(field(row, "title"), repairs), as_text(field(row, "ask"), repairs)
    question = ask if title in ask or not title else title if ask in title else f"{title}\n{ask}"
    return conversation([("user", question), ("assistant", field(row, "answer"))], repairs, row.get("department"))


def belle_seed(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"instruction", "instances": [{"input", "output"}, …]}: one conversation an instance."""
    records: list[Conversation] = []
    for instance in objects(row, "instances"):
        records += alpaca({"instruction": field(row, "instruction"), **instance}, repairs)
    if not records:
        raise FormatError("empty conversation")
    return records


def prompts_only(row: Row, repairs: Counter[str]) -> list[Conversation]:
    """{"prompt" | "title" | …} and no answer: CValues' responsibility prompts, ruozhiba's posts. Never a record."""
    raise FormatError("prompts only: nothing to train on", f"has: {', '.join(map(str, row))}")


def _has(row: Row, name: str, type_: type | tuple[type, ...] = str) -> bool:
    return isinstance(row.get(name), type_)


def _first(row: Row, name: str) -> Row:
    """The first object of a list, {} when there is none."""
    value = row.get(name)
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}


def _first_text(row: Row, name: str) -> str:
    """The first element of a list, "" when it is no string."""
    value = row.get(name)
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""


def _any(row: Row, names: tuple[str, ...]) -> bool:
    return any(_has(row, name) for name in names)


def _no_pair(row: Row) -> bool:
    return "chosen" not in row and "rejected" not in row and not isinstance(row.get("label"), bool)


def _is_alpaca(row: Row) -> bool:
    return (_has(row, "instruction") or _has(row, "instruct")) and _has(row, "output")


_PROMPTS = {"prompt", "query", "question", "instruction", "title", "content"}
# Fields beside a prompt that answer nothing. A string field of any other name may be the answer: such a row is unknown.
_ABOUT_A_PROMPT = re.compile(
    r"_?id_?|.*_id|index|abs|author|category|class|ctime|date|domain.*|href|kind|lang(?:uage)?|license|link|lz|model|"
    r"n_reply|name|source|subcategory|tags?|task|time|topic|type|url|user"
)


def _is_prompt(row: Row) -> bool:
    texts = {str(name) for name, value in row.items() if isinstance(value, str)}
    others = (str(name) for name in row if str(name) not in _PROMPTS)
    lists = any(
        isinstance(value, list | dict) for name, value in row.items() if not _ABOUT_A_PROMPT.fullmatch(str(name))
    )
    return (
        bool(texts & _PROMPTS)
        and not lists
        and all(_ABOUT_A_PROMPT.fullmatch(name) or not isinstance(row.get(name), str) for name in others)
    )


CONVERSATIONS: dict[str, tuple[Converter, Recogniser]] = {
    "moss003": (moss003, lambda row: _has(row, "chat", dict) and "turn_1" in row["chat"]),
    "moss002": (moss002, lambda row: _has(row, "plain_text") and "[MOSS]" in row["plain_text"]),
    "belle_multiturn": (belle_multiturn, lambda row: _has(row, "output") and is_packed(row.get("instruction"))),
    "firefly": (firefly, lambda row: "human" in _first(row, "conversation")),
    "emollm": (emollm, lambda row: "input" in _first(row, "conversation")),
    "disc_med": (disc_med, lambda row: "role" in _first(row, "conversation")),
    "smile": (smile, lambda row: "role" in _first(row, "dialog") or "role" in _first(row, "items")),
    "crosswoz": (crosswoz, lambda row: _first(row, "messages").get("role") in ("usr", "sys")),
    "kto": (
        kto,
        lambda row: (
            _has(row, "label", bool)
            and any(_has(row, name, (str, list)) for name in ("messages", "conversations", "completion"))
        ),
    ),
    "sharegpt": (sharegpt, lambda row: "from" in _first(row, "conversations") and _no_pair(row)),
    "messages": (
        messages,
        lambda row: ("role" in _first(row, "messages") or "role" in _first(row, "conversations")) and _no_pair(row),
    ),
    "kdconv": (kdconv, lambda row: "message" in _first(row, "messages")),
    "chatterbot": (chatterbot, lambda row: bool(_first_text(row, "items"))),
    "lawyer_history": (lawyer_history, lambda row: bool(_first_text(row, "history"))),
    "huatuogpt": (huatuogpt, lambda row: _first_text(row, "data").startswith("问")),
    "belle_seed": (belle_seed, lambda row: _has(row, "instruction") and _has(row, "instances", list)),
    "huatuo_lists": (huatuo_lists, lambda row: _has(row, "instruction", list) and _has(row, "output", list)),
    "medical_csv": (medical_csv, lambda row: all(_has(row, name) for name in ("title", "ask", "answer"))),
    "classical_bitext": (classical_bitext, lambda row: _has(row, "classical") and _has(row, "modern")),
    "self_cognition": (
        self_cognition,
        lambda row: _is_alpaca(row) and bool(_ANY_PLACEHOLDER.search(row["output"])),
    ),
    "alpaca": (alpaca, _is_alpaca),
    "input_target": (
        input_target,
        lambda row: _has(row, "input") and (_has(row, "target") or _has(row, "output")) and "instruction" not in row,
    ),
    "prompt_response": (prompt_response, lambda row: _any(row, _QUESTIONS) and _any(row, _ANSWERS) and _no_pair(row)),
}
# The widest of all, to be tried after the layouts of every kind.
PROMPTS: dict[str, tuple[Converter, Recogniser]] = {"prompts_only": (prompts_only, _is_prompt)}
