"""The decoder's forward pass for generation: the numbers of model/transformer.py, but for rounding, from packed weights.

What training must keep apart is put together once per weight: query, key and value projections are one matrix; the
weight of a norm is multiplied into the matrix behind it; on x86 the matrices lie in the blocks that oneDNN's kernels
read. That layout is most of the gain: all products of one step of a 31 M model, two cores of an EPYC (Zen 4), go from
19 to 8 ms at 16 rows and from 37 to 22 ms at 64 in float32, in bfloat16 from 8.6 to 4.3 and from 15 to 12 ms.

Shapes: N rows times new tokens, B rows, T new tokens, C width, H heads, K KV heads, D head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.model.attention import AttentionMask, attend
from mengya.model.cache import KVCache
from mengya.model.transformer import Transformer, rotary_angles, rotate

_PACKED_FOR_ROWS = 16  # oneDNN chooses the layout for a number of rows; that for 16 was the best from 1 to 256


class PackedLinear:
    """x Wᵀ and what follows it in a decoder layer, in one kernel where oneDNN has one."""

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        self.is_packed = _onednn_packs(dtype, weight_OI.device)
        self.weight = weight_OI.to(dtype).contiguous()
        if self.is_packed:
            # The operators that torch.compile writes into a frozen graph: there is no public name for them.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _PACKED_FOR_ROWS)

    def __call__(self, x_NI: Tensor) -> Tensor:
        return self._unary(x_NI, "none") if self.is_packed else F.linear(x_NI, self.weight)

    def silu(self, x_NI: Tensor) -> Tensor:
        return self._unary(x_NI, "swish") if self.is_packed else F.silu(F.linear(x_NI, self.weight))

    def times(self, x_NI: Tensor, other_NO: Tensor) -> Tensor:
        return self._binary(x_NI, other_NO, "mul") if self.is_packed else F.linear(x_NI, self.weight) * other_NO

    def plus(self, x_NI: Tensor, other_NO: Tensor) -> Tensor:
        return self._binary(x_NI, other_NO, "add") if self.is_packed else F.linear(x_NI, self.weight) + other_NO

    def _unary(self, x_NI: Tensor, name: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_NI, self.weight, None, name, [], "")
        return product

    def _binary(self, x_NI: Tensor, other_NO: Tensor, name: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, self.weight, None, name)
        return product


def _onednn_packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has a kernel for packed weights here; elsewhere the plain product is the fast one."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    if dtype == torch.float32:
        return bool(capabilities.get("avx2", False))
    return dtype == torch.bfloat16 and bool(capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16"))


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: PackedLinear
    head_weight_1HD: Tensor | None  # of QK-norm, for query and key heads
    out: PackedLinear
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear


class InferenceModel:
    """A model's weights packed for generation, as they are now: training goes on without touching them.

    Takes the memory of the matrices once more, in compute_dtype; the embedding is shared where its dtype is that.
    """

    def __init__(self, model: Transformer) -> None:
        config, dtype = model.config, model.compute_dtype
        self.config, self.dtype, self.device = config, dtype, model.output_weight_VC.device
        weights = {name: weight.detach() for name, weight in model.state_dict().items()}
        embedding_VC = weights.pop("model.embed_tokens.weight")
        output_VC = embedding_VC if config.tie_embeddings else weights.pop("lm_head.weight")
        self.embedding_VC = embedding_VC.to(dtype)
        self.output = PackedLinear(output_VC.float() * weights.pop("model.norm.weight").float(), dtype)
        self.layers = [
            _pack_layer(weights, f"model.layers.{number}.", config.num_heads, config.num_kv_heads, dtype)
            for number in range(config.num_layers)
        ]
        assert not weights, f"weights that generation does not know: {sorted(weights)}"
        every_position_1T = torch.arange(config.max_positions, device=self.device)[None]
        cos, sin = rotary_angles(every_position_1T, config, dtype)
        self.cos_TD, self.sin_TD = cos[0, 0].contiguous(), sin[0, 0].contiguous()
        self.epsilon = torch.tensor(config.norm_epsilon, device=self.device)

    def new_cache(self, num_rows: int, num_slots: int) -> KVCache:
        return KVCache(self.config, num_rows, num_slots, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def hidden(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """x_BTC before the final norm, of new tokens whose keys and values are then in the cache.

        The caller says by `cache.advance` how many of the T tokens were real in each row.
        """
        B, T = ids_BT.shape
        H, K, D = self.config.num_heads, self.config.num_kv_heads, self.config.head_width
        positions_BT = cache.positions(T)
        num_slots = cache.reserve(T)
        decodes = T == 1 and self.device.type == "cpu"
        bias_MGS: Tensor | None = None
        if cache.longest:
            mask = AttentionMask.cached(positions_BT, num_slots, self.dtype)
            if decodes and mask.bias_BTS is not None:
                bias_MGS = mask.bias_BTS.expand(B, K, -1).reshape(B * K, 1, num_slots).expand(-1, H // K, -1)
        else:
            mask = AttentionMask.causal_only(T, self.dtype, self.device)
        positions_N = positions_BT.reshape(-1)
        cos_N1D, sin_N1D = self.cos_TD[positions_N, None], self.sin_TD[positions_N, None]
        x_NC = self.embedding_VC[ids_BT.reshape(-1)]
        for number, layer in enumerate(self.layers):
            heads_NHD = layer.qkv(self._normal(x_NC)).view(B * T, H + 2 * K, D)
            qk_NHD = heads_NHD[:, : H + K]
            if layer.head_weight_1HD is not None:
                qk_NHD = self._normal(qk_NHD) * layer.head_weight_1HD
            qk_BHTD = rotate(qk_NHD, cos_N1D, sin_N1D).view(B, T, H + K, D).transpose(1, 2)
            v_BKTD = heads_NHD.view(B, T, -1, D).transpose(1, 2)[:, H + K :]
            k_BKSD, v_BKSD = cache.write(number, qk_BHTD[:, H:], v_BKTD, positions_BT)
            if bias_MGS is None:
                y_NC = attend(qk_BHTD[:, :H], k_BKSD, v_BKSD, mask).reshape(B * T, -1)
            else:
                y_NC = _attend_one(qk_BHTD[:, :H], k_BKSD, v_BKSD, bias_MGS)
            x_NC = layer.out.plus(y_NC, x_NC)
            normal_NC = self._normal(x_NC)
            x_NC = layer.down.plus(layer.up.times(normal_NC, layer.gate.silu(normal_NC)), x_NC)
        return x_NC.view(B, T, -1)

    @torch.inference_mode()
    def logits(self, x_NC: Tensor) -> Tensor:
        """logits_NV of what `hidden` returned, in float32."""
        return self.output(self._normal(x_NC)).float()

    def _normal(self, x: Tensor) -> Tensor:
        """x / rms(x) over the last dimension: RMSNorm without its weight."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_rms = torch.addcmul(self.epsilon, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (x * inverse_rms).to(x.dtype)


