"""A rollout divided over ranks: each answers and reads its share of the prompts, all end with the whole of it.

Row b belongs to rank b mod the number of ranks. Numbers of rows that are another's stand as 0 until they are summed, so
the sum is exact, and what follows (whitening, the order of mini-batches) is computed from the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.evaluate.answers import Answers, answer
from mengya.model.transformer import Transformer
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.parallel import World


def check_divisible(where: str, num_rows: int, num_minibatches: int, world: World) -> None:
    """UserError unless every rank gets as many rows of each mini-batch as the others."""
    parts = num_minibatches * world.size
    if world.size > 1 and num_rows % parts:
        raise UserError(
            f"{num_rows} does not divide into {num_minibatches} mini-batches on {world.size} ranks",
            where=where,
            mend=f"use a multiple of {parts}",
        )


def sampled_answers(
    policy: Transformer, tokenizer: ChatTokenizer, prompts: Sequence[Sequence[Message]], world: World, **how: Any
) -> Answers:
    """`answer` to all prompts, on every rank, each having answered its share; the same tokens as on one rank."""
    answers = answer(policy, tokenizer, prompts, part=(world.rank, world.size), **how)
    if world.size == 1:
        return answers
    own = slice(world.rank, None, world.size)
    for rank, (tokens, finished) in enumerate(world.gather([answers.tokens[own], answers.finished[own]])):
        answers.tokens[rank :: world.size] = tokens
        answers.finished[rank :: world.size] = finished
    texts = [tokenizer.decode(tokens, skip_special=True).strip() for tokens in answers.tokens]
    return Answers(texts, answers.tokens, answers.finished, answers.prompts)


def share_of(answers: Answers, world: World) -> Answers:
    """This rank's answers."""
    return answers.chosen(range(world.rank, len(answers.texts), world.size))


def joined(parts: Sequence[Tensor], num_rows: int, world: World) -> Tensor:
    """The rows of all ranks in their places, from this rank's `parts`."""
    own = torch.cat(list(parts))
    if world.size == 1:
        return own
    found = own.new_zeros(num_rows, *own.shape[1:])
    found[world.rank :: world.size] = own
    world.sum_([found])
    return found
