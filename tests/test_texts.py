"""One form of texts at every door: data, what users type, and what models say."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leverlab.lm.questions import Question, read_questions
from leverlab.lm.turns import parse_turn
from leverlab.records import Example, read_examples
from leverlab.texts import normalised
from tests.pictures import png

COMPOSED, DECOMPOSED = "caf\u00e9 \ub098", "cafe\u0301 \u1102\u1161"


def test_letters_and_their_marks_become_one_character() -> None:
    assert normalised(DECOMPOSED) == COMPOSED
    assert normalised(COMPOSED) == COMPOSED
    assert normalised("\u212b") == "\u00c5"  # the sign for ångström, too
    assert normalised("\ufb01 x\u00b2") == "\ufb01 x\u00b2"  # what only looks alike stays what it is


def test_an_example_is_composed_however_it_is_made() -> None:
    made = Example("a", png(0), "i", DECOMPOSED, DECOMPOSED, (DECOMPOSED, COMPOSED, "other"))
    assert (made.question, made.question_type, made.answers) == (COMPOSED, COMPOSED, (COMPOSED, COMPOSED, "other"))
    assert made.answer == COMPOSED


def test_a_parquet_file_of_examples(tmp_path: Path) -> None:
    row = {"id": "a", "image": {"bytes": png(0), "path": None}, "image_id": "i", "question_type": "t"}
    rows = [row | {"question": DECOMPOSED, "answers": [DECOMPOSED]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (read,) = read_examples(tmp_path / "x.parquet")
    assert (read.question, read.answer) == (COMPOSED, COMPOSED)


def test_questions_of_dialogues_and_their_slots(tmp_path: Path) -> None:
    """A slot is looked up among the replies, whatever form either was written in; the file has a byte order mark."""
    row = {
        "id": "q",
        "family": "f",
        "kind": "asked",
        "text": DECOMPOSED,
        "answer": DECOMPOSED,
        "needs_ask": True,
        "slot": DECOMPOSED,
        "replies": {COMPOSED: DECOMPOSED},
        "user": "u",
        "wording": 0,
        "thought": "t",
        "thought_told": "t",
    }
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8-sig")
    (read,) = read_questions(tmp_path / "q.jsonl")
    assert (read.text, read.answer, read.slot, read.replies) == (COMPOSED, COMPOSED, COMPOSED, {COMPOSED: COMPOSED})
    assert read == Question(**(row | {"text": COMPOSED, "answer": COMPOSED, "slot": COMPOSED}))


def test_what_a_policy_says() -> None:
    turn = parse_turn(f"<think> x</think><final> {DECOMPOSED}</final>")
    assert turn.final == COMPOSED
    assert DECOMPOSED in turn.text  # as it was said, for its tokens
