"""Plans: the committed ones run, and what DVC is told gives exactly the params that were checked."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from leverlab.config.base import read_params
from leverlab.errors import LeverlabError
from leverlab.pipeline.params import check_params
from leverlab.pipeline.plans import Plan, experiment_command, load_plan, overridden, plan_names

REPOSITORY = Path(__file__).parents[2]
PLANS = sorted(path.stem for path in (REPOSITORY / "plans").glob("*.yaml"))


@pytest.fixture
def params() -> dict[str, Any]:
    return read_params(REPOSITORY / "params.yaml")


def make_plan(**overrides: Any) -> Plan:
    return Plan(title="A plan", hypothesis="It changes nothing.", overrides=overrides)


def after_dvc(folder: Path, plan: Plan) -> dict[str, Any]:
    """The params that `dvc exp run` writes when it is given the settings of the plan's command."""
    command = experiment_command("a-plan", plan)
    assert command[:5] == ["dvc", "exp", "run", "-n", "a-plan"]
    settings = command[5:]
    assert settings[::2] == ["-S"] * len(plan.overrides)
    shutil.copy(REPOSITORY / "params.yaml", folder / "params.yaml")
    apply_overrides(folder / "params.yaml", settings[1::2])
    return read_params(folder / "params.yaml")


def test_names_are_those_of_the_files() -> None:
    assert plan_names(REPOSITORY) == PLANS
    assert {"tiny", "plan-6", "okvqa-3b"} <= set(PLANS)


@pytest.mark.parametrize("name", PLANS)
def test_committed_plans_load_and_give_valid_params(params: dict[str, Any], name: str) -> None:
    plan = load_plan(REPOSITORY, name)
    changed = overridden(params, plan.overrides)
    check_params(changed, name)
    for dotted, value in plan.overrides.items():
        found: Any = changed
        for part in dotted.split("."):
            found = found[part]
        assert found == value


@pytest.mark.parametrize("name", PLANS)
def test_dvc_writes_the_params_that_were_checked(params: dict[str, Any], tmp_path: Path, name: str) -> None:
    plan = load_plan(REPOSITORY, name)
    assert after_dvc(tmp_path, plan) == overridden(params, plan.overrides)


@pytest.mark.parametrize("name", [name for name in PLANS if name != "tiny"])
def test_accept_rules_have_a_metric_and_a_bound(name: str) -> None:
    rule = load_plan(REPOSITORY, name).accept
    assert rule is None or (isinstance(rule["metric"], str) and {"at_least", "at_most"} & set(rule))


def test_plan_6_is_a_lower_rate(params: dict[str, Any]) -> None:
    plan = load_plan(REPOSITORY, "plan-6")
    assert experiment_command("plan-6", plan) == ["dvc", "exp", "run", "-n", "plan-6", "-S", "grpo.lr=5e-05"]
    changed = overridden(params, plan.overrides)
    assert changed["grpo"].pop("lr") == 5e-5
    del params["grpo"]["lr"]
    assert changed == params


def test_overriding_leaves_the_params_alone(params: dict[str, Any]) -> None:
    before = copy.deepcopy(params)
    overridden(params, {"grpo.adaptive_kl.high": 0.3, "seeds": [5]})
    assert params == before


def test_a_plan_that_changes_nothing_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(LeverlabError, match="no-op plan"):
        overridden(params, {"grpo.lr": params["grpo"]["lr"], "seeds": list(params["seeds"])})


@pytest.mark.parametrize(
    "key",
    [
        "grpo.lrr",
        "grop.lr",
        "grpo.lr.x",
        "lr",
        "",
        ".",
        "grpo.",
        "seeds.0",
        "grpo.adaptive_kl.hih",
        "reward.weights.relevance",
    ],
)
def test_a_key_that_params_do_not_have_is_refused(params: dict[str, Any], key: str) -> None:
    """The terms of reward.weights are free names for the section, but no override may bring a new one."""
    with pytest.raises(LeverlabError) as caught:
        overridden(params, {key: 0.123})
    assert str(caught.value) == f"the override '{key}' names no key of params.yaml"


def test_a_section_is_no_number(params: dict[str, Any]) -> None:
    with pytest.raises(LeverlabError, match="section 'grpo' must be a mapping"):
        overridden(params, {"grpo": 0.123})


@pytest.mark.parametrize(("key", "value"), [("grpo.lr", 11), ("prepare.candidates", 3), ("seeds", [1, 1])])
def test_a_plan_whose_params_are_not_valid_is_refused(params: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(LeverlabError, match=r"^the plan's params: "):
        overridden(params, {key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: A\nhypothesis: B\n", "overrides: Field required"),
        ("title: A\nhypothesis: B\noverrides: {}\n", "overrides: "),
        ("title: ''\nhypothesis: B\noverrides:\n  a: 1\n", "title: "),
        ("title: A\nhypothesis: B\noverride:\n  a: 1\noverrides:\n  a: 1\n", "override: "),
        ("- a\n", "is not a plan"),
        ("", "is not a plan"),
        ("title: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_plan_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "mine.yaml").write_text(text)
    with pytest.raises(LeverlabError, match=message) as caught:
        load_plan(tmp_path, "mine")
    assert "mine.yaml" in str(caught.value)


def test_a_plan_that_is_not_there_comes_with_those_that_are() -> None:
    with pytest.raises(LeverlabError, match=r"no plan 'plan-66'; there are .*plan-6"):
        load_plan(REPOSITORY, "plan-66")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grpo.lr", 5e-5),
        ("grpo.lr", 1e-12),
        ("grpo.clip_epsilon", None),
        ("grpo.adaptive_kl.enabled", True),
        ("seeds", [3, 1, 4]),
        ("reward.shot_weights", [1.0, 0.5, 0.25, 0.0]),
        ("gguf.kinds", ["q8_0"]),
        ("vlm.source", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("vlm.source", "/data/my model"),
    ],
)
def test_values_reach_dvc_as_they_are(params: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    plan = make_plan(**{key: value})
    assert after_dvc(tmp_path, plan) == overridden(params, plan.overrides)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vlm.source", "/data/models (old)/qwen"),
        ("vlm.source", "a,b"),
        ("vlm.source", "/data/it's"),
        ("vlm.source", "rate=5"),
        ("vlm.source", "/data/modèle"),
        ("vlm.source", "2025"),
        ("reward.weights", {"correct": 1.0, "answer_prob": 0.5}),
        ("grpo.control", {"keep": 2, "lr": 0.01}),
    ],
)
def test_texts_and_mappings_reach_dvc_as_they_are(params: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    plan = make_plan(**{key: value})
    try:
        found = after_dvc(tmp_path, plan)
    except Exception as error:  # whatever DVC raises for a setting that it cannot read
        pytest.fail(f"DVC refuses the setting: {error}")
    assert found == overridden(params, plan.overrides)
