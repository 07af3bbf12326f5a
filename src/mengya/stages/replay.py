"""The text that DPO, PPO and GRPO replay: pretraining documents, and the answers of instruction tuning."""

from __future__ import annotations

from mengya.data.loader import PackedLoader
from mengya.data.packing import Examples
from mengya.data.token_files import open_tokens
from mengya.errors import UserError
from mengya.rl.replay import Replay
from mengya.run import Context
from mengya.settings import DPOSettings, RolloutSettings, micro_batch_of
from mengya.stages.sft import training_examples
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.memory import divisors
from mengya.train.parallel import World


def replay_of(
    context: Context, settings: DPOSettings | RolloutSettings, tokenizer: ChatTokenizer, world: World
) -> Replay | None:
    """The text that `settings.replay` wants in every step; None where it wants none."""
    replay, length = settings.replay, settings.sequence_length
    wanted: list[tuple[Examples, float]] = []
    if replay.documents:
        wanted.append((open_tokens(context.path("shards/tokens"), "train"), replay.documents))
    if replay.conversations:
        wanted.append((training_examples(context, tokenizer, length)[0], replay.conversations))
    if not wanted:
        return None
    rows, ranks = replay.tokens // length, world.size
    if rows == 0 or rows % ranks:
        raise UserError(
            f"{replay.tokens} tokens are {rows} rows of {length}, which do not divide among {ranks} ranks",
            where=f"{context.stage.name}.replay.tokens",
            mend=f"set it to a multiple of {length * ranks}",
        )
    # As many micro-batches on every rank, none of more rows than the stage's own.
    size = next(n for n in divisors(rows // ranks) if n <= micro_batch_of(settings))
    sources = [
        (
            PackedLoader(
                examples,
                row_length=length,
                rows_per_step=rows,
                micro_batch_rows=size,
                seed=context.recipe.seed,
                pad_id=tokenizer.end_of_text_id,
            ),
            coefficient,
        )
        for examples, coefficient in wanted
    ]
    return Replay(sources, world)
