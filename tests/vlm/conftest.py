"""A small VLM in the hub's format, and examples to show it.

The weights are random, wide enough that a wrong position, mask or order of demos moves every number, and with one
dimension of the embeddings set so that greedy answers are one or more words and an end, as those of a trained VLM are.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leverlab.records import Example
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from leverlab.vlm.turns import TurnTable
from leverlab.worlds.digits import digits_world
from leverlab.worlds.digits_scenes import CLASSES, QUESTIONS, WORDS
from leverlab.worlds.world import World

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, float32."""
    names = [*(word for names in CLASSES.values() for word in names), *WORDS]
    questions = [question for wordings in QUESTIONS.values() for question in wordings]
    tokenizer = build_tokenizer([*questions, *(f" {word}" for word in names)])
    processor = build_processor(tokenizer)
    torch.manual_seed(0)
    model: Any = build_model(tokenizer)
    tokens = model.config.text_config.vocab_size
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.empty(tokens, model.config.text_config.hidden_size))
    words = {*tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS])}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        # dimension 0 favours words, dimension 1 the end of an answer, though not right behind a question
        embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
        embeddings.mul_(9)[:, :2] = 3.0
        embeddings[tokenizer.convert_tokens_to_ids("?"), 1] = -3.0
        head.mul_(3)[:, :2] = torch.tensor([[6.0 if token in words else -6.0, 0.0] for token in range(tokens)])
        head[tokenizer.eos_token_id, :2] = torch.tensor([6.0, 8.0])
        head.div_(4)  # log-probabilities around -10, where float32 resolves 1e-6
    folder = tmp_path_factory.mktemp("vlm")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vlm(tiny_folder: Path) -> Vlm:
    """The model that the library's own forward and generate run on."""
    return load_vlm(str(tiny_folder), "float32", "cpu")


@pytest.fixture(scope="session")
def qwen_vlm(tiny_folder: Path) -> Vlm:
    """The same weights under a chat template like Qwen2.5-VL's, with a system prompt."""
    vlm = load_vlm(str(tiny_folder), "float32", "cpu")
    vlm.processor.chat_template = QWEN_TEMPLATE
    return vlm


@pytest.fixture(scope="session")
def world() -> World:
    return digits_world(pool=8, train=12, val=1, test=1, label_noise=0.0, seed=7)


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], bytes]:
    """Make a PNG of random pixels: `picture(width, height, seed)`."""

    def make(width: int, height: int, seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def make_scorer(tiny_folder: Path) -> Callable[..., Scorer]:
    """Make a scorer of `demos` and `questions`, on a model that the library's own forward never sees."""
    engine = load_vlm(str(tiny_folder), "float32", "cpu")

    def make(
        demos: Sequence[Example],
        questions: Sequence[Example],
        *,
        of: Vlm = engine,
        batch_tokens: int = 4096,
        **settings: Any,
    ) -> Scorer:
        table = TurnTable(of)
        table.add_demos(demos)
        table.add_questions(questions)
        return Scorer(table, batch_tokens, **{"max_new_tokens": 4} | settings)

    return make
