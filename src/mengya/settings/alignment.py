"""How the stages that align a model train: DPO on pairs, PPO and GRPO on the model's own answers; how pairs are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mengya.settings.base import Fraction, NotNegative, PairsFrom, Positive, PositiveFloat, Settings
from mengya.settings.data import MessageSourceList
from mengya.settings.guard import GuardSettings
from mengya.settings.training import MicroBatch, PairTrainSettings, TrainSettings, micro_batch_field


class ReplaySettings(Settings):
    """Text in every optimizer step beside what aligns, so that the policy keeps what nobody asks it for."""

    documents: NotNegative = 0.0
    """γ: weight of −log p a token of pretraining documents (Ouyang et al. 2022, eq. 2, "PPO-ptx")."""
    conversations: NotNegative = 0.0
    """The same of the answers of instruction tuning."""
    tokens: Positive = 2048
    """Of each, in a step; whole rows of `sequence_length`, as many for every rank."""


class DPOSettings(PairTrainSettings):
    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    """sigmoid: DPO (Rafailov et al. 2023); ipo: a square with a finite aim, for labels that are sure (Azar et al. 2023); simpo:
    log p a token, without a reference (Meng et al. 2024)."""
    beta: PositiveFloat = 0.1
    """sigmoid, ipo: strength of the pull to the reference. simpo: scale of the reward β log p a token; 2 is usual."""
    margin: NotNegative = 0.5
    """simpo: γ, by which the chosen answer's reward is to be above the rejected one's; a quarter to a half of β is usual."""
    length_normalised: bool = False
    """Whether log p a token stands in the place of log p an answer (Lambert et al. 2024, "Tülu 3"); simpo always does so.
    β then is some ten times larger: 5 there."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of labels believed to be flipped; sigmoid and simpo."""
    nll_coefficient: NotNegative = 0.0
    """Weight of −log p(chosen) a token, which keeps the chosen answers likely (Pang et al. 2024)."""
    replay: ReplaySettings = ReplaySettings()
    evaluate_every: Positive = 50
    """Steps between two looks of the guard at held-out prompts; there is one more before the first step, one after the last,
    and none shortly before that."""
    max_new_tokens: Positive = 48
    """Tokens of an answer that the guard looks at; where PPO's is the same, so is its first look."""
    guard: GuardSettings = GuardSettings()


class RewardTerm(Settings):
    """One part of the reward of an answer; parts are added up with their weights."""

    kind: Literal["truth", "model", "function"]
    """truth: 1 for a right answer, 0 for another (prompts whose answer can be verified); model: the reward model, in standard
    deviations; function: the user's own."""
    weight: float = 1.0
    function: str | None = None
    """FILE.py:NAME of a function (prompt, answer, meta) → number: prompt a list of {"role", "content"}, answer a text."""
    timeout_seconds: PositiveFloat = 10.0
    """For one call of the function; a call that takes longer is ended, and counts as failed."""
    questions: list[Literal["qa", "arithmetic", "list", "rewriting", "unknown", "open"]] = []
    """The kinds of questions whose answers it judges, all when empty; to others it gives 0. qa: exercises of the kinds person,
    thing and word; unknown: what nobody can know; open: prompts without a truth."""


class RolloutSettings(TrainSettings):
    """Stages that train on the model's own, sampled answers."""

    pairs_from: PairsFrom = "corpus"
    """Of which preference pairs the prompts are (of GRPO where it has no exercises): see `reward.pairs_from`."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 5e-5
    weight_decay: NotNegative = 0.0
    schedule: Literal["wsd", "cosine", "constant"] = "constant"
    steps: Positive = 40
    """Rollouts; each is followed by `epochs` passes over it."""
    batch_prompts: Positive = 128
    """Prompts a rollout."""
    epochs: Positive = 2
    minibatches: Positive = 2
    """Optimizer steps a pass."""
    micro_batch_rows: MicroBatch = micro_batch_field(64, "micro_batch_rows")
    sequence_length: Positive = 256
    """Prompt and answer together."""
    max_new_tokens: Positive = 48
    temperature: PositiveFloat = 1.0
    rewards: Annotated[list[RewardTerm], Field(min_length=1)]
    kinds: list[str] | dict[str, PositiveFloat] = []
    """Kinds of exercises of the embedded corpus (arithmetic, list, rewriting, person, thing, …), or the share of each:
    {arithmetic: 2, person: 1}; all when empty."""
    num_exercises: Positive = 2000
    replay: ReplaySettings = ReplaySettings()
    kl_coefficient: NotNegative = 0.05
    clip: PositiveFloat = 0.2
    missing_end_penalty: float = 1.0
    """Subtracted from the reward of an answer that never ends."""
    repetition_penalty: NotNegative = 1.0
    """Subtracted in full from an answer that is nothing but repetition, seen character by character."""
    spike_sigmas: PositiveFloat | None = 7.0
    """Standard deviations above its running mean at which log loss or log gradient norm makes a step a spike, which is
    skipped (`train.stability`). null: only what is not finite is skipped."""
    checkpoint_every: Positive = 10
    evaluate_every: Positive = 10
    """Rollouts between two looks of the guard at held-out prompts."""
    accept_weak_reward: bool = False
    """Train on a reward model although it does not beat its baselines by `reward.min_margin`."""
    guard: GuardSettings = GuardSettings()


class PPOSettings(RolloutSettings):
    """Rewards of the reward model are in units of its standard deviation on the SFT model's answers."""

    rewards: Annotated[list[RewardTerm], Field(min_length=1)] = [RewardTerm(kind="model")]
    """Prompts are those of the preference pairs; with a term truth, exercises of the embedded corpus, as in grpo."""
    value_learning_rate: PositiveFloat = 1e-4
    kl_coefficient: NotNegative = 0.05
    """Start value of the per-token penalty on KL(π ‖ π_sft) in the reward."""
    kl_target: PositiveFloat | None = 2.0
    """Nats an answer; the coefficient adapts towards it (Ziegler et al. 2019, §2.2). Absent: fixed coefficient."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of the penalty (Schulman 2020): k1 = log π/π_sft is unbiased, so that the sum over an answer is too."""
    kl_loss_coefficient: NotNegative = 0.0
    """Weight of the k3 estimate of KL in the policy's loss, beside the penalty in the reward or in its place."""
    entropy_coefficient: NotNegative = 0.0
    """Weight of the entropy of each prediction, which the policy's loss is lowered by (Schulman et al. 2017, eq. 9)."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    whiten_advantages: bool = True
    """Whether advantages get zero mean and unit variance over the rollout, all ranks together."""
    values_from: Literal["reward", "policy"] = "reward"
    """What the value model starts as: the reward model, or the SFT model with a head that says 0."""
    value_clip: PositiveFloat | None = 0.2
    """How far a value may move in one rollout's updates before its loss no longer falls; null: without bound."""
    value_coefficient: PositiveFloat = 0.5
    value_warmup_steps: int = 3
    """Rollouts in which only the value model learns."""
    normalise_rewards: bool = True
    """Whether the reward model's scores are whitened by their mean and deviation over the first rollout."""
    reward_clip: PositiveFloat | None = 4.0
    """The reward model's (whitened) scores are clipped to ± this; null: not."""


