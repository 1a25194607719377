"""OK-VQA and VQAv2 from small files in the official format, and through `datasets`."""

import datetime
import io
import json
import math
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.worlds.load import load_world
from leverlab.worlds.vqa import okvqa_world, vqav2_world

ANSWERS = ["pony tail"] * 6 + ["braid"] * 4


def image_bytes(shade: int, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + shade % 97, 6), (shade, 0, 0)).save(buffer, format=form)
    return buffer.getvalue()


def write_official(folder: Path, prefix: str = "", images: int = 6, questions: int = 2) -> Path:
    """Write `images` images with `questions` questions each, for the train and the val part."""
    for part, first in (("train2014", 100), ("val2014", 500)):
        (folder / part).mkdir()
        asked, annotated = [], []
        for image in range(first, first + images):
            (folder / part / f"COCO_{part}_{image:012d}.jpg").write_bytes(image_bytes(image % 256))
            for number in range(questions):
                ids = {"question_id": image * 10 + number, "image_id": image}
                asked.append(ids | {"question": f"What is in {image}, {number}?"})
                answers = [
                    {"answer_id": index + 1, "raw_answer": answer, "answer_confidence": "yes", "answer": answer}
                    for index, answer in enumerate(ANSWERS)
                ]
                annotated.append(ids | {"answer_type": "other", "question_type": "four", "answers": answers})
        write_json(folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json", {"questions": asked})
        write_json(folder / f"{prefix}mscoco_{part}_annotations.json", {"annotations": annotated})
    return folder


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data))


def edit_json(path: Path, key: str, index: int, **changes: object) -> None:
    data = json.loads(path.read_text())
    data[key][index] |= changes
    write_json(path, data)


@pytest.mark.parametrize(("name", "prefix", "load"), [("okvqa", "", okvqa_world), ("vqav2", "v2_", vqav2_world)])
def test_official_files_give_rows_with_ten_answers(tmp_path, name, prefix, load):
    world = load(str(write_official(tmp_path, prefix)), 5, 4, 3, 5, seed=0)
    assert (world.name, [len(rows) for rows in world.splits().values()]) == (name, [5, 4, 3, 5])
    demo = world.pool[0]
    image = int(demo.image_id.removeprefix("COCO_train2014_"))
    assert demo.id in (f"{image * 10}", f"{image * 10 + 1}")
    assert demo.question == f"What is in {image}, {demo.id[-1]}?"
    assert demo.answers == tuple(ANSWERS)
    assert (demo.answer, demo.question_type) == ("pony tail", "four")
    assert demo.image == image_bytes(image % 256)


def test_pool_and_train_come_from_train_and_no_image_is_in_two_splits(tmp_path):
    world = load_world("okvqa", str(write_official(tmp_path)), 5, 4, 3, 5, 0.0, 0)
    for split, part in (("pool", "train2014"), ("train", "train2014"), ("val", "val2014"), ("test", "val2014")):
        assert all(part in example.image_id for example in world.splits()[split])


def test_test_questions_depend_on_the_seed_and_their_own_number_alone(tmp_path):
    source = str(write_official(tmp_path))
    world = okvqa_world(source, 5, 4, 3, 5, seed=0)
    assert okvqa_world(source, 2, 2, 6, 5, seed=0).test == world.test
    assert okvqa_world(source, 5, 4, 3, 5, seed=0) == world
    assert any(okvqa_world(source, 5, 4, 3, 5, seed=seed).test != world.test for seed in range(1, 4))


def test_more_than_there_is_names_both_numbers(tmp_path):
    """Six images of two questions: a pool of 7 takes four images, so that train finds 4 of the 12 questions."""
    with pytest.raises(LeverlabError, match=r"data\.train = 5, but only 4 of 12 questions are left"):
        okvqa_world(str(write_official(tmp_path)), 7, 5, 3, 5, seed=0)


