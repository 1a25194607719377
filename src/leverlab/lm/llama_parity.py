"""Whether an exported language model says in llama.cpp what the checkpoint says in transformers, in float32.

As `leverlab.deploy.parity`, whose words and figures these are, for prompts that are dialogues up to a turn: token ids.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from leverlab.deploy.parity import MARGIN, Parity, Reference, _parity, _places, _Row
from leverlab.lm.llama import TextLlamaCpp, say_turn
from leverlab.lm.rollouts import Rollout
from leverlab.vlm.model import GREEDY


def turn_prompts(rollouts: Iterable[Rollout]) -> list[list[int]]:
    """Return what stands before each turn of the policy: token ids, in the order of dialogues and their turns."""
    prompts = []
    for rollout in rollouts:
        before = [False, *rollout.own]
        for at, (earlier, own) in enumerate(zip(before, rollout.own, strict=False)):
            if own and not earlier:
                prompts.append([*rollout.prompt, *rollout.completion[:at]])
    return prompts


@torch.no_grad()
def references(model: Any, eos: int, prompts: Iterable[Sequence[int]], most: int) -> list[Reference]:
    """Return the greedy turn of `model`, a causal language model of transformers in float32, after each prompt.

    eos: the only token that ends a turn. most: tokens of a turn.
    """
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=model.device)
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **GREEDY,
            eos_token_id=eos,
            pad_token_id=eos,
            max_new_tokens=most,
            output_logits=True,
            return_dict_in_generate=True,
        )
        log_probs_TV = torch.cat(said.logits).double().log_softmax(-1).cpu().numpy()
        found.append(Reference(len(prompt), tuple(said.sequences[0, len(prompt) :].tolist()), log_probs_TV))
    return found


def parity(
    runtime: TextLlamaCpp,
    eos: int,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[Reference],
    most: int,
    likeliest: int,
) -> Parity:
    """Return how far llama.cpp's turns are from the `expected` ones, over all prompts; its figures are in `Parity`.

    There an answer is a turn. eos, most: as for `references`. likeliest: how many tokens of each distribution are
    compared, the most probable ones of llama.cpp; all of them if it is the size of the vocabulary or more.
    Raises `LlamaCppError` when the runtime fails.
    """
    rows = []
    for prompt, reference in zip(prompts, expected, strict=True):
        said = say_turn(runtime, prompt, eos, most, likeliest)
        margin = float(np.diff(np.sort(reference.log_probs_TV, axis=1)[:, -2:]).min())
        rows.append(
            _Row(
                said.prompt_tokens == reference.prompt_tokens,
                said.ids == reference.ids,
                margin >= MARGIN,
                _places(reference, said.ids, said.top),
            )
        )
    return _parity(rows)
