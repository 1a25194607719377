"""Records of dialogues: what is written is read again, and damaged lines are named."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from leverlab.errors import LeverlabError
from leverlab.lm.records import DialogueRecord, RewardRecord, Taught, read_records, record_of, write_records
from leverlab.lm.rollouts import Rollout
from tests.lm.scripted import ask, dialogue, final, question


def record(**changes: Any) -> DialogueRecord:
    fields: dict[str, Any] = {
        "question": "q",
        "policy": "sft",
        "seed": 1,
        "step": 0,
        "temperature": 0.7,
        "turns": [ask("home"), final("Oslo")],
        "replies": ["Bo Oslo"],
        "end": "final",
        "confidence": 0.1 + 0.2,
        "tokens": 11,
    }
    return DialogueRecord(**fields | changes)


def rewarded(**changes: Any) -> RewardRecord:
    terms = {"terms": {"correct": 1.0}, "reasons": {"correct": "the answer is right"}, "alpha": 0.07, "total": 0.93}
    return RewardRecord(**record().model_dump() | {"prompt": "where ?"} | terms | changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Whatever a policy says: quotes, all ends of lines that Python knows, tags, an empty turn."""
    odd = ['"', "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "日本", "\ufffd", "\0", "", "</ask>"]
    records = [record(), record(turns=odd, replies=odd), record(temperature=0.0, end="cut")]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl", DialogueRecord) == records
    write_records(tmp_path / "rewarded.jsonl", [rewarded(), rewarded(total=-0.2)])
    assert read_records(tmp_path / "rewarded.jsonl", RewardRecord) == [rewarded(), rewarded(total=-0.2)]
    taught = Taught(question="q", turns=[final("Oslo")], replies=[])
    write_records(tmp_path / "taught.jsonl", [taught])
    assert read_records(tmp_path / "taught.jsonl", Taught) == [taught]


def test_a_record_holds_its_rollout(tmp_path: Path) -> None:
    """Two own tokens of log-probabilities -1 and -3: confidence exp(-2). The user's token counts nothing."""
    said = dialogue(question(), [ask("home"), final("Oslo")])
    rollout = Rollout(said, [1, 2], [3, 4, 5], [True, False, True], [-1.0, 0.0, -3.0])
    found = record_of(rollout, "grpo", 2, 30, 1.0)
    assert (found.question, found.policy, found.seed, found.step, found.temperature) == ("q", "grpo", 2, 30, 1.0)
    assert found.tokens == 2
    assert found.confidence == pytest.approx(math.exp(-2))
    assert found.dialogue(question()) == said
    write_records(tmp_path / "one.jsonl", [found])
    (again,) = read_records(tmp_path / "one.jsonl", DialogueRecord)
    assert again == found
    assert again.dialogue(question()) == said


def test_a_turn_that_was_cut_says_nothing() -> None:
    """What it holds would parse, but it did not end; the turn before it still counts."""
    found = record(end="cut").dialogue(question())
    assert found.final is None
    assert found.asks == ("home",)
    assert not found.turns[-1].parses
    assert record().dialogue(question()).success


def test_a_dialogue_on_another_question() -> None:
    with pytest.raises(LeverlabError, match="on question 'q', not on 'other'"):
        record().dialogue(question(id="other"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with pytest.raises(LeverlabError, match="does not exist"):
        read_records(path, DialogueRecord)
    line = record().model_dump_json()
    for text, message in (
        ("", "is empty or cut in its last line"),
        (line, "is empty or cut in its last line"),
        (f"{line}\n{line[:40]}\n", "line 2: the line: Invalid JSON"),
        (f"{line}\n\n{line}\n", "line 2: the line: Invalid JSON"),
        (line.replace('"tokens":11', '"tokens":0') + "\n", "line 1: tokens: Input should be greater"),
        (line.replace('"seed":1', '"seed":"1"') + "\n", "line 1: seed: Input should be a valid integer"),
        (line.replace('"final"', '"over"') + "\n", "line 1: end: Input should be 'final'"),
        (line.replace('"seed"', '"seeds"') + "\n", "line 1: seed: Field required"),
        (line.replace("{", '{"more":1,') + "\n", "line 1: more: Extra inputs"),
    ):
        path.write_text(text)
        with pytest.raises(LeverlabError, match=message):
            read_records(path, DialogueRecord)
    path.write_bytes(f"{line}\n".encode().replace(b"Bo", b"\xff"))
    with pytest.raises(LeverlabError, match="is not UTF-8 text"):
        read_records(path, DialogueRecord)


def test_numbers_that_are_none_are_refused() -> None:
    for changes in ({"confidence": math.nan}, {"confidence": 1.1}, {"temperature": math.inf}, {"turns": []}):
        with pytest.raises(ValidationError):
            record(**changes)
    with pytest.raises(ValidationError):
        rewarded(total=math.nan)
