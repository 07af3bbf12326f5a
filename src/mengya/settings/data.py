"""What a model is made from: sources, the corpus, its tokenizer and its shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mengya.settings.base import Fraction, Positive, PositiveFloat, Settings
from mengya.settings.cleaning import MESSAGE_KEYS, TRANSFORMATION_KEYS, CleaningSettings, Rules, only_transformations


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
    """How its documents are cleaned, where not as `corpus` says: keys of cleaning, or `web` or `encyclopaedia`. Of a
    source of conversations or pairs, the names of transformations alone."""
    balance_lengths: bool = False
    """Drop pairs until the better answer is the longer one as often as the shorter, so that length tells nothing."""

    @property
    def label(self) -> str:
        if self.name or self.playground:
            return self.name or "playground"
        if self.dataset:
            return self.dataset
        return Path(self.path or "").name.split(".")[0]


def _with_message_rules(source: Source) -> Source:
    only_transformations(source.rules)
    return source


_Source = Annotated[Source, BeforeValidator(lambda v: {"playground": True} if v == "playground" else v)]
SourceList = list[_Source]
MessageSourceList = list[Annotated[_Source, AfterValidator(_with_message_rules)]]


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
    conversations: MessageSourceList = []
    """Instruction data."""
    preferences: MessageSourceList = []
    """Preference pairs, for the reward model, DPO and (their prompts) PPO."""
    boilerplate_documents: Positive = 10
    """A notice in more documents of a source than this is boilerplate and removed …"""
    boilerplate_share: Fraction = 0.01
    """… any other line must also stand in more than this share of them."""
    near_duplicate_threshold: Fraction = 0.8
    """Jaccard similarity of character 5-grams from which two documents are one (MinHash-LSH, verified exactly)."""
    sentence_duplicates: Positive | None = None
    """A sentence or line of 20 characters and more that stands in more documents than this, over all sources and after
    copies are gone, is kept in the first of them only."""
    near_duplicate_prompts: Annotated[float, Field(gt=0.5, le=1.0)] | None = None
    """Jaccard similarity from which the prompts of two conversations are one and only one conversation is kept."""
    near_duplicate_prompts_keep: Literal["longest", "first"] = "longest"
    """Which one: that of the longest answer, or the first in the order of the sources."""
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

    def message_cleaning(self, rules: Mapping[str, Any] | None = None) -> CleaningSettings:
        """The cleaning of the messages of a source: the safe transformations as the corpus has them, and its `rules`."""
        own = {name: name in MESSAGE_KEYS and getattr(self, name) for name in TRANSFORMATION_KEYS}
        return CleaningSettings(**{**own, **(rules or {})})


HOW_NOT_WHAT: dict[str, frozenset[str]] = {
    "corpus": frozenset(ExecutorSettings.model_fields),
    "shards": frozenset({"num_workers"}),
    "reward": frozenset({"min_margin", "must_beat"}),
    "ppo": frozenset({"accept_weak_reward"}),
    "grpo": frozenset({"accept_weak_reward"}),
}
"""Keys of sections that change how fast, where or whether a stage runs, never its result; so they make nothing stale."""


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
