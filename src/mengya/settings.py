"""The recipe's sections as immutable models: one docstring a key, with its unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

StageName = Literal["corpus", "tokenizer", "shards", "pretrain", "sft", "reward", "dpo", "ppo", "evaluate"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """Base of every section: immutable, and an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------------------- data


class Identity(Settings):
    """Who the assistant says it is; fills <NAME>, <AUTHOR> and <DATE> in self-cognition data."""

    name: str = "萌芽"
    author: str = "萌芽开发者"
    date: str = "2026年"


class PlaygroundSettings(Settings):
    """Size of the embedded world (see `corpus.playground`)."""

    num_people: Positive = 40
    """People in the world; each has about ten facts to learn."""
    num_characters: Positive = 2_500_000
    """Characters of pretraining documents, planted dirt included."""
    num_conversations: Positive = 12_000
    """Conversations for instruction tuning."""
    num_preferences: Positive = 4_000
    """Preference pairs for the reward model and DPO."""


class Source(Settings):
    """Where records come from: the word `playground`, or a file, folder or glob with its format."""

    playground: bool = False
    """Take the embedded corpus; written as the bare word `playground`."""
    path: str | None = None
    """File, folder or glob; jsonl, json, csv, tsv, parquet or txt, plain or .gz or .zst."""
    format: str | None = None
    """Layout of a row (`corpus.formats`); guessed from the first rows, and said, when absent."""
    columns: dict[str, str] = {}
    """Renamed columns, {format's name: file's name}."""
    name: str | None = None
    """Name in reports; the file's stem when absent."""
    limit: Positive | None = None
    """Read at most this many rows, from the start."""
    copies: Positive = 1
    """How often each of its conversations or pairs is trained on, for the few that must be learnt well."""
    balance_lengths: bool = False
    """Drop pairs until the better answer is the longer one as often as the shorter, so that length tells nothing."""

    @property
    def label(self) -> str:
        if self.name or self.playground:
            return self.name or "playground"
        return Path(self.path or "").name.split(".")[0]


SourceList = list[Annotated[Source, BeforeValidator(lambda v: {"playground": True} if v == "playground" else v)]]


class CorpusSettings(Settings):
    """Sources, and the thresholds of cleaning. Shares are of the characters that are not white space, unless said."""

    documents: SourceList = []
    """Pretraining text."""
    conversations: SourceList = []
    """Instruction data."""
    preferences: SourceList = []
    """Preference pairs, for the reward model, DPO and (their prompts) PPO."""
    min_han: int = 10
    """A document with fewer Han characters is dropped."""
    max_characters: Positive = 500_000
    """A longer document is dropped: it is a dump, not a text."""
    min_han_share: Fraction = 0.3
    max_symbol_share: Fraction = 0.3
    """Characters that are neither letters, digits, Han nor common punctuation."""
    max_url_share: Fraction = 0.3
    max_digit_share: Fraction = 0.3
    max_mojibake_share: Fraction = 0.03
    """Characters that only a wrong decoding gives."""
    max_repeated_line_share: Fraction = 0.3
    """Lines that stood before in the same document, by characters."""
    max_repeated_ngram_share: Fraction = 0.6
    """Of the 10-character n-grams."""
    max_advertising_terms: int = 3
    """Distinct terms from which a text is an advertisement; in short ones fewer do, long ones need a density too."""
    boilerplate_documents: Positive = 10
    """A notice in more documents of a source than this is boilerplate and removed …"""
    boilerplate_share: Fraction = 0.01
    """… any other line must also stand in more than this share of them."""
    near_duplicate_threshold: Fraction = 0.8
    """Jaccard similarity of character 5-grams from which two documents are one (MinHash-LSH, verified exactly)."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.02
    """Share of records held out, chosen by content hash so that it is stable when data is added."""
    max_reject_share: Fraction = 0.05
    """Share of unreadable rows above which the stage stops."""
    num_processes: Positive = 2
    """Processes that clean; the result does not depend on it."""


class TokenizerSettings(Settings):
    vocab_size: Annotated[int, Field(ge=300)] = 6400
    """Tokens, special ones included."""
    path: str | None = None
    """Directory of an imported tokenizer, used instead of training one; its vocabulary rules the model's."""
    max_characters: Positive = 50_000_000
    """Characters sampled from the corpus for training."""
    max_memory_gib: PositiveFloat | None = None
    """Memory that training may take, in GiB: the sample is made smaller to fit (see `tokenizer.train`)."""
    shares: dict[str, Fraction] = {}
    """Share of the sample that a source gets, {source: share}; the others fill the rest as they come."""


class ShardsSettings(Settings):
    shard_tokens: Positive = 50_000_000
    """Tokens a file."""
    num_workers: Positive | None = None
    """Processes; all cores when absent. The result does not depend on it."""
    token_files: list[str] = []
    """Headerless files of token ids (files, folders or globs) made with the tokenizer of `tokenizer.path`; they are
    trained on beside the corpus, where they lie."""
    held_out_documents: Positive = 500
    """Documents of the token files kept from training to measure on; never more than a tenth."""