def test_images_may_lie_beside_the_files(tmp_path):
    write_official(tmp_path)
    for part in ("train2014", "val2014"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / part).rename(tmp_path / "images" / part)
    assert len(okvqa_world(str(tmp_path), 12, 0, 2, 2, seed=0).pool) == 12


def test_a_row_without_question_type_gets_any(tmp_path):
    write_official(tmp_path)
    path = tmp_path / "mscoco_train2014_annotations.json"
    data = json.loads(path.read_text())
    for record in data["annotations"]:
        del record["question_type"]
    write_json(path, data)
    assert {demo.question_type for demo in okvqa_world(str(tmp_path), 12, 0, 1, 1, seed=0).pool} == {"any"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": "pony tail"}, "question 1000.*'answers' must be a list"),
        ({"answers": []}, "question 1000.*at least one text"),
        ({"question_id": 1}, "question 1000 has no annotation"),
    ],
)
def test_a_bad_annotation_is_refused(tmp_path, changes, message):
    write_official(tmp_path)
    edit_json(tmp_path / "mscoco_train2014_annotations.json", "annotations", 0, **changes)
    with pytest.raises(LeverlabError, match=message):
        okvqa_world(str(tmp_path), 12, 0, 1, 1, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"question": ""}, "'question' must be a text"), ({"question_id": 1001}, "'1001' comes twice")],
)
def test_a_bad_question_is_refused(tmp_path, changes, message):
    write_official(tmp_path)
    edit_json(tmp_path / "OpenEnded_mscoco_train2014_questions.json", "questions", 0, **changes)
    with pytest.raises(LeverlabError, match=message):
        okvqa_world(str(tmp_path), 12, 0, 1, 1, seed=0)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_lost_or_broken_image_is_refused(tmp_path, content):
    path = write_official(tmp_path) / "train2014" / "COCO_train2014_000000000103.jpg"
    path.unlink()
    if content:
        path.write_bytes(content)
    message = r"question 103.*cannot be decoded" if content else r"COCO_train2014_000000000103\.jpg is in none"
    with pytest.raises(LeverlabError, match=message):
        okvqa_world(str(tmp_path), 12, 0, 1, 1, seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "cannot be read as JSON"),
        ("[]", "an object with a list 'annotations'"),
        ('{"annotations": [{"answers": []}]}', "entry 0 of 'annotations' must have"),
    ],
)
def test_a_lost_or_damaged_file_is_refused(tmp_path, content, message):
    path = write_official(tmp_path) / "mscoco_val2014_annotations.json"
    path.unlink()
    if content:
        path.write_text(content)
    with pytest.raises(LeverlabError, match=message):
        okvqa_world(str(tmp_path), 5, 4, 3, 5, seed=0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that writes a local copy of a hub data set with the given splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(columns: dict[str, dict]) -> str:
        for split, rows in columns.items():
            data = datasets.Dataset.from_dict(rows)
            if "image" in rows:
                data = data.cast_column("image", datasets.Image())
            (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "hub")

    return write


def hub_rows(first: int, count: int) -> dict:
    numbers = range(first, first + count)
    return {
        "question_id": [str(number) for number in numbers],
        "image": [{"bytes": image_bytes(number, "PNG"), "path": None} for number in numbers],
        "question": [f"What is {number}?" for number in numbers],
        "answers": [ANSWERS for _ in numbers],
    }


def test_a_hub_data_set_with_two_splits(hub):
    world = okvqa_world(hub({"train": hub_rows(0, 8), "validation": hub_rows(100, 6)}), 5, 3, 2, 4, seed=0)
    assert {int(demo.id) // 100 for demo in (*world.pool, *world.train)} == {0}
    assert {int(question.id) // 100 for question in (*world.val, *world.test)} == {1}
    assert world.pool[0].answers == tuple(ANSWERS)
    assert world.pool[0].question_type == "any"
    assert world.pool[0].open_image().getpixel((0, 0)) == (int(world.pool[0].id), 0, 0)


def test_without_a_train_split_all_four_come_from_validation_and_the_description_says_so(hub):
    rows = hub_rows(0, 14) | {"question_type": ["one"] * 14}
    world = load_world("okvqa", hub({"validation": rows}), 5, 3, 2, 4, 0.0, 0)
    assert [len(examples) for examples in world.splits().values()] == [5, 3, 2, 4]
    assert "no train split" in world.description
    assert world.pool[0].question_type == "one"


def test_equal_images_without_image_id_stay_in_one_split(hub):
    """Twelve questions on three distinct images (four each): splits of 4, 4 and 4 leave none for a fourth."""
    rows = hub_rows(0, 12)
    source = hub({"validation": rows | {"image": rows["image"][:3] * 4}})
    with pytest.raises(LeverlabError, match=r"data\.train = 1, but only 0 of 12 questions"):
        okvqa_world(source, 1, 1, 1, 1, seed=0)


def test_vqav2_answers_are_records_and_images_have_ids(hub):
    rows = hub_rows(0, 8) | {
        "answers": [[{"answer": answer, "answer_id": 1} for answer in ANSWERS]] * 8,
        "image_id": list(range(8)),
    }
    world = vqav2_world(hub({"validation": rows}), 2, 2, 2, 2, seed=0)
    assert world.test[0].answers == tuple(ANSWERS)
    assert world.test[0].image_id == f"image-{world.test[0].id}"


def test_a_lost_column_is_named(hub):
    rows = {name: column for name, column in hub_rows(0, 4).items() if name != "answers"}
    with pytest.raises(LeverlabError, match=r"lacks the columns \['answers'\]"):
        okvqa_world(hub({"validation": rows}), 1, 1, 1, 1, seed=0)


def test_a_row_without_image_is_refused(hub):
    rows = hub_rows(0, 4)
    rows["image"][2] = None
    with pytest.raises(LeverlabError, match=r"row 2 \(id '2'\) has no image bytes"):
        okvqa_world(hub({"validation": rows}), 1, 1, 1, 1, seed=0)


def test_splits_without_validation_are_refused(hub):
    with pytest.raises(LeverlabError, match=r"has the splits \['train'\]"):
        okvqa_world(hub({"train": hub_rows(0, 4)}), 1, 1, 1, 1, seed=0)


def test_a_source_that_is_neither_is_refused(tmp_path):
    with pytest.raises(LeverlabError, match="OK-VQA cannot be loaded from"):
        okvqa_world(str(tmp_path), 1, 1, 1, 1, seed=0)


def test_equal_pixels_under_two_image_ids_are_in_one_split_alone(hub):
    """Nine images, each under two ids: of 18 questions a split gets whole pictures, so at most nine places go round."""
    rows = hub_rows(0, 18) | {"image_id": list(range(18))}
    rows["image"] = rows["image"][:9] * 2
    source = hub({"validation": rows})
    for seed in range(5):
        world = load_world("okvqa", source, 2, 2, 2, 2, 0.0, seed)
        shown = [{example.pixels for example in examples} for examples in world.splits().values()]
        assert sum(map(len, shown)) == len(set().union(*shown))


def test_equal_pixels_in_the_official_train_and_validation_files_are_in_one_split_alone(tmp_path):
    write_official(tmp_path)
    for path in (tmp_path / "train2014").iterdir():
        path.write_bytes((tmp_path / "val2014" / "COCO_val2014_000000000500.jpg").read_bytes())
    with pytest.raises(LeverlabError, match=r"data\.pool = 1, but only 0 of 12 questions"):
        okvqa_world(str(tmp_path), 1, 0, 6, 6, seed=0)
    assert len(okvqa_world(str(tmp_path), 12, 0, 0, 0, seed=0).pool) == 12


def test_image_ids_that_are_null_do_not_make_one_image(hub):
    rows = hub_rows(0, 12) | {"image_id": [None] * 12}
    world = okvqa_world(hub({"validation": rows}), 3, 3, 3, 3, seed=0)
    assert len({example.image_id for examples in world.splits().values() for example in examples}) == 12


def test_a_row_without_question_id_is_named(hub):
    rows = hub_rows(0, 4)
    rows["question_id"][1] = None
    with pytest.raises(LeverlabError, match="row 1 has no question_id"):
        okvqa_world(hub({"validation": rows}), 1, 1, 1, 1, seed=0)


@pytest.mark.parametrize(
    ("column", "value"),
    [("image_id", math.nan), ("image_id", math.inf), ("question_id", math.nan)],
)
def test_an_id_that_is_no_number_is_named_by_its_row(hub, column, value):
    """A table with a gap makes NaN of it: all such rows would be of one image, "image-nan"."""
    rows = hub_rows(0, 12) | {column: [*map(float, range(11)), value]}
    with pytest.raises(LeverlabError, match=f"validation row 11: {column} is {value}, and must be a text or"):
        okvqa_world(hub({"validation": rows}), 3, 3, 3, 3, seed=0)


@pytest.mark.parametrize("value", [" ", [3], {"a": 1}, True])
def test_an_image_id_that_is_no_id_is_named_by_its_row(hub, value):
    rows = hub_rows(0, 4) | {"image_id": [value] * 4}
    with pytest.raises(LeverlabError, match=r"validation row 0: image_id is .*, and must be a text or"):
        okvqa_world(hub({"validation": rows}), 1, 1, 1, 1, seed=0)


def write_parquet(folder: Path, rows: dict) -> str:
    """Write rows as they are: `datasets` would open the images on the way."""
    (folder / "raw").mkdir()
    pq.write_table(pa.table(rows), folder / "raw" / "validation.parquet")
    return str(folder / "raw")


@pytest.mark.parametrize("path", ["/gone/away.jpg", "zip://away.jpg::https://x.org/images.zip"])
def test_an_image_whose_path_is_gone_is_named_by_its_row(hub, tmp_path, path):
    rows = hub_rows(0, 4)
    rows["image"][2] = {"bytes": None, "path": path}
    source = write_parquet(tmp_path, rows | {"image_id": list(range(4))})
    with pytest.raises(
        LeverlabError, match=r"row 2: the image '.*away\.jpg.*' cannot be read .*; put the files' bytes"
    ):
        okvqa_world(source, 1, 1, 1, 1, seed=0)


def test_a_column_that_is_no_image_is_refused(hub, tmp_path):
    with pytest.raises(LeverlabError, match="the column 'image' holds no images"):
        okvqa_world(write_parquet(tmp_path, hub_rows(0, 4) | {"image": [1, 2, 3, 4]}), 1, 1, 1, 1, seed=0)


def test_a_folder_of_json_lines_keeps_dates_as_texts(tmp_path):
    """The reader of `datasets` makes a time of 1999-01-01. The second file begins with a byte order mark."""
    for number, mark in enumerate(["", "\ufeff"]):
        rows = [
            {
                "question_id": f"{part}-{number}",
                "question": "When?",
                "answers": ["1999-01-01"],
                "image": picture(tmp_path, part),
            }
            for part in range(2 * number, 2 * number + 2)
        ]
        text = mark + "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / f"validation-{number}.jsonl").write_text(text, encoding="utf-8")
    world = okvqa_world(str(tmp_path / "source"), 1, 1, 1, 1, seed=0)
    assert {example.answers for examples in world.splits().values() for example in examples} == {("1999-01-01",)}


def picture(folder: Path, number: int) -> str:
    path = folder / f"{number}.png"
    path.write_bytes(image_bytes(number, "PNG"))
    return str(path)


def test_a_column_that_was_read_as_times_is_refused(hub):
    times = [[datetime.datetime(1999, 1, 1)]] * 4
    with pytest.raises(LeverlabError, match="column 'answers' was read as times"):
        okvqa_world(hub({"validation": hub_rows(0, 4) | {"answers": times}}), 1, 1, 1, 1, seed=0)
