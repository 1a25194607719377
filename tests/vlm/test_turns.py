"""Packing turns into rows, and the tree-shaped mask, against hand-made cases."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from leverlab.vlm.model import Vlm
from leverlab.vlm.scoring import Scorer, _tree_mask
from leverlab.vlm.turns import HEAD, NO_TURN, PADDING, Rows, TurnTable
from leverlab.worlds.world import World

# One row: a head of 1 token (h), demo 1 of 2 (a), demos 2 and 3 of 1 (b, c), each behind demo 1, the leaf behind demo 1
# of 2 (p), the leaf behind demo 3 of 1 (q), padding of 1. A leaf sees what the prompt it stands for holds, and nothing
# of the other leaf or of demos beside its own.
TURNS = [0, 1, 1, 2, 3, 4, 4, 5, PADDING]
SEES = [[], [0], [0, 1], [0, 1], [0, 1], [0, 1, 3]]  # by turn
MASK = """
    h a a b c p p q .
h   1 0 0 0 0 0 0 0 0
a   1 1 0 0 0 0 0 0 0
a   1 1 1 0 0 0 0 0 0
b   1 1 1 1 0 0 0 0 0
c   1 1 1 0 1 0 0 0 0
p   1 1 1 0 0 1 0 0 0
p   1 1 1 0 0 1 1 0 0
q   1 1 1 0 1 0 0 1 0
.   0 0 0 0 0 0 0 0 1
"""


def test_the_tree_mask_is_the_one_written_by_hand() -> None:
    rows = Rows(
        tokens_RT=torch.zeros(1, 9, dtype=torch.long),
        positions_3RT=torch.zeros(3, 1, 9, dtype=torch.long),
        turn_RT=torch.tensor([TURNS]),
        sees_RSS=torch.tensor([[[turn in seen for turn in range(6)] for seen in SEES]]),
        starts_RS=np.zeros((1, 6), np.int64),
        ends_RS=np.zeros((1, 6), np.int64),
    )
    wanted = [[cell == "1" for cell in line.split()[1:]] for line in MASK.strip().splitlines()[1:]]
    assert _tree_mask(rows).tolist() == [wanted]


@pytest.fixture
def table(vlm: Vlm, world: World) -> TurnTable:
    table = TurnTable(vlm)
    table.add_demos(world.pool)
    table.add_questions(world.train)
    return table


def test_a_packed_row_by_hand(table: TurnTable, world: World) -> None:
    """Two demos of lengths a, b and leaves of length q for 0 and 2 shots, behind a head of length 0.

    Starts: head 0, demo 1 at 0, demo 2 at a, leaves at a + b and a + b + q. With an image of one token the rotary
    position is the token index of the prompt that a leaf stands for: the leaf of 0 shots begins at 0, that of 2 at a +
    b.
    """
    by_length = sorted((table.demo(demo.id) for demo in world.pool), key=table.length)
    first, second, question = by_length[0], by_length[-1], table.question("train-00000")
    a, b, q = (table.length(turn) for turn in (first, second, question))
    assert a < b
    rows = table.pack(np.array([[HEAD, first, second, question, question]]), np.array([[NO_TURN, 0, 1, 0, 2]]))
    assert rows.starts_RS.tolist() == [[0, 0, a, a + b, a + b + q]]
    assert rows.ends_RS.tolist() == [[0, a, a + b, q, a + b + q]]
    assert rows.turn_RT.tolist() == [[1] * a + [2] * b + [3] * q + [4] * q]
    assert [np.flatnonzero(seen).tolist() for seen in rows.sees_RSS[0]] == [[], [0], [0, 1], [0], [0, 1, 2]]
    positions = [*range(a + b), *range(q), *range(a + b, a + b + q)]
    assert rows.positions_3RT[:, 0].tolist() == [positions] * 3
    embeds, _ = table.tensors()
    assert torch.equal(embeds[rows.tokens_RT[0, a + b : a + b + q]], embeds[rows.tokens_RT[0, a + b + q :]])
    # a demo is the same tokens wherever it stands
    turned = table.pack(np.array([[HEAD, second, first, question]]), np.array([[NO_TURN, 0, 1, 2]]))
    assert torch.equal(turned.tokens_RT[0, b : a + b], rows.tokens_RT[0, :a])


def test_turns_side_by_side_begin_at_one_position(table: TurnTable, world: World) -> None:
    """Two demos behind the same one, and a question behind each: the second pair is where the first is."""
    first, second, third = (table.demo(demo.id) for demo in world.pool[:3])
    question = table.question("train-00000")
    a, b, c, q = (table.length(turn) for turn in (first, second, third, question))
    turns = np.array([[HEAD, first, second, third, question, question, NO_TURN]])
    rows = table.pack(turns, np.array([[NO_TURN, 0, 1, 1, 2, 3, NO_TURN]]))
    assert rows.ends_RS[0, :6].tolist() == [0, a, a + b, a + c, a + b + q, a + c + q]
    assert rows.turn_RT.tolist() == [[1] * a + [2] * b + [3] * c + [4] * q + [5] * q]
    seen = [np.flatnonzero(turn).tolist() for turn in rows.sees_RSS[0]]
    assert seen == [[], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 3], []]


def test_rows_behind_an_offset_hold_their_own_turns_only(table: TurnTable, world: World) -> None:
    demo, question = table.demo(world.pool[2].id), table.question("train-00001")
    d, q = table.length(demo), table.length(question)
    rows = table.pack(np.array([[demo, question]]), np.array([[NO_TURN, 0]]), np.array([100]))
    assert rows.turn_RT.tolist() == [[0] * d + [1] * q]
    assert rows.positions_3RT[0].tolist() == [list(range(100, 100 + d + q))]
    assert rows.ends_RS.tolist() == [[100 + d, 100 + d + q]]


def test_a_shorter_row_is_padded_at_its_end(table: TurnTable, world: World) -> None:
    by_length = sorted((table.demo(demo.id) for demo in world.pool), key=table.length)
    short, long, question = by_length[0], by_length[-1], table.question("train-00000")
    rows = table.pack(np.array([[short, question], [long, question]]), np.array([[NO_TURN, 0]] * 2))
    gap = table.length(long) - table.length(short)
    assert gap > 0
    assert rows.turn_RT[0, -gap:].tolist() == [PADDING] * gap
    assert PADDING not in rows.turn_RT[0, :-gap]
    assert PADDING not in rows.turn_RT[1]


def test_examples_are_embedded_once(vlm: Vlm, world: World) -> None:
    table = TurnTable(vlm)
    table.add_demos(world.pool, batch=3)
    table.add_questions(world.train[:2])
    size = len(table.tensors()[0])
    table.add_demos(world.pool)
    table.add_questions(world.train[:2])
    assert len(table.tensors()[0]) == size
    table.add_questions(world.train[2:3])
    assert len(table.tensors()[0]) == size + table.length(table.question(world.train[2].id))


def test_turns_added_later_leave_scores_as_they_were(world: World, make_scorer: Callable[..., Scorer]) -> None:
    lists = [tuple(demo.id for demo in world.pool[:4])]
    scorer = make_scorer(world.pool[:4], world.train[:1])
    before = scorer.score([world.train[0].id], lists, range(5)).answer_prob_NM
    scorer.table.add_demos(world.pool)
    assert np.array_equal(scorer.score([world.train[0].id], lists, range(5)).answer_prob_NM, before)
