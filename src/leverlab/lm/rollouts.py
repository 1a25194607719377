"""Dialogues of several turns from a policy and a simulated user, all in one batch with a cache of keys and values.

A step feeds one token of every dialogue: the one that was sampled, or the next one of the user's reply. So no dialogue
waits for another to end its turn, and no turn reads again what was read. Copies of a question are one row of the batch,
a stem, until they are fed different tokens: of what they have in common nothing is computed twice. A policy that is
sure of most of its tokens so does a fraction of the work.

Axes: S stems, L dialogues that go on, T tokens so far, V words of the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import Dialogue, End, reply
from leverlab.lm.folding import folded
from leverlab.lm.questions import Question
from leverlab.lm.turns import Turn, parse_turn

_ROOM = 32  # tokens for which a cache that is full makes room
_MORE_ROWS = 1.5  # times the rows that a cache needs is what it makes room for


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


def roll_out(
    model: Any,
    chat: Chat,
    questions: Sequence[Question],
    copies: int,
    limits: Limits,
    temperature: float,
    generator: torch.Generator | None = None,
    user: Callable[[Question, str], str] = reply,
    fold: bool = True,
) -> list[Rollout]:
    """Return `copies` rollouts of every question, copies side by side.

    model: a causal language model of transformers, or one with adapters, which are `folded` in meanwhile where they can
    be; not with `fold` false. temperature: 0 takes the most probable token; else `generator` (or torch's own) draws.
    Raises `LeverlabError` when the model gives log-probabilities that are no numbers.
    """
    if not questions or not copies:
        return []
    with folded(model) if fold else nullcontext(), torch.inference_mode():
        return _hold(model, chat, questions, copies, limits, temperature, generator, user)


def _hold(
    model: Any,
    chat: Chat,
    questions: Sequence[Question],
    copies: int,
    limits: Limits,
    temperature: float,
    generator: torch.Generator | None,
    user: Callable[[Question, str], str],
) -> list[Rollout]:
    prompts = [chat.prompt(question.text) for question in questions]
    rows = [
        Growing(q, ids, chat, limits, user) for q, ids in zip(questions, prompts, strict=True) for _ in range(copies)
    ]
    ids_SP, mask_ST = left_padded(prompts, chat.pad, model.device)
    out = model(
        input_ids=ids_SP,
        attention_mask=mask_ST,
        position_ids=(mask_ST.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache, position_S = out.past_key_values, mask_ST.sum(1)
    _give_room(cache, len(rows))
    stem_of = {n: n // copies for n in range(len(rows))}  # dialogue that goes on → its stem
    while True:
        tokens, logps = _sample(out.logits[:, -1], list(stem_of.values()), temperature, generator)
        parts: dict[tuple[int, int], list[int]] = {}  # stem and token to feed next → dialogues
        for (n, stem), token, logp in zip(stem_of.items(), tokens, logps, strict=True):
            fed = rows[n].next(token, logp)
            if rows[n].end is None:
                parts.setdefault((stem, fed), []).append(n)
        if not parts:
            return [row.rollout() for row in rows]
        placed = _placed(list(parts))
        stem_of = {n: place for place, part in enumerate(placed) for n in parts[part]}
        if (parents := [stem for stem, _ in placed]) != list(range(len(mask_ST))):
            parent_S = torch.tensor(parents, device=mask_ST.device)
            cache.reorder_cache(parent_S)
            mask_ST, position_S = mask_ST[parent_S], position_S[parent_S]
        mask_ST = torch.cat([mask_ST, mask_ST.new_ones(len(placed), 1)], 1)
        out = model(
            input_ids=torch.tensor([[fed] for _, fed in placed], device=mask_ST.device),
            attention_mask=mask_ST,
            position_ids=position_S[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        position_S = position_S + 1


def _placed(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (stem, token) of each stem to be, in an order in which as few as can be change their place in the cache.

    One part of a stem keeps its place; the others, and those of places beyond the end, fill what is free.
    """
    placed: dict[int, tuple[int, int]] = {}
    moved = [part for part in parts if part[0] >= len(parts) or placed.setdefault(part[0], part) is not part]
    others = iter(moved)
    return [placed.get(place) or next(others) for place in range(len(parts))]


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
        """Return the token to feed next, where `token` was sampled; after the end nothing is fed."""
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
            turn = Turn(turn.text)
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

    def __init__(self, keys: Tensor, values: Tensor, most: int):
        """Take those of the tokens so far, (rows, heads, tokens, width of a head). most: rows that there may be."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self._wide, self._rows, self._length = [keys, values], keys.shape[0], keys.shape[-2]
        self._most = most
        self._narrow()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, and return all."""
        first, self._length = self._length, self._length + key_states.shape[-2]
        for n, new in enumerate((key_states, value_states)):
            if self._length > self._wide[n].shape[-2]:  # rows that nobody needs any more are left behind
                self._wide[n] = _longer(self._wide[n][: self._rows], 2, self._length + _ROOM)
            self._wide[n][: self._rows, :, first : self._length] = new
        return self._narrow()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx`, one as often as it is named; a row that keeps its place costs nothing."""
        rows = len(beam_idx)
        place = torch.arange(rows, device=beam_idx.device)
        moved = place[beam_idx != place]
        for n, wide in enumerate(self._wide):
            if rows > len(wide):
                self._wide[n] = _longer(wide, 0, min(self._most, math.ceil(_MORE_ROWS * rows)))
            self._wide[n][moved, :, : self._length] = wide[beam_idx[moved], :, : self._length]
        self._rows = rows
        self._narrow()

    def _narrow(self) -> tuple[Tensor, Tensor]:
        keys, values = (wide[: self._rows, :, : self._length] for wide in self._wide)
        self.keys, self.values = keys, values
        return keys, values


def _longer(values: Tensor, axis: int, length: int) -> Tensor:
    """Return `values` with `length` places along `axis`, the new ones empty."""
    size = list(values.shape)
    size[axis] = length - size[axis]
    return torch.cat([values, values.new_empty(size)], axis)


def _give_room(cache: Any, most: int) -> None:
    """Put layers with room, `most` rows of it, in the place of those that keep all they are given and do no more."""
    for n, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[n] = _RoomyLayer(layer.keys, layer.values, most)


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and their mask, (prompts, longest), with `pad` before the shorter ones."""
    length = max(map(len, prompts))
    ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _sample(
    logits_SV: Tensor, stems: list[int], temperature: float, generator: torch.Generator | None
) -> tuple[list[int], list[float]]:
    """Return a token and its log-probability for each dialogue, from the logits of its stem."""
    logp_SV = torch.log_softmax(logits_SV.float() / (temperature or 1.0), -1)
    if bool(logp_SV.isnan().any()):
        raise LeverlabError(
            "the policy's log-probabilities are no numbers; its weights are broken: train again, slower"
        )
    stem_L = torch.tensor(stems, device=logp_SV.device)
    if temperature:  # one random number a dialogue, where `multinomial` draws one a word of the vocabulary
        up_to_LV = logp_SV.exp().cumsum(-1, dtype=torch.float64)[stem_L]
        drawn_L1 = torch.rand(len(stems), 1, generator=generator, dtype=torch.float64, device=up_to_LV.device)
        token_L = torch.searchsorted(up_to_LV, drawn_L1 * up_to_LV[:, -1:], right=True)[:, 0]
    else:
        token_L = logp_SV.argmax(-1)[stem_L]
    return token_L.tolist(), logp_SV[stem_L, token_L].tolist()
