"""The recipe's sections as immutable models: one docstring a key, with its unit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

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


class CleaningSettings(Settings):
    """Steps of cleaning, each under its own name: what is changed (bools), then why a document is dropped.

    A threshold of `null` switches its rule off. Shares are of the characters that are not white space, unless said.
    """

    mojibake: bool = True
    """Repair text that was decoded wrongly (ftfy)."""
    control_characters: bool = True
    """Remove control, invisible and private-use characters; one kind of space and of line end."""
    half_width: bool = True
    """Latin letters and digits half width."""
    entities: bool = True
    """Unescape HTML entities where no markup stands beside them."""
    unicode: bool = True
    """Unicode normal form C."""
    simplified: bool = False
    """Traditional characters to simplified ones (needs `pip install 'mengya[opencc]'`)."""
    literal_newlines: bool = True
    """A backslash and an n between Chinese sentences become a line end."""
    markup: bool = True
    """Remove style attributes without their tags, and captions of forum attachments."""
    reference_marks: bool = True
    """Remove [1-2] after Chinese text."""
    full_width: bool = True
    """Punctuation between Chinese characters full width."""
    lost_icons: bool = True
    """Remove question marks that stand where a page had an icon."""
    white_space: bool = True
    """Remove spaces in and around Chinese text, at line ends, and blank lines after the first."""
    repeated_punctuation: bool = True
    """Cut runs of one mark."""
    repeated_paragraphs: bool = True
    """Keep each paragraph of a document once."""
    personal_data: bool = False
    """Mask mobile and identity numbers, e-mail addresses and bank cards. Off: in technical text they are examples."""
    min_han: int = 10
    """A document with fewer Han characters is dropped."""
    max_characters: Positive | None = 500_000
    """A longer document is dropped: it is a dump, not a text."""
    encyclopaedia: bool = False
    """Drop entries "title, blank line, heading, content …" of tables only, or with fewer than 30 Han characters."""
    min_han_share: Fraction | None = 0.3
    max_symbol_share: Fraction | None = 0.3
    """Characters that are neither letters, digits, Han nor common punctuation."""
    max_url_share: Fraction | None = 0.3
    max_digit_share: Fraction | None = 0.3
    max_mojibake_share: Fraction | None = 0.03
    """Characters that only a wrong decoding gives."""
    max_repeated_line_share: Fraction | None = 0.3
    """Lines that stood before in the same document, by characters."""
    max_repeated_ngram_share: Fraction | None = 0.6
    """Of the 10-character n-grams."""
    max_notice_share: Fraction | None = None
    """Of Han characters: notices (follow us, copyright …) and sentences that stood before. Web text: 0.6."""
    min_common_share: Fraction | None = None
    """Of Han characters: the commonest of Chinese prose, without which it is a list or word salad. Web text: 0.1."""
    min_stop_share: Fraction | None = None
    """Of punctuation to Han characters; below it a text without the characters of prose is a list. Web text: 0.015."""
    search_snippets: bool = False
    """Drop results pages of search engines: "3小时前 - …", cut-off sentences."""
    spam: bool = False
    """Drop pages whose title offers gambling, sex, forged goods or papers, and pages of shops."""
    max_advertising_terms: int | None = 3
    """Distinct terms from which a text is an advertisement; in short ones fewer do, long ones need a density too."""


RULE_SETS: dict[str, dict[str, Any]] = {
    "web": {
        "personal_data": True,
        "max_notice_share": 0.6,
        "min_common_share": 0.1,
        "min_stop_share": 0.015,
        "search_snippets": True,
        "spam": True,
    },
    "encyclopaedia": {"encyclopaedia": True},
}
"""Named values of a source's `rules`: web pages as they come, and entries of an encyclopaedia."""


