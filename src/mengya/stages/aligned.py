"""The end of an alignment stage: save the model, measure it against SFT on the same prompts."""

from __future__ import annotations

from mengya.corpus.records import PreferencePair
from mengya.evaluate.answers import kl_to_reference, win_rate
from mengya.model.transformer import Transformer
from mengya.run import Context, Outcome
from mengya.stages.common import (
    held_out,
    load_language_model,
    load_measurement,
    measure_language_model,
    outcome_of,
    save_stage_model,
)
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World


def aligned_outcome(context: Context, model: Transformer, tokenizer: ChatTokenizer, world: World) -> Outcome:
    """Metrics and delta of an aligned model: with its KL to SFT, and its win rate by the gold judge where there is one.

    Win rate: on each prompt the gold score of one sampled answer of each model; a tie counts half.
    """
    save_stage_model(context, model, tokenizer)
    held = held_out(context)
    measured, answers = measure_language_model(context, model, tokenizer, held)
    before = load_measurement(context.path("sft/evaluation.json"))
    reference = load_language_model(context, "sft/model", world)
    measured.metrics["kl_to_sft"] = kl_to_reference(model, reference, answers)
    if "gold_score" in measured.items:
        rate = win_rate(measured.items["gold_score"], before.items["gold_score"])
        measured.metrics["win_rate_vs_sft"] = rate
    return outcome_of(context, measured, "sft", before)


def distinct_prompts(pairs: list[PreferencePair]) -> list[tuple]:
    """The prompts of preference pairs, each once, in order."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))
