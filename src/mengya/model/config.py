"""The shape of a model, its validation, and its translation to and from a transformers config.json. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from mengya.errors import UserError

Head = Literal["lm", "score"]

_ARCHITECTURES = {
    ("llama", "lm"): "LlamaForCausalLM",
    ("llama", "score"): "LlamaForSequenceClassification",
    ("qwen3", "lm"): "Qwen3ForCausalLM",
    ("qwen3", "score"): "Qwen3ForSequenceClassification",
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Widths count features, `max_positions` counts tokens; 0 in the three marked fields = derived.

    Raises UserError naming the recipe key (`model.num_heads`) when the numbers do not fit together.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0  # 0: as many as num_heads (no sharing of keys and values)
    head_width: int = 0  # 0: width // num_heads
    ffn_width: int = 0  # 0: 8/3 of the width, rounded up to a multiple of 64 (as many weights as a 4x GELU FFN)
    max_positions: int = 512
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    tie_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{getattr(self, name)} is not a positive number", where=f"model.{name}", mend="set 1 or more"
                )
        for name in ("num_kv_heads", "head_width", "ffn_width"):
            if getattr(self, name) < 0:
                raise UserError(f"{getattr(self, name)} is negative", where=f"model.{name}", mend="set 1 or more")
        for name in ("rope_theta", "norm_epsilon", "initializer_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"{getattr(self, name)} is not above 0", where=f"model.{name}", mend="leave it out")
        # transformers refuses a Llama whose heads do not divide the width even when head_dim is given; Qwen3 may.
        if self.width % self.num_heads and not (self.qk_norm and self.head_width):
            raise UserError(
                f"{self.num_heads} heads do not divide the width {self.width}",
                where="model.num_heads",
                mend=f"set model.num_heads to a divisor of {self.width}, "
                f"e.g. {_divisor_near(self.width, self.num_heads)}",
            )
        derived = {
            "num_kv_heads": self.num_kv_heads or self.num_heads,
            "head_width": self.head_width or self.width // self.num_heads,
            "ffn_width": self.ffn_width or -(-8 * self.width // (3 * 64)) * 64,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if self.head_width % 2:
            raise UserError(
                f"head width {self.head_width} is odd, but rotary positions turn features in pairs",
                where="model.head_width",
                mend="choose width and num_heads so that width / num_heads is even",
            )
        if self.num_kv_heads > self.num_heads:
            raise UserError(
                f"{self.num_kv_heads} KV heads are more than the {self.num_heads} heads",
                where="model.num_kv_heads",
                mend=f"set model.num_kv_heads to a divisor of {self.num_heads}",
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_kv_heads} KV heads do not divide the {self.num_heads} heads",
                where="model.num_kv_heads",
                mend=f"set model.num_kv_heads to a divisor of {self.num_heads}, "
                f"e.g. {_divisor_near(self.num_heads, self.num_kv_heads)}",
            )

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        attention = 2 * self.width * self.head_width * (self.num_heads + self.num_kv_heads)
        norms = 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        return attention + 3 * self.width * self.ffn_width + norms

    @property
    def num_parameters(self) -> int:
        """Parameters of the language model, tied embeddings counted once."""
        embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * self.num_layer_parameters + self.width

    def flops_per_token(self, num_positions: int) -> int:
        """Training FLOPs (forward and backward) per token of a full causal sequence of `num_positions` tokens.

        6 per matrix weight, plus 6·T·H·D per layer for the scores and the weighted values, half of the square being
        masked (Chowdhery et al. 2022, PaLM, appendix B).
        """
        matrix_weights = self.num_layers * self.num_layer_parameters + self.vocab_size * self.width
        attention = 6 * self.num_layers * self.num_heads * self.head_width * num_positions
        return 6 * matrix_weights + attention

    def to_huggingface(
        self,
        *,
        head: Head = "lm",
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """The content of a config.json that transformers 4.51+ and 5.x read without remote code."""
        model_type = "qwen3" if self.qk_norm else "llama"
        config = {
            "architectures": [_ARCHITECTURES[model_type, head]],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.ffn_width,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            # 4.x reads the first, 5.x the second.
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.norm_epsilon,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_cache": True,
            "pad_token_id": pad_token_id,
            # Written even when None: LlamaConfig's own defaults (1 and 2) would be ordinary words here.
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            # 4.x reads the first, 5.x the second.
            "torch_dtype": dtype,
            "dtype": dtype,
        }
        if model_type == "llama":
            config["mlp_bias"] = False
        if head == "score":
            config["id2label"] = {"0": "LABEL_0"}
            config["label2id"] = {"LABEL_0": 0}
        return config

    @classmethod
    def from_huggingface(cls, config: dict[str, Any], *, where: object = "config.json") -> ModelConfig:
        """The shape that a transformers config.json describes; UserError where it asks for what Mengya lacks."""
        model_type = config.get("model_type")
        if model_type not in ("llama", "qwen3"):
            raise UserError(
                f"model_type {model_type!r} is not supported",
                where=where,
                mend="use a Llama or Qwen3 checkpoint (model_type llama or qwen3)",
            )
        # 4.x spells a scaled rotary embedding rope_scaling, 5.x puts theta and type into rope_parameters.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        unsupported = {
            "hidden_act": config.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(config.get("attention_bias", False)),
            "mlp_bias": bool(config.get("mlp_bias", False)),
            "use_sliding_window": bool(config.get("use_sliding_window", False)),
            "rope_parameters" if config.get("rope_parameters") else "rope_scaling": rope_type != "default",
        }
        for key, is_unsupported in unsupported.items():
            if is_unsupported:
                raise UserError(
                    f"{key} = {config.get(key)!r} is not supported",
                    where=where,
                    mend="use a checkpoint with plain rotary positions, SiLU, no biases and full attention",
                )
        try:
            return cls(
                vocab_size=config["vocab_size"],
                width=config["hidden_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=config["num_attention_heads"],
                num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
                # Qwen3's own default; Llama derives it from the width.
                head_width=config.get("head_dim") or (128 if model_type == "qwen3" else 0),
                ffn_width=config["intermediate_size"],
                max_positions=config.get("max_position_embeddings", 2048 if model_type == "llama" else 32768),
                rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
                norm_epsilon=config.get("rms_norm_eps", 1e-6),
                qk_norm=model_type == "qwen3",
                tie_embeddings=config.get("tie_word_embeddings", False),
                initializer_range=config.get("initializer_range", 0.02),
            )
        except KeyError as error:
            raise UserError(f"the key {error.args[0]!r} is missing", where=where, mend="restore the file") from None
        except TypeError as error:
            raise UserError(f"a value has the wrong type: {error}", where=where, mend="restore the file") from None
        except UserError as error:
            raise UserError(f"{error.where}: {error.what}", where=where, mend=error.mend) from None


MODEL_KEYS = tuple(field.name for field in fields(ModelConfig))


def _divisor_near(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wish), d))