def _attend_one(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias_MGS: Tensor) -> Tensor:
    """y_BC of one query a row: `attend` in three kernels, M = B·K matrices of the G = H / K heads that share keys."""
    (M, G, S), D = bias_MGS.shape, q_BHTD.shape[-1]
    q_MGD, k_MSD, v_MSD = q_BHTD.reshape(M, G, D), k_BKSD.view(M, S, D), v_BKSD.view(M, S, D)
    scores_MGS = torch.baddbmm(bias_MGS, q_MGD, k_MSD.mT, alpha=D**-0.5)
    return torch.bmm(scores_MGS.softmax(-1), v_MSD).view(len(q_BHTD), -1)


def for_inference(model: Transformer | InferenceModel) -> InferenceModel:
    """The model packed; one that is packed already as it is."""
    return model if isinstance(model, InferenceModel) else InferenceModel(model)


def _pack_layer(
    weights: dict[str, Tensor], prefix: str, num_heads: int, num_kv_heads: int, dtype: torch.dtype
) -> _Layer:
    """The layer of these names, which are taken out of `weights`."""

    def take(name: str) -> Tensor:
        return weights.pop(f"{prefix}{name}.weight").float()

    into_attention_C, into_mlp_C = take("input_layernorm"), take("post_attention_layernorm")
    qkv = torch.cat([take(f"self_attn.{name}_proj") for name in "qkv"]) * into_attention_C
    head_weight_1HD = None
    if f"{prefix}self_attn.q_norm.weight" in weights:
        q_norm_D, k_norm_D = take("self_attn.q_norm"), take("self_attn.k_norm")
        head_weight_1HD = torch.stack([q_norm_D] * num_heads + [k_norm_D] * num_kv_heads)[None].to(dtype)
    return _Layer(
        qkv=PackedLinear(qkv, dtype),
        head_weight_1HD=head_weight_1HD,
        out=PackedLinear(take("self_attn.o_proj"), dtype),
        gate=PackedLinear(take("mlp.gate_proj") * into_mlp_C, dtype),
        up=PackedLinear(take("mlp.up_proj") * into_mlp_C, dtype),
        down=PackedLinear(take("mlp.down_proj"), dtype),
    )
