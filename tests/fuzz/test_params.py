"""YAML files: params, plans, and what `dvc.yaml` declares."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import Section, parse_section, read_params, read_yaml
from leverlab.dvcfile import Declaration, read_declaration
from leverlab.pipeline import deps
from leverlab.pipeline.params import SECTIONS, check_params_file
from leverlab.pipeline.plans import Plan, load_plan, overridden
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants

ROOT = Path(__file__).parents[2]
PARAMS: dict[str, Any] = read_yaml(ROOT / "params.yaml")
Maker = Callable[..., Tally]

pytestmark = pytest.mark.filterwarnings("error")
# keys whose members are named by the user
FREE = ("reward.weights", "report.gates", "report.headline")
LIMITS = ("min_kl", "max_kl", "min_entropy", "min_distinct", "max_identical", "max_falls")
NULLABLE = ("data.source", "reward.weights", "grpo.clip_epsilon", *(f"grpo.guard.{name}" for name in LIMITS))
# keys whose value may be a number or a schedule
MOVING = ("sft.lr", "rce.lr", "rce.tau", "grpo.lr", "grpo.control.lr", "grpo.kl_beta", "grpo.clip_epsilon")


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and prefix.rstrip(".") not in FREE + MOVING:
        return {name: leaf for key, value in tree.items() for name, leaf in leaves(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def numbers(tree: Any) -> list[Any]:
    members = tree.values() if isinstance(tree, dict) else tree
    return [leaf for value in members for leaf in numbers(value)] if isinstance(tree, dict | list) else [tree]


def check_leaves(data: Any, wanted: Any) -> None:
    """The same keys; every value of the type that stands in the committed file, numbers finite and not negative."""
    found, known = leaves(data), leaves(wanted)
    assert set(found) == set(known)
    for name, value in found.items():
        if value is None:
            assert name in NULLABLE
        elif name == "reward.weights":
            assert isinstance(value, dict)
            for weight in value.values():
                check_schedule(weight)
        elif name in MOVING:
            assert min(check_schedule(value)) >= 0, name
        elif name == "report.gates":
            for rule in (rule for rule in value.values() if rule is not None):  # null: the gate is off
                bounds = [rule[bound] for bound in ("at_least", "at_most") if rule.get(bound) is not None]
                assert isinstance(rule["metric"], str)
                assert len(bounds) == 1
                assert is_number(bounds[0])
        elif name == "report.headline":
            assert len(value) <= 12
            assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,11}", short) and metric for short, metric in value.items())
            assert all(isinstance(metric, str) for metric in value.values())
        else:
            check_leaf(name, value, known[name])


def check_schedule(value: Any) -> list[float]:
    """A number, or what a schedule needs; returns its values."""
    if not isinstance(value, dict):
        assert is_number(value)
        return [float(value)]
    points = value.get("points", [])
    assert set(value) <= {"kind", "start", "end", "points"}
    assert value["kind"] in ("constant", "linear", "cosine", "piecewise")
    assert (value["kind"] == "piecewise") == bool(points)
    places = [float(place) for place, _ in points]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    found = [value["start"], value["end"], *(number for _, number in points)]
    assert all(map(is_number, found))
    return [float(number) for number in found]


def is_number(value: Any) -> bool:
    """A number, also as text, as `dvc exp run -S` may write it."""
    return not isinstance(value, bool) and math.isfinite(float(value))


NUMBERS_OR_NONE = ("grpo.guard.min_kl", "grpo.guard.max_falls")  # null in params.yaml, where a number may stand


def check_leaf(name: str, value: Any, known: Any) -> None:
    if type(known) in (int, float) and isinstance(value, str):
        value = float(value)  # a number as text is allowed
    if known is None and name in NUMBERS_OR_NONE:
        assert value is None or is_number(value), name
        return
    kinds = {int: (int, float), float: (int, float)}  # 4.0 stands for 4
    assert type(value) in kinds.get(type(known), (type(known), str if known is None else type(known))), name
    if isinstance(known, list):
        assert value, name
        if isinstance(known[0], float):
            assert all(map(is_number, value)), name
        else:
            assert {type(item) for item in value} == {type(known[0])}, name
    for number in numbers(value):
        if type(number) in (int, float):
            assert math.isfinite(number), name
            assert number >= 0 or name == "reward.shot_weights", name
            assert not isinstance(known, int) or number == int(number), name


def test_params_file(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(PARAMS))

    def read() -> Any:
        check_params_file(path)
        return read_params(path)

    count = tally(read, lambda data: check_leaves(data, PARAMS), ["params.yaml"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    count.attempt_trees(path, PARAMS, 1200, yaml=True)


@pytest.mark.parametrize("kind", ["block", "flow"])
def test_section(tmp_path: Path, tally: Maker, kind: str) -> None:
    """Each section alone, as a stage reads it; in block style as people write it, and in flow style."""
    path = tmp_path / "params.yaml"
    for index, (name, model) in enumerate(SECTIONS.items()):
        data = {name: PARAMS[name]}
        path.write_text(block(data) if kind == "block" else json.dumps(data))
        assert read_yaml(path) == data

        def read(name: str = name, model: type[Section] = model) -> tuple[Any, Section]:
            raw = read_params(path)
            return raw.get(name), parse_section(model, name, raw, path.name)

        def check(found: tuple[Any, Section], name: str = name) -> None:
            check_leaves({name: found[0]}, {name: PARAMS[name]})
            parsed = {name: json.loads(found[1].model_dump_json(exclude_none=name == "report"))}
            check_leaves(parsed, {name: PARAMS[name]})

        count = tally(read, check, ["params.yaml"])
        count.attempt_all(path, byte_mutants(path.read_bytes(), 80, seed=index))
        count.attempt_trees(path, data, 80, yaml=True)


def block(tree: Any, margin: str = "") -> str:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{margin}{key}: # of {key}\n{block(value, margin + '  ')}")
        else:
            lines.append(f"{margin}{key}: {json.dumps(value)}\n")
    return "".join(lines)


PLAN = {
    "title": "Rank",
    "hypothesis": "None",
    "overrides": {"grpo.advantage": "rank", "grpo.lr": 5e-05, "seeds": [0, 1]},
    "accept": {"metric": "grpo.shots_4", "at_least": 0.78},
}


def test_plan(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "plans" / "rank.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(PLAN))

    def read() -> tuple[Plan, Any]:
        plan = load_plan(tmp_path, "rank")
        return plan, overridden(PARAMS, plan.overrides)

    def check(found: tuple[Plan, Any]) -> None:
        plan, params = found
        assert plan.title
        assert plan.hypothesis
        assert params != PARAMS
        check_leaves(params, PARAMS)
        if plan.accept is not None:
            bounds = {key: value for key, value in plan.accept.items() if key != "metric" and value is not None}
            assert isinstance(plan.accept["metric"], str)
            assert len(bounds) == 1
            assert set(bounds) <= {"at_least", "at_most"}
            assert all(not isinstance(value, bool) and math.isfinite(float(value)) for value in bounds.values())

    count = tally(read, check, ["rank.yaml", "the override '", "the plan's params", "no-op plan", "'accept"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=1))
    count.attempt_trees(path, PLAN, 1200, yaml=True)


PIPELINE = {
    "stages": {
        "sft": {
            "cmd": "python -m stages.sft --seed ${item.seed}",
            "matrix": {"seed": [0, 1]},
            "deps": ["data/rl", "stages/sft.py"],
            "params": ["sft", {"other.yaml": ["a.b"]}],
            "outs": ["models/sft/${item.seed}", {"m.json": {"cache": False}}],
        }
    }
}


def test_declaration(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "dvc.yaml"
    path.write_text(json.dumps(PIPELINE))

    def check(found: Declaration) -> None:
        assert found.name == "sft@0"
        for text in (*found.deps, *found.outs, *(part for pair in found.params for part in pair)):
            assert isinstance(text, str)
            assert text
            assert "${" not in text

    count = tally(lambda: read_declaration(path, "sft", {"seed": "0"}), check, ["dvc.yaml", "stage 'sft'"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=2))
    count.attempt_trees(path, PIPELINE, 1200, yaml=True)


def test_declared_code(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "dvc.yaml"
    path.write_text(json.dumps(PIPELINE))
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "sft.py").write_text("")

    def check(found: list[deps.StageCode]) -> None:
        for stage in found:
            assert isinstance(stage.wdir, str)
            assert set(stage.modules) <= {"stages.sft", "stages"}
            assert all(isinstance(dep, str) and dep for dep in stage.deps)

    count = tally(lambda: deps.declared(path), check, ["dvc.yaml"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=3))
    count.attempt_trees(path, PIPELINE, 1200, yaml=True)
