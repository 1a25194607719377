"""A Qwen3 of less than a million parameters: same classes and file formats as the real ones, small enough for one core.

Widths are multiples of 32, which llama.cpp's quantised types need.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from leverlab.byte_bpe import train_tokenizer
from leverlab.lm.turns import MARKUP

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END, START, STOP, *MARKUP)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (' ' if message['role'] == 'user' else '') }}"
    "{{ message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every word of `texts` with a space before it, every role and every tag is one token.

    The template puts that space before the words of the user, `compose_turn` before those of the policy.
    """
    tokenizer = train_tokenizer(
        [*(f" {text}" for text in texts), "user", "assistant"], SPECIAL_TOKENS, pad=END, eos=STOP
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a randomly initialised model (torch's global generator) for `tokenizer`, in training mode."""
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.train()
