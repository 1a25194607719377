"""Dialogues held turn by turn, with any engine that completes prompts: vLLM, or the `generate` of transformers.

The way for engines whose cache is their own. Each turn is asked for with all that stands before it, for every dialogue
that goes on, and the longest turn is waited for; `lm.rollouts.roll_out` does neither.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import reply
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Growing, Limits, Rollout, left_padded

Said = tuple[list[int], list[float]]  # new tokens, the one that ends a turn among them, and their log-probabilities
Say = Callable[[list[list[int]]], list[Said]]  # token ids of dialogues → what the policy says next in each


def roll_out_by_turns(
    say: Say,
    chat: Chat,
    questions: Sequence[Question],
    copies: int,
    limits: Limits,
    user: Callable[[Question, str], str] = reply,
) -> list[Rollout]:
    """Return `copies` rollouts of every question, copies side by side: what `roll_out` gives for a greedy `say`.

    A turn that `say` leaves open (it may stop at other tokens than the one that ends turns here) is asked for again;
    what it says beyond the end of a turn, or beyond `limits.tokens`, is not taken. Raises `LeverlabError` when it says
    nothing, or its log-probabilities are no numbers.
    """
    prompts = [chat.prompt(question.text) for question in questions]
    asked = zip(questions, prompts, strict=True)
    rows = [Growing(question, prompt, chat, limits, user) for question, prompt in asked for _ in range(copies)]
    while live := [row for row in rows if row.end is None]:
        for row, said in zip(live, say([row.prompt + row.completion for row in live]), strict=True):
            _take(row, said)
    return [row.rollout() for row in rows]


def _take(row: Growing, said: Said) -> None:
    """Add what was said, up to the end of the turn, and what the user replies."""
    name, length = row.question.id, len(row.prompt) + len(row.completion)
    if not said[0]:
        raise LeverlabError(
            f"the engine said nothing after {length} tokens of the dialogue on question '{name}'; let it take longer "
            "prompts, or lower dialogues.turns or dialogues.tokens"
        )
    for token, logp in zip(*said, strict=True):
        if not math.isfinite(logp):
            raise LeverlabError(
                f"the log-probability of a token in the dialogue on question '{name}' is {logp}; the policy's weights "
                "are broken: train again, slower"
            )
        row.next(token, logp)
        if row.end is not None or row.due:
            break
    while row.due:
        row.next(row.chat.pad, 0.0)


def generate_engine(model: Any, chat: Chat, limits: Limits, temperature: float) -> Say:
    """Return transformers' `generate` as an engine, used as TRL's `GRPOTrainer` does: prompts padded on the left, the
    whole dialogue read again each turn.

    temperature: 0 takes the most probable token; else torch's global generator draws.
    """
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = GenerationConfig(
        max_new_tokens=limits.tokens,
        eos_token_id=chat.eos,
        pad_token_id=chat.pad,
        return_dict_in_generate=True,
        output_scores=True,
        disable_compile=True,
        **({"do_sample": False} | drawn),
    )

    @torch.no_grad()
    def say(prompts: list[list[int]]) -> list[Said]:
        ids_BP, mask_BP = left_padded(prompts, chat.pad, model.device)
        out = model.generate(input_ids=ids_BP, attention_mask=mask_BP, generation_config=settings)
        token_BT = out.sequences[:, ids_BP.shape[1] :]
        logp_TB = [
            torch.log_softmax(score_BV.float(), -1).gather(1, token_B[:, None])[:, 0]
            for score_BV, token_B in zip(out.scores, token_BT.T, strict=True)
        ]
        said = zip(token_BT.tolist(), torch.stack(logp_TB, 1).tolist(), strict=True)
        return [_until(chat.eos, tokens, logps) for tokens, logps in said]

    return say


def _until(eos: int, tokens: list[int], logps: list[float]) -> Said:
    """Return what was said up to the end of the turn, without the padding after it."""
    count = tokens.index(eos) + 1 if eos in tokens else len(tokens)
    return tokens[:count], logps[:count]


def vllm_engine(generation: Any) -> Say:
    """Return TRL's `VLLMGeneration` (TRL 1.16) as an engine; temperature and most tokens are those it was made with.

    Its weights are those of the last `sync_weights`. Not for its mode `server`, where all processes must ask equally
    often: dialogues of one process may take more turns than those of another.
    """

    def say(prompts: list[list[int]]) -> list[Said]:
        _, tokens, logps, _ = generation.generate(prompts=prompts, images=None, num_generations=1, profiler=None)
        # of each token a list, of which the one that was drawn is the only member; None is what was no number
        return [
            (list(ids), [math.nan if first is None else first for first, *_ in of_tokens])
            for ids, of_tokens in zip(tokens, logps, strict=True)
        ]

    return say
