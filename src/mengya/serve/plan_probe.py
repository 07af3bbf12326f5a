"""Seconds of this machine for what a recipe will do: a few real optimizer steps, forward passes and tokens of generation.

The steps are those of the stages themselves: their objective, optimizer, micro-batch and, where the data was sampled, their loader.
Where a step would take too long, fewer rows and fewer layers are timed, and the rest follows by FLOPs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from mengya.generate.engine import generate
from mengya.generate.sampling import Sampling
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.settings import Recipe, TrainSettings
from mengya.train.memory import machine_memory, matrix_parameters
from mengya.train.optimizer import Optimizer
from mengya.train.parallel import World, open_world
from mengya.train.step import Objective, optimizer_step

Made = TypeVar("Made")

SECONDS_A_PROBE = 0.4
"""Wall time after which no further step of a kind is begun; the first is timed however long it takes."""
_AFFORDABLE = 1.5
"""Times that, at the peak of matrix products: a step of more FLOPs is not timed whole."""
_MOST_REPEATS, _MOST_STEPS = 5, 12
_NO_RATE = 1e-6
"""Factor of the rates: steps are timed, and the model stays what it is."""
_SHARE_OF_MEMORY = 0.4
_GENERATED = 6
"""Tokens a row that are generated for timing."""
_FEW_ROWS, _MANY_ROWS = 4, 64


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step: `first` with one micro-batch, `further` for each one more."""

    first: float
    further: float

    def step(self, micro_batches: float) -> float:
        return self.first + max(0.0, micro_batches - 1) * self.further


@dataclass(frozen=True)
class GenerationTime:
    """Seconds of a decoding step over n rows: `base` + `row` · n; `prompt_token`: of reading a token of a prompt."""

    base: float
    row: float
    prompt_token: float

    def seconds(self, prompts: Sequence[int], answers: Sequence[int], batch_size: int) -> float:
        """Of answering prompts of so many tokens with answers of so many."""
        read, alive = decoding(prompts, answers, batch_size)
        return self.prompt_token * read + sum(self.base + self.row * rows for rows in alive)


