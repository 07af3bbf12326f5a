"""Layouts of public preference data: a row → preference pairs. One function a layout, named as in `formats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, takewhile
from typing import Any

from mengya.corpus.conversation_layouts import instruction_and_input
from mengya.corpus.packed_layouts import is_chatml, is_packed, template_turns, without_end_marks
from mengya.corpus.records import PreferencePair
from mengya.corpus.turns import (
    NOT_CONVERTIBLE,
    ROLE_NAMES,
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


_QUESTIONS = ("prompt", "question", "user_input")
_CHOSEN, _REJECTED = ("chosen", "response_chosen", "completion_a"), ("rejected", "response_rejected", "completion_b")


def prompt_chosen_rejected(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"prompt" | "question" | "instruction" (+ "input"), "chosen" | "response_chosen", "rejected" | …, "system"?}.

    GPT-4-LLM's {"user_input", "completion_a", "completion_b"} too: its page calls completion_a the one ranked higher.
    """
    asked = any(name in row for name in _QUESTIONS)
    question = as_text(field(row, *_QUESTIONS), repairs) if asked else instruction_and_input(row, repairs)
    prompt: list[Turn] = [("system", row.get("system")), *pairs(row.get("history")), ("user", question)]
    return [_pair(prompt, field(row, *_CHOSEN), field(row, *_REJECTED), repairs)]


def _answers_after_the_same(first: list[Turn], second: list[Turn]) -> tuple[list[Turn], Any, Any]:
    """(the turns that two conversations share, the answer of each that follows); FormatError when that is none."""
    shared = [turn for turn, _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))]
    if not shared:
        raise FormatError("chosen and rejected answer different prompts")
    length = len(shared)
    if length == len(first) == len(second):
        raise FormatError("chosen equals rejected")
    if length == len(first) or length == len(second):
        raise FormatError("empty answer")
    for role, _ in (first[length], second[length]):
        if ROLE_NAMES.get(str(role).strip().lower()) != "assistant":
            raise FormatError("chosen and rejected answer different prompts")
    return shared, first[length][1], second[length][1]


def templated_pair(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"prompt", "chosen", "rejected"} through a chat template: Zero-Chatgpt's and DeepSpeed-Chat's; Anthropic's HH.

    The prompt is ChatML or "Human: … Assistant:", and answers may end in </s> or <|im_end|>. Where there is no prompt,
    chosen and rejected are whole dialogues that part at the answer.
    """
    chosen, rejected = (as_text(field(row, name), repairs) for name in ("chosen", "rejected"))
    if "prompt" in row:
        prompt = template_turns(as_text(row["prompt"], repairs), repairs)
        return [_pair(prompt, without_end_marks(chosen), without_end_marks(rejected), repairs)]
    turns, better, worse = _answers_after_the_same(template_turns(chosen, repairs), template_turns(rejected, repairs))
    return [_pair(turns, better, worse, repairs)]


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


def _ranked_pairs(
    ranked: Sequence[Any], pair: Callable[[Any, Any], PreferencePair], repairs: Counter[str]
) -> list[PreferencePair]:
    """All pairs of a ranking, best first: K answers give K (K − 1) / 2, each of one over that weight.

    So a list counts as much as a single pair does (Ouyang et al. 2022, eq. 1). A pair that is empty or equal is left out
    ("ranked_pair_left_out") without losing the others. Where none is left, the FormatError is that of the first pair, or
    "no two answers to compare" for equal ones or a single one.
    """
    records: list[PreferencePair] = []
    errors: list[FormatError] = []
    for better, worse in combinations(ranked, 2):
        try:
            records.append(pair(better, worse))
        except FormatError as error:
            errors.append(error)
    if not records:
        raise next(
            (error for error in errors if error.reason not in NOT_CONVERTIBLE), FormatError("no two answers to compare")
        )
    if errors:
        repairs["ranked_pair_left_out"] += len(errors)
    return [replace(record, weight=1.0 / len(records)) for record in records]


def ranked(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"instruction", "input", "output": [best, …, worst], "history"?}: oaast_rm_zh, comparison_gpt4 of 2023."""
    prompt = [*pairs(row.get("history")), ("user", instruction_and_input(row, repairs))]
    return _ranked_pairs(listed(row, "output"), lambda better, worse: _pair(prompt, better, worse, repairs), repairs)


