"""The model's shape, and how each stage trains and is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from mengya.settings.base import Fraction, NotNegative, PairsFrom, Positive, PositiveFloat, Settings

MicroBatch = Positive | Literal["auto"]
"""auto: as large as memory allows, and as is fast (`stages.micro_batch`); the effective batch stays, so the gradient does."""


def micro_batch_field(default: int, name: str) -> Any:
    """A field that recipes may also call `micro_batch`, the same word in every training stage."""
    return Field(default, validation_alias=AliasChoices(name, "micro_batch"))


class ModelSettings(Settings):
    """A preset, a size, or a shape said explicitly; explicit keys win over both."""

    preset: str | None = None
    """A fixed shape: 3m 7m 12m 26m 50m 0.1b 0.2b 1.1b (see `model.presets`)."""
    size: str | None = None
    """The one dial: parameters as 40m or 0.3b. Sets the shape, and whatever the recipe does not say of rates, batch, sequence
    length, micro-batch and tokens of pretraining (see `stages.dial`)."""
    width: Positive | None = None
    num_layers: Positive | None = None
    num_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    head_width: Positive | None = None
    ffn_width: Positive | None = None
    max_positions: Positive | None = None
    rope_theta: PositiveFloat | None = None
    norm_epsilon: PositiveFloat | None = None
    qk_norm: bool | None = None
    tie_embeddings: bool | None = None
    initializer_range: PositiveFloat | None = None


class ParallelSettings(Settings):
    """How many processes (torchrun) share a model. It decides where and how fast, not what is learnt."""

    shard: Positive | Literal["auto"] = "auto"
    """Ranks over which weights, gradients and optimizer state are divided (FSDP2); 1: each holds all; auto: as memory asks."""
    replicate: Positive | None = None
    """Copies of the model, each of `shard` ranks; as many as the processes make when absent."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations: less memory, a third more time."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile of the layers in pretrain and sft; auto: on a GPU, where the training is longer than about a minute."""
    timeout_seconds: PositiveFloat = 1800.0
    """How long a rank waits for the slowest in a collective before it gives up, and torchrun restarts the group."""


class TrainSettings(Settings):
    """What every training stage shares."""

    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices inside the blocks and AdamW for the rest; adamw: AdamW for all."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate of AdamW."""
    matrix_learning_rate: PositiveFloat = 0.02
    """Peak rate of Muon."""
    weight_decay: NotNegative = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """Warm-up–stable–decay, cosine, or constant after warm-up."""
    warmup_fraction: Fraction = 0.03
    decay_fraction: Fraction = 0.4
    """Share of the steps over which wsd falls linearly."""
    final_fraction: Fraction = 0.05
    """Last rate as a share of the peak."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints kept."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""


class FitSettings(TrainSettings):
    """What the stages share that train on batches of given data (all but PPO)."""

    spike_sigmas: PositiveFloat | None = 7.0
    """Standard deviations above its running mean at which log loss or log gradient norm makes a step a spike, which is
    skipped (`train.stability`). null: only what is not finite is skipped."""
    rewind_after: Positive = 10
    """Steps skipped in a row after which training goes back to a checkpoint, past their data, at a lower rate."""
    max_rewinds: Annotated[int, Field(ge=0)] = 3
    """Rewinds after which training ends instead."""
    rewind_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Factor of all learning rates after each rewind."""


class ValidatedSettings(FitSettings):
    """What the stages share that measure a validation loss as they train."""

    best_checkpoint: Literal["keep", "hand_over", "ignore"] = "keep"
    """The checkpoint of the lowest validation loss: keep it beside the last ones; hand_over its weights as the stage's
    model, in place of the last; or ignore it."""
    evaluate_every: Positive = 200
    """Steps between validation losses."""


class PretrainSettings(ValidatedSettings):
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: PositiveFloat = Field(
        default_factory=lambda said: 0.012 if said.get("optimizer") == "muon" else 1e-3
    )
    """Peak rate of AdamW. When absent 0.012 beside Muon, where it moves embeddings and the head alone, and 0.001 for all weights
    (docs/results/rates.md)."""
    tokens: Positive = 2_000_000
    """Tokens to train on, in all."""
    batch_tokens: Positive = 8192
    """Tokens a step."""
    micro_batch_tokens: MicroBatch = micro_batch_field(4096, "micro_batch_tokens")
    """Tokens a backward, or auto."""
    sequence_length: Positive = 256
    weights: dict[str, NotNegative] = {}
    """Epochs of a source in one epoch of the mixture, {source: 2.0}; 1 where it is not named."""
    temperature: Annotated[float, Field(ge=1.0)] = 1.0
    """Above 1, smaller sources come more often: shares ∝ tokens^(1/temperature)."""


