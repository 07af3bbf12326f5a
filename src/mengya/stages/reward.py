"""reward: Bradley–Terry reward models from the SFT model, measured beside what could be told without them; and the judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mengya.console import say
from mengya.corpus.records import PreferencePair
from mengya.errors import UserError
from mengya.evaluate.baselines import score_without_prompts
from mengya.evaluate.pairs import PairScores, score_pairs, that_fit
from mengya.evaluate.reward_quality import BASELINES, joint, measure_reward, offset_of, why_weak
from mengya.evaluate.score import delta_table
from mengya.files import write_json
from mengya.model.checkpoint import load_model
from mengya.model.heads import RewardModel
from mengya.objectives.reward import reward_loss
from mengya.run import Context, Outcome
from mengya.settings import MAX_REWARD_MEMBERS, RewardSettings
from mengya.stages import JUDGE
from mengya.stages.common import (
    ahead,
    load_language_model,
    per_second,
    save_stage_model,
    tokenizer_of,
    world_of,
)
from mengya.stages.judge import Judge, Split, save_judge, share_of
from mengya.stages.micro_batch import fitted
from mengya.stages.preferences import pair_loader, preference_pairs
from mengya.stages.reward_models import member_name
from mengya.train.loop import fit
from mengya.train.parallel import World
from mengya.train.sharding import parallelize, whole


@dataclass(frozen=True)
class Pairs:
    """What there is to train and to ask: the reward model's pairs, the judge's (set apart by `split`), the held-out ones."""

    train: list[PreferencePair]
    judges: list[PreferencePair]
    validation: list[PreferencePair]
    split: Split


def divided_pairs(context: Context) -> Pairs:
    """The pairs that `reward.pairs_from` names; UserError where the judge's share leaves one side empty."""
    recipe, settings = context.recipe, context.recipe.reward
    train, validation = (
        preference_pairs(context, split, settings.pairs_from, settings.own_min_margin)
        for split in ("train", "validation")
    )
    split = Split(share_of(recipe, len(train)), recipe.seed)
    ours, judges = split.divided(train)
    if train and split.share and not (ours and judges):
        raise UserError(
            f"{split.share:.0%} of the prompts leave {len(judges)} of {len(train)} pairs to the judge",
            where="reward.judge_share",
            mend="set it to 0, or give more pairs",
        )
    return Pairs(ours, judges, validation, split)


@dataclass(frozen=True)
class Member:
    """A reward model to train: `name` its directory in reward/, `training` that of its checkpoints and its log; `number`
    in the order of training, from which it draws."""

    name: str
    training: Path
    number: int


def member_of(context: Context, number: int) -> Member:
    """Of the reward model (0), or of an ensemble's others."""
    return Member(member_name(number), context.directory / f"member-{number}" if number else context.directory, number)


