"""One optimizer over a model's parameters: Muon for the blocks' matrices, AdamW for the rest; or AdamW for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mengya.train.loss_scale import LossScale
from mengya.train.muon import Muon
from mengya.train.sharding import like

if TYPE_CHECKING:
    from mengya.settings import TrainSettings

_LOSS_SCALE = "loss_scale/state"


class Optimizer:
    """PyTorch optimizers stepped as one, with rates given as a factor of each group's peak.

    State is a flat {name: tensor}, keyed by parameter names, so that it is stored in safetensors and survives a change
    of parameter order.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, learning_rate: float | None = None) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = {id(p): name for name, p in named}
        self.parameters = [p for _, p in named]
        # Embeddings and the head are matrices too, but their gradients are sparse rows: orthogonalising an update
        # there mixes tokens that were not seen (Jordan et al. 2024, Muon).
        matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
        chosen = {id(p) for p in matrices} if settings.optimizer == "muon" else set()
        rest = [p for p in self.parameters if id(p) not in chosen]
        peak = learning_rate or settings.learning_rate
        # Norm gains are scales, not directions: decaying them only shrinks activations.
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=peak, betas=settings.betas, fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if chosen:
            self.optimizers.append(
                Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay, momentum=0.95)
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        self.loss_scale: LossScale | None = None
        """Set by the first step in fp16."""

    def step(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """{"PARAMETER/KEY": tensor} of everything the optimizers remember."""
        tensors = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    tensors[f"{self.names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        if self.loss_scale is not None:
            tensors[_LOSS_SCALE] = self.loss_scale.state_tensor()
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Become what `state_tensors` was taken of; what was remembered since is forgotten."""
        by_name = {self.names[id(p)]: p for p in self.parameters}
        owners = {id(p): o for o in self.optimizers for g in o.param_groups for p in g["params"]}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.loss_scale = None
        for name, value in tensors.items():
            if name == _LOSS_SCALE:
                self.loss_scale = LossScale()
                self.loss_scale.load_state_tensor(value)
                continue
            parameter_name, key = name.rsplit("/", 1)
            parameter = by_name[parameter_name]
            state: dict[str, Any] = owners[id(parameter)].state[parameter]
            placed = like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
            state[key] = placed.clone()
