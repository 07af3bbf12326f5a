"""What PPO and GRPO share: the prompts they answer, and what is counted at the end."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

from mengya.corpus import playground
from mengya.corpus.records import Question
from mengya.errors import UserError
from mengya.evaluate.answers import has_truth
from mengya.model.transformer import Transformer
from mengya.run import Context, Outcome
from mengya.settings import RolloutSettings, micro_batch_of
from mengya.stages.aligned import aligned_outcome, distinct_prompts
from mengya.stages.common import GUARD_PROMPTS, held_out
from mengya.stages.corpus import uses_playground, world_of_recipe
from mengya.stages.preferences import policy_pairs
from mengya.stages.prompts import check_kinds
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World
from mengya.train.sharding import whole


def rollout_prompts(context: Context, settings: RolloutSettings, *, exercises: bool) -> list[Question]:
    """Exercises of the embedded corpus where they are wanted and it is part of the run; else the prompts of the preference
    pairs. UserError for a kind that is not known, and where truth is all that is rewarded and no prompt has any."""
    recipe, stage = context.recipe, context.stage.name
    check_kinds(settings.kinds, stage)
    if exercises and uses_playground(recipe.corpus.conversations):
        prompts = playground.generate_exercises(world_of_recipe(recipe), settings.num_exercises, settings.kinds)
    else:
        pairs, _ = policy_pairs(context, settings.pairs_from)
        prompts = [Question(prompt, "open") for prompt in distinct_prompts(pairs)]
    if {term.kind for term in settings.rewards} == {"truth"} and not any(map(has_truth, prompts)):
        raise UserError(
            "no prompt has an answer that can be verified",
            where=f"{stage}.rewards",
            mend="add `{kind: model}`, or a function of your own",
        )
    return prompts


def practised_prompts(context: Context, settings: RolloutSettings) -> list[Question]:
    """Held-out exercises of the kinds that the recipe asks for, in their shares; none where it asks for none.

    For the guard: among its prompts of all kinds a few are of the one that is practised, and it could not see the gain. No
    prompt is one that the run is measured by.
    """
    if not settings.kinds or not uses_playground(context.recipe.corpus.conversations):
        return []
    measured = {question.messages for question in held_out(context).questions}
    made = playground.generate_held_out_exercises(world_of_recipe(context.recipe), 2 * GUARD_PROMPTS, settings.kinds)
    return [question for question in made if question.messages not in measured][:GUARD_PROMPTS]


def rollout_outcome(
    context: Context,
    policy: Transformer,
    tokenizer: ChatTokenizer,
    world: World,
    totals: dict[str, Any],
    settings: RolloutSettings,
    prompts: Sequence[Question],
    fitting: Sized,
) -> Outcome:
    """The measurement of the policy that `align` left, with its counts; all ranks come here, rank 0 measures."""
    policy = whole(policy)
    if not world.is_main:
        return Outcome()
    outcome = aligned_outcome(context, policy, tokenizer, world)
    of_pairs = not all(map(has_truth, prompts))
    judges = policy_pairs(context, settings.pairs_from)[1] if of_pairs else []
    outcome.counts |= {
        **totals,
        "micro_batch_rows": micro_batch_of(settings),
        "prompts": len(fitting),
        "prompts_too_long": len(prompts) - len(fitting),
        "prompts_of_judge": len(distinct_prompts(judges)),
    }
    return outcome
