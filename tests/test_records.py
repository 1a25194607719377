"""Parquet files of examples: every row is checked on the way in, and a damaged file is one sentence.

The same checks on rows of JSON lines are tested with the world `folder`.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leverlab import records
from leverlab.errors import LeverlabError
from leverlab.records import COLUMNS, Example, check_unique, parse_example, read_examples, read_table, write_examples
from leverlab.selector.encoders import image_batches


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def make_row(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"q{index}",
        "image": {"bytes": png("red"), "path": None},
        "image_id": f"i{index}",
        "question": "Which colour?",
        "question_type": "colour",
        "answers": ["red"],
    } | changes


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images were decoded, and of how many a digest was made."""
    done: Counter[str] = Counter()

    def counted(name: str) -> Callable[[Any], Any]:
        function = getattr(records, name)

        def call(argument: Any) -> Any:
            done[name] += 1
            return function(argument)

        return call

    for name in ("decode_image", "pixel_digest"):
        monkeypatch.setattr(records, name, counted(name))
    return done


def test_a_reader_decodes_each_image_once_and_makes_no_digest(tmp_path: Path, work: Counter[str]) -> None:
    """The batches of an encoder go by the size that the check has seen."""
    path = write_rows(tmp_path / "x.parquet", [make_row(index) for index in range(3)])
    examples = read_examples(path)
    assert work == {"decode_image": 3}
    assert [len(batch) for batch in image_batches(examples)] == [1]
    assert {example.size for example in examples} == {(4, 4)}
    assert work == {"decode_image": 3}
    assert len({example.pixels for example in examples}) == 1
    assert work == {"decode_image": 6, "pixel_digest": 3}


def test_a_reader_that_compares_images_decodes_each_once(tmp_path: Path, work: Counter[str]) -> None:
    path = write_rows(tmp_path / "x.parquet", [make_row(index) for index in range(3)])
    examples = read_examples(path, with_pixels=True)
    assert len({(example.pixels, example.size) for example in examples}) == 1
    assert work == {"decode_image": 3, "pixel_digest": 3}


def test_examples_survive_the_file(tmp_path: Path) -> None:
    examples = [
        Example("a", png("red"), "i1", "Which colour?", "colour", ("red", "blue", "blue")),
        Example("b", png("blue"), "i2", "Quelle couleur ? τ", "colour", ("blue",)),
    ]
    write_examples(tmp_path / "x.parquet", examples)
    assert read_examples(tmp_path / "x.parquet") == examples
    assert pq.read_schema(tmp_path / "x.parquet").names == list(COLUMNS)
    assert examples[0].answer == "blue"
    assert Example("c", b"", "i", "q", "t", ("x", "y", "y", "x")).answer == "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "has no image bytes"),
        ({"image": {"bytes": b"", "path": None}}, "has no image bytes"),
        ({"image": {"bytes": None, "path": "a.png"}}, "has no image bytes"),
        ({"image": {"bytes": png("red")[:40], "path": None}}, "cannot be decoded"),
        ({"image": {"bytes": b"no image", "path": None}}, "cannot be decoded"),
        ({"question": ""}, "'question' must be a text that is not empty"),
        ({"question": " \n"}, "'question' must be a text that is not empty"),
        ({"question": None}, "'question' must be a text that is not empty"),
        ({"question_type": ""}, "'question_type' must be a text"),
        ({"image_id": None}, "'image_id' must be a text"),
        ({"answers": []}, "must hold at least one text"),
        ({"answers": None}, "'answers' must be a list"),
        ({"answers": ["red", ""]}, "must hold at least one text and no empty one"),
        ({"answers": ["red", None]}, "must hold at least one text and no empty one"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_id(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "val.parquet", [make_row(0), make_row(1), make_row(2, **changes)])
    with pytest.raises(LeverlabError, match=message) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path} row 2 (id 'q2')")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answers", ["red", b"red", 3, {"red": 1}])
def test_answers_that_are_no_list(answers: Any) -> None:
    """In parquet a whole column has one type; single rows come from JSON and from the hub."""
    with pytest.raises(LeverlabError, match="'answers' must be a list"):
        parse_example(make_row(0, image=png("red"), answers=answers), "row 0")


def test_a_column_of_answers_that_are_texts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.parquet", [make_row(0, answers="red")])
    with pytest.raises(LeverlabError, match=r"row 0 \(id 'q0'\): 'answers' must be a list of texts, not 'red'"):
        read_examples(path)


@pytest.mark.parametrize("identifier", [None, "", 7])
def test_a_row_without_id(identifier: Any) -> None:
    with pytest.raises(LeverlabError, match="row 5: 'id' must be a text"):
        parse_example(make_row(0, id=identifier), "row 5")


def test_an_id_twice(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.parquet", [make_row(0), make_row(1), make_row(2, id="q0")])
    with pytest.raises(LeverlabError, match="holds the id 'q0' twice"):
        read_examples(path)
    check_unique([], "nothing")


def test_a_lost_column_is_named(tmp_path: Path) -> None:
    row = make_row(0)
    del row["question_type"]
    with pytest.raises(LeverlabError, match=r"lacks the columns \['question_type'\]; it holds"):
        read_examples(write_rows(tmp_path / "x.parquet", [row]))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"lost\.parquet does not exist"):
        read_table(tmp_path / "lost.parquet", ["id"])


def test_a_file_cut_or_overwritten(tmp_path: Path) -> None:
    """Cut at every twentieth of its length, and with eight wrong bytes in each twentieth: an error or the same rows."""
    path = write_rows(tmp_path / "x.parquet", [make_row(index) for index in range(5)])
    whole, good = path.read_bytes(), read_examples(path)
    step = len(whole) // 20
    for end in range(0, len(whole), step):
        path.write_bytes(whole[:end])
        with pytest.raises(LeverlabError, match="damaged or not parquet"):
            read_examples(path)
        path.write_bytes(whole[:end] + b"\xff" * 8 + whole[end + 8 :])
        with contextlib.suppress(LeverlabError):  # every other exception is a bug
            assert [example.id for example in read_examples(path)] == [example.id for example in good]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,question\n1,2\n"])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(LeverlabError, match="damaged or not parquet") as caught:
        read_examples(tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)
