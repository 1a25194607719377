"""Rows of JSON files: as `json` parses the whole file, in little memory, and a place for whatever is wrong."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leverlab.errors import LeverlabError
from leverlab.worlds import hub, json_rows
from leverlab.worlds.hub import load_splits

SIGNS = 'ab"\\\n\u2028é😀{}[],: '


def value(draws: random.Random, depth: int = 0) -> Any:
    kind = draws.randrange(8 if depth < 3 else 6)
    if kind < 6:
        number = draws.randint(-(10**12), 10**12)
        return [None, True, number / 10**9, number, "".join(draws.choices(SIGNS, k=20)), float("-inf")][kind]
    if kind == 6:
        return [value(draws, depth + 1) for _ in range(draws.randint(0, 4))]
    return {draws.choice("abé"): value(draws, depth + 1) for _ in range(draws.randint(0, 4))}


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 16])
def test_rows_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """A list on one line and on many, and lines; cut at any place of a number, an escape or a character."""
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    draws, path = random.Random(chunk), tmp_path / "rows.json"
    for _ in range(60):
        rows = [{draws.choice("ab"): value(draws) for _ in range(draws.randint(0, 3))} for _ in range(5)]
        ascii_only = draws.random() < 0.5
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        whole = (json.dumps(rows, ensure_ascii=ascii_only, indent=indent) for indent in (None, 1))
        for kind, text in (("entry", next(whole)), ("entry", next(whole)), ("line", "\r\n".join(lines))):
            path.write_text(draws.choice(["", "\ufeff"]) + text, encoding="utf-8", newline="")
            first = int(kind == "line")
            expected = [(f"{path} {kind} {number}", row) for number, row in enumerate(rows, first)]
            assert list(json_rows.json_rows(path)) == expected


@pytest.mark.parametrize("chunk", [1, 1 << 16])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a" 2}]', "entry 1 is not JSON (Expecting ':' delimiter: line 2 column 7 of the file)"),
        (b'[{"a": 1}, {"a": "b\n"}]', "entry 1 is not JSON (Invalid control character at: line 1 column 20 of the"),
        (b'[{"a": 1}, {"a": "b', "entry 1 is not JSON (Unterminated string starting at: line 1 column 18 of the"),
        (b'[{"a": 1}\n{"a": 2}]', "entry 0 is not JSON (expecting ',' or ']' after it: line 2 column 1 of the file)"),
        (b'[{"a": 1}', "entry 0 is not JSON (expecting ',' or ']' after it: line 1 column 10 of the file)"),
        (b'[{"a": 1},]', "entry 1 is not JSON (Expecting value: line 1 column 11 of the file)"),
        (b'[{"a": 1}]\n{}', " is not JSON (extra data after the list: line 2 column 1 of the file)"),
        (b'[{"a": 1}, 123]', "entry 1 must be a JSON object, not 123"),
        (b'[{"a": ' + b"[" * 100_000, "entry 0 is not JSON (maximum recursion depth exceeded"),
        (b'[{"a": ' + b"1" * 5_000 + b"}]", "entry 0 is not JSON (Exceeds the limit"),
        (b'{"a": 1}\n\n{"a" 2}', "line 3 is not JSON (Expecting ':' delimiter: line 1 column 6"),
        (b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}', "is not UTF-8 text (invalid start byte at byte 19)"),
        (b'[{"a": 1}, {"a": "\xc3', "is not UTF-8 text (unexpected end of data at byte 18)"),
    ],
)
def test_what_is_wrong_has_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, chunk: int
) -> None:
    if chunk == 1 and len(content) > 1000:
        chunk = 100
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(LeverlabError) as caught:
        list(json_rows.json_rows(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def large(path: Path) -> Path:
    """Write 8 MB: 8,000 rows as a list, or as lines."""
    rows = ({"id": str(n), "text": f"{n} " * 100, "facts": [{"a": n, "b": None}] * 20} for n in range(8000))
    texts = (json.dumps(row) for row in rows)
    joined = "\n".join(texts) if path.suffix == ".jsonl" else f"[{', '.join(texts)}]"
    path.write_text(joined)
    assert path.stat().st_size > 8_000_000
    return path


def peak(work: Callable[[], object]) -> int:
    """Return the bytes of Python objects that `work` needs at most; Arrow's are not among them."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = large(tmp_path / name)
    assert peak(lambda: sum(1 for _ in json_rows.json_rows(path))) < 1_000_000
    load_splits(str(path))  # imports
    assert peak(lambda: load_splits(str(path))) < 5_000_000  # two batches of 200 rows; all rows take 70 MB
    data = load_splits(str(path))["train"]
    assert len(data) == 8000
    assert data[7999] == {"id": "7999", "text": "7999 " * 100, "facts": [{"a": 7999, "b": None}] * 20}


def test_batches_agree_on_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `datasets` would have it of all rows at once: what is null, whole or without a key in one batch alone."""
    from datasets import Dataset

    rows: list[dict[str, Any]] = [
        {"a": None, "b": 1, "c": [], "d": {"x": 1}},
        {"a": "1999-01-01", "b": 2.5, "c": ["t"], "d": {"y": [None]}},
        {"e": [{"f": 1}], "d": None},
        {"e": [{"f": None, "g": "t"}], "c": None, "d": {"x": 0.5, "y": ["t"]}},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = dict.fromkeys(key for row in rows for key in row)
    expected = Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    for batch in (1, 3, 1000):
        monkeypatch.setattr(hub, "BATCH", batch)
        data = load_splits(str(path))["train"]
        assert data.features == expected.features
        assert list(data) == list(expected)
