"""The reward model: the same trunk with one score a token, `…ForSequenceClassification` parameter for parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mengya.model.attention import AttentionMask
from mengya.model.config import ModelConfig
from mengya.model.texts import hidden_at
from mengya.model.transformer import Decoder, Linear, Transformer, initialize


class RewardModel(nn.Module):
    """A score for a whole text (at its last token), or for every prefix of it: then it is PPO's value function."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, compute_dtype)
        self.score = Linear(config.width, 1)
        initialize(self)

    @classmethod
    def from_language_model(cls, model: Transformer) -> RewardModel:
        """A reward model that starts from the language model's trunk (copied) and scores everything 0."""
        reward_model = cls(model.config, model.compute_dtype).to(model.output_weight_VC.device)
        reward_model.model.load_state_dict(model.model.state_dict())
        nn.init.zeros_(reward_model.score.weight)
        return reward_model

    def draw_head(self) -> None:
        """A random head in place of the zero one: scores of about unit size (Huang et al. 2024, N+ details)."""
        nn.init.normal_(self.score.weight, std=(self.config.width + 1) ** -0.5)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.model.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.model.compute_dtype = dtype

    def hidden(
        self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attention: AttentionMask | None = None
    ) -> Tensor:
        """x_BTC, the trunk's final hidden states."""
        x_BTC: Tensor = self.model(ids_BT, positions_BT=positions_BT, attention=attention)
        return x_BTC

    def scores_of(self, x: Tensor) -> Tensor:
        """Scores (…) in float32 of final hidden states (…, C)."""
        # float32: bfloat16 has no number between 4 and 4.03, and rewards are compared by small differences.
        return F.linear(x.float(), self.score.weight.float()).squeeze(-1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (…, V) of the next token, of a trunk whose language model has tied embeddings."""
        assert self.config.tie_embeddings, "the head of the language model is not part of the reward model"
        return F.linear(x, self.model.embed_tokens.weight.to(x.dtype))

    def scores(
        self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attention: AttentionMask | None = None
    ) -> Tensor:
        """score_BT: at each token, of the text up to and with it."""
        return self.scores_of(self.hidden(ids_BT, positions_BT=positions_BT, attention=attention))

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """score_B of right-padded texts, each read at its last real token."""
        rows_B = torch.arange(len(ids_BT), device=ids_BT.device)
        return self.scores_of(hidden_at(self, ids_BT, lengths_B, rows_B, lengths_B - 1))


class RewardEnsemble(nn.Module):
    """Several reward models that score as one: mean − `conservatism` · standard deviation over the members.

    Where the members disagree they were not taught, and there a policy finds what fools one of them (Coste et al. 2023,
    "Reward Model Ensembles Help Mitigate Overoptimization"; of their three ways the one between mean and worst case, with
    the deviation, which has the unit of the score, in the place of the variance). The Bradley–Terry loss fixes differences
    alone, so each member's own zero point, `offsets`, is subtracted first: else members that agree on every pair would seem
    to disagree. The deviation is that of the members themselves (divided by their number).
    """

    def __init__(self, members: Sequence[RewardModel], offsets: Sequence[float], conservatism: float) -> None:
        super().__init__()
        assert len(members) == len(offsets), "an offset a member"
        self.members = nn.ModuleList(members)
        self.offsets, self.conservatism = tuple(offsets), conservatism

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """score_B of right-padded texts, as of `RewardModel`."""
        pairs = zip(self.members, self.offsets, strict=True)
        scores_MB = torch.stack([member(ids_BT, lengths_B) - offset for member, offset in pairs])
        return conservative(scores_MB, self.conservatism)


def conservative(scores_MB: Tensor, conservatism: float) -> Tensor:
    """Mean − `conservatism` · standard deviation over M members, (B)."""
    return scores_MB.mean(0) - conservatism * scores_MB.std(0, correction=0)


Scorer = RewardModel | RewardEnsemble
"""What gives a whole text a score."""
