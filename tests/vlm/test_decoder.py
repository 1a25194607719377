"""The lean decoder against transformers' own language model."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from leverlab.errors import LeverlabError
from leverlab.vlm.decoder import Decoder, select_rows
from leverlab.vlm.model import Vlm

LENGTHS = (11, 7, 9)


@pytest.fixture(scope="module", params=[4, 2, 1])
def model(request: pytest.FixtureRequest, vlm: Vlm) -> Any:
    """A model whose 4 heads share 4, 2 or 1 key-value heads; 4 has as many as the pipeline's own VLM."""
    config = copy.deepcopy(vlm.model.config)
    config.text_config.num_key_value_heads = request.param
    torch.manual_seed(1)
    model: Any = Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.model.language_model.parameters():
        parameter.copy_(torch.randn_like(parameter) / (parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 3))
    return model


@pytest.fixture(scope="module")
def batch(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (3, 11, width), rotary positions that are not the token index on any axis, and the real length."""
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(len(LENGTHS), max(LENGTHS), model.config.text_config.hidden_size, generator=generator)
    positions = torch.arange(max(LENGTHS)).repeat(3, len(LENGTHS), 1)
    positions[1] = positions[1] // 2
    positions[2] = positions[2] * 2 + 1
    return embeds, positions, torch.tensor(LENGTHS)


def causal(lengths: Tensor, width: int) -> Tensor:
    column = torch.arange(width)
    return (column[None, :] <= column[:, None])[None] & (column[None, None, :] < lengths[:, None, None])


def reference(model: Any, embeds: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
    mask = (torch.arange(embeds.shape[1])[None, :] < lengths[:, None]).long()
    output = model.model.language_model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask)
    return output.last_hidden_state


def test_a_padded_batch_gives_the_librarys_hidden_states(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    embeds, positions, lengths = batch
    wanted = reference(model, embeds, positions, lengths)
    hidden, known = Decoder(model).run(embeds, positions, causal(lengths, embeds.shape[1]), None)
    real = torch.arange(embeds.shape[1])[None, :] < lengths[:, None]
    torch.testing.assert_close(hidden[real], wanted[real], rtol=0, atol=1e-5)
    heads = model.config.text_config.num_key_value_heads
    assert [tuple(key.shape) for key, _ in known] == [(3, heads, 11, 32)] * 4
    moved = reference(model, embeds, positions.roll(1, 0), lengths)
    assert (moved - wanted)[real].abs().max() > 1e-2  # the three rotary axes matter, so swapping them would show


def test_only_the_columns_read_are_computed_and_they_are_the_same(
    model: Any, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    embeds, positions, lengths = batch
    sees = causal(lengths, embeds.shape[1])
    decoder = Decoder(model)
    everywhere, _ = decoder.run(embeds, positions, sees, None)
    read = torch.tensor([[10, 0, 4], [6, 6, 1], [8, 2, 3]])
    hidden, _ = decoder.run(embeds, positions, sees, read)
    torch.testing.assert_close(hidden, everywhere[torch.arange(3)[:, None], read], rtol=0, atol=1e-5)


def test_a_past_continues_as_one_forward_would(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """The first five columns are computed before, for rows in another order and one of them twice; the rest reads
    them."""
    embeds, positions, _ = batch
    lengths = torch.tensor([11, 11, 11])
    wanted = reference(model, embeds, positions, lengths)
    sees = causal(lengths, 11)
    decoder = Decoder(model)
    _, known = decoder.run(embeds[:, :5], positions[:, :, :5], sees[:, :5, :5], None)
    rows = torch.tensor([2, 0, 2])
    read = torch.tensor([[5, 0], [3, 1], [2, 4]])
    hidden, both = decoder.run(embeds[rows, 5:], positions[:, rows, 5:], sees[rows, 5:], read, select_rows(known, rows))
    torch.testing.assert_close(hidden, wanted[rows[:, None], read + 5], rtol=0, atol=1e-5)
    assert both[0][0].shape[2] == 11


def test_logits_are_the_heads_in_float32(model: Any) -> None:
    hidden = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
    logits = Decoder(model).logits(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, hidden @ model.lm_head.weight.T, rtol=0, atol=1e-5)


def test_fused_weights_share_memory_with_the_models_own(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """The model's parameters become views of the fused ones, so a write to either is seen by both; values stay."""
    model = copy.deepcopy(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    decoder = Decoder(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    for layer, fused in zip(model.model.language_model.layers, decoder._layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        for whole, parts in (
            (fused.qkv_weight, (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)),
            (fused.qkv_bias, (attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias)),
            (fused.gate_up_weight, (mlp.gate_proj.weight, mlp.up_proj.weight)),
        ):
            start = whole.data_ptr()
            for part in parts:
                assert part.data_ptr() == start
                start += part.numel() * part.element_size()
            assert start == whole.data_ptr() + whole.numel() * whole.element_size()
        assert fused.out_weight is attention.o_proj.weight
        assert fused.down_weight is mlp.down_proj.weight
    embeds, positions, lengths = batch
    model.model.language_model.layers[0].self_attn.v_proj.weight.data.mul_(2)
    hidden, _ = decoder.run(embeds, positions, causal(lengths, 11), None)
    torch.testing.assert_close(hidden[0], reference(model, embeds, positions, lengths)[0], rtol=0, atol=1e-5)


def test_other_architectures_and_sliding_windows_are_refused(vlm: Vlm) -> None:
    with pytest.raises(LeverlabError, match="without sliding windows, not SimpleNamespace"):
        Decoder(SimpleNamespace(model=vlm.model.model))
    config = copy.deepcopy(vlm.model.config)
    config.text_config.use_sliding_window = True
    config.text_config.sliding_window = 4
    config.text_config.layer_types = ["full_attention", *["sliding_attention"] * 3]
    with pytest.raises(LeverlabError, match="without sliding windows"):
        Decoder(Qwen2_5_VLForConditionalGeneration(config))
