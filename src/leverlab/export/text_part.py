"""The text part of a hub-format checkpoint in GGUF's words: its fields, and name, shape and place of every tensor."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from gguf import Keys
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.checkpoint_files import read_json
from leverlab.errors import LeverlabError
from leverlab.export.checkpoint import Expected, Part, check_layers, mapping, match, stored_tensors, unread
from leverlab.export.tokenizer_fields import Value, tokenizer_fields

ARCHITECTURES = {"qwen2_5_vl": "qwen2vl", "qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama"}  # model_type → GGUF
_SINGLE = np.finfo(np.float32)

# What GGUF's fields can hold: uint32 and float32.
Size = Annotated[int, Field(gt=0, lt=2**32)]
Single = Annotated[float, Field(ge=float(_SINGLE.tiny), le=float(_SINGLE.max))]


class _TextConfig(BaseModel):
    """The keys of `config.json` that shape the text part."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    max_position_embeddings: Size
    vocab_size: Size
    rms_norm_eps: Single
    rope_theta: Single
    rope_type: str = "default"
    mrope_section: list[Size] | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    use_sliding_window: bool = False

    @property
    def head_size(self) -> int:
        """The width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def read_text_part(folder: Path) -> Part:
    """Return what GGUF needs to know of the text part of the checkpoint in `folder`; no tensor is read yet.

    `folder` is in the hub's format: config.json, tokenizer.json, tokenizer_config.json and safetensors (bf16, f16 or
    f32), whole or in shards with an index. Raises `LeverlabError` when a file is missing, truncated or damaged, when
    the architecture or a variant of it is not one that is exported, and when a tensor is missing, unexpected or of
    another shape than config.json says.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise LeverlabError(
            f"{folder / 'config.json'}: model_type {model_type!r} cannot be exported to GGUF; "
            f"use a checkpoint of {', '.join(ARCHITECTURES)}, or llama.cpp's own converter"
        )
    architecture = ARCHITECTURES[model_type]
    text = _text_config(config, architecture, folder / "config.json")
    stored = stored_tensors(folder, vision=False)
    has_output = "lm_head.weight" in stored  # when it is absent, llama.cpp uses the embedding in its place
    levels = (config, _text_keys(config, folder / "config.json"))  # transformers has written the key on both
    if not has_output and not any(keys.get("tie_word_embeddings") is True for keys in levels):
        raise LeverlabError(
            f"{folder} has no lm_head.weight and config.json does not tie it to the embedding; restore the checkpoint"
        )
    check_layers(text.num_hidden_layers, stored, folder)
    tensors = match(_expected_tensors(text, architecture, has_output), stored, folder)
    fields = _hyperparameters(text, architecture) | tokenizer_fields(folder, text.vocab_size)
    return Part(architecture, fields, tensors)


