"""A rollout: sampled answers with all that is computed on them before the first gradient.

Legend: B prompts, T tokens of prompt and answer, A tokens of the longest answer. Column j of a (B, A) tensor belongs to
the j-th token of the answer, which was predicted at position `prompt length + j − 1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mengya.evaluate.answers import Answers
from mengya.model.heads import RewardModel
from mengya.model.texts import hidden_at
from mengya.model.transformer import Transformer
from mengya.objectives.terms import token_logps
from mengya.settings import RolloutSettings, micro_batch_of
from mengya.train.parallel import World


@dataclass(frozen=True)
class Rollout:
    """Tensors of one batch of answers; slices of it are micro-batches.

    `mask_BA` is True on answer tokens, the end token included. What an algorithm does not use stays 0: GRPO has no
    values and returns.
    """

    ids_BT: Tensor
    prompt_lengths_B: Tensor
    answer_BA: Tensor
    mask_BA: Tensor
    logps_BA: Tensor
    reference_BA: Tensor
    values_BA: Tensor
    advantages_BA: Tensor
    returns_BA: Tensor

    def __len__(self) -> int:
        return len(self.ids_BT)

    def rows(self, chosen: Tensor) -> Rollout:
        return Rollout(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def to(self, device: torch.device) -> Rollout:
        return Rollout(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def lay_out(answers: Answers, device: torch.device) -> Rollout:
    """The answers as right-padded tensors; what is computed on them is still 0."""
    sequences = [prompt + tokens for prompt, tokens in zip(answers.prompts, answers.tokens, strict=True)]
    B, A, T = len(sequences), max(map(len, answers.tokens)), max(map(len, sequences))
    ids_BT = torch.zeros(B, T, dtype=torch.long)
    answer_BA = torch.zeros(B, A, dtype=torch.long)
    mask_BA = torch.zeros(B, A, dtype=torch.bool)
    for b, (sequence, tokens) in enumerate(zip(sequences, answers.tokens, strict=True)):
        ids_BT[b, : len(sequence)] = torch.tensor(sequence)
        answer_BA[b, : len(tokens)] = torch.tensor(tokens)
        mask_BA[b, : len(tokens)] = True
    prompt_lengths_B = torch.tensor([len(prompt) for prompt in answers.prompts])
    zeros_BA = torch.zeros(B, A)
    return Rollout(ids_BT, prompt_lengths_B, answer_BA, mask_BA, *[zeros_BA] * 5).to(device)


def _answer_states(model: Transformer | RewardModel, rollout: Rollout) -> Tensor:
    """x_NC from which each answer token was predicted, in the order of `mask_BA`'s entries."""
    rows_N, columns_N = rollout.mask_BA.nonzero(as_tuple=True)
    # The last token of an answer predicts nothing that is asked.
    lengths_B = (rollout.prompt_lengths_B + rollout.mask_BA.sum(1) - 1).clamp_min(1)
    return hidden_at(model, rollout.ids_BT, lengths_B, rows_N, rollout.prompt_lengths_B[rows_N] + columns_N - 1)


def answer_logps(model: Transformer, rollout: Rollout, *, learns_entropy: bool = False) -> tuple[Tensor, Tensor]:
    """log π of the answer's tokens and the entropy of each prediction, both (B, A) in nats, 0 outside the mask.

    The entropy carries a gradient only where it `learns_entropy`: it keeps two tensors of the logits' size.
    """
    logits_NV = model.logits(_answer_states(model, rollout))
    logps_N = token_logps(logits_NV, rollout.answer_BA[rollout.mask_BA])
    with torch.set_grad_enabled(learns_entropy and torch.is_grad_enabled()):
        log_p_NV = logits_NV.float().log_softmax(-1)
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    zeros_BA = torch.zeros_like(rollout.logps_BA)
    return zeros_BA.masked_scatter(rollout.mask_BA, logps_N), zeros_BA.masked_scatter(rollout.mask_BA, entropy_N)


def answer_values(model: RewardModel, rollout: Rollout) -> Tensor:
    """V of the state before each answer token, (B, A), 0 outside the mask."""
    values_N = model.scores_of(_answer_states(model, rollout))
    return torch.zeros_like(rollout.values_BA).masked_scatter(rollout.mask_BA, values_N)


def micro_batches(rollout: Rollout, rows: Tensor, size: int) -> Iterator[Rollout]:
    for start in range(0, len(rows), size):
        yield rollout.rows(rows[start : start + size])


@dataclass(frozen=True)
class Minibatch:
    """What one optimizer step learns from: rows of a rollout, and this rank's share of them as micro-batches."""

    own: list[Rollout]
    rollout: Rollout
    rows: Tensor

    def count(self, level: str = "token") -> int:
        """Answer tokens, or answers by the level "sequence", of all ranks: what the step's loss is divided by."""
        return len(self.rows) if level == "sequence" else int(self.rollout.mask_BA[self.rows].sum())


def minibatches(rollout: Rollout, settings: RolloutSettings, step: int, seed: int, world: World) -> Iterator[Minibatch]:
    """The optimizer steps on the rollout of `step`: `epochs` passes, each a shuffle of its own in `minibatches` parts."""
    for epoch in range(settings.epochs):
        shuffle = torch.Generator().manual_seed(seed * 7_919 + step * 64 + epoch)
        order = torch.randperm(len(rollout), generator=shuffle).to(world.device)
        for rows in order.chunk(settings.minibatches):
            own = rows[world.rank :: world.size]
            yield Minibatch(list(micro_batches(rollout, own, micro_batch_of(settings))), rollout, rows)
