"""Rows of data: parquet files of every schema, JSON lines, the official files of OK-VQA, and images."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.records import Example, read_examples, read_table, write_examples, write_table
from leverlab.selector.candidates import Candidates, CandidateSet, read_candidates, write_candidates
from leverlab.selector.features import FeatureTable, read_features, write_features
from leverlab.training.groups import TERMS, Group, read_beams, read_groups, write_beams, write_groups
from leverlab.worlds.folder import folder_world
from leverlab.worlds.vqa import okvqa_world
from leverlab.worlds.world import World
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants, table_mutants

Maker = Callable[..., Tally]
POOL = tuple(f"d{index}" for index in range(6))

pytestmark = pytest.mark.filterwarnings("error")


def picture(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format=kind)
    return buffer.getvalue()


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and bool(value.encode())


def is_id(value: Any) -> bool:
    """An id of a table that refers to the pool's: the empty text is found out where it is looked up."""
    return isinstance(value, str) and value.encode() is not None


def check_examples(examples: Any) -> None:
    ids = [example.id for example in examples]
    assert len(set(ids)) == len(ids)
    for example in examples:
        assert all(map(is_text, (example.id, example.image_id, example.question, example.question_type)))
        assert example.answers
        assert all(map(is_text, example.answers))
        image = example.open_image()
        assert image.mode == "RGB"
        assert image.getdata() is not None if image.size == (0, 0) else min(image.size) > 0


def fuzz_parquet(path: Path, count: Tally, sound: Any, same: Callable[[Any, Any], bool]) -> None:
    """Damage the bytes of a file that holds checksums, then its table, written anew.

    Bytes: what is read is what was written. Tables: what is read keeps to the check of `count`.
    """
    table = pq.read_table(path)
    check = count.check

    def unchanged(value: Any) -> None:
        check(value)
        assert same(value, sound)

    count.check = unchanged
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1200, seed=0))
    count.check = check

    def files() -> Any:
        for what, mutant in table_mutants(table, 1000, seed=1):
            buffer = io.BytesIO()
            pq.write_table(mutant, buffer)
            yield what, buffer.getvalue()

    count.attempt_all(path, files())


def test_examples(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "pool.parquet"
    examples = [
        Example(f"q{index}", picture("red"), f"i{index}", "Which colour? τ", "colour", ("red", "blue"))
        for index in range(3)
    ]
    write_examples(path, examples)
    count = tally(lambda: read_examples(path), check_examples, [str(path)])
    fuzz_parquet(path, count, examples, lambda left, right: left == right)


def test_candidates(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "candidates.parquet"
    sets = [
        CandidateSet("val", f"q{query}", index, POOL[query : query + 3]) for query in range(3) for index in range(2)
    ]
    write_candidates(path, sets)

    def content(found: Candidates) -> dict[Any, Any]:
        return found._by_query

    def check(found: Candidates) -> None:
        sizes = set()
        for query, numbered in content(found).items():
            assert is_id(query)
            assert sorted(numbered) == list(range(len(numbered)))
            for index, demos in numbered.items():
                assert type(index) is int
                assert set(demos) <= set(POOL)
                assert len(set(demos)) == len(demos) > 0
                sizes.add(len(demos))
        assert len(sizes) <= 1

    count = tally(lambda: read_candidates(path, POOL), check, [str(path)])
    fuzz_parquet(path, count, read_candidates(path, POOL), lambda left, right: content(left) == content(right))


def test_features(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "features.parquet"
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, width)).astype(np.float32) for width in (3, 2, 1)]
    write_features(path, FeatureTable(POOL[:4], *parts))

    def arrays(table: FeatureTable) -> list[Any]:
        return [table.image_ND, table.question_ND, table.answer_ND]

    def check(table: FeatureTable) -> None:
        assert all(map(is_id, table.ids))
        assert len(set(table.ids)) == len(table.ids) > 0
        for vectors in arrays(table):
            assert vectors.dtype == np.float32
            assert vectors.ndim == 2
            assert vectors.shape[0] == len(table.ids)
            assert vectors.shape[1] > 0
            assert np.isfinite(vectors).all()

    def same(left: FeatureTable, right: FeatureTable) -> bool:
        return left.ids == right.ids and all(map(np.array_equal, arrays(left), arrays(right)))

    fuzz_parquet(path, tally(lambda: read_features(path), check, [str(path)]), read_features(path), same)


def check_list(demos: Any) -> None:
    assert len(demos) == len(set(demos)) == 2
    assert all(map(is_id, demos))


