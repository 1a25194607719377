"""A tiny checkpoint in the files of the released Qwen2.5-VL-3B-Instruct (transformers 4.41 to 4.49).

Names, keys and order of the files are the release's; sizes and weights are not. What differs from a folder that
transformers 5 saves: config.json is flat, with `rope_scaling` of type `mrope` and `torch_dtype`; the weights lie in
shards under the names `visual.*` and `model.*`; preprocessor_config.json names the processor class that wants a video
processor; chat_template.json has the template; tokenizer.json has merges as lines and the special tokens outside of the
vocabulary; the embedding has more rows than the tokenizer has tokens; generation_config.json has two end tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from leverlab.byte_bpe import QWEN_SPLIT

CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
USER_DEFINED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "Which number is it?",
    "What colour is the ground?",
    "You are a helpful assistant.",
    "system user",
    "bazo divi",
)
WIDTH, HEADS, LAYERS, FEED_FORWARD = 256, 2, 2, 96  # heads 128 wide with mrope sections 16, 24, 24, as released
VISION_WIDTH, VISION_LAYERS, VISION_FEED_FORWARD, PATCH = 64, 2, 52, 14
OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def write_released(folder: Path, *, tied: bool = False, texts: Iterable[str] = TEXTS, seed: int = 0) -> Path:
    """Write the checkpoint into `folder` and return it.

    tied: without lm_head.weight, as the release; without, the two end tokens are likely answers. texts: what the
    tokenizer is trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _train(texts)
    ids = {token: len(vocab) + place for place, token in enumerate((*CONTROL, *USER_DEFINED))}
    rows = (len(vocab) + len(ids)) // 32 * 32 + 64  # the release has 151,936 rows for 151,665 tokens
    write_json(folder / "config.json", _config(ids, rows, tied))
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "repetition_penalty": 1.05,
            "temperature": 0.000001,
            "transformers_version": "4.49.0",
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": OPENAI_MEAN,
            "image_std": OPENAI_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    _write_tokenizer(folder, vocab, merges, ids)
    _write_shards(folder, _weights(rows, ids, tied, seed))
    return folder


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; those set to None are taken out."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in data.items() if value is not None})


def _train(texts: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary without special tokens, and the merges as lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=100_000, show_progress=False, initial_alphabet=alphabet)
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(pair) for pair in model["merges"]]


def _config(ids: dict[str, int], rows: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": VISION_LAYERS,
            "hidden_act": "silu",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "spatial_patch_size": PATCH,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": rows,
    }


def _write_tokenizer(folder: Path, vocab: dict[str, int], merges: list[str], ids: dict[str, int]) -> None:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = [{"id": index, "content": token, **flags, "special": token in CONTROL} for token, index in ids.items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocab,
                "merges": merges,
            },
        },
    )
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "additional_special_tokens": [token for token in CONTROL if token != "<|endoftext|>"],
            "bos_token": None,
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def _weights(rows: int, ids: dict[str, int], tied: bool, seed: int) -> dict[str, torch.Tensor]:
    """Return random weights in bfloat16 under the release's names, in the order of the release's modules."""
    merged, head = 4 * VISION_WIDTH, WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (VISION_WIDTH, 3, 2, PATCH, PATCH)}
    for layer in range(VISION_LAYERS):
        block = f"visual.blocks.{layer}"
        shapes |= {f"{block}.norm1.weight": (VISION_WIDTH,), f"{block}.norm2.weight": (VISION_WIDTH,)}
        shapes |= _linear(f"{block}.attn.qkv", 3 * VISION_WIDTH, VISION_WIDTH)
        shapes |= _linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        for name in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{block}.mlp.{name}", VISION_FEED_FORWARD, VISION_WIDTH)
        shapes |= _linear(f"{block}.mlp.down_proj", VISION_WIDTH, VISION_FEED_FORWARD)
    shapes["visual.merger.ln_q.weight"] = (VISION_WIDTH,)
    shapes |= _linear("visual.merger.mlp.0", merged, merged) | _linear("visual.merger.mlp.2", WIDTH, merged)
    shapes["model.embed_tokens.weight"] = (rows, WIDTH)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes |= _linear(f"{block}.self_attn.q_proj", WIDTH, WIDTH)
        shapes |= _linear(f"{block}.self_attn.k_proj", head, WIDTH) | _linear(f"{block}.self_attn.v_proj", head, WIDTH)
        shapes[f"{block}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}.mlp.gate_proj.weight"] = shapes[f"{block}.mlp.up_proj.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{block}.mlp.down_proj.weight"] = (WIDTH, FEED_FORWARD)
        shapes[f"{block}.input_layernorm.weight"] = shapes[f"{block}.post_attention_layernorm.weight"] = (WIDTH,)
    shapes["model.norm.weight"] = (WIDTH,)
    if not tied:
        shapes["lm_head.weight"] = (rows, WIDTH)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= values[0].numel() ** 0.5
        elif name.endswith("bias"):
            values *= 0.2
        else:
            values = 1 + 0.2 * values
        weights[name] = values.to(torch.bfloat16)
    if not tied:
        weights["lm_head.weight"][[ids["<|im_end|>"], ids["<|endoftext|>"]]] *= 3
    return weights


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _write_shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    names = list(weights)
    weight_map: dict[str, str] = {}
    for shard, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{shard:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(values.numel() * values.element_size() for values in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
