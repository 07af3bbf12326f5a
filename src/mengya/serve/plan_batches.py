"""Micro-batches to time steps with: parts of real ones, and answers in the place of those that a policy will give."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mengya.corpus.records import Message, PreferencePair
from mengya.data.packing import PackedBatch
from mengya.data.pairs import PairBatch, TokenPair, pair_batch
from mengya.evaluate.answers import Answers
from mengya.settings import RolloutSettings
from mengya.tokenizer.encode import ChatTokenizer


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
    """The data's own answers in the place of a rollout: their lengths are the best guess at the policy's."""
    found = Answers([], [], [], [])
    room = settings.sequence_length - settings.max_new_tokens
    for pair in pairs:
        prompt = tokenizer.render(pair.prompt, add_generation_prompt=True)[0]
        if len(prompt) > room:
            continue
        tokens = tokenizer.encode(pair.chosen)[: settings.max_new_tokens - 1]
        found.prompts.append(prompt)
        found.tokens.append([*tokens, tokenizer.stop_ids[0]])
        found.texts.append(pair.chosen)
        found.finished.append(True)
        if len(found.prompts) == count:
            break
    return found


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
    return Answers([""] * count, tokens, [True] * count, [rendered[i % len(rendered)] for i in range(count)])