def _named_rules(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in RULE_SETS:
        close = difflib.get_close_matches(value, RULE_SETS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(RULE_SETS)}"
        raise ValueError(f"{mend}, or give keys of cleaning: {{min_han: 30}}")
    return RULE_SETS[value]


if TYPE_CHECKING:
    Rules = dict[str, Any]
else:
    # Kept as a dict, not as the model: a resolved recipe must store what was written and not the defaults beside it.
    Rules = Annotated[
        CleaningSettings,
        BeforeValidator(_named_rules),
        AfterValidator(lambda rules: rules.model_dump(exclude_unset=True)),
        PlainSerializer(lambda rules: rules),
    ]


class Source(Settings):
    """Where records come from: the word `playground`, a dataset of the catalogue, or files with their format."""

    playground: bool = False
    """Take the embedded corpus; written as the bare word `playground`."""
    dataset: str | None = None
    """A public dataset by its name in the catalogue (`mengya data list`): its format, and its downloaded files."""
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
    licence: str | None = None
    """Under which terms it may be used; a download by `mengya data get` says it itself."""
    copies: Positive = 1
    """How often each of its conversations or pairs is trained on, for the few that must be learnt well."""
    rules: Rules = {}
    """How its documents are cleaned, where not as `corpus` says: keys of cleaning, or `web` or `encyclopaedia`."""
    balance_lengths: bool = False
    """Drop pairs until the better answer is the longer one as often as the shorter, so that length tells nothing."""

    @property
    def label(self) -> str:
        if self.name or self.playground:
            return self.name or "playground"
        if self.dataset:
            return self.dataset
        return Path(self.path or "").name.split(".")[0]


SourceList = list[Annotated[Source, BeforeValidator(lambda v: {"playground": True} if v == "playground" else v)]]


class EvaluationSet(Settings):
    """A benchmark whose questions the training data must not hold."""

    path: str
    """File, folder, glob or tar archive."""
    name: str | None = None
    """Name in reports; the file's stem when absent."""

    @property
    def label(self) -> str:
        return self.name or Path(self.path).name.split(".")[0]


class SlurmSettings(Settings):
    """How the tasks of a phase are given to Slurm; see docs/data.md."""

    partition: str
    time: str = "24:00:00"
    """Limit of one task, as sbatch reads it."""
    mem_per_cpu_gb: Positive = 4
    qos: str | None = None
    env_command: str | None = None
    """Shell line that a task begins with, e.g. one that activates the environment."""
    sbatch_args: dict[str, str] = {}
    """Further options of sbatch."""
    poll_seconds: PositiveFloat = 10.0
    """Between two looks at the queue."""


class ExecutorSettings(Settings):
    """Where the tasks of data processing run; the result does not depend on it."""

    executor: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine; ray and slurm: a cluster that shares this file system."""
    num_processes: Positive = 2
    """Tasks at a time."""
    ray_address: str | None = None
    """Of a running Ray cluster ("auto" finds it); a local one is started when absent."""
    slurm: SlurmSettings | None = None


class CorpusSettings(CleaningSettings, ExecutorSettings):
    """Sources, how all of them are cleaned, and where the work is done."""

    documents: SourceList = []
    """Pretraining text."""
    conversations: SourceList = []
    """Instruction data."""
    preferences: SourceList = []
    """Preference pairs, for the reward model, DPO and (their prompts) PPO."""
    boilerplate_documents: Positive = 10
    """A notice in more documents of a source than this is boilerplate and removed …"""
    boilerplate_share: Fraction = 0.01
    """… any other line must also stand in more than this share of them."""
    near_duplicate_threshold: Fraction = 0.8
    """Jaccard similarity of character 5-grams from which two documents are one (MinHash-LSH, verified exactly)."""
    evaluation: list[EvaluationSet] = []
    """Evaluation sets with which training data is compared, by 13-grams of characters."""
    min_contaminated_grams: Positive = 8
    """Grams shared with a set from which a text counts as contaminated (see `corpus.contamination`)."""
    remove_contaminated: bool = False
    """Drop contaminated texts; otherwise they are reported only."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.02
    """Share of records held out, chosen by content hash so that it is stable when data is added."""
    max_reject_share: Fraction = 0.05
    """Share of unreadable rows above which the stage stops."""
    part_characters: Positive = 1 << 25
    """Characters that one task works on at a time, about 100 MB of Chinese: it bounds the memory of a process."""

    def cleaning(self, rules: Mapping[str, Any] | None = None) -> CleaningSettings:
        """The cleaning of a source with these `rules`: the corpus's own, with the rules' keys over them."""
        own = {name: getattr(self, name) for name in CleaningSettings.model_fields}
        return CleaningSettings(**{**own, **(rules or {})})


HOW_NOT_WHAT: dict[str, frozenset[str]] = {
    "corpus": frozenset(ExecutorSettings.model_fields),
    "shards": frozenset({"num_workers"}),
}
"""Keys of sections that change how fast and where a stage runs, never its result; so they make nothing stale."""


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
    shard_tokens: Positive = 16_000_000
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