def _text_keys(config: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    """Return the keys of the text model: under `text_config`, or beside the others in older files of Qwen2.5-VL."""
    keys = config.get("text_config")
    return config if keys is None else mapping(keys, "text_config", where)


def _text_config(config: Mapping[str, Any], architecture: str, where: Path) -> _TextConfig:
    text = _text_keys(config, where)
    name = next((name for name in ("rope_scaling", "rope_parameters") if text.get(name)), "rope_parameters")
    rope = mapping(text.get(name) or {}, name, where)
    rope_keys = {
        "rope_theta": rope.get("rope_theta", text.get("rope_theta")),
        "rope_type": rope.get("rope_type", rope.get("type", "default")),
        "mrope_section": rope.get("mrope_section"),
    }
    try:
        result = _TextConfig.model_validate({**text, **rope_keys})
    except ValidationError as error:
        raise unread(error, where, "the text model") from None
    sections, head = result.mrope_section, result.head_size
    heads, groups = result.num_attention_heads, result.num_key_value_heads
    problems = {
        f"heads {head} wide, of which rotary positions want an even number": head % 2 != 0 or head == 0,
        f"{heads} heads that cannot share {groups} heads of keys evenly": heads % groups != 0,
        f"rope type '{result.rope_type}' (only default and mrope)": result.rope_type not in ("default", "mrope"),
        f"activation '{result.hidden_act}' (only silu)": result.hidden_act != "silu",
        "sliding-window attention": result.use_sliding_window,
        f"mrope_section {sections} for heads {head} wide (it takes three sections that sum to half of that)": (
            architecture == "qwen2vl" and (sections is None or len(sections) != 3 or 2 * sum(sections) != head)
        ),
    }
    for reason, present in problems.items():
        if present:
            raise LeverlabError(
                f"{where} cannot be exported to GGUF as {architecture}: {reason}; use another checkpoint"
            )
    return result


def _hyperparameters(text: _TextConfig, architecture: str) -> dict[str, Value]:
    fields: dict[str, Value] = {
        Keys.LLM.BLOCK_COUNT: text.num_hidden_layers,
        Keys.LLM.CONTEXT_LENGTH: text.max_position_embeddings,
        Keys.LLM.EMBEDDING_LENGTH: text.hidden_size,
        Keys.LLM.FEED_FORWARD_LENGTH: text.intermediate_size,
        Keys.Attention.HEAD_COUNT: text.num_attention_heads,
        Keys.Attention.HEAD_COUNT_KV: text.num_key_value_heads,
        Keys.Attention.LAYERNORM_RMS_EPS: text.rms_norm_eps,
        Keys.Rope.FREQ_BASE: text.rope_theta,
    }
    if text.head_dim is not None:
        fields |= {Keys.Attention.KEY_LENGTH: text.head_dim, Keys.Attention.VALUE_LENGTH: text.head_dim}
    if architecture == "llama":
        fields[Keys.Rope.DIMENSION_COUNT] = text.head_size
    if architecture == "qwen2vl" and text.mrope_section is not None:
        fields[Keys.Rope.DIMENSION_SECTIONS] = [*text.mrope_section, 0]
    return {key.format(arch=architecture): value for key, value in fields.items()}


def _expected_tensors(text: _TextConfig, architecture: str, has_output: bool) -> list[Expected]:
    """Return what config.json calls for, by the names of a plain text model (`layers.0...`)."""
    width, ff, head = text.hidden_size, text.intermediate_size, text.head_size
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    rotated = {"q": text.num_attention_heads, "k": text.num_key_value_heads} if architecture == "llama" else {}
    block = {
        "input_layernorm.weight": ("attn_norm.weight", (width,)),
        "self_attn.q_proj.weight": ("attn_q.weight", (queries, width)),
        "self_attn.k_proj.weight": ("attn_k.weight", (keys, width)),
        "self_attn.v_proj.weight": ("attn_v.weight", (keys, width)),
        "self_attn.o_proj.weight": ("attn_output.weight", (width, queries)),
        "post_attention_layernorm.weight": ("ffn_norm.weight", (width,)),
        "mlp.gate_proj.weight": ("ffn_gate.weight", (ff, width)),
        "mlp.up_proj.weight": ("ffn_up.weight", (ff, width)),
        "mlp.down_proj.weight": ("ffn_down.weight", (width, ff)),
    }
    if architecture in ("qwen2", "qwen2vl"):
        for letter, size in (("q", queries), ("k", keys), ("v", keys)):
            block[f"self_attn.{letter}_proj.bias"] = (f"attn_{letter}.bias", (size,))
    if architecture == "qwen3":
        for letter in "qk":
            block[f"self_attn.{letter}_norm.weight"] = (f"attn_{letter}_norm.weight", (head,))
    expected = [Expected.plain("token_embd.weight", "embed_tokens.weight", (text.vocab_size, width))]
    for layer in range(text.num_hidden_layers):
        for source, (target, shape) in block.items():
            item = Expected.plain(f"blk.{layer}.{target}", f"layers.{layer}.{source}", shape)
            if heads := rotated.get(target.removeprefix("attn_").removesuffix(".weight")):
                item = item._replace(arrange=partial(_pairs_side_by_side, heads))
            expected.append(item)
    expected.append(Expected.plain("output_norm.weight", "norm.weight", (width,)))
    if has_output:
        expected.append(Expected.plain("output.weight", "lm_head.weight", (text.vocab_size, width)))
    return expected


def _pairs_side_by_side(heads: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of `heads` heads with the two of each rotary pair, half a head apart, side by side."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