class SFTSettings(ValidatedSettings):
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NotNegative = 0.01
    epochs: PositiveFloat = 2.0
    documents: NotNegative = 0.0
    """Pretraining documents that are learnt beside the conversations: tokens, as a share of theirs. Answers alone make a model
    forget what it read, and how to tell of it (docs/algorithms.md)."""
    batch_tokens: Positive = 8192
    micro_batch_tokens: MicroBatch = micro_batch_field(4096, "micro_batch_tokens")
    sequence_length: Positive = 256
    """Longest conversation in tokens; longer ones lose whole leading turns."""


class PairTrainSettings(FitSettings):
    """Stages that train on preference pairs."""

    pairs_from: PairsFrom = "corpus"
    """corpus: those of `corpus.preferences`; own: those that `mengya preferences` made; both: one after the other."""
    own_min_margin: NotNegative | None = None
    """Of the own pairs, those alone whose scores differ by more than this; all when absent. Beyond 0.4 of the gold score
    they differ in truth, not in style alone."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NotNegative = 0.0
    epochs: PositiveFloat = 1.0
    batch_pairs: Positive = 64
    micro_batch_pairs: MicroBatch = micro_batch_field(32, "micro_batch_pairs")
    sequence_length: Positive = 256


MAX_REWARD_MEMBERS = 8


class RewardSettings(PairTrainSettings):
    learning_rate: PositiveFloat = 3e-4
    lm_coefficient: NotNegative = 0.0
    """Weight of −log p(chosen) a token, which keeps the reward model a language model (Yang et al. 2024, "GRM")."""
    members: Annotated[int, Field(ge=1, le=MAX_REWARD_MEMBERS)] = 1
    """Reward models to train, one after another, each with a shuffle and (but for the first) a head of its own. Several
    score by their mean less `conservatism` times their standard deviation."""
    conservatism: NotNegative = 1.0
    """Standard deviations over the members that an answer's score is lowered by; 0: their mean (Coste et al. 2023)."""
    judge_share: Annotated[float, Field(ge=0.0, lt=0.9)] | None = None
    """Share of the prompts, chosen by a hash, whose pairs train a second reward model: the judge. Where the truth is not known the
    guard scores policies by it, and answers are compared with SFT's. The reward model, DPO, PPO and GRPO see none of these pairs.
    When absent: 0.3 without the embedded corpus's conversations, given 1,000 training pairs; else 0."""
    min_margin: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """How far the lower end of the accuracy's 95% interval must lie above the best of `must_beat`; otherwise PPO, and GRPO
    with the term `model`, refuse the reward model. 0: better than any of them, beyond its error. Below 0 allows as much less."""
    must_beat: Annotated[list[Literal["length", "characters", "answer"]], Field(min_length=1)] = [
        "length",
        "characters",
        "answer",
    ]
    """Baselines: the length alone, the characters alone, the model itself on the answer without its prompt. All are measured."""


MICRO_BATCH_KEYS = ("micro_batch_tokens", "micro_batch_pairs", "micro_batch_rows")


def micro_batch_key(settings: TrainSettings) -> str:
    """The key of the stage's micro-batch; its unit is in the name."""
    return next(key for key in MICRO_BATCH_KEYS if hasattr(settings, key))


def micro_batch_of(settings: TrainSettings) -> int:
    """The stage's micro-batch in its own unit, after `stages.micro_batch` has put a number in the place of auto."""
    chosen = getattr(settings, micro_batch_key(settings))
    assert isinstance(chosen, int), "micro_batch: auto is resolved before training begins"
    return chosen


class EvaluateSettings(Settings):
    num_questions: Positive = 300
    """Questions a kind."""
    num_prompts: Positive = 200
    """Prompts on which gold score, repetition, win rate and KL are measured."""
    num_documents: Positive = 200
    """Validation documents for bits per byte."""
    max_new_tokens: Positive = 64
    batch_size: Positive = 128
    samples: list[str] = []
    """Prompts that every stage answers side by side in the report; chosen from the data when absent."""
