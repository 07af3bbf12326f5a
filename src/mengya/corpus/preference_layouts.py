"""Layouts of public preference data: a row → preference pairs. One function a layout, named as in `formats`."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from mengya.corpus.conversation_layouts import instruction_and_input
from mengya.corpus.records import PreferencePair
from mengya.corpus.turns import (
    Converter,
    FormatError,
    Recogniser,
    Row,
    Turn,
    as_text,
    field,
    listed,
    pairs,
    prompt_messages,
    role_turns,
)


def _pair(prompt: list[Turn], chosen: Any, rejected: Any, repairs: Counter[str]) -> PreferencePair:
    """A checked pair: FormatError for an empty answer, and for two equal ones, which teach nothing."""
    better, worse = as_text(chosen, repairs), as_text(rejected, repairs)
    if not better or not worse:
        raise FormatError("empty answer")
    if better == worse:
        raise FormatError("chosen equals rejected")
    return PreferencePair(prompt_messages(prompt, repairs), better, worse, source="")


def prompt_chosen_rejected(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"prompt" | "question" | "instruction" (+ "input"), "chosen" | "response_chosen", "rejected" | …, "system"?}."""
    if "prompt" in row or "question" in row:
        question = as_text(field(row, "prompt", "question"), repairs)
    else:
        question = instruction_and_input(row, repairs)
    prompt: list[Turn] = [("system", row.get("system")), *pairs(row.get("history")), ("user", question)]
    chosen, rejected = field(row, "chosen", "response_chosen"), field(row, "rejected", "response_rejected")
    return [_pair(prompt, chosen, rejected, repairs)]


def answer_pair(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"system"?, "prompt", "answer": [chosen, rejected]}: the first layout of DPO-En-Zh-20k."""
    answers = listed(row, "answer")
    if len(answers) != 2:
        raise FormatError("'answer' does not hold two answers", f"it holds {len(answers)}")
    prompt: list[Turn] = [("system", row.get("system")), *pairs(row.get("history")), ("user", field(row, "prompt"))]
    return [_pair(prompt, answers[0], answers[1], repairs)]


def _value(answer: Any, *names: str) -> Any:
    return field(answer, *names) if isinstance(answer, dict) else answer


def sharegpt_pair(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"conversations": [{"from", "value"}], "chosen": str | {"from", "value"}, "rejected": …}."""
    prompt: list[Turn] = [("system", row.get("system")), *role_turns(listed(row, "conversations"), "from", "value")]
    chosen, rejected = (_value(field(row, name), "value", "content") for name in ("chosen", "rejected"))
    return [_pair(prompt, chosen, rejected, repairs)]


def hh_rlhf(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"context": [{"role", "text"}], "chosen": {"role", "text"}, "rejected": {"role", "text"}}."""
    prompt = role_turns(listed(row, "context"), "role", "text")
    chosen, rejected = (_value(field(row, name), "text") for name in ("chosen", "rejected"))
    return [_pair(prompt, chosen, rejected, repairs)]


def cvalues(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"prompt", "pos_resp", "neg_resp"}: CValues-Comparison."""
    return [_pair([("user", field(row, "prompt"))], field(row, "pos_resp"), field(row, "neg_resp"), repairs)]


def _ranked_pairs(prompt: list[Turn], ranked: list[Any], repairs: Counter[str]) -> list[PreferencePair]:
    """Neighbours of a ranking, best first: n answers give n - 1 pairs, and no answer is in more than two of them.

    A pair that is empty or equal is left out ("ranked_pair_left_out") without losing the others.
    """
    records: list[PreferencePair] = []
    for better, worse in pairwise(ranked):
        try:
            records.append(_pair(prompt, better, worse, repairs))
        except FormatError:
            repairs["ranked_pair_left_out"] += 1
    if not records:
        raise FormatError("no two answers to compare")
    return records


def ranked(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"instruction", "input", "output": [best, …, worst], "history"?}: oaast_rm_zh, comparison_gpt4 of 2023."""
    prompt = [*pairs(row.get("history")), ("user", instruction_and_input(row, repairs))]
    return _ranked_pairs(prompt, listed(row, "output"), repairs)


def comparison(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"user_input" | "prompt", "responses_and_scores" | "responses": [{"response" | "text", "score"}]}.

    Sorted by score, the first given first among equals; of answers with one score only the first is kept, for
    nothing says which of them is better.
    """
    answers = listed(row, "responses_and_scores", "responses")
    scored: dict[float, Any] = {}
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(field(answer, "score"), int | float):
            raise FormatError("answer without a score", str(answer)[:40])
        scored.setdefault(answer["score"], field(answer, "response", "text"))
    best_first = [scored[score] for score in sorted(scored, reverse=True)]
    return _ranked_pairs([("user", field(row, "user_input", "prompt"))], best_first, repairs)


def message_lists(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"chosen": [{"role", "content"}, …], "rejected": […]}, equal but for the last: UltraFeedback, MiniMind."""
    chosen, rejected = (role_turns(field(row, name), "role", "content") for name in ("chosen", "rejected"))
    if not chosen or not rejected:
        raise FormatError("empty answer")
    if chosen[:-1] != rejected[:-1]:
        raise FormatError("chosen and rejected answer different prompts")
    if chosen[-1][0] != "assistant" or rejected[-1][0] != "assistant":
        raise FormatError("the last message is not the assistant's")
    return [_pair(chosen[:-1], chosen[-1][1], rejected[-1][1], repairs)]


def _is(row: Row, name: str, *types: type) -> bool:
    return isinstance(row.get(name), types)


def _scored(row: Row) -> bool:
    answers = row.get("responses_and_scores", row.get("responses"))
    return isinstance(answers, list) and bool(answers) and isinstance(answers[0], dict) and "score" in answers[0]


PREFERENCES: dict[str, tuple[Converter, Recogniser]] = {
    "message_lists": (message_lists, lambda row: _is(row, "chosen", list) and _is(row, "rejected", list)),
    "hh_rlhf": (hh_rlhf, lambda row: _is(row, "context", list) and "chosen" in row and "rejected" in row),
    "sharegpt_pair": (sharegpt_pair, lambda row: _is(row, "conversations", list) and _is(row, "chosen", str, dict)),
    "cvalues": (cvalues, lambda row: _is(row, "pos_resp", str) and _is(row, "neg_resp", str)),
    "comparison": (comparison, _scored),
    "ranked": (ranked, lambda row: _is(row, "instruction", str) and _is(row, "output", list)),
    "answer_pair": (answer_pair, lambda row: _is(row, "prompt", str) and _is(row, "answer", list)),
    "prompt_chosen_rejected": (
        prompt_chosen_rejected,
        lambda row: (_is(row, "chosen", str) or _is(row, "response_chosen", str)) and "conversations" not in row,
    ),
}
