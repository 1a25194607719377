"""The embedded world: determinism, independence of its splits, and wrong answers counted exactly."""

import io
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.worlds.digits import TYPE_SHARES, convention, digits_world
from leverlab.worlds.digits_scenes import ATTRIBUTES, CLASSES, QUESTIONS, scan_number, scan_parts
from leverlab.worlds.world import check_world

WORLD = digits_world(300, 120, 40, 80, 0.0, seed=1)


def test_equal_arguments_give_equal_worlds_and_another_seed_another():
    assert digits_world(300, 120, 40, 80, 0.0, seed=1) == WORLD
    assert digits_world(300, 120, 40, 80, 0.0, seed=2).test != WORLD.test


def test_splits_show_the_scans_of_their_own_part():
    check_world(WORLD)
    for split, examples in WORLD.splits().items():
        allowed = {f"scan-{scan}" for scan in scan_parts()[split]}
        assert {example.image_id for example in examples} <= allowed


def test_sizes_and_ids():
    assert [len(examples) for examples in WORLD.splits().values()] == [300, 120, 40, 80]
    assert WORLD.pool[12].id == "pool-00012"
    assert WORLD.test[79].id == "test-00079"


def test_other_splits_and_noise_do_not_change_the_test_questions():
    other = digits_world(20, 10, 5, 80, 0.5, seed=1)
    assert other.test == WORLD.test
    assert other.train == WORLD.train[:10]
    assert [example.image for example in other.pool] == [example.image for example in WORLD.pool[:20]]


def test_images_are_png_of_16_by_16():
    image = Image.open(io.BytesIO(WORLD.pool[0].image))
    assert (image.format, image.size, image.mode) == ("PNG", (16, 16), "RGB")


def test_the_convention_names_each_class_with_its_own_word():
    words = convention()
    assert {name: len(of) for name, of in words.items()} == {"number": 10, "colour": 8, "texture": 8}
    assert len({word for of in words.values() for word in of}) == 26


def test_answers_follow_the_convention():
    """The number can be read off the scan itself, so number questions check the answer from outside the generator."""
    for example in (*WORLD.pool, *WORLD.test):
        number_word = convention()["number"][scan_number(int(example.image_id.removeprefix("scan-")))]
        if example.question_type == "number":
            assert example.answers == (number_word,)
        if example.question_type == "colour_number":
            colour_word, word = example.answer.split()
            assert word == number_word
            assert colour_word in convention()["colour"]
        if example.question_type in ("colour", "texture"):
            assert example.answer in convention()[example.question_type]


def test_question_types_have_their_shares_and_all_wordings_occur():
    """Of 2,000 draws a share of .27 has a standard deviation of 20; 80 is four of them."""
    pool = digits_world(2000, 1, 1, 1, 0.0, seed=0).pool
    counts = Counter(example.question_type for example in pool)
    for question_type, share in TYPE_SHARES.items():
        assert abs(counts[question_type] - share * 2000) < 80
    wordings = Counter(example.question for example in pool)
    assert set(wordings) == {wording for of_type in QUESTIONS.values() for wording in of_type}
    assert min(wordings.values()) > 80  # 133 expected of the rarest


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.25, 0.999])
def test_label_noise_changes_exactly_its_share_of_the_answers_and_nothing_else(share):
    noisy = digits_world(300, 120, 40, 80, share, seed=1)
    changed = [(clean, wrong) for clean, wrong in zip(WORLD.pool, noisy.pool, strict=True) if clean != wrong]
    assert len(changed) == round(share * 300)
    assert (noisy.train, noisy.val, noisy.test) == (WORLD.train, WORLD.val, WORLD.test)
    for clean, wrong in changed:
        assert replace(wrong, answers=clean.answers) == clean
        pairs = zip(ATTRIBUTES[clean.question_type], clean.answer.split(), wrong.answer.split(), strict=True)
        for attribute, right_word, wrong_word in pairs:
            assert wrong_word != right_word
            assert wrong_word in convention()[attribute]


def test_more_noise_keeps_the_wrong_answers_of_less_noise():
    less, more = (digits_world(300, 1, 1, 1, share, seed=1).pool for share in (0.1, 0.3))
    wrong = [index for index, example in enumerate(less) if example != WORLD.pool[index]]
    assert [more[index] for index in wrong] == [less[index] for index in wrong]


def test_wrong_answers_reach_every_class():
    """In 300 demos at 99 % noise a word is given wrongly about 10 times, so that each occurs."""
    noisy = digits_world(300, 1, 1, 1, 0.99, seed=1).pool
    wrong = {word for a, b in zip(WORLD.pool, noisy, strict=True) if a != b for word in b.answer.split()}
    assert len(wrong) == sum(len(classes) for classes in CLASSES.values())


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_noise_share_out_of_range_is_refused(share):
    with pytest.raises(LeverlabError, match="label_noise"):
        digits_world(10, 1, 1, 1, share, seed=0)


def test_splits_are_drawn_independently():
    """One random stream for two splits would ask the same types in the same order; by chance a quarter agrees."""
    same = [a.question_type == b.question_type for a, b in zip(WORLD.pool, WORLD.train, strict=False)]
    assert sum(same) < 60  # of 120
