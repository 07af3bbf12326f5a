"""What the plan of every stage is added up from: reading, generating, evaluating, memory; in seconds here and in FLOPs.

Answers are assumed to be as long as those that the sample of the data holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mengya.errors import UserError
from mengya.evaluate.answers import by_kind, has_truth
from mengya.files import read_jsonl
from mengya.serve.plan_probe import GenerationTime, Probe, StepTime, decoding
from mengya.serve.plan_sample import Sample
from mengya.settings import DPOSettings, Recipe, RolloutSettings, TrainSettings, micro_batch_key, micro_batch_of
from mengya.stages.common import HeldOut, held_out, tokenizer_of
from mengya.stages.judge import share_of
from mengya.stages.micro_batch import available_memory, estimated
from mengya.tokenizer.encode import ChatTokenizer
from mengya.train.memory import BYTES_OF_PROCESS, Memory, micro_batch_choices, training_memory

FORWARD = 1 / 3
"""Of a training step's FLOPs."""
OWN_KEPT = 0.55
"""Pairs a prompt of the stage `preferences`: 1,154 of 2,000 prompts of the quickstart, 349 of 489 of real-alignment."""


@dataclass
class StagePlan:
    """Of one stage: `parts` {what it does: seconds here}; the rest is what other machines are reckoned from.

    `flops`: of training, forward and backward; `forward_flops`: of everything that only reads; `decode_steps`: tokens generated one
    after the other, each for a whole batch; `cpu_seconds`: work that no accelerator takes over.
    """

    stage: str
    parts: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    steps: int = 0
    micro_batches: float = 0.0
    flops: float = 0.0
    forward_flops: float = 0.0
    decode_steps: float = 0.0
    cpu_seconds: float = 0.0
    memory: Memory | None = None
    settings: TrainSettings | None = None
    known: bool = True

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class Parts:
    """Adds to the plan of a stage what it does besides training; what several stages need is timed once."""

    def __init__(self, recipe: Recipe, probe: Probe, sample: Sample) -> None:
        self.recipe, self.probe, self.sample = recipe, probe, sample
        self.context = sample.context
        self.tokenizer: ChatTokenizer = tokenizer_of(self.context)
        self.held: HeldOut = held_out(self.context)
        self.answer_lengths, self.prompt_lengths = self._lengths()
        self.texts = [self.held.validation[i].tolist() for i in range(min(64, len(self.held.validation)))]
        self.texts = [text[: probe.config.max_positions] for text in self.texts if len(text) > 1]
        self.forward = probe.forward_seconds_a_token(self.texts) if self.texts else 0.0
        self._generation: GenerationTime | None = None

    @property
    def generation(self) -> GenerationTime:
        if self._generation is None:
            middle = sorted(self.prompt_lengths)[len(self.prompt_lengths) // 2] if self.prompt_lengths else 16
            self._generation = self.probe.generation(max(4, middle))
        return self._generation

    def _settings(self, stage: str) -> Any:
        """The stage's, with a number for `micro_batch: auto` by the estimate; the smallest where nothing fits, which the plan says;
        and no more than a step has."""
        settings: TrainSettings = getattr(self.recipe, stage)
        world = self.probe.world
        sizes: dict[str, Any] = {"dtype_bytes": world.dtype.itemsize, "device": world.device.type}
        choices = micro_batch_choices(settings)
        try:
            found = estimated(settings, self.probe.whole, available_memory(world), **sizes)
        except UserError:
            return settings.model_copy(update={micro_batch_key(settings): min(choices)})
        return found.model_copy(update={micro_batch_key(found): min(micro_batch_of(found), max(choices))})

    def _train(
        self, plan: StagePlan, settings: Any, timed: StepTime, per_step: float, tokens: float, length: int = 0
    ) -> None:
        plan.parts["training"] = plan.steps * timed.step(per_step)
        plan.micro_batches = plan.steps * per_step
        plan.tokens = tokens
        plan.flops = tokens * self.probe.whole.flops_per_token(length or settings.sequence_length)
        self._memory(plan, settings)

    def _memory(self, plan: StagePlan, settings: TrainSettings) -> None:
        world = self.probe.world
        plan.settings = settings
        plan.memory = training_memory(
            settings,
            self.probe.whole,
            micro_batch_of(settings),
            dtype_bytes=world.dtype.itemsize,
            device=world.device.type,
        )

    def _forward_memory(self, plan: StagePlan) -> None:
        config = self.probe.whole
        logits = 10.0 * min(16_384, 2**27 // config.vocab_size) * config.vocab_size
        process = BYTES_OF_PROCESS[self.probe.world.device.type]
        plan.memory = Memory(process, 6.0 * config.num_parameters, 0.0, 0.0, 0.0, logits)

    def _read(self, plan: StagePlan, part: str, tokens: float) -> None:
        plan.parts[part] = plan.parts.get(part, 0.0) + tokens * self.forward
        plan.forward_flops += tokens * self.probe.whole.flops_per_token(256) * FORWARD

    def _replay(self, plan: StagePlan, settings: DPOSettings | RolloutSettings, updates: float) -> None:
        """The text in so many optimizer steps: read, and the gradient, which takes twice as long."""
        replay = settings.replay
        tokens = updates * replay.tokens * ((replay.documents > 0) + (replay.conversations > 0))
        if tokens:
            plan.parts["replay"] = 3 * tokens * self.forward
            plan.flops += tokens * self.probe.whole.flops_per_token(settings.sequence_length)

    def _generate(
        self, plan: StagePlan, part: str, prompts: Sequence[int], answers: Sequence[int], batch: int, times: float = 1
    ) -> None:
        if not prompts:
            return
        plan.parts[part] = plan.parts.get(part, 0.0) + times * self.generation.seconds(prompts, answers, batch)
        plan.decode_steps += times * len(decoding(prompts, answers, batch)[1])
        plan.forward_flops += times * (sum(prompts) + sum(answers)) * self.probe.whole.flops_per_token(256) * FORWARD

    def _evaluation(self, plan: StagePlan, longer: float = 1.0) -> None:
        """The measurement that every language-model stage ends with (`stages.common.measure_language_model`)."""
        settings = self.recipe.evaluate
        most = settings.max_new_tokens
        style = [self._prompt(question.messages) for question in self.held.style]
        asked = [
            question
            for members in by_kind(self.held.questions, settings.num_questions).values()
            for question in members
        ]
        for questions in (style, [self._prompt(question.messages) for question in asked]):
            lengths = self._drawn(self.answer_lengths, len(questions), most, longer)
            self._generate(plan, "evaluation", questions, lengths, settings.batch_size)
        answers = min(settings.num_questions, len(self.held.conversations))
        some = sum(self._drawn(self.prompt_lengths, answers)) + sum(self._drawn(self.answer_lengths, answers))
        self._read(plan, "evaluation", self._document_tokens() + self._cloze_tokens() + some)

    def _aligned(self, plan: StagePlan) -> None:
        """An alignment stage's end: the measurement, its KL to SFT on the answers sampled for it, and what a judge costs, who
        reads those answers and SFT's, which are sampled again."""
        self._evaluation(plan)
        settings, count = self.recipe.evaluate, len(self.held.style)
        asked = self._drawn(self.prompt_lengths, count)
        tokens = sum(asked) + sum(self._drawn(self.answer_lengths, count))
        judged = bool(self.judge_share) and not self.knows_truth
        self._read(plan, "evaluation", (4 if judged else 2) * tokens)
        if judged:
            lengths = self._drawn(self.answer_lengths, count, settings.max_new_tokens)
            self._generate(plan, "evaluation", asked, lengths, settings.batch_size)

    @property
    def own_prompts(self) -> int:
        """How many prompts the stage `preferences` will answer: as many as the recipe asks for, and, where they are those of
        the corpus's pairs, no more than there are. What instruction tuning was trained on is not foreseen."""
        settings = self.recipe.preferences
        if settings.sources or self.knows_truth:
            return settings.num_prompts
        return min(settings.num_prompts, round(self.sample.count("preference")))

    @property
    def own_pairs(self) -> float:
        """Of them, how many pairs will be trained on."""
        return OWN_KEPT * self.own_prompts * (1.0 - self.recipe.preferences.validation_fraction)

    @property
    def judge_share(self) -> float:
        """Of the training pairs, that the run will set apart for its judge."""
        has_judge = "reward" in self.recipe.stages
        return share_of(self.recipe, round(self.sample.count("preference"))) if has_judge else 0.0

    @property
    def knows_truth(self) -> bool:
        """Whether the guard and the measurement can do without a model that judges."""
        return all(has_truth(question) for question in (*self.held.guard, *self.held.style))

    def _rows(self, artifact: str) -> list[dict[str, Any]]:
        return list(read_jsonl(self.context.path(artifact)))

    def _prompt(self, messages: Any) -> int:
        return len(self.tokenizer.render(messages, add_generation_prompt=True)[0])

    def _lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of the last answers of held-out conversations and of the prompts before them; of few, all that there are."""
        answers, prompts = [], []
        for conversation in self.held.conversations[:400]:
            prompt = self._prompt(conversation.messages[:-1])
            prompts.append(prompt)
            answers.append(max(1, len(self.tokenizer.render(conversation.messages)[0]) - prompt))
        return answers or [16], prompts or [16]

    def _drawn(self, lengths: Sequence[int], count: int, most: int = 1 << 30, longer: float = 1.0) -> list[int]:
        return [max(1, min(most, round(longer * lengths[i * 7919 % len(lengths)]))) for i in range(count)]

    def _document_tokens(self) -> float:
        return self._tokens_of_documents(self.recipe.evaluate.num_documents)

    def _tokens_of_documents(self, count: int) -> float:
        lengths = self.held.validation.lengths_N
        return float(lengths.mean()) * count if len(lengths) else 0.0

    def _validation_tokens(self) -> float:
        lengths = self.held.validation.lengths_N
        sampled = max(1.0, float(sum(row["tokens"] for row in self._shards("train").values())))
        return float(lengths.sum()) * sum(self.sample.tokens.values()) / sampled

    def _shards(self, split: str) -> dict[str, Any]:
        manifest = self.context.run.manifest("shards") or {}
        return dict(manifest["counts"][split]["sources"])

    def _cloze_tokens(self) -> float:
        clozes = self.held.clozes[: self.recipe.evaluate.num_questions]
        some = clozes[:50]
        tokens = sum(
            len(self.tokenizer.encode(cloze.prefix + choice)) + 1 for cloze in some for choice in cloze.choices
        )
        return tokens * len(clozes) / max(1, len(some))