def train_member(
    context: Context,
    member: Member,
    train: list[PreferencePair],
    validation: list[PreferencePair],
    settings: RewardSettings,
    world: World,
) -> tuple[RewardModel, RewardSettings, dict[str, Any]]:
    """The trained member, saved; the settings with a resolved micro-batch; its counts.

    A finished member is taken from its last checkpoint, so a kill between two loses nothing. The first starts with a
    head of zeros and the recipe's seed; the others draw both, and so err in other places.
    """
    recipe, tokenizer = context.recipe, tokenizer_of(context)
    seed = recipe.seed + 1_000_003 * member.number
    torch.manual_seed(seed)
    model = RewardModel.from_language_model(load_language_model(context, "sft/model", world))
    if member.number:
        model.draw_head()
    model = parallelize(model, world, recipe.parallel)
    objective = reward_loss(settings.lm_coefficient)
    settings = fitted(settings, model, objective, world, recipe.parallel)
    loader, counts, num_steps, _ = pair_loader(context, tokenizer, train, settings, world, seed=seed)
    member.training.mkdir(exist_ok=True)

    def look() -> dict[str, float]:
        scores = score_pairs(whole(model), tokenizer, validation, settings.sequence_length)
        return {"validation_accuracy": scores.accuracy()["value"]}

    totals = fit(
        model,
        ahead(loader, world),
        objective,
        settings,
        num_steps=num_steps,
        directory=member.training,
        world=world,
        unit="pairs",
        evaluate=look,
        evaluate_every=max(1, num_steps // 2),
    )
    model = whole(model)
    if world.is_main:
        save_stage_model(context, model, tokenizer, name=member.name)
    return model, settings, {**totals, "micro_batch_pairs": settings.micro_batch_pairs, **counts, **loader.packing()}


def measured(
    context: Context, model: RewardModel, validation: list[PreferencePair], settings: RewardSettings, world: World
) -> tuple[list[PairScores], list[PairScores]]:
    """Every member's scores of the held-out pairs, with their prompts and without; `model` is the last member."""
    tokenizer = tokenizer_of(context)
    scores, bare = [], []
    for number in range(settings.members):
        if number < settings.members - 1:
            path = context.directory / member_name(number)
            member = load_model(path, head="score", device=world.device, compute_dtype=world.dtype)
        else:
            member = model
        scores.append(score_pairs(member, tokenizer, validation, settings.sequence_length))
        # Of the very pairs that are asked with their prompts: the long ones are left out of both.
        bare.append(score_without_prompts(member, tokenizer, scores[-1].pairs, settings.sequence_length))
    return scores, bare


def train_judge(context: Context, pairs: Pairs, settings: RewardSettings, world: World) -> dict[str, Any]:
    """What the stage counts of its judge, trained, saved and measured as the members are; nothing where it has none."""
    if not pairs.judges:
        return {}
    place = Member(JUDGE.rpartition("/")[2], context.directory / "member-judge", MAX_REWARD_MEMBERS)
    model, _, counts = train_member(context, place, pairs.judges, pairs.validation, settings, world)
    if not world.is_main:
        return {}
    scores = score_pairs(model, tokenizer_of(context), pairs.validation, settings.sequence_length)
    judge = Judge(pairs.split, scores.accuracy())
    save_judge(context, judge)
    say(f"reward: the judge: {judge.described()}")
    return {
        "judge": judge.described(),
        "judge_accuracy": judge.accuracy,
        "pairs_of_judge": len(pairs.judges),
        "judge_training": counts,
    }


def execute(context: Context) -> Outcome:
    settings, world = context.recipe.reward, world_of(context)
    pairs = divided_pairs(context)
    if pairs.judges:
        total = len(pairs.judges) + len(pairs.train)
        say(f"reward: {len(pairs.judges):,} of {total:,} pairs are set apart for the judge")
    counts: dict[str, Any] = {}
    for number in range(settings.members):
        member = member_of(context, number)
        model, settings, own = train_member(context, member, pairs.train, pairs.validation, settings, world)
        counts = counts or own
    judged = train_judge(context, pairs, settings, world)
    if not world.is_main:
        return Outcome()
    members, bare_members = measured(context, model, pairs.validation, settings, world)
    offsets = [offset_of(scores) for scores in members]
    if len(members) == 1:
        scores, bare = members[0], bare_members[0]
    else:
        scores, bare = (joint(of, offsets, settings.conservatism) for of in (members, bare_members))
    # What the model is trained on and asked about: long pairs, which it never sees, differ in length by other habits.
    train = that_fit(pairs.train, tokenizer_of(context), settings.sequence_length)
    metrics, found = measure_reward(scores, bare, train)
    if len(members) > 1:
        metrics |= {f"member_accuracy.{number}": of.accuracy() for number, of in enumerate(members)}
        metrics["mean_accuracy"] = joint(members, offsets, 0.0).accuracy()
    write_json(
        context.directory / "evaluation.json",
        {"metrics": metrics, "offsets": offsets, "conservatism": settings.conservatism},
    )
    if judged:
        metrics["judge_accuracy"] = judged.pop("judge_accuracy")
    beaten = ", ".join(BASELINES[name] for name in settings.must_beat)
    found["verdict"] = why_weak(metrics, settings) or f"better, beyond its error, than is told by {beaten}"
    speeds = {"pairs_per_second": per_second(counts, "pairs"), "tokens_per_second": per_second(counts)}
    baseline = {"pair_accuracy": metrics["length_only_accuracy"]}
    return Outcome(
        metrics={f"reward.{name}": value for name, value in (metrics | speeds).items()},
        counts={**counts, **found, **judged},
        delta=delta_table("length alone", baseline, {"pair_accuracy": metrics["pair_accuracy"]}, {}, {}),
    )
