"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, with the parameter names of transformers.

Master weights stay float32; activations are in `compute_dtype`, and a linear layer casts its weight to the dtype of
its input at use. So there is no autocast context, and gradients arrive in float32. Shapes: B rows, T tokens, C width,
H heads, K KV heads, D head width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mengya.model.attention import AttentionMask, attend
from mengya.model.config import ModelConfig
from mengya.model.documents import attend_documents, rotate
from mengya.model.functions import projections, residual_norm, swiglu


class Linear(nn.Linear):
    """y = x Wᵀ in the dtype of x."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the mean square in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return residual_norm(x, None, self.weight, self.epsilon)[0]

    def of_sum(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm of x + delta, x + delta): the residual stream goes on from the second."""
        return residual_norm(x, delta, self.weight, self.epsilon)


def rotary_angles(positions_BT: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, D) of the angle position · theta^(-2i/D), the sine signed for `rotate` (Su et al. 2021)."""
    even_features = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=positions_BT.device)
    frequencies = 1.0 / config.rope_theta ** (even_features / config.head_width)
    angles_B1TF = positions_BT[:, None, :, None].float() * frequencies
    cos, sin = angles_B1TF.cos(), angles_B1TF.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        query_width = config.num_heads * config.head_width
        key_width = config.num_kv_heads * config.head_width
        self.q_proj = Linear(config.width, query_width)
        self.k_proj = Linear(config.width, key_width)
        self.v_proj = Linear(config.width, key_width)
        self.o_proj = Linear(query_width, config.width)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_width, config.norm_epsilon)
            self.k_norm = RMSNorm(config.head_width, config.norm_epsilon)

    def forward(self, x_BTC: Tensor, angles: tuple[Tensor, Tensor], mask: AttentionMask) -> Tensor:
        B, T, _ = x_BTC.shape
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q_BTHD, k_BTKD, v_BTKD = (y.view(B, T, -1, self.head_width) for y in projections(x_BTC, *weights))
        q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        if mask.documents is not None:
            return self.o_proj(attend_documents(q_BTHD, k_BTKD, v_BTKD, angles, mask.documents).view(B, T, -1))
        q_BHTD, k_BKTD, v_BKTD = q_BTHD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2)
        q_BHTD, k_BKTD = rotate(q_BHTD, *angles), rotate(k_BKTD, *angles)
        return self.o_proj(attend(q_BHTD, k_BKTD, v_BKTD, mask).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.ffn_width)
        self.up_proj = Linear(config.width, config.ffn_width)
        self.down_proj = Linear(config.ffn_width, config.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate_BTF, up_BTF = projections(x_BTC, self.gate_proj.weight, self.up_proj.weight)
        return self.down_proj(swiglu(gate_BTF, up_BTF))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)

    def forward(self, x_BTC: Tensor, angles: tuple[Tensor, Tensor], mask: AttentionMask) -> Tensor:
        normal_BTC, x_BTC = self.input_layernorm.of_sum(x_BTC)
        attended_BTC = self.self_attn(normal_BTC, angles, mask)
        normal_BTC, x_BTC = self.post_attention_layernorm.of_sum(x_BTC, attended_BTC)
        return x_BTC + self.mlp(normal_BTC)


class Decoder(nn.Module):
    """Token ids to final hidden states: the trunk that the language model and the reward model share."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.compiled = False
        """Set where the layers were compiled for a training of rows of one length (`train.compiled`)."""

    def forward(
        self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attention: AttentionMask | None = None
    ) -> Tensor:
        """x_BTC after the final norm, in compute_dtype.

        Without `attention` a row is one document; without `positions_BT` it starts at position 0. Whoever reads a token
        at a time, with a cache, takes `generate.inference`.
        """
        T = ids_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(T, device=ids_BT.device)[None]
        if attention is None:
            attention = AttentionMask.whole_rows(ids_BT, self.compute_dtype)
        angles = rotary_angles(positions_BT, self.config, self.compute_dtype)
        x_BTC = self.embed_tokens(ids_BT).to(self.compute_dtype)
        for layer in self.layers:
            x_BTC = layer(x_BTC, angles, attention)
        return self.norm(x_BTC)


class Transformer(nn.Module):
    """The language model: `LlamaForCausalLM`, or `Qwen3ForCausalLM` with QK-norm, parameter for parameter."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, compute_dtype)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.width, config.vocab_size)
        initialize(self)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.model.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.model.compute_dtype = dtype

    @property
    def compiled(self) -> bool:
        return self.model.compiled

    @property
    def output_weight_VC(self) -> Tensor:
        """The output projection in float32: the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(
        self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attention: AttentionMask | None = None
    ) -> Tensor:
        """x_BTC, the final hidden states, for objectives that project only the positions they need."""
        return self.model(ids_BT, positions_BT=positions_BT, attention=attention)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) in compute_dtype of hidden states (..., C)."""
        return F.linear(x, self.output_weight_VC.to(x.dtype))

    def forward(
        self, ids_BT: Tensor, *, positions_BT: Tensor | None = None, attention: AttentionMask | None = None
    ) -> Tensor:
        """logits_BTV."""
        return self.logits(self.hidden(ids_BT, positions_BT=positions_BT, attention=attention))


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Draw every matrix from normal(0, initializer_range), from torch's global generator; norms are 1.

    The two projections that add into the residual stream are scaled by 1/√(2 · layers), so that the stream's variance
    at the start does not grow with depth (Radford et al. 2019).
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        nn.init.normal_(
            parameter, std=config.initializer_range * ((2 * config.num_layers) ** -0.5 if residual else 1.0)
        )