class GRPOSettings(RolloutSettings):
    """Group relative policy optimisation: no value model; an answer is judged against others to the same prompt."""

    learning_rate: PositiveFloat = 1e-4
    batch_prompts: Positive = 24
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers a prompt."""
    epochs: Positive = 1
    rewards: Annotated[list[RewardTerm], Field(min_length=1)] = [RewardTerm(kind="truth")]
    """Prompts are exercises of the embedded corpus; on other data those of the preference pairs."""
    kl_coefficient: NotNegative = 0.02
    """Weight of the k3 estimate of KL to the SFT model in the loss (Shao et al. 2024, eq. 3 and 4)."""
    divide_by_deviation: bool = True
    """Whether a group's advantages are divided by its standard deviation (Shao et al. 2024); without, hard and easy prompts
    do not weigh more than others (Liu et al. 2025, "Dr. GRPO")."""
    clip_high: PositiveFloat = 0.28
    """Upper bound of the ratio, 1 + this; above `clip` it lets unlikely tokens grow (Yu et al. 2025, "DAPO")."""
    loss_level: Literal["token", "sequence"] = "token"
    """Every token weighs the same (DAPO), or every answer (Shao et al. 2024)."""
    resample: Annotated[int, Field(ge=0)] = 2
    """Times that prompts whose answers all got the same reward, which teach nothing, are replaced by others (DAPO)."""


class PreferencesSettings(Settings):
    """Pairs from the SFT model's own answers to prompts that it was not trained on."""

    method: Literal["best_of_n", "reference"] = "best_of_n"
    """best_of_n: the best against the worst of `num_samples` own answers, so both sides have one source; reference: the
    reference answer against an own one."""
    sources: MessageSourceList = []
    """Conversations whose prompts (and, as references, last answers) are used; `playground` makes fresh exercises. When empty:
    exercises where the embedded corpus is among the conversations, else the prompts of `corpus.preferences`."""
    kinds: list[str] | dict[str, PositiveFloat] = []
    """Kinds of exercises, as `grpo.kinds`; all when empty."""
    num_prompts: Positive = 2000
    """Prompts to answer, at most."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """Share of the prompts whose pairs are held out, chosen by the hash of what the user says first. Prompts of
    `corpus.preferences` stay on their side."""
    num_samples: Annotated[int, Field(ge=2)] = 4
    """Answers a prompt, for best_of_n."""
    judge: Literal["gold", "rewards", "rules"] | None = None
    """gold: the judges' score, where the truth is known; rewards: the terms below; rules: nothing but the two penalties
    below, which every judge subtracts. When absent: gold where every prompt has a truth, else rules."""
    rewards: list[RewardTerm] = []
    """For the judge `rewards`, as `grpo.rewards`, but no `model`: the reward model comes after the pairs."""
    missing_end_penalty: NotNegative = 1.0
    """Subtracted from the score of an answer that never ends."""
    repetition_penalty: NotNegative = 1.0
    """Subtracted in full from an answer that is nothing but repetition, seen character by character."""
    min_margin: NotNegative = 0.0
    """best_of_n: a pair is kept when the best score is above the worst by more than this."""
    drop_right_answers: bool = True
    """reference: drop a pair whose own answer is right, where the truth is known; it is not worse than the reference."""
    max_similarity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Jaccard similarity of character 5-grams from which two answers are near-equal, and their pair is dropped."""
    balance_length: bool = False
    """Drop pairs until the chosen answer is the longer one as often as the shorter."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: Positive = 64
    batch_size: Positive = 64
    """Answers decoded at a time; four times as many are one part, the unit of resuming."""
