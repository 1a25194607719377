"""The committed params files: valid, commented, and refused for each kind of wrong value of each key."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import Section, parse_section, read_params
from leverlab.config.digits_vlm import DigitsVlmParams
from leverlab.errors import LeverlabError
from leverlab.pipeline.params import SECTIONS, check_params

REPOSITORY = Path(__file__).parents[2]
FILES = {"params.yaml": SECTIONS, "worlds/digits/params.yaml": {"digits_vlm": DigitsVlmParams}}
NUMBERS = (int, float)

Path_ = tuple[Any, ...]


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield the path and value of every leaf below `value`; positions in lists are parts of a path."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(value, list) and value:
        for index, child in enumerate(value):
            yield from leaves(child, (*path, index))
    else:
        yield path, value


def all_leaves() -> list[tuple[str, Path_, Any]]:
    return [
        (file, path, value)
        for file in FILES
        for path, value in leaves(read_params(REPOSITORY / file))
        if path[0] != "seeds" and path != ("reward", "mode")  # the mode has a test of its own
    ]


def name_of(case: tuple[str, Path_, Any]) -> str:
    return ".".join(map(str, case[1]))


def with_value(file: str, path: Path_, value: Any) -> tuple[type[Section], str, dict[str, Any]]:
    data = copy.deepcopy(read_params(REPOSITORY / file))
    parent = data
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value
    return FILES[file][path[0]], path[0], data


def refused(file: str, path: Path_, value: Any) -> str:
    with pytest.raises(LeverlabError) as caught:
        parse_section(*with_value(file, path, value), file)
    return str(caught.value)


def test_the_committed_params_are_valid() -> None:
    check_params(read_params(REPOSITORY / "params.yaml"), "params.yaml")
    digits = read_params(REPOSITORY / "worlds/digits/params.yaml")
    assert set(digits) == {"digits_vlm"}
    parse_section(DigitsVlmParams, "digits_vlm", digits)


@pytest.mark.parametrize("case", all_leaves(), ids=name_of)
def test_a_mapping_in_place_of_a_value_is_refused(case: tuple[str, Path_, Any]) -> None:
    file, path, _ = case
    assert name_of(case) in refused(file, path, {"no": "such"})


@pytest.mark.parametrize("case", [case for case in all_leaves() if type(case[2]) in NUMBERS], ids=name_of)
@pytest.mark.parametrize("value", ["many", float("nan"), float("inf"), float("-inf"), []])
def test_a_number_must_be_finite_and_a_number(case: tuple[str, Path_, Any], value: Any) -> None:
    file, path, _ = case
    message = refused(file, path, value)
    assert f"'{name_of(case)}' = " in message
    assert "is not allowed" in message


@pytest.mark.parametrize(
    "case",
    [case for case in all_leaves() if type(case[2]) in NUMBERS and case[1][0] not in {"reward", "report"}],
    ids=name_of,
)
def test_no_number_may_be_negative(case: tuple[str, Path_, Any]) -> None:
    """Weights of the reward and bounds of gates may be; all others count, weigh or limit something."""
    file, path, value = case
    message = refused(file, path, type(value)(-1))
    schedule, _, end = name_of(case).rpartition(".")
    assert f"'{name_of(case)}' = " in message or (f"'{schedule}' = " in message and f"its {end} should be" in message)


@pytest.mark.parametrize("case", [case for case in all_leaves() if type(case[2]) is bool], ids=name_of)
def test_a_switch_is_true_or_false(case: tuple[str, Path_, Any]) -> None:
    file, path, _ = case
    for value in ("perhaps", 2, None):
        assert f"'{name_of(case)}' = " in refused(file, path, value)


@pytest.mark.parametrize(
    "case", [case for case in all_leaves() if case[1][0] != "report" and isinstance(case[1][-1], str)], ids=name_of
)
def test_every_key_is_needed_and_its_neighbour_refused(case: tuple[str, Path_, Any]) -> None:
    """Without the key, and with one more letter in it: both name the key. Terms of reward.weights are free names."""
    file, path, value = case
    if path[:2] == ("reward", "weights"):
        return
    model, section, data = with_value(file, (*path[:-1], f"{path[-1]}x"), value)
    with pytest.raises(LeverlabError, match=f"unknown key '{re.escape(name_of(case))}x'"):
        parse_section(model, section, data)
    parent = data
    for part in path[:-1]:
        parent = parent[part]
    del parent[f"{path[-1]}x"], parent[path[-1]]
    with pytest.raises(LeverlabError, match=f"key '{re.escape(name_of(case))}' is missing"):
        parse_section(model, section, data)


def test_the_misspelt_rate_comes_with_the_right_one() -> None:
    model, section, data = with_value("params.yaml", ("grpo", "lrr"), 5e-5)
    with pytest.raises(LeverlabError, match=r"unknown key 'grpo\.lrr'; did you mean 'grpo\.lr'\?"):
        parse_section(model, section, data)


def test_the_misspelt_nested_key_is_named() -> None:
    model, section, data = with_value("params.yaml", ("grpo", "adaptive_kl", "hih"), 0.2)
    with pytest.raises(LeverlabError, match=r"unknown key 'grpo\.adaptive_kl\.hih'"):
        parse_section(model, section, data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.world", "digit"),
        ("data.label_noise", 1.0),
        ("data.source", "somewhere"),
        ("data.pool", 0),
        ("vlm.dtype", "float16"),
        ("vlm.source", ""),
        ("vlm.batch_tokens", 63),
        ("eval.shots", 0),
        ("eval.shots", 17),
        ("selector.dropout", 1.0),
        ("selector.width", 7),
        ("selector.state", "lstm"),
        ("selector.head", "cosine"),
        ("reward.shot_weights", []),
        ("prepare.sampler", "nearest"),
        ("prepare.candidates", 1),
        ("rl_data.beam_width", 0),
        ("rl_data.health.max_flat_groups", 1.01),
        ("sft.lr", 0.0),
        ("sft.lr", 10.1),
        ("sft.warmup", 1.0),
        ("rce.init", "first"),
        ("rce.tau", 0.0),
        ("grpo.init", "random"),
        ("grpo.group", 1),
        ("grpo.clip_epsilon", 1.0),
        ("grpo.advantage", "softmax"),
        ("grpo.adaptive_kl.factor", 1.0),
        ("grpo.control.keep", 0),
        ("select_best.strategy", "best"),
        ("infer.random_seeds", 101),
        ("gguf.kinds", []),
        ("gguf.kinds", ["q4_k"]),
        ("gguf.kinds", ["f16", "f16"]),
        ("gguf.parity.prompts", 0),
        ("gguf.parity.likeliest", 0),
        ("runtime.context", 63),
        ("runtime.threads", 0),
        ("runtime.seconds", 0.0),
        ("benchmark.questions", 0),
        ("benchmark.runs", 101),
    ],
)
def test_values_beyond_the_documented_ones_are_refused(key: str, value: Any) -> None:
    """One step outside of each range, and a neighbour of each set of words."""
    message = refused("params.yaml", tuple(key.split(".")), value)
    assert f"'{key}" in message
    assert repr(value if not isinstance(value, list) or not value else value[0]) in message


@pytest.mark.parametrize(
    ("key", "value"), [("grpo.clip_epsilon", None), ("grpo.kl_beta", 0), ("sft.warmup", 0), ("grpo.lr", "5e-5")]
)
def test_the_edges_of_ranges_are_allowed(key: str, value: Any) -> None:
    parse_section(*with_value("params.yaml", tuple(key.split(".")), value))


def test_weights_that_no_mode_reads_are_refused() -> None:
    assert "set weights to null" in refused("params.yaml", ("reward", "mode"), "hard_only")


def test_an_unknown_mode_is_answered_with_the_known_ones() -> None:
    assert "'weighted'" in refused("params.yaml", ("reward", "mode"), "weightd")


@pytest.mark.parametrize("world", ["okvqa", "vqav2", "folder"])
def test_the_other_worlds_need_a_source(world: str) -> None:
    assert f"world '{world}' needs a source" in refused("params.yaml", ("data", "world"), world)


def uncommented(text: str) -> list[str]:
    """The key lines without a comment on them, on the line before, or on the section that holds them."""
    found: list[str] = []
    covered: list[tuple[int, bool]] = []  # indent of the open keys, and whether one of them has a comment
    before = ""
    for line in text.splitlines():
        if match := re.match(r"( *)[A-Za-z_]\w*:(?: |$)", line):
            indent = len(match[1])
            covered = [entry for entry in covered if entry[0] < indent]
            has = "#" in line or before.lstrip().startswith("#") or any(known for _, known in covered)
            covered.append((indent, has))
            if not has and not re.fullmatch(r"[A-Za-z_]\w*:", line):
                found.append(line.strip())
        before = line
    return found


def test_comments_are_found_where_they_stand() -> None:
    text = "# All.\n\na:\n  x: 1\n  # y\n  y: 2\nb: # b\n  x: 1\n  c:\n    z: 1\nd:\n  x: 1 # x\n  z: 3\n"
    assert uncommented(text) == ["x: 1", "z: 3"]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("params.yaml"),
        "worlds/digits/params.yaml",
    ],
)
def test_every_key_has_a_comment(file: str) -> None:
    assert uncommented((REPOSITORY / file).read_text(encoding="utf-8")) == []
