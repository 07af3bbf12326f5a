"""dpo: direct preference optimisation of the SFT model against itself, frozen, under the guard."""

from __future__ import annotations

import torch

from mengya.data.pairs import TokenPair
from mengya.evaluate.likelihood import sequence_logps
from mengya.model.transformer import Transformer
from mengya.objectives.preference import dpo_loss
from mengya.rl.oversight import Oversight
from mengya.rl.replay import Replaying, with_replay
from mengya.run import Context, Outcome
from mengya.settings import DPOSettings
from mengya.stages.aligned import aligned_outcome, check_measured_alike, guard_look_from_disk, guarded
from mengya.stages.common import ahead, load_language_model, per_second, tokenizer_of, world_of
from mengya.stages.micro_batch import fitted
from mengya.stages.preferences import pair_loader, policy_pairs
from mengya.stages.replay import replay_of
from mengya.train.loop import fit
from mengya.train.parallel import World
from mengya.train.sharding import parallelize, whole
from mengya.train.step import Objective


def reference_logps(model: Transformer, pairs: list[TokenPair], world: World) -> torch.Tensor:
    """log p of each pair's chosen and rejected answer under the frozen reference, (N, 2); each rank reads its share."""
    own = pairs[world.rank :: world.size]
    starts = [pair.prompt_length for pair in own]
    columns = [
        sequence_logps(model, [side.tolist() for side in sides], starts)
        for sides in ([pair.chosen for pair in own], [pair.rejected for pair in own])
    ]
    logps_N2 = torch.zeros(len(pairs), 2)
    logps_N2[world.rank :: world.size] = torch.tensor(columns).T
    world.sum_([logps_N2])
    return logps_N2


def objective_of(settings: DPOSettings, reference_logps_N2: torch.Tensor) -> Objective:
    """The recipe's loss; SimPO has no use for the reference."""
    return dpo_loss(
        None if settings.loss == "simpo" else reference_logps_N2,
        settings.beta,
        settings.label_smoothing,
        settings.nll_coefficient,
        loss=settings.loss,
        margin=settings.margin,
        length_normalised=settings.length_normalised,
    )


def execute(context: Context) -> Outcome:
    recipe, settings = context.recipe, context.recipe.dpo
    check_measured_alike(context)
    world, tokenizer = world_of(context), tokenizer_of(context)
    torch.manual_seed(recipe.seed)
    model = load_language_model(context, "sft/model", world)
    model = parallelize(model, world, recipe.parallel)
    anywhere_N2 = torch.zeros(1, 2, device=world.device)
    settings = fitted(settings, model, objective_of(settings, anywhere_N2), world, recipe.parallel)
    train, judges = policy_pairs(context, settings.pairs_from, settings.own_min_margin)
    loader, counts, num_steps, rendered = pair_loader(context, tokenizer, train, settings, world)
    logps_N2 = anywhere_N2
    if settings.loss != "simpo":
        logps_N2 = reference_logps(whole(model), rendered, world).to(world.device)
    look = guard_look_from_disk(context, tokenizer, settings.max_new_tokens, world)
    settings = guarded(settings, look)
    oversight = Oversight(context.stage.name, settings.guard, look, world, unit="step")
    replay = replay_of(context, settings, tokenizer, world)
    steps = ahead(loader, world)
    totals = fit(
        model,
        Replaying(steps, replay, settings.batch_pairs) if replay else steps,
        with_replay(objective_of(settings, logps_N2)),
        settings,
        num_steps=num_steps,
        directory=context.directory,
        world=world,
        unit="pairs",
        evaluate_every=settings.evaluate_every,
        overseer=oversight,
    )
    totals |= oversight.close()
    model = whole(model)
    if not world.is_main:
        return Outcome()
    outcome = aligned_outcome(context, model, tokenizer, world)
    outcome.counts |= {**totals, "micro_batch_pairs": settings.micro_batch_pairs, **counts, **loader.packing()}
    outcome.counts["pairs_of_judge"] = len(judges)
    outcome.metrics["dpo.pairs_per_second"] = per_second(totals, "pairs")
    outcome.metrics["dpo.tokens_per_second"] = per_second(totals)
    return outcome
