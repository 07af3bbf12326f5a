"""The recipe's sections as immutable models: one docstring a key, with its unit."""

from __future__ import annotations

from typing import Literal

from mengya.settings.alignment import (
    DPOSettings,
    GRPOSettings,
    PPOSettings,
    PreferencesSettings,
    RewardTerm,
    RolloutSettings,
)
from mengya.settings.base import STAGE_NAMES, Fraction, PairsFrom, Positive, PositiveFloat, Settings, StageName
from mengya.settings.cleaning import RULE_SETS, CleaningSettings
from mengya.settings.data import (
    HOW_NOT_WHAT,
    CorpusSettings,
    EvaluationSet,
    ExecutorSettings,
    Identity,
    PlaygroundSettings,
    ShardsSettings,
    SlurmSettings,
    Source,
    TokenizerSettings,
)
from mengya.settings.guard import GuardSettings
from mengya.settings.training import (
    MAX_REWARD_MEMBERS,
    EvaluateSettings,
    FitSettings,
    ModelSettings,
    PairTrainSettings,
    ParallelSettings,
    PretrainSettings,
    RewardSettings,
    SFTSettings,
    TrainSettings,
    ValidatedSettings,
    micro_batch_key,
    micro_batch_of,
)

__all__ = [
    "HOW_NOT_WHAT", "MAX_REWARD_MEMBERS", "RULE_SETS", "STAGE_NAMES", "CleaningSettings", "CorpusSettings", "DPOSettings",
    "EvaluateSettings", "EvaluationSet", "ExecutorSettings", "FitSettings", "Fraction", "GRPOSettings",
    "GuardSettings", "Identity", "ModelSettings", "PPOSettings", "PairTrainSettings", "PairsFrom", "ParallelSettings",
    "PlaygroundSettings", "Positive", "PositiveFloat", "PreferencesSettings", "PretrainSettings", "Recipe", "RewardSettings",
    "RewardTerm", "RolloutSettings", "SFTSettings", "Settings", "ShardsSettings", "SlurmSettings", "Source",
    "StageName", "TokenizerSettings", "TrainSettings", "ValidatedSettings",
    "micro_batch_key", "micro_batch_of",
]  # fmt: skip


class Recipe(Settings):
    name: str
    """Names the run directory, runs/NAME."""
    description: str = ""
    seed: int = 1
    stages: list[StageName] = [name for name in STAGE_NAMES if name not in ("preferences", "grpo")]
    """These two run where they are named: preferences makes pairs where `corpus.preferences` has none, or not of the model's
    own answers; grpo wants prompts whose answers can be verified."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, fp32 otherwise. fp16, with a scaled loss, is for CUDA
    devices without bf16."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None
    """CPU threads; all cores when absent."""
    parallel: ParallelSettings = ParallelSettings()
    prices: dict[str, PositiveFloat] = {}
    """Of an hour, in any currency, for `mengya plan`: {here: 0.5, A100: 2.0}; that of a GPU is for one of them."""
    identity: Identity = Identity()
    playground: PlaygroundSettings = PlaygroundSettings()
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    shards: ShardsSettings = ShardsSettings()
    model: ModelSettings = ModelSettings(preset="3m")
    pretrain: PretrainSettings = PretrainSettings()
    sft: SFTSettings = SFTSettings()
    preferences: PreferencesSettings = PreferencesSettings()
    reward: RewardSettings = RewardSettings()
    dpo: DPOSettings = DPOSettings()
    ppo: PPOSettings = PPOSettings()
    grpo: GRPOSettings = GRPOSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
