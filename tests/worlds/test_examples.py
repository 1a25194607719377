"""The files of `examples/` are what the README says: a world of one's own, and questions to answer."""

from pathlib import Path

from leverlab.deploy.question_file import read_rows
from leverlab.images import decode_image
from leverlab.worlds.digits import convention
from leverlab.worlds.folder import folder_world
from leverlab.worlds.world import check_world

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"pool": 24, "train": 8, "val": 4, "test": 4}


def test_the_folder_is_a_world_of_forty_rows() -> None:
    world = folder_world(str(EXAMPLES / "folder"), *SIZES.values(), seed=0)
    check_world(world)
    assert {name: len(examples) for name, examples in world.splits().items()} == SIZES
    words = {word for of_attribute in convention().values() for word in of_attribute}
    for examples in world.splits().values():
        assert all(set(example.answer.split()) <= words for example in examples)
    named = {path.name for path in (EXAMPLES / "folder/images").iterdir()}
    assert named == {f"{example.id}.png" for examples in world.splits().values() for example in examples}


def test_the_questions_can_be_answered() -> None:
    rows = list(read_rows(EXAMPLES / "questions.csv"))
    assert [row.id for row in rows] == [f"question-{number}" for number in range(1, 5)]
    assert {decode_image(row.image).size for row in rows} == {(16, 16)}
    shown = {example.image for example in folder_world(str(EXAMPLES / "folder"), *SIZES.values(), seed=0).pool}
    assert shown.isdisjoint(row.image for row in rows)