def comparison(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"user_input" | "prompt", "responses_and_scores" | "responses": [{"response" | "text", "score"}]}.

    Sorted by score, the first given first among equals; of answers with one score only the first is kept, for
    nothing says which of them is better.
    """
    answers = listed(row, "responses_and_scores", "responses")
    scored: dict[float, Any] = {}
    for answer in answers:
        if not isinstance(answer, dict) or not _is_number(field(answer, "score")):
            raise FormatError("answer without a score", str(answer)[:40])
        scored.setdefault(answer["score"], field(answer, "response", "text"))
    best_first = [scored[score] for score in sorted(scored, reverse=True)]
    prompt: list[Turn] = [("user", field(row, "user_input", "prompt"))]
    return _ranked_pairs(best_first, lambda better, worse: _pair(prompt, better, worse, repairs), repairs)


def scored_dialogues(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"candidates": [{"mean" | "score", "conversation": [{"role", "content"}]}, …]}: DISC-MedLLM's judged dialogues.

    All pairs by score, of equal ones the first, compared at the answer with which they part. The score is of the whole
    dialogue, so it says less of that one answer than a score of its own would.
    """
    scored: dict[float, list[Turn]] = {}
    for candidate in objects(row, "candidates"):
        score = field(candidate, "mean", "score")
        if not _is_number(score):
            raise FormatError("answer without a score", str(score)[:40])
        scored.setdefault(score, role_turns(field(candidate, "conversation"), "role", "content"))
    best_first = [scored[score] for score in sorted(scored, reverse=True)]

    def pair(better: list[Turn], worse: list[Turn]) -> PreferencePair:
        return _pair(*_answers_after_the_same(better, worse), repairs)

    return _ranked_pairs(best_first, pair, repairs)


def message_lists(row: Row, repairs: Counter[str]) -> list[PreferencePair]:
    """{"chosen": [{"role", "content"}, …], "rejected": […]}, equal but for the last: UltraFeedback, MiniMind.

    Lists that begin with the assistant follow the messages, or the text, of "prompt".
    """
    chosen, rejected = (role_turns(listed(row, name), "role", "content") for name in ("chosen", "rejected"))
    if not chosen or not rejected:
        raise FormatError("empty answer")
    if chosen[:-1] != rejected[:-1]:
        raise FormatError("chosen and rejected answer different prompts")
    if chosen[-1][0] != "assistant" or rejected[-1][0] != "assistant":
        raise FormatError("the last message is not the assistant's")
    prompt = chosen[:-1]
    if not prompt:
        given = field(row, "prompt")
        prompt = role_turns(given, "role", "content") if isinstance(given, list) else [("user", given)]
    return [_pair(prompt, chosen[-1][1], rejected[-1][1], repairs)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is(row: Row, name: str, *types: type) -> bool:
    return isinstance(row.get(name), types)


def _scored(row: Row) -> bool:
    answers = row.get("responses_and_scores", row.get("responses"))
    return isinstance(answers, list) and bool(answers) and isinstance(answers[0], dict) and "score" in answers[0]


def _scored_dialogues(row: Row) -> bool:
    candidates = row.get("candidates")
    return (
        isinstance(candidates, list)
        and bool(candidates)
        and isinstance(candidates[0], dict)
        and "conversation" in candidates[0]
        and ("mean" in candidates[0] or "score" in candidates[0])
    )


def _templated(row: Row) -> bool:
    text = row.get("prompt", row.get("chosen"))
    return _is(row, "chosen", str) and _is(row, "rejected", str) and (is_chatml(text) or is_packed(text))


PREFERENCES: dict[str, tuple[Converter, Recogniser]] = {
    "message_lists": (message_lists, lambda row: _is(row, "chosen", list) and _is(row, "rejected", list)),
    "hh_rlhf": (hh_rlhf, lambda row: _is(row, "context", list) and "chosen" in row and "rejected" in row),
    "sharegpt_pair": (sharegpt_pair, lambda row: _is(row, "conversations", list) and _is(row, "chosen", str, dict)),
    "cvalues": (cvalues, lambda row: _is(row, "pos_resp", str) and _is(row, "neg_resp", str)),
    "comparison": (comparison, _scored),
    "scored_dialogues": (scored_dialogues, _scored_dialogues),
    "ranked": (ranked, lambda row: _is(row, "instruction", str) and _is(row, "output", list)),
    "answer_pair": (answer_pair, lambda row: _is(row, "prompt", str) and _is(row, "answer", list)),
    "templated_pair": (templated_pair, _templated),
    "prompt_chosen_rejected": (
        prompt_chosen_rejected,
        lambda row: (
            "conversations" not in row
            and (
                _is(row, "chosen", str)
                or _is(row, "response_chosen", str)
                or all(_is(row, name, str) for name in ("user_input", "completion_a", "completion_b"))
            )
        ),
    ),
}
