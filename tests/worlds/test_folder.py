"""A folder of one's own files: both formats, and every kind of bad row."""

import json
from pathlib import Path

import pytest

from leverlab.errors import LeverlabError
from leverlab.records import write_examples
from leverlab.worlds.digits import digits_world
from leverlab.worlds.folder import folder_world
from leverlab.worlds.load import load_world
from leverlab.worlds.world import SPLITS
from tests.pictures import png

PICTURES = {split: png(number) for number, split in enumerate(SPLITS)}


def row(split: str, index: int) -> dict:
    return {
        "id": f"{split}-{index}",
        "image": f"images/{split}.png",
        "image_id": split,
        "question": "Which colour?",
        "question_type": "colour",
        "answers": ["red", "red", "blue", "red"],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for split in SPLITS:
        (tmp_path / "images" / f"{split}.png").write_bytes(PICTURES[split])
        write_lines(tmp_path, split, [row(split, index) for index in range(4)])
    return tmp_path


def write_lines(folder: Path, split: str, rows: list[dict]) -> None:
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def load(folder: Path, pool: int = 4) -> object:
    return load_world("folder", str(folder), pool, 4, 4, 4, 0.0, 0)


def test_json_lines_are_read_with_their_images(folder):
    world = load(folder)
    assert [example.id for example in world.val] == ["val-0", "val-1", "val-2", "val-3"]
    assert world.pool[0].image == PICTURES["pool"]
    assert world.pool[0].answer == "red"


def test_parquet_gives_the_examples_that_were_written(tmp_path):
    digits = digits_world(6, 4, 3, 5, 0.0, seed=0)
    for split, examples in digits.splits().items():
        write_examples(tmp_path / f"{split}.parquet", examples)
    assert folder_world(str(tmp_path), 6, 4, 3, 5, seed=0).splits() == digits.splits()


def test_a_smaller_size_takes_a_seeded_choice_in_the_files_order(folder):
    chosen = {folder_world(str(folder), 2, 2, 2, 2, seed=seed).pool for seed in range(20)}
    assert folder_world(str(folder), 2, 2, 2, 2, seed=3) == folder_world(str(folder), 2, 2, 2, 2, seed=3)
    assert len(chosen) > 1
    assert all(first.id < second.id for first, second in chosen)


def test_more_than_there_is_names_both_numbers(folder):
    with pytest.raises(LeverlabError, match=r"data\.pool = 5.* holds 4 rows"):
        load(folder, pool=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "has no image bytes"),
        ({"image": "images/lost.png"}, "lost.png' cannot be read"),
        ({"image": "../outside.png"}, "must name a file inside"),
        ({"image": 7}, "must name a file inside"),
        ({"image": "broken.png"}, "cannot be decoded"),
        ({"question": ""}, "'question' must be a text"),
        ({"question": None}, "'question' must be a text"),
        ({"answers": "red"}, "'answers' must be a list"),
        ({"answers": []}, "at least one text"),
        ({"answers": ["red", 3]}, "at least one text"),
        ({"id": "val-1"}, "holds this id already"),
        ({"image_id": "train"}, "is in split 'train' too"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_reason(folder, changes, message):
    (folder / "broken.png").write_bytes(PICTURES["val"][:40])
    write_lines(folder, "val", [row("val", 0), row("val", 1), row("val", 2) | changes, row("val", 3)])
    with pytest.raises(LeverlabError, match=message) as caught:
        load(folder)
    assert "val" in str(caught.value)
    if message not in ("holds this id already", "is in split 'train' too"):
        assert "val.jsonl line 3" in str(caught.value)


@pytest.mark.parametrize("text", ["{not json", "[1, 2]"])
def test_a_line_that_is_no_object_is_refused(folder, text):
    (folder / "test.jsonl").write_text(text)
    with pytest.raises(LeverlabError, match=r"test\.jsonl line 1"):
        load(folder)


def test_a_file_that_is_no_text_is_refused(folder):
    (folder / "test.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(LeverlabError, match="not UTF-8"):
        load(folder)


def test_a_split_must_be_there_once(folder):
    (folder / "train.parquet").write_bytes(b"")
    with pytest.raises(LeverlabError, match=r"both of train\.parquet and train\.jsonl"):
        load(folder)
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").unlink()
    with pytest.raises(LeverlabError, match=r"neither of train\.parquet and train\.jsonl"):
        load(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(LeverlabError, match="is no folder"):
        load(tmp_path / "lost")


def test_the_same_picture_in_two_splits_is_refused_and_both_rows_are_named(folder):
    (folder / "images" / "val.png").write_bytes(PICTURES["pool"])
    with pytest.raises(
        LeverlabError, match=r"split 'val', id 'val-0': an image with the same pixels .*\(id 'pool-0'\)"
    ):
        load(folder)


def test_a_byte_order_mark_is_left_out(folder):
    text = (folder / "val.jsonl").read_bytes()
    before = load(folder)
    (folder / "val.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    assert load(folder) == before


def test_texts_come_in_one_form(folder):
    """Decomposed letters, as file systems and some keyboards write them, become the composed ones of `NFC`."""
    rows = [row("val", 0), row("val", 1) | {"question": "Cafe\u0301?", "answers": ["cre\u0300me"]}]
    write_lines(folder, "val", rows)
    world = folder_world(str(folder), 4, 4, 2, 4, seed=0)
    assert (world.val[1].question, world.val[1].answers) == ("Caf\u00e9?", ("cr\u00e8me",))


def test_a_date_stays_the_text_that_it_is(folder):
    write_lines(folder, "val", [row("val", 0) | {"answers": ["1999-01-01"]}])
    assert folder_world(str(folder), 4, 4, 1, 4, seed=0).val[0].answers == ("1999-01-01",)
