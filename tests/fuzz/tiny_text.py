"""A checkpoint of one layer, made by hand, in the hub's format: what the export to GGUF reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from tokenizers.pre_tokenizers import ByteLevel

from leverlab.export.tokenizer_fields import QWEN2_SPLIT

WIDTH, FF, HEADS, HEAD, ROWS = 32, 64, 2, 16, 272

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": WIDTH,
        "intermediate_size": FF,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "vocab_size": ROWS,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
}
SHAPES = {  # by their names in GGUF: the name in the checkpoint, and the shape
    "token_embd.weight": ("model.embed_tokens.weight", (ROWS, WIDTH)),
    "output_norm.weight": ("model.norm.weight", (WIDTH,)),
    "blk.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", (WIDTH,)),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", (HEADS * HEAD, WIDTH)),
    "blk.0.attn_q.bias": ("model.layers.0.self_attn.q_proj.bias", (HEADS * HEAD,)),
    "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj.weight", (HEAD, WIDTH)),
    "blk.0.attn_k.bias": ("model.layers.0.self_attn.k_proj.bias", (HEAD,)),
    "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj.weight", (HEAD, WIDTH)),
    "blk.0.attn_v.bias": ("model.layers.0.self_attn.v_proj.bias", (HEAD,)),
    "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj.weight", (WIDTH, HEADS * HEAD)),
    "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm.weight", (WIDTH,)),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj.weight", (FF, WIDTH)),
    "blk.0.ffn_up.weight": ("model.layers.0.mlp.up_proj.weight", (FF, WIDTH)),
    "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj.weight", (WIDTH, FF)),
}
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<tool>")
MERGES = (("a", "b"), ("c", "ab"), ("Ġ", "cab"))


def make_tokenizer() -> dict[str, Any]:
    words = [*SPECIAL[:2], *sorted(ByteLevel.alphabet()), *map("".join, MERGES)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": SPECIAL[0], **flags, "special": True},
            {"id": 1, "content": SPECIAL[1], **flags, "special": True},
            {"id": len(words), "content": SPECIAL[2], **flags, "special": False},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: index for index, word in enumerate(words)},
            "merges": [list(MERGES[0]), " ".join(MERGES[1]), list(MERGES[2])],
        },
    }


SETTINGS: dict[str, Any] = {
    "add_prefix_space": False,
    "eos_token": "<|im_end|>",
    "pad_token": {"content": "<|endoftext|>", "special": True},
    "chat_template": "{{ settings }}",
}


def make_tensors() -> dict[str, Any]:
    """Return random values; the two norms of the block are alike, so a swap of their places shows in no value."""
    rng = np.random.default_rng(0)
    tensors = {source: rng.normal(size=shape).astype(np.float32) for source, shape in SHAPES.values()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.0.{name}.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def write_checkpoint(folder: Path) -> None:
    """Write the config, the tensors and the tokenizer into a new folder."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(make_tensors()))
    for name, tree in (("config", CONFIG), ("tokenizer", make_tokenizer()), ("tokenizer_config", SETTINGS)):
        (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
