"""Image features of a Qwen2.5-VL model, each image encoded once.

transformers runs the vision attention of a batch one image at a time in Python; for small images of one size that loop
costs more than the arithmetic. Here images of one grid that fit inside one attention window are encoded as a true
batch; all others take the library's own path. Both give the same features.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids


def encode_images(model: Any, pixel_values: Tensor, image_grid_thw: Tensor) -> list[Tensor]:
    """Return the merged features of each image, a list of (image tokens, text width) tensors.

    `pixel_values` (patches of all images, patch features) and `image_grid_thw` (images, 3; in patches) are what the
    image processor returns. Differentiable.
    """
    visual = model.model.visual
    grids = image_grid_thw.tolist()
    one_size = all(grid == grids[0] for grid in grids)
    window = visual.window_size // visual.patch_size
    if one_size and grids[0][0] == 1 and max(grids[0][1:]) <= window and not visual.gradient_checkpointing:
        return list(_encode_batch(visual, pixel_values.to(visual.dtype), image_grid_thw))
    return list(model.model.get_image_features(pixel_values, image_grid_thw).pooler_output)


def _encode_batch(visual: Any, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
    """Return (images, tokens, width) for images of one grid that fit one window: windowed and full attention agree."""
    images = image_grid_thw.shape[0]
    hidden = visual.patch_embed(pixel_values).view(images, -1, visual.config.hidden_size)
    position_ids = get_vision_position_ids(image_grid_thw[:1], visual.spatial_merge_size)
    cos, sin = visual.rotary_pos_emb(hidden[0], position_ids)
    for block in visual.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged = visual.merger(hidden.reshape(-1, visual.config.hidden_size))
    return cast(Tensor, merged.view(images, -1, merged.shape[-1]))


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    images, patches, _ = hidden.shape
    query, key, value = attention.qkv(hidden).view(images * patches, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, cos.repeat(images, 1), sin.repeat(images, 1))
    query, key, value = (
        part.view(images, patches, attention.num_heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return cast(Tensor, attention.proj(mixed.transpose(1, 2).reshape(images, patches, -1)))
