"""Loading by name, and the sections of params.yaml that say what to load."""

import pytest

from leverlab.config.base import parse_section
from leverlab.config.data import DataParams
from leverlab.config.prepare import PrepareParams
from leverlab.errors import LeverlabError
from leverlab.worlds.digits import digits_world
from leverlab.worlds.load import load_world

DATA = {"world": "digits", "source": None, "pool": 9, "train": 4, "val": 3, "test": 5, "label_noise": 0.0, "seed": 0}
PREPARE = {"sampler": "random", "candidates": 4, "train_sets": 2, "val_sets": 1, "encoder": "vlm", "seed": 0}


def test_digits_are_loaded_with_the_given_sizes():
    assert load_world("digits", None, 9, 4, 3, 5, 0.1, 7) == digits_world(9, 4, 3, 5, 0.1, 7)


@pytest.mark.parametrize(
    ("world", "source", "noise", "message"),
    [
        ("digit", None, 0.0, "data.world = 'digit' is not known"),
        ("digits", "somewhere", 0.0, "needs none"),
        ("okvqa", None, 0.0, "'okvqa' needs data.source"),
        ("folder", "somewhere", 0.1, "only world 'digits' can make wrong answers"),
        ("folder", "somewhere", 0.0, "is no folder"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(world, source, noise, message):
    with pytest.raises(LeverlabError, match=message):
        load_world(world, source, 9, 4, 3, 5, noise, 0)


def test_sections_are_read():
    assert parse_section(DataParams, "data", {"data": DATA}).pool == 9
    assert parse_section(PrepareParams, "prepare", {"prepare": PREPARE}).candidates == 4
    folder = DATA | {"world": "folder", "source": "mine"}
    assert parse_section(DataParams, "data", {"data": folder}).source == "mine"


@pytest.mark.parametrize("key", DATA)
def test_every_key_of_data_is_required(key):
    with pytest.raises(LeverlabError, match=f"'data.{key}' is missing"):
        parse_section(DataParams, "data", {"data": {name: value for name, value in DATA.items() if name != key}})


@pytest.mark.parametrize("key", PREPARE)
def test_every_key_of_prepare_is_required(key):
    rest = {name: value for name, value in PREPARE.items() if name != key}
    with pytest.raises(LeverlabError, match=f"'prepare.{key}' is missing"):
        parse_section(PrepareParams, "prepare", {"prepare": rest})


@pytest.mark.parametrize(
    "changes",
    [
        {"world": "digit"},
        {"source": "somewhere"},
        {"world": "okvqa"},
        {"world": "okvqa", "source": " "},
        {"pool": 0},
        {"test": 0},
        {"pool": 1.5},
        {"label_noise": 1.0},
        {"label_noise": -0.1},
        {"label_noise": float("nan")},
        {"world": "folder", "source": "x", "label_noise": 0.1},
        {"seed": -1},
        {"seed": "one"},
        {"size": 3},
    ],
)
def test_data_out_of_range_is_refused(changes):
    with pytest.raises(LeverlabError, match=r"data\."):
        parse_section(DataParams, "data", {"data": DATA | changes})


@pytest.mark.parametrize(
    "changes",
    [{"sampler": "best"}, {"candidates": 1}, {"candidates": 4097}, {"train_sets": 0}, {"val_sets": 0}, {"encoder": ""}],
)
def test_prepare_out_of_range_is_refused(changes):
    with pytest.raises(LeverlabError, match=r"prepare\."):
        parse_section(PrepareParams, "prepare", {"prepare": PREPARE | changes})
