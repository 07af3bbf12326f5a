"""Preference data as the reward model, DPO and PPO take it."""

from __future__ import annotations

from mengya.corpus import records
from mengya.corpus.records import PreferencePair
from mengya.data.pairs import PairLoader, TokenPair, render_pairs
from mengya.errors import UserError
from mengya.files import read_jsonl
from mengya.run import Context
from mengya.settings import PairsFrom, PairTrainSettings, micro_batch_of
from mengya.stages import OWN_PAIRS
from mengya.stages.judge import judge_of
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World


def preference_pairs(context: Context, split: str, pairs_from: PairsFrom = "corpus") -> list[PreferencePair]:
    """The pairs of a split: the corpus's, those that the stage `preferences` made, or both."""
    folders = {"corpus": ["corpus/preferences"], "own": [OWN_PAIRS], "both": ["corpus/preferences", OWN_PAIRS]}
    files = [context.path(folder) / f"{split}.jsonl" for folder in folders[pairs_from]]
    return [records.preference_pair(row) for file in files for row in read_jsonl(file)]


def policy_pairs(
    context: Context, pairs_from: PairsFrom = "corpus"
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The training pairs that a policy may learn from, and those that are the judge's where the run has one."""
    pairs = preference_pairs(context, "train", pairs_from)
    judge = judge_of(context)
    if judge is None:
        return pairs, []
    ours, judges = judge.split.divided(pairs)
    if not ours:
        raise UserError(
            f"all of {len(pairs)} pairs are set apart for the judge",
            where="reward.judge_share",
            mend="set it to 0, or give more pairs",
        )
    return ours, judges


def pair_loader(
    context: Context,
    tokenizer: ChatTokenizer,
    pairs: list[PreferencePair],
    settings: PairTrainSettings,
    world: World,
    *,
    seed: int | None = None,
) -> tuple[PairLoader, dict[str, int], int, list[TokenPair]]:
    """The loader, the counts of pairs kept and dropped, the number of steps, and the rendered pairs.

    `seed` of the order of the pairs: the recipe's where there is none.
    """
    rendered, counts = render_pairs(pairs, tokenizer, max_tokens=settings.sequence_length)
    if not rendered:
        raise UserError(
            f"no preference pair fits into {settings.sequence_length} tokens",
            where=f"{context.stage.name}.sequence_length",
            mend="raise it, or give shorter pairs",
        )
    loader = PairLoader(
        rendered,
        pairs_per_step=settings.batch_pairs,
        micro_batch_pairs=micro_batch_of(settings),
        seed=context.recipe.seed if seed is None else seed,
        pad_id=tokenizer.end_of_text_id,
        rank=world.rank,
        world=world.size,
    )
    return loader, counts, max(1, round(settings.epochs * len(rendered) / settings.batch_pairs)), rendered