def test_beams(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "beams.parquet"
    write_beams(path, {f"q{n}": [(("d0", "d1"), [0.1, 0.9]), (("d2", "d0"), [0.2, 0.8])] for n in range(3)})

    def check(beams: Any) -> None:
        for query, ranked in beams.items():
            assert is_id(query)
            assert ranked
            for demos in ranked:
                check_list(demos)

    count = tally(lambda: read_beams(path, 2), check, [str(path)])
    fuzz_parquet(path, count, read_beams(path, 2), lambda left, right: left == right and list(left) == list(right))


def test_groups(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "groups.parquet"
    terms = {term: np.linspace(0, 1, 4).reshape(2, 2) for term in TERMS}
    write_groups(path, [Group(f"q{n}", (("d0", "d1"), ("d2", "d0")), ("beam", "random"), terms) for n in range(3)])

    def check(groups: list[Group]) -> None:
        assert len({group.query_id for group in groups}) == len(groups)
        assert len({len(group.lists) for group in groups}) <= 1
        for group in groups:
            assert is_id(group.query_id)
            assert len(group.sources) == len(group.lists)
            assert all(map(is_id, group.sources))
            for demos in group.lists:
                check_list(demos)
            for name, values in group.terms.items():
                assert values.shape == (len(group.lists), 2)
                assert np.isfinite(values).all()
                assert (values <= 1 + 1e-6).all()
                assert (values >= (-1 - 1e-6 if name == "beam_score" else 0)).all()

    def same(left: list[Group], right: list[Group]) -> bool:
        return all(
            (a.query_id, a.lists, a.sources) == (b.query_id, b.lists, b.sources)
            and all(np.array_equal(a.terms[term], b.terms[term]) for term in TERMS)
            for a, b in zip(left, right, strict=True)
        )

    fuzz_parquet(path, tally(lambda: read_groups(path, 2), check, [str(path)]), read_groups(path, 2), same)


def test_answers(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "answers.parquet"
    row = {"method": "grpo", "seed": 0, "shots": 2, "question_type": "colour", "demos": ["d0", "d1"]}
    row |= {"prediction": "red", "vqa_accuracy": 0.3, "answer_prob": 0.5}
    write_table(path, [row | {"question_id": f"q{n}"} for n in range(4)], ANSWER_SCHEMA)

    def check(table: pa.Table) -> None:
        assert table.schema.remove_metadata().equals(ANSWER_SCHEMA)
        for found in table.to_pylist():
            for name, value in found.items():
                if name != "demos":
                    assert type(value) is type(row.get(name, ""))
                    assert not isinstance(value, float) or math.isfinite(value)

    count = tally(lambda: read_table(path, ANSWER_SCHEMA), check, [str(path)])
    fuzz_parquet(path, count, read_table(path, ANSWER_SCHEMA), lambda left, right: left.equals(right))


LINE = {
    "id": "q0",
    "image": "a.png",
    "image_id": "i0",
    "question": "Which colour?",
    "question_type": "colour",
    "answers": ["red", "blue"],
}


def check_world(world: World) -> None:
    for examples in (world.pool, world.train, world.val, world.test):
        assert len(examples) == 1
        check_examples(examples)


def test_json_lines(tmp_path: Path, tally: Maker) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    for split in ("pool", "train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(LINE) + "\n")
    path = tmp_path / "val.jsonl"
    count = tally(lambda: folder_world(str(tmp_path), 1, 1, 1, 1, 0), check_world, [str(path), "data.val"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    count.attempt_trees(path, LINE, 1000)


QUESTIONS = {"questions": [{"question_id": 7, "image_id": 3, "question": "Which?"}, {"question_id": 8, "image_id": 4}]}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 7, "image_id": 3, "question_type": "a", "answers": [{"answer": "red"}, {"answer": "blue"}]},
        {"question_id": 8, "image_id": 4, "question_type": "b", "answers": ["red"]},
    ]
}


@pytest.mark.parametrize("kind", ["questions", "annotations"])
def test_official_vqa(tmp_path: Path, tally: Maker, kind: str) -> None:
    QUESTIONS["questions"][1]["question"] = "What?"
    for part in ("train2014", "val2014"):
        (tmp_path / f"OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps(QUESTIONS))
        (tmp_path / f"mscoco_{part}_annotations.json").write_text(json.dumps(ANNOTATIONS))
        for image in (3, 4):
            colour = {"train2014": ("red", "blue"), "val2014": ("green", "white")}[part][image - 3]
            (tmp_path / f"COCO_{part}_{image:012d}.jpg").write_bytes(picture(colour, "JPEG"))
    name = {"questions": "OpenEnded_mscoco_val2014_questions.json", "annotations": "mscoco_val2014_annotations.json"}
    path = tmp_path / name[kind]

    def check(world: World) -> None:
        check_world(world)
        assert world.val[0].image_id != world.test[0].image_id

    names = [str(path), "OpenEnded_mscoco_val2014_questions.json", "data.val", "data.test", "the image COCO_val2014_"]
    count = tally(lambda: okvqa_world(str(tmp_path), 1, 1, 1, 1, 0), check, names)
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    count.attempt_trees(path, QUESTIONS if kind == "questions" else ANNOTATIONS, 1000)


@pytest.mark.filterwarnings("ignore")  # the library warns of damage that it can read over
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_images(tally: Maker, kind: str) -> None:
    """An image's own checksums are not all read: any RGB image is a success here."""
    data = [picture("red", kind)]

    def check(image: Image.Image) -> None:
        assert image.mode == "RGB"
        assert len(image.tobytes()) == 3 * image.width * image.height

    count = tally(lambda: Example("q0", data[0], "i", "q", "t", ("a",)).open_image(), check, ["'q0'"])
    for what, data[0] in byte_mutants(picture("red", kind), 2000, seed=0):
        count.attempt(what)


def test_a_table_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    """A column that comes twice has no one value."""
    pq.write_table(pa.table([["a"], ["b"]], names=["id", "id"]), tmp_path / "x.parquet")
    with pytest.raises(LeverlabError, match="twice"):
        read_table(tmp_path / "x.parquet", ["id"])
