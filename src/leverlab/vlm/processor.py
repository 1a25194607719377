"""An image-only processor for Qwen2.5-VL checkpoints.

`Qwen2_5_VLProcessor` insists on a video processor, which needs torchvision; leverlab shows images only and needs
neither.
"""

from typing import Any

from transformers.processing_utils import ProcessorMixin


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
