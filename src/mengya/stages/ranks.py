"""One run, many processes: rank 0 alone owns the run directory; the others join it for the stages that train.

Rank 0 reads the recipe, holds the lock, works through the stages and writes everything. When it comes to a stage in
which all take part, it publishes the stage and the resolved recipe; the others, waiting until then, begin the same.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mengya.errors import Interrupted, UserError
from mengya.run import Context, Run
from mengya.settings import Recipe, StageName

if TYPE_CHECKING:
    from mengya.train.parallel import Group

TOGETHER: tuple[StageName, ...] = ("pretrain", "sft", "preferences", "reward", "dpo", "ppo", "grpo")
"""Stages that all ranks work on; the others are rank 0's alone."""


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_process(code: int) -> NoReturn:
    """Leave at once, what was printed flushed.

    Python's own way out stops gloo's threads wherever they are, and a thread that is stopped inside C++ aborts the process:
    two of four groups that had finished had a rank end with SIGABRT.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def with_all_ranks(lead: Callable[[], None]) -> None:
    """Do `lead` on rank 0 and follow it on the others; with one process, just do it.

    Whatever ends one rank ends all, with the same exit code, and only the first of them says why.
    """
    if num_processes() == 1:
        lead()
        return
    from mengya.train.parallel import Failed, join_group

    group = join_group()
    try:
        if group.rank == 0:
            lead()
            group.say({"stage": None})
        else:
            _follow(group)
        group.leave()
    except Failed as failure:
        end_process(failure.code)
    except BaseException as error:
        code, earlier = _exit_code(error), None
        with suppress(RuntimeError):  # the store went with the rank that held it, or with the link to it
            earlier = group.fail(code)
        if earlier is not None:
            end_process(earlier.code)
        if _lost_contact(error):
            line = "lost contact with another rank; the same command goes on from the last checkpoint"
            print(f"mengya: rank {group.rank} {line}", file=sys.stderr)
            end_process(code)
        raise
    end_process(0)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return 2
    return 130 if isinstance(error, Interrupted | KeyboardInterrupt) else 1


def _lost_contact(error: BaseException) -> bool:
    """Whether a collective broke because a process or a link is gone: gloo says so in a plain RuntimeError."""
    import torch.distributed as dist

    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "closed by peer", "Timed out")
    )


def _follow(group: Group) -> None:
    from mengya.stages import STAGES, module_of

    while (word := group.hear())["stage"] is not None:
        directory = Path(word["directory"])
        if not (directory / word["mark"]).exists():
            raise UserError(
                f"{os.uname().nodename} (rank {group.rank}) does not see the run directory of rank 0",
                where=directory,
                mend="put it on storage that all hosts share, under the same path",
            )
        group.barrier()
        context = Context(Recipe.model_validate(word["recipe"]), Run(directory), STAGES[word["stage"]])
        module_of(context.stage.name).execute(context)


def call_all(context: Context) -> None:
    """On rank 0, before a stage that all ranks work on: have the others begin it."""
    if num_processes() == 1 or context.stage.name not in TOGETHER:
        return
    from mengya.train.parallel import join_group

    mark = context.directory / f".rank-0-{uuid.uuid4().hex}.partial"  # a name that is cleared away with partial files
    mark.touch()
    word: dict[str, Any] = {
        "stage": context.stage.name,
        "recipe": context.recipe.model_dump(mode="json"),
        "directory": str(context.run.directory.absolute()),
        "mark": str(mark.relative_to(context.run.directory)),
    }
    group = join_group()
    group.say(word)
    group.barrier()  # all have looked
    with suppress(FileNotFoundError):
        mark.unlink()
