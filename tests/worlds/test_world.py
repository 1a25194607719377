"""What every world promises: unique ids, no image in two splits, whole rows."""

import io
import zlib
from dataclasses import replace

import pytest
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.worlds.world import World, check_world
from tests.pictures import png


def example(name: str, image_id: str) -> Example:
    """An example whose image is another one for another image_id."""
    return Example(name, png(zlib.crc32(image_id.encode()) >> 8), image_id, "What?", "any", ("yes",))


def world(**splits: tuple[Example, ...]) -> World:
    whole = {name: (example(f"{name}-0", f"image of {name}"),) for name in ("pool", "train", "val", "test")}
    return World("small", **(whole | splits), licence="none", description="A small world.")


def test_a_whole_world_passes_and_one_split_may_show_an_image_twice():
    check_world(world(pool=(example("pool-0", "a"), example("pool-1", "a"))))


@pytest.mark.parametrize("split", ["pool", "val"])
def test_an_id_that_comes_twice_is_refused(split):
    doubled = world(**{split: (example("x", "a"), example("x", "a"))})
    with pytest.raises(LeverlabError, match=f"id 'x': split '{split}' holds this id already"):
        check_world(doubled)


def test_an_id_in_two_splits_is_refused():
    with pytest.raises(LeverlabError, match="split 'test', id 'pool-0': split 'pool' holds this id already"):
        check_world(world(test=(example("pool-0", "a"),)))


def test_an_image_in_two_splits_is_refused_and_both_are_named():
    with pytest.raises(LeverlabError, match="split 'test', id 'q': image 'image of train' is in split 'train' too"):
        check_world(world(test=(example("q", "image of train"),)))


@pytest.mark.parametrize(
    "changes", [{"answers": ()}, {"answers": ("yes", " ")}, {"question": " "}, {"question_type": ""}]
)
def test_an_empty_text_is_refused(changes):
    with pytest.raises(LeverlabError, match="'val-0'"):
        check_world(world(val=(replace(example("val-0", "a"), **changes),)))


def test_an_empty_split_is_refused():
    with pytest.raises(LeverlabError, match="split 'train' is empty"):
        check_world(world(train=()))


def test_equal_pixels_in_two_splits_are_one_image_whatever_its_id_and_file():
    """The same picture as PNG and as BMP, under two image ids: both rows are named."""
    again = replace(example("v", "another"), image=bmp(example("p", "scan").image))
    with pytest.raises(
        LeverlabError, match="split 'val', id 'v': an image with the same pixels is in split 'pool' too"
    ) as caught:
        check_world(world(pool=(example("p", "scan"),), val=(again,)))
    assert "(id 'p')" in str(caught.value)
    check_world(world(val=(again, replace(again, id="w", image_id="third"))))


def bmp(content: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).save(file, format="BMP")
    return file.getvalue()


@pytest.mark.parametrize("count", [2, 3])
def test_a_question_whose_answers_cannot_be_scored_is_named_before_any_stage_needs_it(count):
    """VQA accuracy cannot reach 1 with two or three answers; a demo's are not scored."""
    few = replace(example("q", "a"), answers=("yes",) * count)
    check_world(world(pool=(few,)))
    for split in ("train", "val", "test"):
        with pytest.raises(LeverlabError, match=f"split '{split}', id 'q' has {count} answers"):
            check_world(world(**{split: (few,)}))
