"""Dialogues of several turns from a policy and a simulated user, all in one batch with a cache of keys and values.

A step feeds one token of every dialogue: the one that was sampled, or the next one of the user's reply. So no dialogue
waits for another to end its turn, no turn reads again what was read, and prompts are read once for all their copies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import Dialogue, End, reply
from leverlab.lm.questions import Question
from leverlab.lm.turns import Turn, parse_turn

_SHRINK = 0.75  # dialogues that have ended leave the batch when no more than this share goes on
_ROOM = 32  # tokens for which a cache that is full makes room


@dataclass(frozen=True)
class Rollout:
    """A dialogue and its tokens.

    completion: everything after the prompt. own: for each of its tokens whether the policy said it. logps: for each of
    its tokens the log-probability, at the temperature it was sampled with; 0 for the user's.
    """

    dialogue: Dialogue
    prompt: list[int]
    completion: list[int]
    own: list[bool]
    logps: list[float]

    @property
    def confidence(self) -> float:
        """The geometric mean of the probabilities of the policy's tokens."""
        return min(1.0, math.exp(sum(self.logps) / sum(self.own)))


@dataclass(frozen=True)
class Limits:
    """At most so many turns of the policy, of at most so many tokens."""

    turns: int
    tokens: int


@torch.no_grad()
def roll_out(
    model: Any,
    chat: Chat,
    questions: Sequence[Question],
    copies: int,
    limits: Limits,
    temperature: float,
    generator: torch.Generator | None = None,
    user: Callable[[Question, str], str] = reply,
) -> list[Rollout]:
    """Return `copies` rollouts of every question, copies side by side.

    model: a causal language model of transformers. temperature: 0 takes the most probable token; else `generator` (or
    torch's own) draws. Raises `LeverlabError` when the model gives log-probabilities that are no numbers.
    """
    if not questions:
        return []
    prompts = [chat.prompt(question.text) for question in questions]
    rows = [
        Growing(q, ids, chat, limits, user) for q, ids in zip(questions, prompts, strict=True) for _ in range(copies)
    ]
    ids_BP, mask_BP = left_padded(prompts, chat.pad, model.device)
    out = model(
        input_ids=ids_BP,
        attention_mask=mask_BP,
        position_ids=(mask_BP.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache, logits_BV = out.past_key_values, out.logits[:, -1].repeat_interleave(copies, 0)
    cache.batch_repeat_interleave(copies)
    _give_room(cache)
    mask_BT = mask_BP.repeat_interleave(copies, 0)
    position_B = mask_BT.sum(1)
    live = rows
    while True:
        tokens, logps = _sample(logits_BV, temperature, generator)
        fed = [row.next(token, logp) for row, token, logp in zip(live, tokens, logps, strict=True)]
        going = [n for n, row in enumerate(live) if row.end is None]
        if not going:
            return [row.rollout() for row in rows]
        if len(going) <= _SHRINK * len(live):
            kept = torch.tensor(going, device=mask_BT.device)
            cache.batch_select_indices(kept)
            live, fed = [live[n] for n in going], [fed[n] for n in going]
            mask_BT, position_B = mask_BT[kept], position_B[kept]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(live), 1)], 1)
        out = model(
            input_ids=torch.tensor(fed, device=mask_BT.device)[:, None],
            attention_mask=mask_BT,
            position_ids=position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits_BV, position_B = out.logits[:, -1], position_B + 1


@dataclass
class Growing:
    """A dialogue while it grows, token by token; `end` says how it ended, once it has."""

    question: Question
    prompt: list[int]
    chat: Chat
    limits: Limits
    user: Callable[[Question, str], str]
    completion: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    said: list[int] = field(default_factory=list)  # of the turn that is being said
    due: list[int] = field(default_factory=list)  # tokens of the user that were not fed yet, the last one first
    end: End | None = None

    def next(self, token: int, logp: float) -> int:
        """Return the token to feed next, where `token` was sampled; what is fed after the end does not matter."""
        if self.end is not None:
            return self.chat.pad
        if self.due:
            return self._add(self.due.pop(), False, 0.0)
        self._add(token, True, logp)
        if token != self.chat.eos:
            self.said.append(token)
            if len(self.said) == self.limits.tokens:
                self._close("cut")
            return token
        turn = self._close(None)
        if turn.final is not None:
            self.end = "final"
        elif turn.ask is None:
            self.end = "unparsed"
        elif len(self.turns) == self.limits.turns:
            self.end = "turns"
        else:
            self.replies.append(self.user(self.question, turn.ask))
            self.due = self.chat.reply(self.replies[-1])[::-1]
        return token

    def _add(self, token: int, own: bool, logp: float) -> int:
        self.completion.append(token)
        self.own.append(own)
        self.logps.append(logp)
        return token

    def _close(self, end: End | None) -> Turn:
        turn = parse_turn(self.chat.text(self.said))
        if end == "cut":  # a turn that did not end says nothing, whatever it holds
            turn = Turn(turn.text, None, None, False)
        self.turns.append(turn)
        self.said, self.end = [], end
        return turn

    def rollout(self) -> Rollout:
        """Return the dialogue that has ended."""
        assert self.end is not None
        dialogue = Dialogue(self.question, tuple(self.turns), tuple(self.replies), self.end)
        return Rollout(dialogue, self.prompt, self.completion, self.own, self.logps)


class _RoomyLayer(DynamicLayer):
    """The keys and values of a layer, with room for more: transformers' own copies all of them for every token."""

    def __init__(self, keys: Tensor, values: Tensor):
        """Take those of the tokens so far, (dialogues, heads, tokens, width of a head)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self._wide, self._length = [keys, values], keys.shape[-2]
        self._narrow()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, and return all."""
        first, self._length = self._length, self._length + key_states.shape[-2]
        for n, new in enumerate((key_states, value_states)):
            wide = self._wide[n]
            if self._length > wide.shape[-2]:
                size = (*wide.shape[:-2], new.shape[-2] + _ROOM, wide.shape[-1])
                wide = self._wide[n] = torch.cat([wide[..., :first, :], wide.new_empty(size)], -2)
            wide[..., first : self._length, :] = new
        return self._narrow()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep those of some dialogues."""
        self._wide = [wide[indices] for wide in self._wide]
        self._narrow()

    def _narrow(self) -> tuple[Tensor, Tensor]:
        keys, values = (wide[..., : self._length, :] for wide in self._wide)
        self.keys, self.values = keys, values
        return keys, values


def _give_room(cache: Any) -> None:
    """Put layers with room in the place of those that keep all they are given, and know nothing else."""
    for n, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[n] = _RoomyLayer(layer.keys, layer.values)


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and their mask, (prompts, longest), with `pad` before the shorter ones."""
    length = max(map(len, prompts))
    ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _sample(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[list[int], list[float]]:
    logp_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), -1)
    if bool(logp_BV.isnan().any()):
        raise LeverlabError(
            "the policy's log-probabilities are no numbers; its weights are broken: train again, slower"
        )
    if temperature:  # one random number a dialogue, where `multinomial` draws one a word of the vocabulary
        up_to_BV = logp_BV.exp().cumsum(-1, dtype=torch.float64)
        drawn_B1 = torch.rand(len(up_to_BV), 1, generator=generator, dtype=torch.float64, device=up_to_BV.device)
        token_B1 = (up_to_BV <= drawn_B1 * up_to_BV[:, -1:]).sum(-1, keepdim=True)
    else:
        token_B1 = logp_BV.argmax(-1, keepdim=True)
    return token_B1[:, 0].tolist(), logp_BV.gather(1, token_B1)[:, 0].tolist()
