"""Shapes by name: small ones for a laptop, and those of well-known public small models. No torch here."""

from __future__ import annotations

import difflib
from typing import Any

from mengya.errors import UserError
from mengya.model.config import ModelConfig

# The small ones keep a head width of 64, where attention on a CPU is fastest; a name is the number of parameters
# with the vocabulary that suits the size (3 k for 3m, 6.4 k up to 26m, 8 k for 50m, 32 k above).
PRESETS: dict[str, dict[str, Any]] = {
    "3m": {"width": 192, "num_layers": 5, "num_heads": 3, "ffn_width": 512},
    "7m": {"width": 256, "num_layers": 7, "num_heads": 4, "ffn_width": 704},
    "12m": {"width": 320, "num_layers": 8, "num_heads": 5, "ffn_width": 896},
    "26m": {"width": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 2, "ffn_width": 1408},
    "50m": {"width": 640, "num_layers": 10, "num_heads": 10, "num_kv_heads": 2, "ffn_width": 1728},
    "0.1b": {"width": 512, "num_layers": 24, "num_heads": 16, "ffn_width": 2752, "max_positions": 1024},
    "0.2b": {"width": 1024, "num_layers": 12, "num_heads": 8, "ffn_width": 2752, "max_positions": 1024},
    "1.1b": {
        "width": 2048,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "ffn_width": 5632,
        "max_positions": 2048,
        "tie_embeddings": False,
    },
}


def preset(size: str, vocab_size: int, **changes: Any) -> ModelConfig:
    """The shape called `size` ("26m"), with a vocabulary and any field of ModelConfig changed."""
    shape = PRESETS.get(size.lower())
    if shape is None:
        near = difflib.get_close_matches(size.lower(), PRESETS, n=1)
        raise UserError(
            f"unknown size {size!r}",
            where="model.size",
            mend=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(PRESETS)}",
        )
    return ModelConfig(**{"vocab_size": vocab_size, **shape, **changes})


def describe(config: ModelConfig) -> str:
    """One line for a person: "512 wide, 8 layers, 8 heads (2 KV), FFN 1408, 6,400 tokens: 25.8 M parameters"."""
    heads = f"{config.num_heads} heads"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads} KV)"
    count = config.num_parameters
    millions = f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} B"
    return (
        f"{config.width} wide, {config.num_layers} layers, {heads}, FFN {config.ffn_width}, "
        f"{config.vocab_size:,} tokens: {millions} parameters"
    )
