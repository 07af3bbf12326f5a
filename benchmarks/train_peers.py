"""One training step of each peer, as its public training script takes it. Used by train_throughput.py.

Each function gives (step, number of parameters); `step()` gives (mean loss, tokens that carried loss).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mengya.model.config import ModelConfig

Step = Callable[[], tuple[float, int]]


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _autocast(device: torch.device, bf16: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], tokens: int) -> Step:
    """Forward, backward, clip at 1, optimizer step: what every one of the scripts does."""

    def step() -> tuple[float, int]:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), tokens

    return step


def transformers_step(
    config: ModelConfig, ids_BT: Tensor, targets_BT: Tensor, *, bf16: bool = True, compiled: bool = True
) -> tuple[Step, int]:
    """LlamaForCausalLM with SDPA and fused AdamW; its best setting is bf16 autocast and torch.compile."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = config.to_huggingface()
    shape["use_cache"] = False
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(ids_BT.device)
    model.train()
    called: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of() -> Tensor:
        with _autocast(ids_BT.device, bf16):
            loss: Tensor = called(input_ids=ids_BT, labels=targets_BT, shift_labels=targets_BT).loss
        return loss

    return _step(model, optimizer, loss_of, ids_BT.numel()), _count(model)


def minimind_step(checkout: Path, config: ModelConfig, ids_BT: Tensor, *, bf16: bool) -> tuple[Step, int]:
    """minimind's pretraining step: AdamW with PyTorch's defaults; on a CPU its autocast is off, so that is fp32."""
    spec = importlib.util.spec_from_file_location("minimind_model", checkout / "model" / "model_minimind.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.MiniMindForCausalLM(
        module.MiniMindConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            vocab_size=config.vocab_size,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_width,
            tie_word_embeddings=config.tie_embeddings,
        )
    ).to(ids_BT.device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

    def loss_of() -> Tensor:
        with _autocast(ids_BT.device, bf16):
            found = model(ids_BT, labels=ids_BT)
            loss: Tensor = found.loss + found.aux_loss
        return loss

    # It shifts inside: the last token of a row predicts nothing.
    return _step(model, optimizer, loss_of, ids_BT[:, 1:].numel()), _count(model)


def nanochat_step(
    checkout: Path, config: ModelConfig, ids_BT: Tensor, targets_BT: Tensor, *, compiled: bool = True
) -> tuple[Step, int]:
    """nanochat's base training step: bf16, torch.compile, its own Muon and AdamW; full attention in every layer.

    Its optimizer is compiled where it is defined, so `compiled` is a stance of the compiler and no choice of ours: without, all
    of it runs as it is written. Compiled, the first step makes code for the whole model with its layers unrolled and for each
    shape of parameter: minutes on a CPU, less from the compiler's cache the next time.

    Its model has other parts (value embeddings, an untied head, relu² with 4 times the width): width, depth, heads
    and vocabulary are the same, parameters are not.
    """
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"
    sys.path.insert(0, str(checkout))
    try:
        from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(checkout))
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            sequence_len=ids_BT.shape[1],
            vocab_size=config.vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_kv_head=config.num_kv_heads,
            n_embd=config.width,
            window_pattern="L",
        )
    ).to(ids_BT.device)
    model.init_weights()
    called = torch.compile(model, dynamic=False)
    optimizer = model.setup_optimizer()

    def step() -> tuple[float, int]:
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            loss = called(ids_BT, targets_BT)
            loss.backward()
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item(), ids_BT.numel()

    return step, _count(model)