def decoding(prompts: Sequence[int], answers: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """(tokens of prompts read, padding included; rows decoded in each step), as `generate.batching.decode` goes about it: long
    prompts first, and a row that ends makes room for the next. That equal prompts are read once is not foreseen.
    """
    queue = sorted(range(len(prompts)), key=lambda index: -prompts[index])
    enough = max(1, batch_size // 8)
    left: list[int] = []
    alive: list[int] = []
    read = 0
    while left or queue:
        free = batch_size - len(left)
        if queue and (free >= min(enough, len(queue)) or not left):
            new = queue[:free]
            del queue[:free]
            read += len(new) * prompts[new[0]]
            left += [answers[index] for index in new]
        alive.append(len(left))
        left = [tokens - 1 for tokens in left if tokens > 1]
    return read, alive


class Probe:
    """This machine, opened for a recipe, with a model of its shape (or of fewer layers of it: `share` of the FLOPs)."""

    def __init__(self, recipe: Recipe, config: ModelConfig) -> None:
        self.recipe, self.whole = recipe, config
        self.world: World = open_world(recipe.device, recipe.precision, recipe.threads)
        self.flops_per_second = self._matrix_speed()
        self.config = self._affordable(config)
        torch.manual_seed(recipe.seed)
        self.model = Transformer(self.config, self.world.dtype).to(self.world.device)

    def share(self, length: int) -> float:
        """FLOPs of the timed model over those of the whole, at a sequence length."""
        return self.config.flops_per_token(length) / self.whole.flops_per_token(length)

    @property
    def update_share(self) -> float:
        return matrix_parameters(self.config) / matrix_parameters(self.whole)

    def rows_to_time(self, length: int, rows: int) -> int:
        """Sequences of a micro-batch that can be timed within the budget."""
        return max(1, min(rows, int(self._affordable_flops() / (self.config.flops_per_token(length) * length))))

    def _affordable_flops(self) -> float:
        """Of what is timed at once."""
        return _AFFORDABLE * SECONDS_A_PROBE * self.flops_per_second

    def whole_steps(
        self,
        objective: Objective,
        settings: TrainSettings,
        steps: Iterator[Sequence[Any]],
        *,
        tokens: float,
        length: int,
        model: nn.Module | None = None,
        least: int = 1,
    ) -> float | None:
        """Mean seconds of consecutive steps as the loader gives them, its own work among them; None where `tokens` positions, those of
        the average step, are too many to be timed whole. One step repeated would be faster than steps of ever other shapes are.
        """
        if self.config != self.whole or tokens * self.config.flops_per_token(length) > self._affordable_flops():
            return None
        model = self.model if model is None else model
        optimizer, _ = self._optimizer(model, settings)
        model.train()
        if self.world.device.type != "cpu":
            self._step(model, optimizer, next(steps), objective, settings)
        self._synchronise()
        began, count, read = time.perf_counter(), 0, 0.0
        while count < least or (count < _MOST_STEPS and time.perf_counter() - began < SECONDS_A_PROBE):
            batches = next(steps)
            read += sum(batch.ids_BT.numel() for batch in batches)
            self._step(model, optimizer, batches, objective, settings)
            count += 1
        self._synchronise()
        return (time.perf_counter() - began) / read * tokens

    def _optimizer(self, model: nn.Module, settings: TrainSettings) -> tuple[Optimizer, float]:
        """The stage's optimizer, its state allocated, and the seconds of an update alone: what a step has once, whatever its
        micro-batches. A CPU needs no further warm-up; kernels of a GPU do."""
        optimizer = Optimizer(model, settings)
        for parameter in optimizer.parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step(_NO_RATE)
        seconds = self.timed(lambda: optimizer.step(_NO_RATE), SECONDS_A_PROBE / 8)
        optimizer.zero_grad()
        return optimizer, seconds

    def _step(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Sequence[Any],
        objective: Objective,
        settings: TrainSettings,
    ) -> None:
        optimizer_step(
            model,
            optimizer,
            batches,
            objective,
            rate=_NO_RATE,
            gradient_clip=settings.gradient_clip,
            world=self.world,
        )

    def step_time(
        self,
        objective: Objective,
        settings: TrainSettings,
        batches: Sequence[Any],
        *,
        model: nn.Module | None = None,
        length: int,
        rows_share: float = 1.0,
        single: bool = False,
    ) -> StepTime:
        """Of steps over micro-batches such as the first of `batches`; `rows_share`: the timed over the whole micro-batch.

        `single` where a step is one micro-batch, so that its update need not be told apart.
        """
        model = self.model if model is None else model
        optimizer, update = self._optimizer(model, settings)

        def run() -> None:
            self._step(model, optimizer, batches[:1], objective, settings)

        model.train()
        if self.world.device.type != "cpu":
            run()
        one = self.timed(run, SECONDS_A_PROBE)
        if not single:  # told apart below, and the first of a shape is up to a tenth slower than those that follow
            one = min(one, self.timed(run, 0.0))
        scale = 1.0 / (self.share(length) * rows_share)
        if single and scale == 1.0:
            return StepTime(one, one)
        further = min(max(one - update, 0.2 * one), one)
        return StepTime((one - further) / self.update_share + further * scale, further * scale)

    def timed(self, work: Callable[[], Any], budget: float) -> float:
        """Median seconds of `work`, run until the budget is spent."""
        seconds: list[float] = []
        while not seconds or (sum(seconds) < budget and len(seconds) < _MOST_REPEATS):
            self._synchronise()
            began = time.perf_counter()
            work()
            self._synchronise()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def made_and_timed(self, work: Callable[[], Made]) -> tuple[Made, float]:
        """What `work` makes, and its seconds: on a CPU of the first time, where that is long."""
        self._synchronise()
        began = time.perf_counter()
        made = work()
        self._synchronise()
        seconds = time.perf_counter() - began
        if seconds < SECONDS_A_PROBE / 2 or self.world.device.type != "cpu":
            seconds = self.timed(work, SECONDS_A_PROBE)
        return made, seconds

    def generation(self, prompt_length: int) -> GenerationTime:
        """From a few tokens with few and with many rows; the prompt's part from a generation of one token."""
        length = min(prompt_length, self.config.max_positions - _GENERATED)
        prompt_flops = self.config.flops_per_token(length) / 3 * length
        many = int(self._affordable_flops() / prompt_flops)  # fewer where the model is slow
        many = max(_FEW_ROWS + 4, min(_MANY_ROWS, many))

        def run(rows: int, tokens: int) -> Callable[[], Any]:
            # No two alike: equal prompts, and what all begin with, are read once.
            prompts = torch.randint(
                0, self.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(rows)
            )
            sampling = Sampling(temperature=1.0)
            return lambda: generate(
                self.model, prompts.tolist(), max_new_tokens=tokens, stop_ids=(), sampling=sampling, batch_size=rows
            )

        run(2, 2)()
        budget = SECONDS_A_PROBE / 4
        few_one, few = self.timed(run(_FEW_ROWS, 1), budget), self.timed(run(_FEW_ROWS, _GENERATED), budget)
        many_one, many_all = self.timed(run(many, 1), budget), self.timed(run(many, _GENERATED), budget)
        steps = _GENERATED - 1
        step_few, step_many = max(few - few_one, 1e-6) / steps, max(many_all - many_one, 1e-6) / steps
        row = max(0.0, (step_many - step_few) / (many - _FEW_ROWS))
        prompt = max(0.0, many_one - few_one) / ((many - _FEW_ROWS) * length)
        share = self.share(length)
        return GenerationTime(max(step_few - row * _FEW_ROWS, 1e-6) / share, row / share, prompt / share)

    def forward_seconds_a_token(self, sequences: Sequence[Sequence[int]]) -> float:
        """Of log-probabilities of texts, as evaluation reads them."""
        from mengya.evaluate.likelihood import sequence_logps

        chosen = list(sequences)
        tokens = sum(map(len, chosen))
        most = self._affordable_flops() / (self.config.flops_per_token(256) / 3)
        while len(chosen) > 1 and tokens > most:
            chosen = chosen[: len(chosen) // 2]
            tokens = sum(map(len, chosen))
        work = lambda: sequence_logps(self.model, chosen, [1] * len(chosen))  # noqa: E731
        sequence_logps(self.model, chosen[:2], [1] * len(chosen[:2]))
        return self.timed(work, SECONDS_A_PROBE / 2) / max(1, tokens) / self.share(256)

    def _affordable(self, config: ModelConfig) -> ModelConfig:
        """The model itself, or fewer of its layers where it is too large or too slow to be timed whole."""
        layers = config.num_layers
        while layers > 1:
            candidate = replace(config, num_layers=layers)
            row = candidate.flops_per_token(256) * 256
            if row < self._affordable_flops() and 20 * candidate.num_parameters < _SHARE_OF_MEMORY * self._memory():
                break
            layers = max(1, layers // 2)
        return replace(config, num_layers=layers)

    def _memory(self) -> float:
        if self.world.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.world.device)[1])
        return float(machine_memory())

    def _matrix_speed(self) -> float:
        """FLOP/s of matrix products of this model's shape and precision: what no step can exceed."""
        rows = 2048
        a = torch.randn(rows, self.whole.width, device=self.world.device, dtype=self.world.dtype)
        b = torch.randn(self.whole.ffn_width, self.whole.width, device=self.world.device, dtype=self.world.dtype)
        work = lambda: [torch.nn.functional.linear(a, b) for _ in range(4)]  # noqa: E731
        work()
        return 4 * 2.0 * rows * self.whole.width * self.whole.ffn_width / self.timed(work, 0.3)

    def _synchronise(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
