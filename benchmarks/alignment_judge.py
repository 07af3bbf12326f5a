"""A second opinion where nobody knows the truth: a reward model of other sources of pairs, in a run of its own.

Every run's own judge (`mengya.stages.judge`) is of the same sources as its reward model; this one is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_runs import manifest_of
from mengya.corpus import records
from mengya.evaluate.answers import win_rate
from mengya.files import read_json, read_jsonl, write_json
from mengya.model.checkpoint import load_model
from mengya.rl.rewards import reward_scores
from mengya.run import Context, Run
from mengya.stages import STAGES
from mengya.stages.common import held_out, load_language_model, style_answers, tokenizer_of, world_of


def shared_prompts(base: Path, judge: Path) -> int:
    """Training pairs of the judge whose prompt the policy's reward model was trained on too."""

    def prompts(run: Path) -> list[Any]:
        rows = read_jsonl(run / "corpus" / "preferences" / "train.jsonl")
        return [records.preference_pair(row).prompt for row in rows]

    seen = set(prompts(base))
    return sum(prompt in seen for prompt in prompts(judge))


def judged(base: Path, judge: Path, stages: Sequence[str]) -> dict[str, Any]:
    """{"win_rates": {stage: Estimate against SFT}, "shared_prompts": n}, kept beside the judge for the next time.

    One sampled answer of each model to every held-out prompt that the stages are measured on, with the same seed.
    """
    models = {stage: manifest_of(base, stage)["outputs"][f"{stage}/model"] for stage in ("sft", *stages)}
    made_from = {**models, "judge": manifest_of(judge, "reward")["outputs"]["reward/model"]}
    kept = judge / "win_rates.json"
    if kept.is_file() and (found := read_json(kept))["made_from"] == made_from:
        return dict(found)
    recipe = Run.open(base).recipe()
    context = Context(recipe, Run(base), STAGES["sft"])
    world, tokenizer = world_of(context), tokenizer_of(context)
    prompts = held_out(context).style
    rewards = load_model(judge / "reward" / "model", head="score", device=world.device, compute_dtype=world.dtype)

    def scores(stage: str) -> list[float]:
        model = load_language_model(context, f"{stage}/model", world)
        return reward_scores(rewards, style_answers(context, model, tokenizer, prompts))

    start = scores("sft")
    rates = {stage: win_rate(scores(stage), start) for stage in stages}
    result = {"made_from": made_from, "win_rates": rates, "shared_prompts": shared_prompts(base, judge)}
    write_json(kept, result)
    return result
