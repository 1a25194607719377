"""The text part of a hub-format checkpoint in GGUF's words: its fields, and the name, shape and place of every tensor.

Names and shapes are derived from `config.json` alone and the files are held against them, so a tensor too few, too many
or of another shape is an error here, and not a model that answers nonsense in llama.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from gguf import Keys
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from leverlab.errors import LeverlabError
from leverlab.export.tokenizer_fields import Value, read_json, tokenizer_fields

ARCHITECTURES = {"qwen2_5_vl": "qwen2vl", "qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama"}  # model_type → GGUF
STORED_TYPES = ("BF16", "F16", "F32")  # safetensors' names of what float32 holds without loss
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")
_SINGLE = np.finfo(np.float32)

# What GGUF's fields can hold: uint32 and float32.
Size = Annotated[int, Field(gt=0, lt=2**32)]
Single = Annotated[float, Field(ge=float(_SINGLE.tiny), le=float(_SINGLE.max))]


@dataclass(frozen=True)
class TextTensor:
    """One tensor of a checkpoint: the file and name it is stored under, its shape, and how it must be rearranged."""

    file: Path
    source: str
    shape: tuple[int, ...]
    rotary_heads: int = 0  # > 0: heads whose rotary pairs lie half a head apart here and side by side in GGUF (llama)

    def load(self) -> NDArray[np.float32]:
        """Return the values in GGUF's order. Raises `LeverlabError` when one is NaN or infinite."""
        with _opened(self.file) as file:
            values: NDArray[np.float32] = file.get_tensor(self.source).to(torch.float32).numpy()
        if not np.isfinite(values).all():
            raise LeverlabError(f"{self.file}: {self.source} holds NaN or infinite values; use an earlier checkpoint")
        if self.rotary_heads:
            halves = values.reshape(self.rotary_heads, 2, -1, *self.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(self.shape)
        return values


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint's text part: GGUF architecture, fields (in the order in which they are written) and tensors."""

    architecture: str
    fields: dict[str, Value]
    tensors: dict[str, TextTensor]


class _Expected(NamedTuple):
    """A tensor that config.json calls for: its GGUF name, its shape, and the heads to rearrange (see `TextTensor`)."""

    target: str
    shape: tuple[int, ...]
    rotary_heads: int = 0


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


def read_text_checkpoint(folder: Path) -> TextCheckpoint:
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
    stored = _stored_tensors(folder)
    has_output = "lm_head.weight" in stored  # when it is absent, llama.cpp uses the embedding in its place
    if not has_output and config.get("tie_word_embeddings") is not True:
        raise LeverlabError(
            f"{folder} has no lm_head.weight and config.json does not tie it to the embedding; restore the checkpoint"
        )
    if text.num_hidden_layers > len(stored):  # before anything is made for each of them
        raise LeverlabError(
            f"{folder} holds {len(stored)} text tensor(s), too few for the {text.num_hidden_layers} layers of its "
            "config.json; restore the checkpoint"
        )
    tensors = _match(_expected_tensors(text, architecture, has_output), stored, folder)
    fields = _hyperparameters(text, architecture) | tokenizer_fields(folder, text.vocab_size)
    return TextCheckpoint(architecture, fields, tensors)


def _mapping(keys: Any, name: str, where: Path) -> dict[str, Any]:
    if not isinstance(keys, dict):
        raise LeverlabError(f"{where}: {name} must be a mapping, not {keys!r:.50}; restore the checkpoint's config")
    return keys


def _text_config(config: Mapping[str, Any], architecture: str, where: Path) -> _TextConfig:
    text = _mapping(config.get("text_config", config), "text_config", where)  # older files of Qwen2.5-VL have none
    older = {"rope_theta": text.get("rope_theta")} | _mapping(text.get("rope_scaling") or {}, "rope_scaling", where)
    rope = _mapping(text.get("rope_parameters") or older, "rope_parameters", where)
    rope_keys = {
        "rope_theta": rope.get("rope_theta"),
        "rope_type": rope.get("rope_type", rope.get("type", "default")),
        "mrope_section": rope.get("mrope_section"),
    }
    try:
        result = _TextConfig.model_validate({**text, **rope_keys})
    except ValidationError as error:
        problem = error.errors()[0]
        raise LeverlabError(
            f"{where}: key '{'.'.join(map(str, problem['loc']))}' of the text model is {problem['msg'].lower()}; "
            "restore the checkpoint's config"
        ) from None
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


def _expected_tensors(text: _TextConfig, architecture: str, has_output: bool) -> dict[str, _Expected]:
    """Return what config.json calls for, by the name that a plain text model gives it (`layers.0...`)."""
    width, ff, head = text.hidden_size, text.intermediate_size, text.head_size
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    rotary = (text.num_attention_heads, text.num_key_value_heads) if architecture == "llama" else (0, 0)
    block = {
        "input_layernorm.weight": _Expected("attn_norm.weight", (width,)),
        "self_attn.q_proj.weight": _Expected("attn_q.weight", (queries, width), rotary[0]),
        "self_attn.k_proj.weight": _Expected("attn_k.weight", (keys, width), rotary[1]),
        "self_attn.v_proj.weight": _Expected("attn_v.weight", (keys, width)),
        "self_attn.o_proj.weight": _Expected("attn_output.weight", (width, queries)),
        "post_attention_layernorm.weight": _Expected("ffn_norm.weight", (width,)),
        "mlp.gate_proj.weight": _Expected("ffn_gate.weight", (ff, width)),
        "mlp.up_proj.weight": _Expected("ffn_up.weight", (ff, width)),
        "mlp.down_proj.weight": _Expected("ffn_down.weight", (width, ff)),
    }
    if architecture in ("qwen2", "qwen2vl"):
        for letter, size in (("q", queries), ("k", keys), ("v", keys)):
            block[f"self_attn.{letter}_proj.bias"] = _Expected(f"attn_{letter}.bias", (size,))
    if architecture == "qwen3":
        for letter in "qk":
            block[f"self_attn.{letter}_norm.weight"] = _Expected(f"attn_{letter}_norm.weight", (head,))
    expected = {"embed_tokens.weight": _Expected("token_embd.weight", (text.vocab_size, width))}
    for layer in range(text.num_hidden_layers):
        for name, item in block.items():
            expected[f"layers.{layer}.{name}"] = item._replace(target=f"blk.{layer}.{item.target}")
    expected["norm.weight"] = _Expected("output_norm.weight", (width,))
    if has_output:
        expected["lm_head.weight"] = _Expected("output.weight", (text.vocab_size, width))
    return expected


def _match(expected: Mapping[str, _Expected], stored: Mapping[str, TextTensor], folder: Path) -> dict[str, TextTensor]:
    if missing := expected.keys() - stored.keys():
        raise LeverlabError(
            f"{folder} lacks {len(missing)} tensor(s) that config.json calls for, first {min(missing)}; "
            "restore the checkpoint"
        )
    if surplus := stored.keys() - expected.keys():
        raise LeverlabError(
            f"{folder} has {len(surplus)} tensor(s) that config.json does not call for, first {min(surplus)}; "
            "restore the checkpoint"
        )
    tensors = {}
    for name, (target, shape, heads) in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise LeverlabError(
                f"{tensor.file}: {tensor.source} has shape {tensor.shape}, not the {shape} of config.json; restore it"
            )
        tensors[target] = TextTensor(tensor.file, tensor.source, shape, heads)
    return tensors


def _opened(file: Path) -> Any:
    """Return the safetensors file, open for reading single tensors (a context manager)."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise LeverlabError(f"{file} does not exist; restore the missing part of the checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise LeverlabError(f"{file} is truncated or damaged ({error}); restore the checkpoint") from None


def _stored_tensors(folder: Path) -> dict[str, TextTensor]:
    """Return the text tensors that lie in `folder`, named as in a plain text model (`layers.0...`)."""
    files = [folder / "model.safetensors"]
    if (index := folder / "model.safetensors.index.json").exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise LeverlabError(f"{index} names no shards under 'weight_map'; restore the checkpoint")
        for name in shards.values():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
                raise LeverlabError(f"{index}: shard {name!r:.80} is no safetensors file beside it; restore the index")
        files = [folder / name for name in sorted(set(shards.values()))]
    tensors: dict[str, TextTensor] = {}
    for file in files:
        with _opened(file) as opened:
            for source in opened.keys():  # noqa: SIM118 - not a mapping
                name = source
                for prefix in ("model.", "language_model.", "model."):  # both orders exist in Qwen2.5-VL's files
                    name = name.removeprefix(prefix)
                if name.startswith("visual."):
                    continue
                if name in tensors:
                    raise LeverlabError(
                        f"{file}: {source} is also {tensors[name].source} of {tensors[name].file}; remove one of them"
                    )
                values = opened.get_slice(source)
                if values.get_dtype() not in STORED_TYPES:
                    raise LeverlabError(
                        f"{file}: {source} is of type {values.get_dtype()}, not {', '.join(STORED_TYPES)}; restore it"
                    )
                tensors[name] = TextTensor(file, source, tuple(values.get_shape()))
    return tensors
