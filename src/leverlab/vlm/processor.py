"""An image-only processor for Qwen2.5-VL checkpoints, made from the files of a checkpoint folder.

`Qwen2_5_VLProcessor` insists on a video processor, which needs torchvision; leverlab shows images only and needs
neither. A released checkpoint names that class, and `AutoProcessor` takes it by its name, so the processor is put
together here, whatever class the folder names.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from leverlab.checkpoint_files import chat_template, image_processor_keys, tokenizer_json
from leverlab.errors import LeverlabError


class ImageOnlyQwen25VLProcessor(ProcessorMixin):
    """Turns text and PIL images into the inputs of a Qwen2.5-VL model: one `<|image_pad|>` a merged image token."""

    return_mm_token_type_ids = True
    image_processor_class = "Qwen2VLImageProcessorPil"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any):
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Return the placeholder text of image `image_idx`, called by `ProcessorMixin.__call__`."""
        merge = self.image_processor.merge_size**2
        return str(self.image_token * (int(image_inputs["image_grid_thw"][image_idx].prod()) // merge))


def load_processor(folder: Path) -> ImageOnlyQwen25VLProcessor:
    """Return the processor of the Qwen2.5-VL checkpoint in `folder`, in any layout of `leverlab.checkpoint_files`.

    Raises `LeverlabError` when the image processor, the tokenizer or the chat template is missing or damaged.
    """
    where, keys = image_processor_keys(folder)
    template = chat_template(folder)
    if not template:
        raise LeverlabError(
            f"{folder} has no chat template; restore its chat_template.jinja (or chat_template.json, or the key "
            "'chat_template' of tokenizer_config.json)"
        )
    try:
        image_processor = Qwen2VLImageProcessorPil.from_dict(keys)
    except Exception as error:
        raise LeverlabError(
            f"{where} is no image processor of Qwen2.5-VL ({_one_line(error)}); restore the file"
        ) from error
    where, _ = tokenizer_json(folder)  # without one, transformers makes a tokenizer of a single token
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return ImageOnlyQwen25VLProcessor(image_processor, tokenizer, chat_template=template)
    except Exception as error:  # two libraries raise errors of many kinds here
        raise LeverlabError(f"the tokenizer of {where} cannot be loaded ({_one_line(error)}); restore it") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
