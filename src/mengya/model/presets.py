"""Shapes by name, and shapes of any size by rule: small ones for a laptop, those of well-known public models. No torch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from mengya.errors import UserError
from mengya.model.config import ModelConfig

# The small ones keep a head width of 64, where attention on a CPU is fastest; a name is the number of parameters
# with the vocabulary that suits the size (3 k for 3m, 6.4 k up to 26m, 8 k for 50m, 32 k above).
# 3m to 50m are what `sized` gives; 0.1b, 0.2b and 1.1b are fixed: the shapes of public models (1.1b: TinyLlama).
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

HEAD_WIDTH = 64
_WIDEST = 8192
_TIED_BELOW = 0.5e9
"""Parameters below which input and output embeddings are one: above, they are a small share anyway."""
_SHARED_KEYS_FROM = 8
"""Heads from which four share keys and values (Ainslie et al. 2023): the cache shrinks, the loss hardly grows."""


def preset(size: str, vocab_size: int, **changes: Any) -> ModelConfig:
    """The shape called `size` ("26m"), with a vocabulary and any field of ModelConfig changed."""
    shape = PRESETS.get(size.lower())
    if shape is None:
        near = difflib.get_close_matches(size.lower(), PRESETS, n=1)
        raise UserError(
            f"unknown preset {size!r}",
            where="model.preset",
            mend=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(PRESETS)}; "
            "or say model.size, which takes any number of parameters",
        )
    return ModelConfig(**{"vocab_size": vocab_size, **shape, **changes})


def parse_size(size: str) -> float:
    """The number of parameters that "40m", "0.3b" or "2.5e7" means."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmb]?)\s*", size.lower())
    number = float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else 0.0
    if number < 1e5:
        raise UserError(f"{size!r} is not a size of a model", where="model.size", mend="write for example 40m or 0.3b")
    return number


def positions_of(parameters: float) -> int:
    """Context length that suits a size, in tokens: small models have little to remember, and attention costs T²."""
    return 512 if parameters < 6e7 else 1024 if parameters < _TIED_BELOW else 2048


def depth_of(width: int) -> float:
    """Layers that suit a width: 0.19 · width^0.62.

    Loss depends little on the shape at a given size (Kaplan et al. 2020, §3.1: width/layers from 20 to 300 within
    a few percent), and the best depth grows more slowly than the width (Levine et al. 2020). The line goes
    through the presets: 38 wide a layer at 192, 64 at 512, 93 at 2,048 (TinyLlama).
    """
    return 0.19 * width**0.62


def sized(size: str, vocab_size: int, **changes: Any) -> ModelConfig:
    """The shape of about `size` parameters, embeddings included; `changes` are kept, the rest follows from them.

    Head width 64; FFN 8/3 of the width (Shazeer 2020); depth by `depth_of`; of all widths in steps of 64 (128 above
    640) and depths near the rule's, the one nearest in size. UserError where the vocabulary alone is larger.
    """
    wanted = parse_size(size)
    rules = {"max_positions": positions_of(wanted), "tie_embeddings": wanted < _TIED_BELOW}
    best: tuple[float, ModelConfig] | None = None
    problem: UserError | None = None
    for width in [changes["width"]] if "width" in changes else _widths():
        rule = depth_of(width)
        depths = range(max(2, math.floor(0.7 * rule)), math.ceil(1.4 * rule) + 1)
        for num_layers in [changes["num_layers"]] if "num_layers" in changes else depths:
            shape = {"width": width, "num_layers": num_layers, **_heads(width), **rules, **changes}
            try:
                config = ModelConfig(vocab_size=vocab_size, **shape)
            except UserError as error:  # a head count that was asked for does not divide this width
                problem = error
                continue
            off = abs(math.log(config.num_parameters / wanted)) + 0.25 * abs(math.log(num_layers / rule))
            if best is None or off < best[0]:
                best = off, config
        if best is not None and vocab_size * width > 2 * wanted:
            break
    if best is None:
        assert problem is not None
        raise problem
    found = best[1]
    if "width" not in changes and vocab_size * found.width > 0.8 * wanted:
        raise UserError(
            f"a vocabulary of {vocab_size:,} leaves no parameters for the layers of a {size} model",
            where="model.size",
            mend=f"raise it to {3 * vocab_size * 2 * HEAD_WIDTH / 1e6:.0f}m or more, or lower tokenizer.vocab_size",
        )
    return found


def _widths() -> Iterator[int]:
    width = HEAD_WIDTH
    while width <= _WIDEST:
        yield width
        width += HEAD_WIDTH if width < 10 * HEAD_WIDTH else 2 * HEAD_WIDTH


def _heads(width: int) -> dict[str, int]:
    if width % HEAD_WIDTH:
        return {"num_heads": max(1, width // HEAD_WIDTH)}
    heads = width // HEAD_WIDTH
    if heads < _SHARED_KEYS_FROM:
        return {"num_heads": heads}
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    return {"num_heads": heads, "num_kv_heads": min(divisors, key=lambda number: (abs(number - heads // 4), -number))}


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
