"""The language model of a frozen Qwen2.5-VL, as lean as scoring needs it.

The same arithmetic as transformers' `Qwen2_5_VLTextModel` (a test compares them), minus what a frozen model that scores
packed rows can do without: query, key and value are one product, gate and up another, and the last layer computes
queries and everything behind them only where an answer is read, which is a tenth of the tokens.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from leverlab.errors import LeverlabError

KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys and values, (R, heads, T, head width)


@dataclass(frozen=True)
class _Layer:
    norm_in: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    norm_mlp: Tensor
    gate_up_weight: Tensor
    down_weight: Tensor


class Decoder:
    """Runs packed rows through the language model of `model`. Its fused weights share memory with the model's own."""

    def __init__(self, model: Any):
        text: Any = getattr(getattr(model, "model", None), "language_model", None)
        if type(model).__name__ != "Qwen2_5_VLForConditionalGeneration" or getattr(text, "has_sliding_layers", True):
            raise LeverlabError(
                f"the scoring engine knows Qwen2.5-VL without sliding windows, not {type(model).__name__}; set "
                "vlm.source to one"
            )
        config = text.config
        self._rotary = text.rotary_emb
        self._epsilon = float(config.rms_norm_eps)
        self._heads, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._head_width = int(text.layers[0].self_attn.head_dim)
        self._norm: Tensor = text.norm.weight
        self._head: Any = model.lm_head
        self._layers = [_fuse(layer) for layer in text.layers]

    @torch.no_grad()
    def run(
        self, embeds: Tensor, positions: Tensor, sees: Tensor, read: Tensor | None, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Return the final hidden states and every layer's keys and values of the new tokens' rows, `past` included.

        `embeds` (R, T, width), `positions` (3, R, T) rotary, `sees` (R, T, past + T) bool. `read` (R, Q) names the
        columns whose hidden states are wanted, shape (R, Q, width); None means all of them.
        """
        cos, sin = self._rotary(embeds, positions)
        half = self._head_width // 2
        cos, sin = cos[:, :, None, :half], sin[:, :, None, :half]
        bias = torch.zeros(sees.shape, dtype=embeds.dtype, device=embeds.device)
        bias.masked_fill_(~sees, torch.finfo(embeds.dtype).min)
        hidden, known = embeds, []
        for index, layer in enumerate(self._layers):
            last = index == len(self._layers) - 1 and read is not None
            query, key, value = self._project(layer, hidden, cos, sin)
            if past is not None:
                key, value = torch.cat([past[index][0], key], dim=2), torch.cat([past[index][1], value], dim=2)
            known.append((key, value))
            if last:
                rows = torch.arange(len(hidden), device=hidden.device)[:, None]
                hidden, query, bias = (
                    hidden[rows, read],
                    query.transpose(1, 2)[rows, read].transpose(1, 2),
                    bias[rows, read],
                )
            mixed = self._attend(query, key, value, bias)
            hidden = hidden + functional.linear(mixed, layer.out_weight)
            gate, up = functional.linear(self._normed(hidden, layer.norm_mlp), layer.gate_up_weight).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer.down_weight)
        return self._normed(hidden, self._norm), known

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states in float32, shape (..., vocabulary)."""
        return cast(Tensor, self._head(hidden)).float()

    def _project(self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, tokens, _ = hidden.shape
        qkv = functional.linear(self._normed(hidden, layer.norm_in), layer.qkv_weight, layer.qkv_bias)
        heads = qkv.view(rows, tokens, self._heads + 2 * self._kv_heads, self._head_width)
        turning, value = heads[:, :, : self._heads + self._kv_heads], heads[:, :, self._heads + self._kv_heads :]
        first, second = turning.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).transpose(1, 2)
        return turned[:, : self._heads], turned[:, self._heads :], value.transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        rows, heads, queries, width = query.shape
        if heads != key.shape[1]:
            key, value = (part.repeat_interleave(heads // key.shape[1], dim=1) for part in (key, value))
        if query.is_cuda:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None])
        else:  # on a CPU the plain product is faster for short rows than the fused kernel
            scores = torch.matmul(query, key.transpose(-1, -2)).mul_(width**-0.5).add_(bias[:, None])
            mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        return mixed.transpose(1, 2).reshape(rows, queries, heads * width)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), weight, self._epsilon)


def select_rows(known: KeyValues, rows: Tensor) -> KeyValues:
    """Return the keys and values of some rows (a row may be taken many times)."""
    return [(key[rows], value[rows]) for key, value in known]


def _fuse(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Layer(
        norm_in=layer.input_layernorm.weight,
        qkv_weight=_join([projection.weight for projection in projections]),
        qkv_bias=_join([projection.bias for projection in projections]),
        out_weight=attention.o_proj.weight,
        norm_mlp=layer.post_attention_layernorm.weight,
        gate_up_weight=_join([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down_weight=mlp.down_proj.weight,
    )


def _join(parts: list[torch.nn.Parameter]) -> Tensor:
    """Return the parts as one tensor, and make each part a view of it, so that a large model is not held twice."""
    whole = torch.cat([part.detach() for part in parts])
    start = 0
    for part in parts:
        part.data = whole[start : start + len(part)]
        start += len(part)
    return whole
