"""sft: instruction tuning on conversations; of these the loss is on every assistant turn and its end token, on nothing else.

Documents that are mixed in (`sft.documents`) are learnt whole, as in pretraining.
"""

from __future__ import annotations

from typing import Any

import torch

from mengya.corpus import records
from mengya.data.conversations import TokenExamples, render_conversations
from mengya.data.joined import Chosen, Joined
from mengya.data.token_files import open_tokens
from mengya.errors import UserError
from mengya.evaluate.likelihood import packed_loss
from mengya.files import read_jsonl
from mengya.objectives.language_model import next_token_loss
from mengya.run import Context, Outcome
from mengya.stages.common import (
    ahead,
    held_out,
    load_language_model,
    load_measurement,
    measure_language_model,
    outcome_of,
    packed_loader,
    per_second,
    save_stage_model,
    tokenizer_of,
    world_of,
)
from mengya.stages.micro_batch import fitted
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.loop import fit
from mengya.train.sharding import parallelize, whole


def training_examples(
    context: Context, tokenizer: ChatTokenizer, sequence_length: int
) -> tuple[TokenExamples, dict[str, Any]]:
    """The conversations to train on as tokens, in rows of `sequence_length` inputs at most, and what was dropped."""
    conversations = (records.conversation(row) for row in read_jsonl(context.path("corpus/conversations/train.jsonl")))
    return render_conversations(conversations, tokenizer, max_tokens=sequence_length + 1)


def with_documents(
    context: Context, examples: TokenExamples, share: float
) -> tuple[TokenExamples | Joined, dict[str, int]]:
    """The examples, and beside them as many tokens of the pretraining documents as `share` of theirs; counts of these."""
    if not share:
        return examples, {}
    source = open_tokens(context.path("shards/tokens"), "train")
    documents = Chosen.at_random(source, share * float(examples.num_inputs_N.sum()), context.recipe.seed)
    lengths = documents.num_inputs_N
    return Joined([examples, documents]), {"documents": len(lengths), "document_tokens": int(lengths.sum())}


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.sft
    world, tokenizer, held = world_of(context), tokenizer_of(context), held_out(context)
    examples, counts = training_examples(context, tokenizer, settings.sequence_length)
    validation, _ = render_conversations(held.conversations, tokenizer, max_tokens=settings.sequence_length + 1)
    if len(examples) == 0:
        raise UserError(
            f"no conversation fits into {settings.sequence_length} tokens",
            where="sft.sequence_length",
            mend="raise it, or give shorter conversations",
        )
    model = load_language_model(context, "pretrain/model", world)
    mixed, documents = with_documents(context, examples, settings.documents)
    num_tokens = settings.epochs * float(mixed.num_inputs_N.sum())
    flops = num_tokens * model.config.flops_per_token(settings.sequence_length)
    model = parallelize(model, world, recipe.parallel, flops=flops)
    settings = fitted(settings, model, next_token_loss, world, recipe.parallel)
    loader = packed_loader(context, mixed, settings, tokenizer, world)
    rows = loader.num_rows()
    num_steps = max(1, round(settings.epochs * rows * settings.sequence_length / settings.batch_tokens))

    def look() -> dict[str, float]:
        if len(validation) == 0:
            return {}
        return {"validation_loss": packed_loss(whole(model), validation, settings.sequence_length, world)}

    torch.manual_seed(recipe.seed)
    totals = fit(
        model,
        ahead(loader, world),
        next_token_loss,
        settings,
        num_steps=num_steps,
        directory=context.directory,
        world=world,
        evaluate=look,
        evaluate_every=settings.evaluate_every,
        best_checkpoint=settings.best_checkpoint,
    )
    validation_loss = look()
    model = whole(model)
    if not world.is_main:
        return Outcome()
    save_stage_model(context, model, tokenizer)
    measured, _ = measure_language_model(context, model, tokenizer, held)
    before = load_measurement(context.path("pretrain/evaluation.json"))
    outcome = outcome_of(context, measured, "pretrain", before)
    outcome.metrics |= {f"sft.{name}": value for name, value in validation_loss.items()}
    outcome.metrics["sft.tokens_per_second"] = per_second(totals)
    outcome.counts = {
        **totals,
        "micro_batch_tokens": settings.micro_batch_tokens,
        **{"example_tokens" if name == "tokens" else name: count for name, count in counts.items()},
        **documents,
        **loader.packing(),
    }
    return outcome
