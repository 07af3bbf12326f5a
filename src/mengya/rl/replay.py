"""What the policy learnt from before, replayed in the steps that align it.

"PPO-ptx" (Ouyang et al. 2022, eq. 2): reward + γ E[log π(x)] over pretraining text x. A policy that follows a reward or
pairs alone forgets what they do not ask for; a KL penalty holds it only where its own answers are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mengya.data.loader import PackedLoader
from mengya.data.packing import PackedBatch
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import Terms
from mengya.rl.rollout import Minibatch
from mengya.train.incidents import origin
from mengya.train.overseer import Loader
from mengya.train.parallel import World


@dataclass(frozen=True)
class Replayed:
    """A micro-batch of text in a step on answers; its −Σ log p counts `weight` times."""

    text: PackedBatch
    weight: float

    @property
    def num_tokens(self) -> int:
        return self.text.num_tokens

    def to(self, device: torch.device) -> Replayed:
        return Replayed(self.text.to(device), self.weight)


class Replay:
    """The texts, each source with its coefficient γ.

    Every rank makes the whole of each batch, so `loaders` are those of one rank: a batch's count is then known to all
    without asking, and each trains on every `world`-th micro-batch of it.
    """

    def __init__(self, sources: Sequence[tuple[PackedLoader, float]], world: World) -> None:
        self.sources, self.world = sources, world

    def parts(self, count: int) -> list[Replayed]:
        """This rank's texts for a step whose loss is divided by `count`: γ × the mean of −log p a token is added to it."""
        found = []
        for loader, coefficient in self.sources:
            batches = next(loader)
            weight = coefficient * count / max(1, sum(batch.num_targets for batch in batches))
            found += [Replayed(batch, weight) for batch in batches[self.world.rank :: self.world.size]]
        return found

    def state(self) -> list[dict[str, Any]]:
        return [loader.state_dict() for loader, _ in self.sources]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        for (loader, _), position in zip(self.sources, state, strict=True):
            loader.load_state_dict(position)


def beside(batch: Minibatch, replay: Replay | None, level: str = "token") -> list[Any]:
    """The micro-batches of a step on a rollout: this rank's answers, and the text where there is any."""
    return [*batch.own, *(replay.parts(batch.count(level)) if replay else [])]


class Replaying:
    """The steps of `loader`, each of `count` pairs, with the text of `replay` in them; the position of both is its state."""

    def __init__(self, loader: Loader, replay: Replay, count: int) -> None:
        self._loader, self._steps, self._replay, self._count = loader, iter(loader), replay, count

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        return [*next(self._steps), *self._replay.parts(self._count)]

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self._loader.state_dict(), "replay": self._replay.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state["pairs"])
        self._replay.load_state(state["replay"])

    def origin_of(self, index: int) -> str:
        return origin(self._loader, index)


def with_replay(objective: Callable[[Any, Any], Terms]) -> Callable[[Any, Any], Terms]:
    """`objective` for its own batches; for texts −Σ log p, weighted, which counts for nothing in the step's count."""

    def mixed(model: Any, batch: Any) -> Terms:
        if isinstance(batch, Replayed):
            return Terms(batch.weight * next_token_loss(model, batch.text).loss_sum, 0)
        return objective(model, batch)

    return mixed
