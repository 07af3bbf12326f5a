"""evaluate: every stage's model side by side: the same prompts answered, bits per byte by source."""

from __future__ import annotations

from typing import Any

from mengya.corpus.records import Message, Question
from mengya.evaluate.answers import answer
from mengya.evaluate.likelihood import bits_per_byte
from mengya.files import write_jsonl
from mengya.run import Context, Outcome
from mengya.stages.common import held_out, load_language_model, tokenizer_of, world_of

_STAGES = ("pretrain", "sft", "dpo", "ppo", "grpo")
_SAMPLES_A_KIND = 2


def _sample_prompts(context: Context, questions: list[Question], style: list[Question]) -> list[Question]:
    """The recipe's prompts, or the first few of each kind of question."""
    if context.recipe.evaluate.samples:
        return [Question((Message("user", text),), kind="chosen") for text in context.recipe.evaluate.samples]
    counts: dict[str, int] = {}
    chosen = []
    for question in [*questions, *(style if all(q.kind == "open" for q in style) else [])]:
        counts[question.kind] = counts.get(question.kind, 0) + 1
        if counts[question.kind] <= (_SAMPLES_A_KIND if question.kind != "open" else 10):
            chosen.append(question)
    return chosen


def execute(context: Context) -> Outcome:
    settings = context.recipe.evaluate
    world, tokenizer, held = world_of(context), tokenizer_of(context), held_out(context)
    prompts = _sample_prompts(context, held.questions, held.style)
    answers: dict[str, list[str]] = {}
    metrics: dict[str, Any] = {}
    for stage in _STAGES:
        if not context.has(f"{stage}/model"):
            continue
        model = load_language_model(context, f"{stage}/model", world)
        answers[stage] = answer(
            model,
            tokenizer,
            [prompt.messages for prompt in prompts],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        ).texts
        _, by_source = bits_per_byte(model, held.validation, settings.num_documents)
        metrics |= {f"{stage}.bits_per_byte.{source}": value for source, value in by_source.items()}
    samples = [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
            "kind": prompt.kind,
            "answers": {stage: texts[i] for stage, texts in answers.items()},
        }
        for i, prompt in enumerate(prompts)
    ]
    write_jsonl(context.directory / "samples.jsonl", samples)
    return Outcome(metrics=metrics, samples=samples, counts={"prompts": len(prompts), "stages": list(answers)})
