"""Turns as tensors: every demo and question embedded once, packed into rows of a batch by index.

A row holds the turns of a trie: the head, demos, and then several *leaves*, copies of the question turn. Each turn
stands behind another one and sees that one, all that it stands behind, and itself. So one row scores all prefixes of
its lists, and no turn is computed twice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.vlm.model import Vlm
from leverlab.vlm.prompt import PromptFormat, expand_images
from leverlab.vlm.vision import encode_images

Ints = NDArray[np.int64]
PADDING = -1
NO_TURN = -1
HEAD = 0  # turn of the prompt's head


@dataclass(frozen=True)
class Rows:
    """Packed rows: R rows of T tokens; S turns a row."""

    tokens_RT: Tensor  # index into the table's embeddings
    positions_3RT: Tensor  # rotary positions
    turn_RT: Tensor  # which of the S turns a token belongs to, PADDING behind the row's end
    sees_RSS: Tensor  # whether a turn stands behind another one; besides, a token sees its own turn up to itself
    starts_RS: Ints  # column of each turn's first token
    ends_RS: Ints  # rotary position behind each turn


@dataclass(frozen=True)
class _Turn:
    start: int
    length: int
    extent: int


class TurnTable:
    """The embedded turns of demos and questions. Examples are added once and known by their id from then on."""

    def __init__(self, vlm: Vlm):
        self.vlm = vlm
        self.format = PromptFormat(vlm.processor)
        self._embeds: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._size = 0
        self._turns: list[_Turn] = []
        self._joined: tuple[Tensor, Tensor] | None = None
        self._columns: Ints | None = None
        self._demo: dict[str, int] = {}
        self._question: dict[str, int] = {}
        self._contents: list[bytes] = []
        self.answer_ids: dict[str, tuple[int, ...]] = {}
        self.end_id: dict[str, int] = {}
        self._add(self.format.head_ids, None, None)  # HEAD

    def add_demos(self, examples: Sequence[Example], batch: int = 256) -> None:
        """Embed `examples` as demos; those already known are skipped."""
        self._add_all([example for example in examples if example.id not in self._demo], as_demos=True, batch=batch)

    def add_questions(self, examples: Sequence[Example], batch: int = 256) -> None:
        """Embed `examples` as questions, with their reference answers; those already known are skipped."""
        self._add_all(
            [example for example in examples if example.id not in self._question], as_demos=False, batch=batch
        )

    def demo(self, identifier: str) -> int:
        """Return the turn of a demo. Raises `LeverlabError` for an id that was never added."""
        return _known(self._demo, identifier, "demo")

    def question(self, identifier: str) -> int:
        """Return the turn of a question. Raises `LeverlabError` for an id that was never added."""
        return _known(self._question, identifier, "question")

    def length(self, turn: int) -> int:
        """Return the number of tokens of a turn."""
        return self._turns[turn].length

    def content(self, turn: int) -> bytes:
        """Return a digest of all that the VLM sees of a turn.

        It is taken of the embedded turn, not of the example: the last bits of an image's features depend on which
        images were encoded with it, and a score must not be found under features that would have given another.
        """
        return self._contents[turn]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return embeddings (tokens, width) and relative rotary positions (3, tokens) of all turns."""
        if self._joined is None:
            self._embeds, self._positions = [torch.cat(self._embeds)], [torch.cat(self._positions, dim=1)]
            self._joined = (self._embeds[0], self._positions[0])
        return self._joined

    def _turn_columns(self) -> Ints:
        """Return start, length and extent of all turns, (turns + 1, 3); the last row is that of NO_TURN."""
        if self._columns is None:
            rows = [(turn.start, turn.length, turn.extent) for turn in self._turns]
            self._columns = np.array([*rows, (0, 0, 0)], np.int64)
        return self._columns

    def pack(self, turns_RS: Ints, parents_RS: Ints, offset_R: Ints | None = None) -> Rows:
        """Return packed rows of turns.

        `turns_RS` holds turns of this table, and NO_TURN where a row has fewer; `parents_RS` the column of `turns_RS`,
        an earlier one, of the turn that each stands behind, and NO_TURN for the first of a row. `offset_R` is the
        rotary position at which rows begin, for those whose beginnings were computed before.
        """
        rows, turn_count = turns_RS.shape
        start_RS, length_RS, extent_RS = (self._turn_columns()[turns_RS, column] for column in range(3))
        base_RS, ends_RS = np.zeros_like(turns_RS), np.zeros_like(turns_RS)
        sees_RSS = np.zeros((rows, turn_count, turn_count), bool)
        everyone = np.arange(rows)
        for turn in range(turn_count):
            parent_R = parents_RS[:, turn]
            behind_R = parent_R != NO_TURN
            base_RS[:, turn] = np.where(behind_R, ends_RS[everyone, parent_R], 0 if offset_R is None else offset_R)
            ends_RS[:, turn] = base_RS[:, turn] + extent_RS[:, turn]
            sees_RSS[:, turn] = sees_RSS[everyone, parent_R] & behind_R[:, None]
            sees_RSS[everyone[behind_R], turn, parent_R[behind_R]] = True

        flat_length = length_RS.ravel()
        which = np.repeat(np.arange(rows * turn_count), flat_length)  # flat turn of every token, row by row
        within = np.arange(len(which)) - np.repeat(np.cumsum(flat_length) - flat_length, flat_length)
        starts_RS = np.cumsum(length_RS, axis=1) - length_RS
        row, turn_of = which // turn_count, which % turn_count
        column = starts_RS.ravel()[which] + within
        width = int(length_RS.sum(axis=1).max())
        tokens, turns, positions = (np.full((rows, width), value, np.int64) for value in (0, PADDING, 0))
        tokens[row, column] = start_RS.ravel()[which] + within
        turns[row, column] = turn_of
        positions[row, column] = base_RS.ravel()[which]
        device = self.vlm.device
        tokens_RT, base_RT = torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device)
        positions_3RT = self.tensors()[1][:, tokens_RT] + base_RT
        return Rows(
            tokens_RT,
            positions_3RT,
            torch.from_numpy(turns).to(device),
            torch.from_numpy(sees_RSS).to(device),
            starts_RS,
            ends_RS,
        )

    def _add_all(self, examples: Sequence[Example], as_demos: bool, batch: int) -> None:
        for start in range(0, len(examples), batch):
            part = examples[start : start + batch]
            inputs = self.vlm.processor.image_processor([example.open_image() for example in part], return_tensors="pt")
            grids = inputs["image_grid_thw"].to(self.vlm.device)
            with torch.no_grad():
                features = encode_images(self.vlm.model, inputs["pixel_values"].to(self.vlm.device), grids)
            for example, feature, grid in zip(part, features, grids, strict=True):
                if as_demos:
                    self._demo[example.id] = self._add(self.format.demo_ids(example), feature, grid)
                    continue
                turn = self.format.question_turn(example)
                self.answer_ids[example.id], self.end_id[example.id] = turn.answer_ids, turn.end_id
                self._question[example.id] = self._add((*turn.ids, *turn.answer_ids), feature, grid)

    def _add(self, ids: Sequence[int], feature: Tensor | None, grid: Tensor | None) -> int:
        image_id = self.vlm.model.config.image_token_id
        ids = expand_images(ids, image_id, [] if feature is None else [len(feature)])
        row = torch.tensor([ids], dtype=torch.long, device=self.vlm.device)
        is_image = row == image_id
        if len(ids):
            positions, _ = self.vlm.model.model.get_rope_index(
                row, is_image.int(), image_grid_thw=None if grid is None else grid[None]
            )
        else:
            positions = torch.zeros(3, 1, 0, dtype=torch.long, device=self.vlm.device)
        with torch.no_grad():
            embeds = self.vlm.embed_tokens(row)[0].clone()
        if feature is not None:
            embeds[is_image[0]] = feature.to(embeds.dtype)
        self._turns.append(_Turn(self._size, len(ids), int(positions.max()) + 1 if len(ids) else 0))
        self._embeds.append(embeds)
        self._positions.append(positions[:, 0])
        self._contents.append(hashlib.sha256(repr(ids).encode() + embeds.float().cpu().numpy().tobytes()).digest())
        self._joined, self._columns, self._size = None, None, self._size + len(ids)
        return len(self._turns) - 1


def _known(turns: dict[str, int], identifier: str, kind: str) -> int:
    try:
        return turns[identifier]
    except KeyError:
        raise LeverlabError(
            f"the {kind} '{identifier}' is not among the {len(turns)} known ones; "
            "the file that names it was made for another pool: run dvc repro"
        ) from None
