"""The processor of a Qwen2.5-VL checkpoint, and all that can be wrong with the checkpoint and shows without loading it.

A released checkpoint names `Qwen2_5_VLProcessor`, which `AutoProcessor` takes by its name and which needs torchvision
for videos. So the image-only processor is put together here from the folder's files.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import logging

from leverlab.checkpoint_files import (
    chat_template,
    image_processor_keys,
    open_weights,
    read_json,
    tokenizer_json,
    weight_files,
)
from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of
from leverlab.vlm.processor import ImageOnlyQwen25VLProcessor


def load_processor(folder: Path) -> ImageOnlyQwen25VLProcessor:
    """Return the processor of the Qwen2.5-VL checkpoint in `folder`, whatever processor class its files name.

    Raises `LeverlabError` when the image processor, the tokenizer, the chat template or a weight file is missing or
    damaged (of weights only the headers are read), when the config is of another family, and when config and tokenizer
    belong to different checkpoints.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = folder / "config.json"
    family = read_json(where).get("model_type")
    if family != "qwen2_5_vl":
        raise LeverlabError(f"{where}: model_type is {family!r}; set vlm.source to a Qwen2.5-VL (qwen2_5_vl)")
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except Exception as error:  # the library raises errors of many kinds for a bad value
        raise LeverlabError(f"{where} is no config of a Qwen2.5-VL ({reason_of(error)}); restore it") from error
    if "sliding_attention" in config.text_config.layer_types:
        raise LeverlabError(f"{where}: sliding windows (use_sliding_window) are not supported; set another vlm.source")
    processor = _put_together(folder)
    largest = max(processor.tokenizer.get_vocab().values())
    if largest >= config.text_config.vocab_size:
        raise LeverlabError(
            f"{where}: vocab_size {config.text_config.vocab_size} is too small for the tokenizer, whose largest id is "
            f"{largest}; restore the files of one checkpoint"
        )
    if processor.image_token_id != config.image_token_id:
        raise LeverlabError(
            f"{where}: image_token_id is {config.image_token_id}, but the tokenizer's {processor.image_token} has id "
            f"{processor.image_token_id}; restore the files of one checkpoint"
        )
    for file in weight_files(folder):  # transformers would follow an index out of the folder
        with open_weights(file):
            pass
    return processor


def _put_together(folder: Path) -> ImageOnlyQwen25VLProcessor:
    """Return the processor from the files of `folder`, in any layout of `leverlab.checkpoint_files`."""
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
            f"{where} is no image processor of Qwen2.5-VL ({reason_of(error)}); restore the file"
        ) from error
    where, _ = tokenizer_json(folder)  # without one, transformers makes a tokenizer of a single token
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return ImageOnlyQwen25VLProcessor(image_processor, tokenizer, chat_template=template)
    except Exception as error:  # two libraries raise errors of many kinds here
        raise LeverlabError(f"the tokenizer of {where} cannot be loaded ({reason_of(error)}); restore it") from error
