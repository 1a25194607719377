"""Sections of params files: YAML 1.2 numbers, and one sentence for everything that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from leverlab.config.base import Section, parse_section, read_param, read_params, read_yaml
from leverlab.errors import LeverlabError


class Window(Section):
    low: float = Field(ge=0)
    high: float = Field(gt=0)


class Training(Section):
    lr: float = Field(gt=0, le=10)
    epochs: int = Field(ge=1)
    window: Window
    weights: dict[str, float] | None = None
    kinds: tuple[float, ...] = (1.0,)


GOOD: dict[str, Any] = {"lr": 1e-3, "epochs": 3, "window": {"low": 0.1, "high": 1.0}}


def message_for(section: Any) -> str:
    """The whole error text of the section `training`; it must be refused."""
    with pytest.raises(LeverlabError) as caught:
        parse_section(Training, "training", {"training": section})
    return str(caught.value)


@pytest.mark.parametrize("text", ["5e-05", "5e-5", "5E-5", "0.00005", ".00005", "5.0e-5", "'5e-5'", '"5e-05"'])
def test_rates_are_numbers_in_every_way_to_write_them(tmp_path: Path, text: str) -> None:
    """DVC writes `5e-05` for `-S training.lr=5e-5`; YAML 1.1 takes that for text, and so is it when quoted."""
    (tmp_path / "params.yaml").write_text(
        f"training:\n  lr: {text}\n  epochs: 3\n  window:\n    low: 1e-2\n    high: 1\n"
    )
    section = parse_section(Training, "training", read_params(tmp_path / "params.yaml"))
    assert section.lr == 5e-5
    assert type(section.lr) is float
    assert section.window.low == 0.01


@pytest.mark.parametrize("text", ["yes", "on", "no", "0o17x"])
def test_words_stay_words(tmp_path: Path, text: str) -> None:
    """YAML 1.1 would read yes, on and no as booleans."""
    (tmp_path / "params.yaml").write_text(f"a: {text}\n")
    assert read_yaml(tmp_path / "params.yaml") == {"a": text}


def test_unknown_key_comes_with_the_closest_one() -> None:
    message = message_for(GOOD | {"lrr": 1e-3})
    assert message == "params.yaml: unknown key 'training.lrr'; did you mean 'training.lr'?"


def test_unknown_key_unlike_any_comes_with_all() -> None:
    assert message_for(GOOD | {"zzzz": 1}).endswith("known keys: lr, epochs, window, weights, kinds")


def test_unknown_key_of_a_nested_section_is_named_in_full() -> None:
    message = message_for(GOOD | {"window": {"low": 0.1, "high": 1.0, "hih": 2.0}})
    assert message.startswith("params.yaml: unknown key 'training.window.hih'")


def test_unknown_key_of_a_nested_section_comes_with_the_closest_one() -> None:
    assert "did you mean 'training.window.high'?" in message_for(GOOD | {"window": {"low": 0.1, "high": 1.0, "hih": 2}})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lr": None}, "training.lr"),
        ({"lr": "fast"}, "training.lr"),
        ({"lr": [1e-3]}, "training.lr"),
        ({"lr": {"start": 1e-3}}, "training.lr"),
        ({"lr": 0.0}, "training.lr"),
        ({"lr": -1e-3}, "training.lr"),
        ({"lr": 10.5}, "training.lr"),
        ({"lr": "20"}, "training.lr"),
        ({"lr": float("nan")}, "training.lr"),
        ({"lr": float("inf")}, "training.lr"),
        ({"lr": "nan"}, "training.lr"),
        ({"epochs": 2.5}, "training.epochs"),
        ({"epochs": 0}, "training.epochs"),
        ({"epochs": "three"}, "training.epochs"),
        ({"epochs": float("inf")}, "training.epochs"),
        ({"window": 3}, "training.window"),
        ({"window": {"low": -0.1, "high": 1.0}}, "training.window.low"),
        ({"window": {"low": float("nan"), "high": 1.0}}, "training.window.low"),
        ({"weights": {"correct": float("nan")}}, "training.weights.correct"),
        ({"weights": {"correct": "much"}}, "training.weights.correct"),
        ({"kinds": (1.0, float("inf"))}, "training.kinds.1"),
    ],
)
def test_a_bad_value_is_named_with_its_key(change: dict[str, Any], key: str) -> None:
    message = message_for(GOOD | change)
    assert message.startswith(f"params.yaml: '{key}' = ")
    assert "is not allowed: " in message
    assert "\n" not in message


@pytest.mark.parametrize("change", [{"epochs": True}, {"lr": True}, {"window": {"low": False, "high": 1.0}}])
def test_a_boolean_is_no_number(change: dict[str, Any]) -> None:
    assert "is not allowed" in message_for(GOOD | change)


@pytest.mark.parametrize(
    ("section", "key"), [({}, "training.epochs"), ({"window": {"low": 0.1}}, "training.window.high")]
)
def test_a_missing_key_is_named(section: dict[str, Any], key: str) -> None:
    good = {name: value for name, value in GOOD.items() if name != "epochs"} if not section else GOOD | section
    message = message_for(good)
    assert message.startswith(f"params.yaml: key '{key}' is missing")


def test_every_problem_has_its_line() -> None:
    lines = message_for({"lr": 11, "epochs": 0, "windw": {}}).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert {word for line in lines for word in line.split("'") if word.startswith("training.")} == {
        "training.lr",
        "training.epochs",
        "training.window",
        "training.windw",
    }


@pytest.mark.parametrize("section", [None, 3, "lr", [1, 2]])
def test_a_section_must_be_a_mapping(section: Any) -> None:
    assert message_for(section).startswith("params.yaml: section 'training' must be a mapping")


def test_a_missing_section_names_those_that_are_there() -> None:
    with pytest.raises(LeverlabError, match=r"other\.yaml has no section 'training'; known sections there: 3, data"):
        parse_section(Training, "training", {"data": {}, 3: {}}, "other.yaml")


def test_a_section_is_frozen() -> None:
    with pytest.raises(ValidationError):
        parse_section(Training, "training", {"training": GOOD}).lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\n", "is not valid YAML"),
        (b"a: 1\na: 2\n", "is not valid YAML"),
        (b"a: b: c\n", "is not valid YAML"),
        (b"a: \xff\n", "is not UTF-8"),
        (b"- 1\n", "must hold a mapping"),
        (b"", "must hold a mapping"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(LeverlabError, match=message) as caught:
        read_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"params\.yaml does not exist"):
        read_params(tmp_path / "params.yaml")


def test_a_param_is_the_same_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    """DVC compares mappings without their order, so nothing that a stage writes may depend on it."""
    path = tmp_path / "params.yaml"
    path.write_text("a:\n  c: [{z: 1, y: 2}, 3]\n  b: {2: x, 1: y}\n")
    assert json.dumps(read_param(path, "a")) == '{"b": {"1": "y", "2": "x"}, "c": [{"y": 2, "z": 1}, 3]}'
    assert read_param(path, "a.c") == [{"y": 2, "z": 1}, 3]


@pytest.mark.parametrize("key", ["b", "a.d", "a.c.y", "a.b.1"])
def test_a_param_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a:\n  c: [1]\n  b: {1: y}\n")
    with pytest.raises(LeverlabError, match=f"params.yaml has no '{key}', which dvc.yaml declares"):
        read_param(path, key)
