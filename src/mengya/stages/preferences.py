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


def preference_pairs(
    context: Context, split: str, pairs_from: PairsFrom = "corpus", own_min_margin: float | None = None
) -> list[PreferencePair]:
    """The pairs of a split: the corpus's, those that the stage `preferences` made, or both.

    Of its own those alone that were scored, `chosen` above `rejected` by more than `own_min_margin`, where that is given;
    UserError where none was.
    """

    def read(folder: str) -> list[PreferencePair]:
        return [records.preference_pair(row) for row in read_jsonl(context.path(folder) / f"{split}.jsonl")]

    pairs = read("corpus/preferences") if pairs_from != "own" else []
    if pairs_from == "corpus":
        return pairs
    own = read(OWN_PAIRS)
    if own_min_margin is None:
        return pairs + own
    apart = [pair for pair in own if pair.margin is not None and pair.margin > own_min_margin]
    if not apart:
        raise UserError(
            f"none of {len(own)} own pairs ({split}) has scores that differ by more than {own_min_margin:g}",
            where=f"{context.stage.name}.own_min_margin",
            mend="lower it, or leave it out; pairs against references have no scores",
        )
    return pairs + apart


def policy_pairs(
    context: Context, pairs_from: PairsFrom = "corpus", own_min_margin: float | None = None
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The training pairs that a policy may learn from, and those that are the judge's where the run has one."""
    pairs = preference_pairs(context, "train", pairs_from, own_min_margin)
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
