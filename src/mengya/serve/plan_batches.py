"""Micro-batches to time steps with: parts of real ones, and answers in the place of those that a policy will give."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from mengya.corpus.records import Message, PreferencePair
from mengya.data.packing import PackedBatch
from mengya.data.pairs import PairBatch, TokenPair, pair_batch
from mengya.evaluate.answers import Answers
from mengya.settings import RolloutSettings
from mengya.tokenizer.encode import ChatTokenizer

_LOOKED_AT = 2000
"""Pairs that a rollout is drawn from, at most."""
_DRAWS = 15
"""Of rollouts, whose longest answers vary."""


def random_ids(batch: PackedBatch, vocab_size: int) -> PackedBatch:
    ids_BT = torch.randint(0, vocab_size, batch.ids_BT.shape, device=batch.ids_BT.device)
    return PackedBatch(ids_BT, ids_BT, batch.positions_BT, batch.documents_BT)


def positions(step: Sequence[PairBatch]) -> float:
    """Positions that a step computes, padding included."""
    return float(sum(batch.ids_BT.numel() for batch in step))


def first_pairs(pairs: Sequence[TokenPair], batch: PairBatch, count: int, pad_id: int) -> PairBatch:
    """The first `count` pairs of a micro-batch of `pairs`, packed anew."""
    return batch if count >= len(batch.indices_B) else pair_batch(pairs, batch.indices_B[:count].tolist(), pad_id)


def chosen_answers(
    pairs: Sequence[PreferencePair], tokenizer: ChatTokenizer, count: int, settings: RolloutSettings
) -> Answers:
    """The data's own answers in the place of a rollout: their lengths are the best guess at the policy's.

    All are padded to the longest; so of some draws this is the one whose longest is the median.
    """
    room = settings.sequence_length - settings.max_new_tokens
    found = Answers([], [], [], [])
    for pair in pairs[:_LOOKED_AT]:
        prompt = tokenizer.render(pair.prompt, add_generation_prompt=True)[0]
        if len(prompt) <= room:
            tokens = tokenizer.encode(pair.chosen)[: settings.max_new_tokens - 1]
            found.prompts.append(prompt)
            found.tokens.append([*tokens, tokenizer.stop_ids[0]])
            found.texts.append(pair.chosen)
            found.finished.append(True)
    rng, everything = random.Random("rollouts"), range(len(found.prompts))
    draws = [found.chosen(rng.sample(everything, min(count, len(everything)))) for _ in range(_DRAWS)]
    draws.sort(key=lambda draw: max(widths(draw), default=0))
    return longest_first(draws[len(draws) // 2])


def widths(answers: Answers) -> list[int]:
    """Tokens of each prompt with its answer."""
    return [len(prompt) + len(tokens) for prompt, tokens in zip(answers.prompts, answers.tokens, strict=True)]


def longest_first(answers: Answers) -> Answers:
    """The same with the longest at the head: so that the first rows alone are padded as all are."""
    found = widths(answers)
    return answers.chosen(sorted(range(len(found)), key=lambda i: found[i] < max(found)))


def answers_of_lengths(
    prompts: Sequence[Sequence[Message]], tokenizer: ChatTokenizer, lengths: Sequence[int], settings: RolloutSettings
) -> Answers:
    """Answers of so many tokens, all of them the end token, to as many prompts, repeated from the first where they are few;
    none where no prompt leaves room for one."""
    room = settings.sequence_length - settings.max_new_tokens
    rendered = [tokenizer.render(prompt, add_generation_prompt=True)[0] for prompt in prompts]
    rendered = [prompt for prompt in rendered if len(prompt) <= room]
    if not rendered:
        return Answers([], [], [], [])
    count = len(lengths)
    tokens = [[tokenizer.stop_ids[0]] * length for length in lengths]
    prompts_of = [rendered[i % len(rendered)] for i in range(count)]
    return longest_first(Answers([""] * count, tokens, [True] * count, prompts_of))
