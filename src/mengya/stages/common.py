"""What several stages share: the world they run in, the held-out data, and the measurement of a language model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mengya.corpus import records
from mengya.corpus.records import Cloze, Conversation, Question
from mengya.data.loader import EpochLoader, PackedLoader
from mengya.data.packing import Examples
from mengya.data.prefetch import Pinnable, Prefetch
from mengya.data.shards import TokenShards
from mengya.evaluate.answers import SAMPLED, Answers, Measurement, answer, measure_questions, measure_style
from mengya.evaluate.likelihood import answer_bits_per_byte, bits_per_byte, cloze_accuracy, spread
from mengya.evaluate.score import delta_table
from mengya.files import read_json, read_jsonl, write_json
from mengya.model.checkpoint import load_model, save_model
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.run import Context, Outcome
from mengya.settings import PretrainSettings, SFTSettings, micro_batch_of
from mengya.tokenizer.encode import ChatTokenizer, load_tokenizer
from mengya.train.parallel import World, open_world

GUARD_PROMPTS = 160
Row = TypeVar("Row")
Batch = TypeVar("Batch", bound=Pinnable)


def world_of(context: Context) -> World:
    recipe = context.recipe
    return open_world(recipe.device, recipe.precision, recipe.threads, recipe.parallel.timeout_seconds)


def tokenizer_of(context: Context) -> ChatTokenizer:
    return load_tokenizer(context.path("tokenizer/model"))


def load_language_model(context: Context, artifact: str, world: World) -> Transformer:
    return load_model(context.path(artifact), device=world.device, compute_dtype=world.dtype)


def save_stage_model(
    context: Context,
    model: Transformer | RewardModel,
    tokenizer: ChatTokenizer,
    *,
    chat: bool = True,
    name: str = "model",
) -> None:
    """STAGE/model (or another `name`): config, weights, tokenizer and generation settings, as transformers loads them.

    A pretrained model continues text, so it ends with the document; a chat model ends with its message.
    """
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.end_of_text_id,
        "pad_token_id": tokenizer.end_of_text_id,
        "eos_token_id": list(tokenizer.stop_ids) if chat else tokenizer.end_of_text_id,
        "do_sample": chat,
    }
    if chat:
        generation |= {"temperature": 0.7, "top_p": 0.9}
    save_model(model, context.directory / name, tokenizer_dir=context.path("tokenizer/model"), generation=generation)


def packed_loader(
    context: Context,
    examples: Examples,
    settings: PretrainSettings | SFTSettings,
    tokenizer: ChatTokenizer,
    world: World,
) -> PackedLoader:
    """Shuffled, packed rows in steps of `settings.batch_tokens`."""
    return PackedLoader(
        examples,
        row_length=settings.sequence_length,
        rows_per_step=settings.batch_tokens // settings.sequence_length,
        micro_batch_rows=micro_batch_of(settings) // settings.sequence_length,
        seed=context.recipe.seed,
        pad_id=tokenizer.end_of_text_id,
        rank=world.rank,
        world=world.size,
    )


def ahead(loader: EpochLoader[Row, Batch], world: World) -> EpochLoader[Row, Batch] | Prefetch[Row, Batch]:
    """The loader as `fit` takes it: on a GPU a thread makes the next batches, in pinned memory, while a step runs.

    On a CPU the step itself has all cores, and its batches cost a thousandth of it (docs/LOG.md).
    """
    return Prefetch(loader, depth=2, pin=True) if world.device.type == "cuda" else loader


@dataclass(frozen=True)
class HeldOut:
    """Held-out data of a run; `style` and `guard` prompts do not overlap."""

    validation: TokenShards
    clozes: list[Cloze]
    questions: list[Question]
    style: list[Question]
    guard: list[Question]
    conversations: list[Conversation]


def held_out(context: Context) -> HeldOut:
    """What the corpus stage kept for measuring.

    Prompts for style and gold scores are a mixture over all kinds of question; without questions that have a truth
    (real data), they are the prompts of validation conversations.
    """
    directory = context.path("corpus/evaluation")
    questions = [records.question(row) for row in read_jsonl(directory / "questions.jsonl")]
    # They come ordered by subject: the first few hundred of a kind must be a sample of all, not of some.
    random.Random("questions").shuffle(questions)
    clozes = [records.cloze(row) for row in read_jsonl(directory / "clozes.jsonl")]
    conversations = [records.conversation(row) for row in read_jsonl(directory / "conversations.jsonl")]
    prompts = [question for question in questions if question.kind != "identity"]
    if not prompts:
        prompts = [
            Question(conversation.messages[:-1], kind="open", source=conversation.source)
            for conversation in conversations
        ]
    random.Random("style prompts").shuffle(prompts)
    count = min(context.recipe.evaluate.num_prompts, max(1, len(prompts) - GUARD_PROMPTS))
    return HeldOut(
        TokenShards(context.path("shards/tokens"), "validation"),
        clozes,
        questions,
        prompts[:count],
        prompts[count : count + GUARD_PROMPTS],
        conversations,
    )


def style_answers(context: Context, model: Transformer, tokenizer: ChatTokenizer, prompts: list[Question]) -> Answers:
    """What every language-model stage answers to the prompts for style: sampled, each with the same chance."""
    settings = context.recipe.evaluate
    return answer(
        model,
        tokenizer,
        [question.messages for question in prompts],
        max_new_tokens=settings.max_new_tokens,
        sampling=SAMPLED,
        seed=context.recipe.seed,
        batch_size=settings.batch_size,
    )


def measure_language_model(
    context: Context, model: Transformer, tokenizer: ChatTokenizer, held: HeldOut
) -> tuple[Measurement, Answers]:
    """All that every language-model stage is measured by, and the sampled answers behind the style numbers."""
    settings = context.recipe.evaluate
    answers = style_answers(context, model, tokenizer, held.style)
    measured = measure_style(answers, held.style)
    asked = measure_questions(
        model,
        tokenizer,
        held.questions,
        per_kind=settings.num_questions,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    measured.metrics |= asked.metrics
    measured.items |= asked.items
    measured.metrics["bits_per_byte"], _ = bits_per_byte(model, held.validation, settings.num_documents)
    if held.conversations:
        chosen = [held.conversations[i] for i in spread(settings.num_questions, len(held.conversations))]
        measured.metrics["answer_bits_per_byte"] = answer_bits_per_byte(model, tokenizer, chosen)
    if held.clozes:
        measured.metrics["cloze_accuracy"] = cloze_accuracy(model, tokenizer, held.clozes[: settings.num_questions])
    return measured, answers


def save_measurement(directory: Path, measured: Measurement) -> None:
    write_json(directory / "evaluation.json", {"metrics": measured.metrics, "items": measured.items})


def load_measurement(path: Path) -> Measurement:
    row = read_json(path)
    return Measurement(row["metrics"], row["items"])


def outcome_of(context: Context, measured: Measurement, before_stage: str, before: Measurement) -> Outcome:
    """The stage's metrics under its name, and its delta table against the stage before it."""
    save_measurement(context.directory, measured)
    name = context.stage.name
    return Outcome(
        metrics={f"{name}.{metric}": value for metric, value in measured.metrics.items()},
        delta=delta_table(before_stage, before.metrics, measured.metrics, before.items, measured.items),
    )


def per_second(totals: dict[str, Any], unit: str = "tokens") -> float:
    """What `fit` counted, by the time it trained (evaluation and checkpoints not counted)."""
    return round(totals[unit] / max(totals["train_seconds"], 1e-9), 1)
