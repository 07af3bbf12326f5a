"""Text from a model: batches of ragged prompts for evaluation and RL, and a stream of one answer for chat."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mengya.generate.batching import Row, decode, tokens_seen
from mengya.generate.inference import InferenceModel, for_inference
from mengya.generate.sampling import GREEDY, Sampling, sample
from mengya.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model said. `tokens` ends with the stop token when `finished`; otherwise room ran out.

    `logps` are the log-probabilities of the tokens under the model's own distribution (see sampling.sample).
    """

    tokens: list[int]
    logps: list[float]
    finished: bool


def generate(
    model: Transformer | InferenceModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    part: tuple[int, int] = (0, 1),
) -> list[Generation]:
    """One Generation for each prompt, in their order.

    `part` (rank, ranks): only every `ranks`-th prompt from `rank` on is answered, with the chances that it has among
    all of them; the others get an empty one.

    A row stops at a stop token (finished), after `max_new_tokens` (one number, or one a prompt), or when the model's
    positions are used up (not finished); a prompt that is longer than the positions gets an empty, unfinished one.
    `batch_size` rows are decoded at a time; a row that stops makes room for the next prompt. Equal prompts are read
    once, and so is the beginning that all have in common. Results, sampled ones too, do not depend on `batch_size`
    (but for rounding): the chance of each prompt and step is drawn beforehand, from `seed`. With a seed a prompt, an
    answer does not depend on the other prompts either.
    """
    assert all(prompts), "an empty prompt predicts nothing"
    assert batch_size > 0
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    assert len(limits) == len(prompts), "one limit a prompt"
    num_left = [model.config.max_positions + 1 - len(prompt) for prompt in prompts]
    rows = [Row(index, min(limit, left)) for index, (limit, left) in enumerate(zip(limits, num_left, strict=True))]
    fitting = [row for row in rows[part[0] :: part[1]] if row.room > 0]
    if fitting:
        packed = for_inference(model)
        uniform_PN = _uniform(seed, len(prompts), max(limits), packed.device)
        decode(packed, [tuple(prompt) for prompt in prompts], fitting, stop_ids, sampling, uniform_PN, batch_size)
    return [Generation(row.tokens, row.logps, row.finished) for row in rows]


def _uniform(seed: int | Sequence[int], num_prompts: int, num_steps: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) drawn on the CPU, so that every device samples the same text."""
    if isinstance(seed, int):
        return torch.rand(num_prompts, num_steps, generator=torch.Generator().manual_seed(seed)).to(device)
    assert len(seed) == num_prompts, "one seed a prompt"
    rows = [torch.rand(num_steps, generator=torch.Generator().manual_seed(own)) for own in seed]
    return torch.stack(rows).to(device)


class Session:
    """A conversation's cache: each turn reads only what is new since the last one."""

    def __init__(self, model: Transformer | InferenceModel) -> None:
        self.model = for_inference(model)
        self.device = self.model.device
        self.cache = self.model.new_cache(1, model.config.max_positions)
        self.tokens: list[int] = []  # those whose keys and values the cache holds

    @torch.inference_mode()
    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Iterator[int]:
        """The answer's tokens one by one, the stop token included; it ends without one when room runs out."""
        assert prompt, "an empty prompt predicts nothing"
        if len(prompt) > self.model.config.max_positions:
            return
        uniform_1N = _uniform(seed, 1, max_new_tokens, self.device)
        seen_1V = None
        if sampling.repetition_penalty != 1:
            vocabulary = torch.empty(0, self.model.config.vocab_size, dtype=torch.bool, device=self.device)
            seen_1V = tokens_seen(prompt, vocabulary)
        num_common = 0
        # At least the last token of the prompt is read again: its hidden state predicts the first new one.
        for mine, new in zip(self.tokens, prompt[:-1], strict=False):
            if mine != new:
                break
            num_common += 1
        del self.tokens[num_common:]
        self.cache.truncate(num_common)
        unread = list(prompt[num_common:])
        for step in range(max_new_tokens):
            x_1C = self._read(unread)
            id_1, _logp_1 = sample(self.model.logits(x_1C), sampling, uniform_1N[:, step], seen_1V)
            token = int(id_1)
            yield token
            if token in stop_ids or len(self.tokens) == self.model.config.max_positions:
                return
            unread = [token]
            if seen_1V is not None:
                seen_1V[0, token] = True

    def _read(self, tokens: list[int]) -> Tensor:
        """x_1C after the last of the tokens, all of them now in the cache."""
        x_1TC = self.model.hidden(torch.tensor([tokens], device=self.device), self.cache)
        self.tokens.extend(tokens)
        self.cache.advance([len(tokens)])
        return x_1TC[:, -1]


def stream(
    model: Transformer | InferenceModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens of one answer as they come; a conversation of several turns keeps a Session instead."""
    return Session(model).stream(prompt, max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling, seed=seed)
