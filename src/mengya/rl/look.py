"""What the guard sees of a policy, prompt by prompt, and the `Look` that two such views make."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mengya.corpus.playground.judges import is_refusal, repetition
from mengya.corpus.records import Conversation, Question
from mengya.data.shards import TokenShards
from mengya.evaluate.answers import SAMPLED, Answers, answer
from mengya.evaluate.diversity import distinct, longest_repeat
from mengya.evaluate.likelihood import answer_bits, document_bits, sequence_logps, sequence_logps_and_entropies
from mengya.evaluate.score import ratio
from mengya.model.transformer import Transformer
from mengya.rl.guard import Look
from mengya.tokenizer.encode import ChatTokenizer


@dataclass(frozen=True)
class HeldOutPrompts:
    """What the guard asks: prompts to answer, and what is to be foretold: conversations' last answers, and documents (their
    indices among the held-out ones)."""

    prompts: Sequence[Question]
    conversations: Sequence[Conversation]
    validation: TokenShards | None = None
    documents: Sequence[int] = ()


@dataclass(frozen=True)
class Seen:
    """One policy on the guard's prompts: a number a prompt in the lists under `items`, in their order.

    `items` are score, repetition, end_rate, length, longest_repeat, and refusals (of the prompts that can be answered).
    `kls` and `entropies` are nats an answer, of answers that are not empty. `foretold`: (bits, UTF-8 bytes), one by one, under
    bits_per_byte of the documents and under answer_bits_per_byte of the reference answers.
    """

    items: dict[str, list[float]]
    texts: list[str]
    kls: list[float]
    entropies: list[float]
    foretold: dict[str, tuple[list[float], list[float]]]


def seen_of(
    model: Transformer,
    reference: Transformer,
    tokenizer: ChatTokenizer,
    held: HeldOutPrompts,
    score: Callable[[Answers], list[float]],
    *,
    max_new_tokens: int,
    seed: int,
) -> Seen:
    """`model` by its sampled answers and by what it gives to the reference answers.

    The policy reads its answers once (log-probability and entropy come of the same pass), the reference reads them once,
    and the policy reads conversations and documents: in the quickstart some 1,800 and 4,000 tokens beside 11,600.
    """
    prompts = held.prompts
    answers = answer(
        model,
        tokenizer,
        [question.messages for question in prompts],
        max_new_tokens=max_new_tokens,
        sampling=SAMPLED,
        seed=seed,
    )
    answerable = [text for text, question in zip(answers.texts, prompts, strict=True) if question.kind != "unknown"]
    kept = [i for i, tokens in enumerate(answers.tokens) if tokens]
    sequences = [[*answers.prompts[i], *answers.tokens[i]] for i in kept]
    starts = [len(answers.prompts[i]) for i in kept]
    logps, entropies = sequence_logps_and_entropies(model, sequences, starts)
    theirs = logps if model is reference else sequence_logps(reference, sequences, starts)
    foretold = {"answer_bits_per_byte": answer_bits(model, tokenizer, held.conversations)}
    if held.validation is not None:
        foretold["bits_per_byte"] = document_bits(model, held.validation, held.documents)
    items = {
        "score": score(answers),
        "repetition": [repetition(text) for text in answers.texts],
        "end_rate": [float(finished) for finished in answers.finished],
        "length": [float(len(tokens)) for tokens in answers.tokens],
        "longest_repeat": [float(longest_repeat(text)) for text in answers.texts],
        "refusals": [float(is_refusal(text)) for text in answerable],
    }
    kls = [own - other for own, other in zip(logps, theirs, strict=True)]
    return Seen(items, answers.texts, kls, entropies, foretold)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def paired_error(now: Sequence[float], then: Sequence[float]) -> float:
    """Standard error of the mean change, prompt by prompt."""
    changes = [after - before for after, before in zip(now, then, strict=True)]
    return statistics.pstdev(changes) / len(changes) ** 0.5 if changes else 0.0


def _bits_error(now: Sequence[float], start: Sequence[float], sizes: Sequence[float]) -> float:
    """Standard error of the change in bits a byte, by the delta method over texts (as `evaluate.score.ratio`)."""
    estimate = ratio([after - before for after, before in zip(now, start, strict=True)], sizes)
    return (estimate["high"] - estimate["low"]) / 2 / 1.959964


def look_of(step: int, now: Seen, start: Seen) -> Look:
    """The policy of `step` as the guard takes it, its errors those of the change since `start`."""
    errors = {name: paired_error(values, start.items[name]) for name, values in now.items.items()}
    error = errors.pop("score")
    bits_a_byte: dict[str, float] = {}
    for name, (bits, sizes) in now.foretold.items():
        if sum(sizes):
            bits_a_byte[name] = sum(bits) / sum(sizes)
            errors[name] = _bits_error(bits, start.foretold[name][0], sizes)
    num_tokens = sum(now.items["length"])
    return Look(
        step,
        score=_mean(now.items["score"]),
        repetition=_mean(now.items["repetition"]),
        end_rate=_mean(now.items["end_rate"]),
        kl=_mean(now.kls),
        error=error,
        refusals=_mean(now.items["refusals"]),
        length=_mean(now.items["length"]),
        entropy=sum(now.entropies) / num_tokens if num_tokens else 0.0,
        distinct_1=distinct(now.texts, 1),
        distinct_2=distinct(now.texts, 2),
        distinct_4=distinct(now.texts, 4),
        longest_repeat=_mean(now.items["longest_repeat"]),
        bits_per_byte=bits_a_byte.get("bits_per_byte"),
        answer_bits_per_byte=bits_a_byte.get("answer_bits_per_byte"),
        errors=errors,
    )
