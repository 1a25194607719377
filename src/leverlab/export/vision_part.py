"""The vision part of a Qwen2.5-VL checkpoint in GGUF's words: the `mmproj` file that llama.cpp loads beside the text.

llama.cpp has this architecture's geometry written into its code (tools/mtmd/clip.cpp): patches are merged two by two,
attention windows are 112 pixels wide, and the rotary base is 10,000. A checkpoint with another is refused, because it
would run and answer nonsense.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from gguf import GGUFType, Keys, VisionProjectorType
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.checkpoint_files import image_processor_keys, read_json
from leverlab.errors import LeverlabError
from leverlab.export.checkpoint import Arrangement, Expected, Part, check_layers, mapping, match, stored_tensors, unread
from leverlab.export.images import ImageLimits
from leverlab.export.text_part import Single, Size
from leverlab.export.tokenizer_fields import Value
from leverlab.export.vision_geometry import MERGE, ROTARY_BASE, WINDOW

ARCHITECTURE = "clip"
BICUBIC = 3
NORM_EPS = 1e-6  # written into transformers' model, too
_IMAGE_SIZE = 560  # llama.cpp wants the key; for this architecture it decides only how its warm-up image looks

Colour = Annotated[list[float], Field(min_length=3, max_length=3)]


class _VisionConfig(BaseModel):
    """The keys of `config.json` that shape the vision part."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    depth: Size
    hidden_size: Size
    intermediate_size: Size
    num_heads: Size
    out_hidden_size: Size
    patch_size: Size
    fullatt_block_indexes: list[int]
    hidden_act: str = "silu"
    in_channels: int = 3
    spatial_merge_size: int = MERGE
    temporal_patch_size: int = 2
    window_size: int = WINDOW
    rope_theta: float = ROTARY_BASE

    @property
    def window_pattern(self) -> int:
        """How many layers from one with full attention to the next; 0 when all have it.

        With 1, which would say the same as 0, llama.cpp aborts for want of a window mask.
        """
        first = self.fullatt_block_indexes[0]
        return first + 1 if first > 0 else 0

    @property
    def is_regular(self) -> bool:
        """Whether every n-th layer has full attention, counted from the first one that has it."""
        full = self.fullatt_block_indexes
        every = full[0] + 1 if full else 0
        return (
            every > 0
            and full == [every * (place + 1) - 1 for place in range(len(full))]
            and (len(full) == self.depth // every)
        )


class _Size(BaseModel):
    """Pixels of the smallest and the largest image, after resizing."""

    model_config = ConfigDict(strict=True, extra="ignore")

    shortest_edge: Size
    longest_edge: Size


class _ImageProcessor(BaseModel):
    """The keys of the image processor that decide what the model sees."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    image_mean: Colour
    image_std: Annotated[list[Single], Field(min_length=3, max_length=3)]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    size: _Size
    resample: int = BICUBIC
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True


def read_vision_part(folder: Path) -> Part:
    """Return what GGUF needs to know of the vision part of the Qwen2.5-VL checkpoint in `folder`; no tensor is read.

    `folder` holds config.json, processor_config.json or preprocessor_config.json, and safetensors. Raises
    `LeverlabError` when a file is missing, truncated or damaged, when llama.cpp has another geometry than the
    checkpoint, and when a tensor is missing, unexpected or of another shape than config.json says.
    """
    where = folder / "config.json"
    config = read_json(where)
    if config.get("model_type") != "qwen2_5_vl":
        raise LeverlabError(
            f"{where}: model_type {config.get('model_type')!r} has no vision part that is exported to GGUF; use a "
            "checkpoint of qwen2_5_vl, or llama.cpp's own converter"
        )
    vision = _vision_config(config, where)
    processor = _image_processor(folder)
    _require_what_llama_cpp_has(vision, processor, where)
    stored = stored_tensors(folder, vision=True)
    check_layers(vision.depth, stored, folder)
    return Part(ARCHITECTURE, _fields(vision, processor), match(_expected_tensors(vision), stored, folder))


def image_limits(folder: Path) -> ImageLimits:
    """Return the sizes of images that the checkpoint's image processor brings them to.

    llama.cpp has limits of its own (8 and 4,096 tokens), and no key of a GGUF file changes them: whoever runs the model
    must set `image_min_tokens` and `image_max_tokens` to `tokens`.
    """
    processor = _image_processor(folder)
    side, size = processor.patch_size * processor.merge_size, processor.size
    return ImageLimits(side, max(1, size.shortest_edge), max(1, size.longest_edge))


def _vision_config(config: dict[str, Any], where: Path) -> _VisionConfig:
    keys = mapping(config.get("vision_config"), "vision_config", where)
    rope = mapping(keys.get("rope_parameters") or {}, "rope_parameters", where)
    try:
        return _VisionConfig.model_validate(keys | {"rope_theta": rope.get("rope_theta", ROTARY_BASE)})
    except ValidationError as error:
        raise unread(error, where, "the vision model") from None


def _image_processor(folder: Path) -> _ImageProcessor:
    where, keys = image_processor_keys(folder)
    try:
        return _ImageProcessor.model_validate(keys)
    except ValidationError as error:
        raise unread(error, where, "the image processor") from None


def _require_what_llama_cpp_has(vision: _VisionConfig, processor: _ImageProcessor, where: Path) -> None:
    """Raise `LeverlabError` for a model or a preparation of images that llama.cpp would compute in another way."""
    full = vision.fullatt_block_indexes
    made = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    problems = {
        f"it merges {vision.spatial_merge_size} x {vision.spatial_merge_size} patches (only {MERGE} x {MERGE})": (
            vision.spatial_merge_size != MERGE
        ),
        f"its attention windows are {vision.window_size} pixels wide (only {WINDOW})": vision.window_size != WINDOW,
        f"its rotary base is {vision.rope_theta} (only {ROTARY_BASE})": vision.rope_theta != ROTARY_BASE,
        f"it reads {vision.temporal_patch_size} frames at once (only 1 or 2)": (
            vision.temporal_patch_size not in (1, 2)
        ),
        f"its images have {vision.in_channels} channels (only 3)": vision.in_channels != 3,
        f"activation '{vision.hidden_act}' (only silu)": vision.hidden_act != "silu",
        f"layers {full} of {vision.depth} have full attention (only every n-th)": not vision.is_regular,
        f"{vision.num_heads} heads that are no multiple of 4 wide": vision.hidden_size % (4 * vision.num_heads) != 0,
        f"its image processor makes patches (size, merge, frames) {made}, not {wanted}": made != wanted,
        "its image processor does not resize (bicubic), rescale by 1/255 and normalise": not (
            processor.do_resize
            and processor.do_rescale
            and processor.do_normalize
            and processor.resample == BICUBIC
            and np.float32(processor.rescale_factor) == np.float32(1 / 255)
        ),
    }
    for reason, present in problems.items():
        if present:
            raise LeverlabError(
                f"{where} cannot be exported to GGUF as a {VisionProjectorType.QWEN25VL}: {reason}; use another "
                "checkpoint"
            )


def _fields(vision: _VisionConfig, processor: _ImageProcessor) -> dict[str, Value]:
    return {
        Keys.General.TYPE: str(GGUFType.MMPROJ),
        Keys.Clip.HAS_VISION_ENCODER: True,
        Keys.Clip.PROJECTOR_TYPE: str(VisionProjectorType.QWEN25VL),
        Keys.ClipVision.USE_SILU: True,
        Keys.ClipVision.PROJECTION_DIM: vision.out_hidden_size,
        Keys.ClipVision.IMAGE_SIZE: _IMAGE_SIZE,
        Keys.ClipVision.PATCH_SIZE: vision.patch_size,
        Keys.ClipVision.EMBEDDING_LENGTH: vision.hidden_size,
        Keys.ClipVision.FEED_FORWARD_LENGTH: vision.intermediate_size,
        Keys.ClipVision.BLOCK_COUNT: vision.depth,
        Keys.ClipVision.Attention.HEAD_COUNT: vision.num_heads,
        Keys.ClipVision.Attention.LAYERNORM_EPS: NORM_EPS,
        Keys.ClipVision.IMAGE_MEAN: processor.image_mean,
        Keys.ClipVision.IMAGE_STD: processor.image_std,
        Keys.ClipVision.N_WA_PATTERN: vision.window_pattern,
    }


def _expected_tensors(vision: _VisionConfig) -> list[Expected]:
    """Return what config.json calls for, by the names behind `visual.`."""
    width, ff, merged = vision.hidden_size, vision.intermediate_size, MERGE**2 * vision.hidden_size
    kernel = (width, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    patches = (width, 3, vision.patch_size, vision.patch_size)
    expected = [
        Expected("v.patch_embd.weight", "patch_embed.proj.weight", kernel, patches, _frame(0)),
        Expected("v.patch_embd.weight.1", "patch_embed.proj.weight", kernel, patches, _frame(1)),
        Expected.plain("v.post_ln.weight", "merger.ln_q.weight", (width,)),
    ]
    linear = [
        ("mm.0", "merger.mlp.0", merged, merged),
        ("mm.2", "merger.mlp.2", vision.out_hidden_size, merged),
    ]
    for layer in range(vision.depth):
        block, target = f"blocks.{layer}", f"v.blk.{layer}"
        expected += [
            Expected.plain(f"{target}.ln1.weight", f"{block}.norm1.weight", (width,)),
            Expected.plain(f"{target}.ln2.weight", f"{block}.norm2.weight", (width,)),
        ]
        for place, letter in enumerate("qkv"):
            rows = _rows(place * width, width)
            for leaf, columns in (("weight", (width,)), ("bias", ())):
                source, name = f"{block}.attn.qkv.{leaf}", f"{target}.attn_{letter}.{leaf}"
                expected.append(Expected(name, source, (3 * width, *columns), (width, *columns), rows))
        linear += [
            (f"{target}.attn_out", f"{block}.attn.proj", width, width),
            (f"{target}.ffn_gate", f"{block}.mlp.gate_proj", ff, width),
            (f"{target}.ffn_up", f"{block}.mlp.up_proj", ff, width),
            (f"{target}.ffn_down", f"{block}.mlp.down_proj", width, ff),
        ]
    for target, source, outputs, inputs in linear:
        expected.append(Expected.plain(f"{target}.weight", f"{source}.weight", (outputs, inputs)))
        expected.append(Expected.plain(f"{target}.bias", f"{source}.bias", (outputs,)))
    return expected


def _frame(index: int) -> Arrangement:
    """Return what takes one frame's kernel out of a patch embedding: llama.cpp adds two of them up over the same image.

    A model that reads one frame has no second kernel; zeros stand for it.
    """

    def kernel(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[:, :, index] if index < values.shape[2] else np.zeros_like(values[:, :, 0])

    return kernel


def _rows(first: int, count: int) -> Arrangement:
    def rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[first : first + count]

    return rows
