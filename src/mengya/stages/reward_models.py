"""The reward model, or the ensemble, as PPO and GRPO take it: measured, good enough, of their tokenizer; and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mengya.console import say
from mengya.errors import UserError
from mengya.evaluate.reward_quality import why_weak
from mengya.files import read_json
from mengya.model.checkpoint import load_model
from mengya.model.heads import RewardEnsemble, RewardModel, Scorer
from mengya.run import Context
from mengya.stages import JUDGE
from mengya.stages.common import tokenizer_of
from mengya.tokenizer.encode import load_tokenizer
from mengya.train.parallel import World


def member_name(number: int) -> str:
    """The directory in reward/ of a member of the ensemble; the first is the reward model, also where it is the only one."""
    return "model" if number == 0 else f"model-{number}"


def _evaluation(context: Context) -> dict[str, Any]:
    path = context.path("reward/evaluation.json")
    if not path.is_file():
        raise UserError("the reward model is not there, or was never measured", where=path, mend="run the stage reward")
    found: dict[str, Any] = read_json(path)
    return found


def check_reward(context: Context, accepted: bool) -> None:
    """UserError when the reward model does not beat `reward.must_beat` by `reward.min_margin`, unless the recipe has `accepted` it.

    Cheap, so that a stage can ask before it does anything.
    """
    weakness = why_weak(_evaluation(context)["metrics"], context.recipe.reward)
    if weakness is None:
        return
    key = f"{context.stage.name}.accept_weak_reward"
    if not accepted:
        raise UserError(
            weakness,
            where=context.path("reward/evaluation.json"),
            mend=f"give more or better pairs, or train it longer; `{key}: true` insists",
        )
    say(f"{context.stage.name}: {weakness}; goes on all the same, as {key} says")


def load_rewards(context: Context, world: World) -> Scorer:
    """The frozen reward model, or all of them as one where the stage trained several.

    UserError where a model reads tokens of another tokenizer than the policy writes.
    """
    evaluation = _evaluation(context)
    paths = [context.path("reward") / member_name(number) for number in range(len(evaluation["offsets"]))]
    members = [_frozen(context, path, world.device, world.dtype) for path in paths]
    if len(members) == 1:
        return members[0]
    return RewardEnsemble(members, evaluation["offsets"], evaluation["conservatism"])


def load_judge(context: Context, device: torch.device, dtype: torch.dtype) -> RewardModel:
    """The frozen judge of a run that has one (`stages.judge.judge_of`)."""
    return _frozen(context, context.path(JUDGE), device, dtype)


def _frozen(context: Context, path: Path, device: torch.device, dtype: torch.dtype) -> RewardModel:
    if load_tokenizer(path).fingerprint != tokenizer_of(context).fingerprint:
        raise UserError(
            "this reward model reads other tokens than the policy writes: its tokenizer is another one",
            where=path,
            mend="train it in this run (the stage reward), from this run's SFT model",
        )
    return load_model(path, head="score", device=device, compute_dtype=dtype).requires_grad_(False)


def value_model(context: Context, world: World) -> RewardModel:
    """What PPO's value function starts from: the reward model, the first where there are several."""
    path = context.path("reward") / member_name(0)
    return load_model(path, head="score", device=world.device, compute_dtype=world.dtype)