# ---------------------------------------------------------------------------------------------------------- model


class ModelSettings(Settings):
    """A preset by name or size, or a shape said explicitly; explicit keys win over the preset."""

    preset: str | None = None
    """3m 7m 12m 26m 50m 0.1b 0.2b 1.1b (see `model.presets`)."""
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


class TrainSettings(Settings):
    """What every training stage shares."""

    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices inside the blocks and AdamW for the rest; adamw: AdamW for all."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate of AdamW."""
    matrix_learning_rate: PositiveFloat = 0.02
    """Peak rate of Muon."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
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
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""


class PretrainSettings(TrainSettings):
    optimizer: Literal["muon", "adamw"] = "muon"
    tokens: Positive = 2_000_000
    """Tokens to train on, in all."""
    batch_tokens: Positive = 8192
    """Tokens a step."""
    micro_batch_tokens: Positive = 4096
    """Tokens a backward."""
    sequence_length: Positive = 256
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    """Epochs of a source in one epoch of the mixture, {source: 2.0}; 1 where it is not named."""
    temperature: Annotated[float, Field(ge=1.0)] = 1.0
    """Above 1, smaller sources come more often: shares ∝ tokens^(1/temperature)."""
    evaluate_every: Positive = 200
    """Steps between validation losses."""


class SFTSettings(TrainSettings):
    learning_rate: PositiveFloat = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    epochs: PositiveFloat = 2.0
    batch_tokens: Positive = 8192
    micro_batch_tokens: Positive = 4096
    sequence_length: Positive = 256
    """Longest conversation in tokens; longer ones lose whole leading turns."""
    evaluate_every: Positive = 200


class PairTrainSettings(TrainSettings):
    """Stages that train on preference pairs."""

    optimizer: Literal["muon", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    epochs: PositiveFloat = 1.0
    batch_pairs: Positive = 64
    micro_batch_pairs: Positive = 32
    sequence_length: Positive = 256


class RewardSettings(PairTrainSettings):
    learning_rate: PositiveFloat = 3e-4


class DPOSettings(PairTrainSettings):
    beta: PositiveFloat = 0.1
    """Strength of the pull to the reference (Rafailov et al. 2023, eq. 7)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of labels believed to be flipped."""
    nll_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of −log p(chosen) a token, which keeps the chosen answers likely (Pang et al. 2024)."""


class PPOSettings(TrainSettings):
    optimizer: Literal["muon", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 5e-5
    value_learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Literal["wsd", "cosine", "constant"] = "constant"
    steps: Positive = 40
    """Rollouts; each is followed by `epochs` passes over it."""
    batch_prompts: Positive = 128
    """Prompts a rollout."""
    epochs: Positive = 2
    minibatches: Positive = 2
    """Optimizer steps a pass."""
    micro_batch_rows: Positive = 64
    sequence_length: Positive = 256
    """Prompt and answer together."""
    max_new_tokens: Positive = 48
    temperature: PositiveFloat = 1.0
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.05
    """Start value of the per-token penalty on log π/π_sft."""
    kl_target: PositiveFloat | None = 2.0
    """Nats an answer; the coefficient adapts towards it (Ziegler et al. 2019, §2.2). Absent: fixed coefficient."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_coefficient: PositiveFloat = 0.5
    value_warmup_steps: int = 3
    """Rollouts in which only the value model learns."""
    missing_end_penalty: float = 1.0
    """Subtracted (in units of the reward's standard deviation) from an answer that never ends."""
    reward_clip: PositiveFloat = 4.0
    """Whitened rewards are clipped to ± this."""
    repetition_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    """Subtracted in full from an answer that is nothing but repetition, seen character by character."""
    checkpoint_every: Positive = 10
    evaluate_every: Positive = 10
    """Rollouts between two looks of the guard at held-out prompts."""
    max_kl: PositiveFloat = 12.0
    """Nats an answer at which the guard stops."""


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


class Recipe(Settings):
    name: str
    """Names the run directory, runs/NAME."""
    description: str = ""
    seed: int = 1
    stages: list[StageName] = list(STAGE_NAMES)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, fp32 otherwise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None
    """CPU threads; all cores when absent."""
    identity: Identity = Identity()
    playground: PlaygroundSettings = PlaygroundSettings()
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    shards: ShardsSettings = ShardsSettings()
    model: ModelSettings = ModelSettings(preset="3m")
    pretrain: PretrainSettings = PretrainSettings()
    sft: SFTSettings = SFTSettings()
    reward: RewardSettings = RewardSettings()
    dpo: DPOSettings = DPOSettings()
    ppo: PPOSettings = PPOSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
