"""Adapters inside the weights for a while: the same policy, and every byte as before."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import weights_digest
from leverlab.lm.folding import folded
from leverlab.lm.rollouts import Limits, roll_out
from tests.lm.scripted import question
from tests.lm.test_adapters import IDS, logits, moved
from tests.lm.training_runs import CHAT, base


def test_folded_says_the_same_and_leaves_every_byte() -> None:
    """Also after an error; and gradients reach the adapter afterwards."""
    policy = moved(base())
    before, said = weights_digest(policy), logits(policy)
    calls = []
    for layer in policy.modules():
        if hasattr(layer, "lora_A"):
            layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    with folded(policy):
        assert weights_digest(policy) != before
        torch.testing.assert_close(logits(policy), said, rtol=1e-4, atol=1e-5)
        assert not calls
    with pytest.raises(ZeroDivisionError), folded(policy):
        raise ZeroDivisionError
    assert weights_digest(policy) == before
    assert torch.equal(logits(policy), said)
    assert calls
    policy(IDS).logits.sum().backward()
    assert all(bool(one.grad.any()) for name, one in policy.named_parameters() if "lora_A" in name)
    with folded(policy.get_base_model()):
        pass


def test_an_adapter_of_no_numbers_is_not_folded() -> None:
    policy = moved(base())
    before = weights_digest(policy)
    names = [name for name, _ in policy.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        kept = policy.get_parameter(names[-1]).clone()
        policy.get_parameter(names[-1])[0, 0] = float("nan")
    with pytest.raises(LeverlabError, match="no numbers"), folded(policy):
        pytest.fail("it was folded")
    with torch.no_grad():
        policy.get_parameter(names[-1]).copy_(kept)
    assert weights_digest(policy) == before


def test_several_adapters_at_once_and_none() -> None:
    """Of two that are active both are folded; of one that is disabled nothing is, nor of one that is merged already."""
    policy = moved(base())
    policy.add_adapter("other", policy.peft_config["default"])
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B.other" in name:
                weight.normal_(std=0.2)
    policy.base_model.set_adapter(["default", "other"])
    before, said = weights_digest(policy), logits(policy)
    with folded(policy):
        torch.testing.assert_close(logits(policy), said, rtol=1e-4, atol=1e-5)
    assert weights_digest(policy) == before
    with policy.disable_adapter():
        plain = logits(policy)
        with folded(policy):
            assert torch.equal(logits(policy), plain)
    policy.merge_adapter()
    merged = weights_digest(policy)
    with folded(policy):
        assert weights_digest(policy) == merged
    assert all(one.merged for one in policy.modules() if hasattr(one, "merged_adapters"))


def test_coarse_and_shared_weights_stay() -> None:
    """bfloat16 does not tell apart what a young adapter adds; a head that is the embedding is not its own."""
    coarse = base()
    coarse.model.to(torch.bfloat16)
    policy = moved(coarse)
    before = weights_digest(policy)
    with folded(policy):
        assert weights_digest(policy) == before
    tied = base().model
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    policy = get_peft_model(tied, LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    said = logits(policy)
    with folded(policy):
        torch.testing.assert_close(logits(policy), said, rtol=1e-4, atol=1e-5)
        assert [one.merged for one in policy.modules() if hasattr(one, "merged_adapters")].count(False) == 1


def test_rollouts_fold_unless_told_not_to() -> None:
    """As the proof of a merge must not, which would else hold what is merged against itself."""
    policy, heard = moved(base()), []
    for layer in policy.modules():
        if hasattr(layer, "lora_A"):
            layer.lora_A["default"].register_forward_hook(lambda *_: heard.append(1))
    roll_out(policy, CHAT, [question()], 1, Limits(1, 3), 0.0)
    assert not heard
    roll_out(policy, CHAT, [question()], 1, Limits(1, 3), 0.0, fold=False)
    assert heard
