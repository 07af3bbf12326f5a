"""What a language model says when it is asked: answers, and the judges' view of them.

Right and wrong are measured on greedy answers. The gold score, repetition and refusals are measured on answers sampled
at temperature 1, the policy's own distribution: it is what alignment changes, and where a collapse shows first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mengya.corpus.playground import judges
from mengya.corpus.records import Message, Question
from mengya.evaluate.likelihood import sequence_logps
from mengya.evaluate.score import Estimate, mean, proportion
from mengya.generate.engine import generate
from mengya.generate.sampling import GREEDY, Sampling
from mengya.model.transformer import Transformer
from mengya.tokenizer.encode import ChatTokenizer

SAMPLED = Sampling(temperature=1.0)


@dataclass
class Answers:
    """Answers to a list of prompts: their texts, tokens and whether they ended by themselves."""

    texts: list[str]
    tokens: list[list[int]]
    finished: list[bool]
    prompts: list[list[int]]

    def chosen(self, indices: Iterable[int]) -> Answers:
        """Those of these numbers, in this order."""
        rows = list(indices)
        texts, tokens = [self.texts[i] for i in rows], [self.tokens[i] for i in rows]
        return Answers(texts, tokens, [self.finished[i] for i in rows], [self.prompts[i] for i in rows])


@dataclass
class Measurement:
    """`metrics` {name without its stage: Estimate}; `items` {name: one number an item}, for paired comparisons."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    items: dict[str, list[float]] = field(default_factory=dict)

    def add_share(self, name: str, hits: Sequence[bool]) -> None:
        self.metrics[name] = proportion(sum(hits), len(hits))
        self.items[name] = [float(hit) for hit in hits]

    def add_mean(self, name: str, values: Sequence[float]) -> None:
        self.metrics[name] = mean(values)
        self.items[name] = list(values)


def answer(
    model: Transformer,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    batch_size: int = 128,
    part: tuple[int, int] = (0, 1),
) -> Answers:
    """The model's answer to each prompt (messages ending with the user's), or to a `part` of them as of `generate`."""
    rendered = [tokenizer.render(prompt, add_generation_prompt=True)[0] for prompt in prompts]
    generations = generate(
        model,
        rendered,
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        sampling=sampling,
        seed=seed,
        batch_size=batch_size,
        part=part,
    )
    texts = [tokenizer.decode(g.tokens, skip_special=True).strip() for g in generations]
    return Answers(texts, [g.tokens for g in generations], [g.finished for g in generations], rendered)


def by_kind(questions: Sequence[Question], limit: int) -> dict[str, list[Question]]:
    """The first `limit` questions of each kind."""
    kinds: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if len(kinds[question.kind]) < limit:
            kinds[question.kind].append(question)
    return dict(kinds)


def measure_questions(
    model: Transformer,
    tokenizer: ChatTokenizer,
    questions: Sequence[Question],
    *,
    per_kind: int,
    max_new_tokens: int,
    batch_size: int,
) -> Measurement:
    """KIND_accuracy by greedy answers; "qa_accuracy" is over known entities asked in held-out wordings, and
    "held_out_entity_accuracy" over those that instruction tuning never mentioned."""
    measured = Measurement()
    kinds = by_kind([q for q in questions if "held_out_entity" not in q.tags], per_kind)
    kinds["held_out_entity"] = [q for q in questions if "held_out_entity" in q.tags and q.kind == "qa"][:per_kind]
    chosen = [question for members in kinds.values() for question in members]
    texts = answer(
        model, tokenizer, [q.messages for q in chosen], max_new_tokens=max_new_tokens, batch_size=batch_size
    ).texts
    right = iter([judges.is_right(text, question) for text, question in zip(texts, chosen, strict=True)])
    for kind, members in kinds.items():
        if members:
            measured.add_share(f"{kind}_accuracy", [next(right) for _ in members])
    return measured


def measure_style(answers: Answers, prompts: Sequence[Question]) -> Measurement:
    """Judges' scores of sampled answers: repetition, refusals, answers that end; gold score where the truth is known."""
    measured = Measurement()
    measured.add_mean("repetition", [judges.repetition(text) for text in answers.texts])
    answerable = [i for i, question in enumerate(prompts) if question.kind != "unknown"]
    measured.add_share("refusal_rate", [judges.is_refusal(answers.texts[i]) for i in answerable])
    measured.add_share("end_rate", answers.finished)
    measured.add_mean("answer_tokens", [float(len(tokens)) for tokens in answers.tokens])
    if prompts and all(has_truth(question) for question in prompts):
        pairs = list(zip(answers.texts, prompts, strict=True))
        measured.add_mean("gold_score", [judges.gold_score(text, question) for text, question in pairs])
        measured.add_share("sampled_accuracy", [judges.is_right(text, question) for text, question in pairs])
        measured.add_mean("politeness", [judges.politeness(text) for text, _ in pairs])
    return measured


def has_truth(question: Question) -> bool:
    """Whether the judges can tell a right answer; an "open" prompt comes from real data, and nobody can."""
    return question.kind != "open"


def win_rate(scores: Sequence[float], other: Sequence[float]) -> Estimate:
    """Share of prompts on which `scores` is higher than `other`; a tie counts half. Interval of the mean."""
    return mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, other, strict=True)])


def kl_to_reference(model: Transformer, reference: Transformer, answers: Answers) -> Estimate:
    """Nats an answer: mean of log π(y) − log π_ref(y) over the model's own samples `answers`."""
    kept = [i for i, tokens in enumerate(answers.tokens) if tokens]
    sequences = [[*answers.prompts[i], *answers.tokens[i]] for i in kept]
    starts = [len(answers.prompts[i]) for i in kept]
    own, theirs = (sequence_logps(m, sequences, starts) for m in (model, reference))
    return mean([a - b for a, b in zip(own, theirs, strict=True)])
