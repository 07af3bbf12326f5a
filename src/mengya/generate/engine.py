"""Text from a model: batches of ragged prompts for evaluation and RL, and a stream of one answer for chat."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mengya.generate.sampling import GREEDY, Sampling, sample
from mengya.model.cache import KVCache
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
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Generation]:
    """One Generation for each prompt, in their order.

    A row stops at a stop token (finished), after `max_new_tokens`, or when the model's positions are used up (not
    finished); a prompt that is longer than the positions gets an empty, unfinished one. Prompts are batched by
    length, and rows that stop leave the batch. Results, sampled ones too, do not depend on `batch_size` (but for
    rounding): the chance of each prompt and step is drawn beforehand, from `seed`.
    """
    assert all(prompts), "an empty prompt predicts nothing"
    device = model.output_weight_VC.device
    uniform_PN = _uniform(seed, len(prompts), max_new_tokens, device)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    fitting = [index for index in order if len(prompts[index]) <= model.config.max_positions]
    results = [Generation([], [], finished=False) for _ in prompts]
    if not fitting or max_new_tokens < 1:
        return results
    model = for_inference(model)
    for start in range(0, len(fitting), batch_size):
        batch = fitting[start : start + batch_size]
        generations = _generate_batch(
            model, [prompts[index] for index in batch], max_new_tokens, stop_ids, sampling, uniform_PN[batch]
        )
        for index, generation in zip(batch, generations, strict=True):
            results[index] = generation
    return results


def for_inference(model: Transformer) -> Transformer:
    """The model with weights already in compute_dtype: the same results, without a cast of every weight every token."""
    if model.output_weight_VC.dtype == model.compute_dtype:
        return model
    return copy.deepcopy(model).to(model.compute_dtype).requires_grad_(False)


def _uniform(seed: int, num_prompts: int, num_steps: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) drawn on the CPU, so that every device samples the same text."""
    return torch.rand(num_prompts, num_steps, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.inference_mode()
def _generate_batch(
    model: Transformer,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling,
    uniform_BN: Tensor,
) -> list[Generation]:
    device, max_positions = model.output_weight_VC.device, model.config.max_positions
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    ids_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths_B = torch.tensor(lengths, device=device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    # The last token of a row is predicted but never read back, hence one more than the positions that are left.
    room_B = (max_positions + 1 - lengths_B).clamp(max=max_new_tokens)
    num_steps = min(max_new_tokens, max_positions + 1 - min(lengths))
    tokens_BN = torch.zeros(len(prompts), num_steps, dtype=torch.long, device=device)
    logps_BN = torch.zeros(len(prompts), num_steps, device=device)
    seen_BV = _seen(ids_BT, lengths_B, model.config.vocab_size) if sampling.repetition_penalty != 1 else None

    cache = KVCache(
        model.config,
        len(prompts),
        min(longest + num_steps, max_positions),
        dtype=model.compute_dtype,
        device=device,
    )
    x_BTC = model.hidden(ids_BT, cache=cache)
    cache.advance(lengths)
    x_BC = x_BTC[torch.arange(len(prompts), device=device), lengths_B - 1]

    rows = list(range(len(prompts)))  # the prompt in each row of the shrinking batch
    num_tokens, finished = [num_steps] * len(prompts), [False] * len(prompts)
    rows_B = torch.arange(len(prompts), device=device)
    for step in range(num_steps):
        ids_B, logp_B = sample(model.logits(x_BC).float(), sampling, uniform_BN[rows_B, step], seen_BV)
        tokens_BN[rows_B, step] = ids_B
        logps_BN[rows_B, step] = logp_B
        if seen_BV is not None:
            seen_BV.scatter_(1, ids_B[:, None], True)
        is_stop_B = torch.isin(ids_B, stops)
        leaving = (is_stop_B | (room_B <= step + 1)).nonzero().flatten().tolist()
        if leaving:
            for row in leaving:
                num_tokens[rows[row]] = step + 1
                finished[rows[row]] = bool(is_stop_B[row])
            keep = _fill_holes(len(rows), leaving)
            if not keep:
                break
            cache.compact(keep)
            rows = [rows[row] for row in keep]
            keep_B = torch.tensor(keep, device=device)
            rows_B, room_B, ids_B = rows_B[keep_B], room_B[keep_B], ids_B[keep_B]
            seen_BV = None if seen_BV is None else seen_BV[keep_B]
        x_BTC = model.hidden(ids_B[:, None], cache=cache)
        cache.advance([1] * len(rows))
        x_BC = x_BTC[:, -1]
    return [
        Generation(tokens[:count], logps[:count], is_finished)
        for tokens, logps, count, is_finished in zip(
            tokens_BN.tolist(), logps_BN.tolist(), num_tokens, finished, strict=True
        )
    ]


def _fill_holes(num_rows: int, leaving: list[int]) -> list[int]:
    """The rows to keep, those at the end moved into the holes: few rows of the cache move."""
    gone = set(leaving)
    num_kept = num_rows - len(gone)
    movers = iter(row for row in range(num_kept, num_rows) if row not in gone)
    return [next(movers) if row in gone else row for row in range(num_kept)]


def _seen(ids_BT: Tensor, lengths_B: Tensor, vocab_size: int) -> Tensor:
    """seen_BV: whether a token occurs in the real part of its row."""
    is_real_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) < lengths_B[:, None]
    counts_BV = torch.zeros(len(ids_BT), vocab_size, device=ids_BT.device)
    return counts_BV.scatter_add_(1, ids_BT, is_real_BT.float()) > 0


class Session:
    """A conversation's cache: each turn reads only what is new since the last one."""

    def __init__(self, model: Transformer) -> None:
        self.model = for_inference(model)
        self.device = self.model.output_weight_VC.device
        self.cache = KVCache(model.config, 1, model.config.max_positions, dtype=model.compute_dtype, device=self.device)
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
        prompt_1T = torch.tensor([list(prompt)], device=self.device)
        seen_1V = None
        if sampling.repetition_penalty != 1:
            seen_1V = _seen(prompt_1T, torch.tensor([len(prompt)], device=self.device), self.model.config.vocab_size)
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
            id_1, _logp_1 = sample(self.model.logits(x_1C).float(), sampling, uniform_1N[:, step], seen_1V)
            token = int(id_1)
            yield token
            if token in stop_ids or len(self.tokens) == self.model.config.max_positions:
                return
            unread = [token]
            if seen_1V is not None:
                seen_1V[0, token] = True

    def _read(self, tokens: list[int]) -> Tensor:
        """x_1C after the last of the tokens, all of them now in the cache."""
        x_1TC = self.model.hidden(torch.tensor([tokens], device=self.device), cache=self.cache)
        self.tokens.extend(tokens)
        self.cache.advance([len(tokens)])
        return x_1TC[:, -1]


def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens of one answer as they come; a conversation of several turns keeps a Session instead."""
    return Session(model).stream(prompt, max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling, seed=seed)
