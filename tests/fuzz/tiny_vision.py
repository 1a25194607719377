"""The vision part of a checkpoint, of two layers, made by hand: what the export to GGUF reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

WIDTH, FF, OUT, PATCH, DEPTH = 8, 12, 16, 2, 2
MERGED = 4 * WIDTH

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": DEPTH,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "in_channels": 3,
        "intermediate_size": FF,
        "num_heads": 2,
        "out_hidden_size": OUT,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    },
}
PROCESSOR: dict[str, Any] = {
    "image_processor": {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": 2,
        "patch_size": PATCH,
        "size": {"shortest_edge": 64, "longest_edge": 4096},
        "temporal_patch_size": 2,
    }
}
LINEAR = {  # of a layer, by their names in GGUF: the name in the checkpoint, and the shape
    "attn_out": ("attn.proj", (WIDTH, WIDTH)),
    "ffn_gate": ("mlp.gate_proj", (FF, WIDTH)),
    "ffn_up": ("mlp.up_proj", (FF, WIDTH)),
    "ffn_down": ("mlp.down_proj", (WIDTH, FF)),
}


def make_vision() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return random values by their names in the checkpoint, and what the file must hold, by their names in GGUF.

    The norms of each layer are alike, so a swap of their places shows in no value.
    """
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    wanted: dict[str, Any] = {}

    def draw(source: str, *shape: int) -> Any:
        made[f"visual.{source}"] = rng.normal(size=shape).astype(np.float32)
        return made[f"visual.{source}"]

    def linear(target: str, source: str, outputs: int, inputs: int) -> None:
        wanted[f"{target}.weight"] = draw(f"{source}.weight", outputs, inputs)
        wanted[f"{target}.bias"] = draw(f"{source}.bias", outputs)

    kernel = draw("patch_embed.proj.weight", WIDTH, 3, 2, PATCH, PATCH)
    wanted["v.patch_embd.weight"], wanted["v.patch_embd.weight.1"] = kernel[:, :, 0], kernel[:, :, 1]
    wanted["v.post_ln.weight"] = draw("merger.ln_q.weight", WIDTH)
    linear("mm.0", "merger.mlp.0", MERGED, MERGED)
    linear("mm.2", "merger.mlp.2", OUT, MERGED)
    for layer in range(DEPTH):
        for number in (1, 2):
            made[f"visual.blocks.{layer}.norm{number}.weight"] = np.ones(WIDTH, np.float32)
            wanted[f"v.blk.{layer}.ln{number}.weight"] = np.ones(WIDTH, np.float32)
        for leaf, columns in (("weight", (WIDTH,)), ("bias", ())):
            joined = draw(f"blocks.{layer}.attn.qkv.{leaf}", 3 * WIDTH, *columns)
            for letter, part in zip("qkv", np.split(joined, 3), strict=True):
                wanted[f"v.blk.{layer}.attn_{letter}.{leaf}"] = part
        for target, (source, shape) in LINEAR.items():
            linear(f"v.blk.{layer}.{target}", f"blocks.{layer}.{source}", *shape)
    return made, wanted


def write_vision_checkpoint(folder: Path) -> None:
    """Write the config, the image processor and the tensors into a new folder."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(make_vision()[0]))
    for name, tree in (("config", CONFIG), ("processor_config", PROCESSOR)):
        (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
