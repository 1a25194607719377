"""Plans: the committed ones run, and what DVC is told gives exactly the params that were checked."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from leverlab.config.base import read_params
from leverlab.errors import LeverlabError
from leverlab.pipeline.params import check_params
from leverlab.pipeline.plans import (
    Experiment,
    Plan,
    experiment_command,
    load_experiment,
    load_plan,
    overridden,
    plan_names,
)

REPOSITORY = Path(__file__).parents[2]
PLANS = sorted(path.stem for path in (REPOSITORY / "plans").glob("*.yaml"))


@pytest.fixture
def params() -> dict[str, Any]:
    return read_params(REPOSITORY / "params.yaml")


def make_plan(**overrides: Any) -> Plan:
    return Plan(title="A plan", hypothesis="It changes nothing.", overrides=overrides)


def after_dvc(folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The params that `dvc exp run` writes when it is given the settings of a plan's command."""
    plan = make_plan(**overrides)
    command = experiment_command(Experiment("a-plan", plan, None, overrides, []))
    assert command[:5] == ["dvc", "exp", "run", "-n", "a-plan"]
    settings = command[5:]
    assert settings[::2] == ["-S"] * len(overrides)
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
    overrides = load_experiment(REPOSITORY, name, "lab").overrides
    assert after_dvc(tmp_path, overrides) == overridden(params, overrides)


@pytest.mark.parametrize("name", [name for name in PLANS if name != "tiny"])
def test_accept_rules_have_a_metric_and_a_bound(name: str) -> None:
    rule = load_plan(REPOSITORY, name).accept
    assert rule is None or (isinstance(rule["metric"], str) and {"at_least", "at_most"} & set(rule))


def test_plan_6_is_a_lower_rate(params: dict[str, Any]) -> None:
    found = load_experiment(REPOSITORY, "plan-6")
    assert experiment_command(found) == ["dvc", "exp", "run", "-n", "plan-6", "-S", "grpo.lr=5e-05"]
    assert (found.parent, found.changed, found.warning) == (None, {"grpo.lr": (0.001, 5e-05)}, None)
    changed = overridden(params, found.overrides)
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
        "reward.weights.beauty",
    ],
)
def test_a_key_that_params_do_not_have_is_refused(params: dict[str, Any], key: str) -> None:
    """The terms of reward.weights are free names for the section, but no override may bring a new one."""
    with pytest.raises(LeverlabError) as caught:
        overridden(params, {key: 0.123})
    said, _, hint = str(caught.value).partition("; ")
    assert said == f"the override '{key}' names no key of params.yaml"
    assert hint.count(" or ") <= 2
    assert hint.endswith("params.yaml shows all")


def test_a_mapping_with_other_keys_is_refused(params: dict[str, Any]) -> None:
    """DVC would keep the keys that the override leaves out."""
    with pytest.raises(LeverlabError, match=r"'reward\.weights' has other keys than params\.yaml, and DVC would merge"):
        overridden(params, {"reward.weights": {"correct": 1.0}})


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
    with pytest.raises(LeverlabError, match=r"no plan 'plan-66'; did you mean 'plan-6' or "):
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
        ("gguf.kinds", ["q8_0", "f16", "q5_0", "q4_0"]),
        ("report.gates.q5_0_parity", None),
        ("vlm.source", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("vlm.source", "/data/my model"),
    ],
)
def test_values_reach_dvc_as_they_are(params: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    plan = make_plan(**{key: value})
    assert after_dvc(tmp_path, plan.overrides) == overridden(params, plan.overrides)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vlm.source", "/data/models (old)/qwen"),
        ("vlm.source", "a,b"),
        ("vlm.source", "/data/it's"),
        ("vlm.source", "rate=5"),
        ("vlm.source", "/data/modèle"),
        ("vlm.source", "2025"),
        ("grpo.control", {"keep": 2, "lr": 0.01}),
    ],
)
def test_texts_and_mappings_reach_dvc_as_they_are(params: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    plan = make_plan(**{key: value})
    try:
        found = after_dvc(tmp_path, plan.overrides)
    except Exception as error:  # whatever DVC raises for a setting that it cannot read
        pytest.fail(f"DVC refuses the setting: {error}")
    assert found == overridden(params, plan.overrides)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """params.yaml as it is, and three generations of plans."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "plans").mkdir()
    plans = {
        "small": ("", "data.train: 600\n  grpo.epochs: 4"),
        "slow": ("", "grpo.lr: 5e-5"),
        "slower": ("parent: slow\n", "grpo.lr: 5e-6\n  grpo.group: 8"),
        "slowest": ("parent: slower\n", "grpo.lr: 5e-7"),
        "same": ("parent: slow\n", "grpo.lr: 0.00005"),
        "both": ("", "data.seed: 1\n  grpo.lr: 5e-5"),
        "chicken": ("parent: egg\n", "grpo.lr: 1"),
        "egg": ("parent: chicken\n", "grpo.lr: 2"),
        "orphan": ("parent: nobody\n", "grpo.lr: 2"),
        "tight": ("", "eval.shots: 3"),
    }
    for name, (parent, overrides) in plans.items():
        (tmp_path / "plans" / f"{name}.yaml").write_text(
            f"title: A\nhypothesis: B\n{parent}overrides:\n  {overrides}\n"
        )
    return tmp_path


def test_a_plan_stands_on_its_parents(repository: Path) -> None:
    found = load_experiment(repository, "slowest")
    assert dict(found.overrides) == {"grpo.lr": 5e-7, "grpo.group": 8}
    assert (found.name, found.parent, found.changed) == ("slowest", "slower", {"grpo.lr": (5e-6, 5e-7)})
    assert load_experiment(repository, "slower").changed.keys() == {"grpo.group", "grpo.lr"}
    assert load_experiment(repository, "slow").parent is None


def test_a_base_comes_before_all(repository: Path) -> None:
    found = load_experiment(repository, "slower", "small")
    expected = {"data.train": 600, "grpo.epochs": 4, "grpo.lr": 5e-6, "grpo.group": 8}
    assert dict(found.overrides) == expected
    assert (found.name, found.parent) == ("small-slower", "small-slow")
    assert load_experiment(repository, "slow", "small").parent == "small"
    base = load_experiment(repository, "small", "small")
    assert (base.name, base.parent, base.changed) == ("small", None, {"data.train": (1200, 600), "grpo.epochs": (8, 4)})
    command = experiment_command(found, queue=True)
    assert command[:6] == ["dvc", "exp", "run", "--queue", "-n", "small-slower"]


def test_data_and_learning_at_once_get_a_warning(repository: Path) -> None:
    warning = load_experiment(repository, "both").warning
    assert warning is not None
    assert "data (data) and learning (grpo) at once" in warning
    assert load_experiment(repository, "slow", "small").warning is None  # the base is no change of the plan's own
    assert load_experiment(repository, "slower").warning is None


@pytest.mark.parametrize(
    ("name", "base", "message"),
    [
        ("same", None, "plan 'same' changes nothing of its parent 'slow'"),
        ("chicken", None, "parents of each other in a circle"),
        ("orphan", None, "there is no plan 'nobody'"),
        ("slow", "big", "there is no plan 'big'"),
        ("tight", None, "reward.shot_weights has 4 values"),
    ],
)
def test_plans_that_cannot_run_are_refused(repository: Path, name: str, base: str | None, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        load_experiment(repository, name, base)


@pytest.mark.parametrize("name", [name for name in PLANS if name not in {"tiny", "okvqa-3b", "lab"}])
def test_no_committed_idea_changes_data_and_learning_at_once(name: str) -> None:
    assert load_experiment(REPOSITORY, name, "lab").warning is None


def test_a_misspelled_key_of_a_plan_comes_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "mine.yaml").write_text("title: A\nhypotesis: B\noverrides:\n  grpo.lr: 0.1\n")
    with pytest.raises(LeverlabError, match=r"hypotesis: .*; did you mean 'hypothesis'\?"):
        load_plan(tmp_path, "mine")


@pytest.mark.parametrize("name", PLANS)
def test_every_accept_rule_of_a_committed_plan_can_be_measured(name: str) -> None:
    load_experiment(REPOSITORY, name)


@pytest.mark.parametrize(
    ("metric", "near"),
    [
        ("over_parent.shots_4.ci_lo", "'over_parent.shots_4.ci_low'"),
        ("over_parent.shots_5.ci_low", "'over_parent.shots_4.ci_low'"),
        ("grpo.shot_4", "'grpo.shots_4'"),
        ("comparison.sft.shots_4.ci_low", "'comparisons.sft.shots_4.ci_low'"),
        ("gguf.f16.bytes", ""),  # the ledger does not read the export
    ],
)
def test_an_accept_rule_on_what_no_run_measures_is_refused_before_the_run(
    tmp_path: Path, metric: str, near: str
) -> None:
    """`leverlab plan show`, `run` and `queue` load the experiment first."""
    (tmp_path / "plans").mkdir()
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    text = "title: A\nhypothesis: B\noverrides:\n  grpo.lr: 0.1\naccept:\n  at_least: 0.0\n  metric: "
    plan = tmp_path / "plans" / "mine.yaml"
    plan.write_text(text + "over_parent.shots_4.ci_low\n")
    assert load_experiment(tmp_path, "mine").name == "mine"
    plan.write_text(text + metric + "\n")
    with pytest.raises(LeverlabError) as caught:
        load_experiment(tmp_path, "mine")
    start = f"plan 'mine': its accept rule asks for the metric '{metric}', which no stage measures; "
    assert str(caught.value).startswith(start)
    assert near in str(caught.value)


def test_an_accept_rule_on_more_shots_than_the_plan_asks_for(params: dict[str, Any], tmp_path: Path) -> None:
    """The plan itself lowers eval.shots to two."""
    params["report"]["gates"] = {}
    (tmp_path / "plans").mkdir()
    text = "title: A\nhypothesis: B\noverrides:\n  eval.shots: 2\n  reward.shot_weights: [1.0, 1.0]\naccept:\n"
    plan = tmp_path / "plans" / "mine.yaml"
    plan.write_text(f"{text}  metric: grpo.shots_2\n  at_least: 0.0\n")
    assert load_experiment(tmp_path, "mine", params=params).overrides["eval.shots"] == 2
    plan.write_text(f"{text}  metric: grpo.shots_4\n  at_least: 0.0\n")
    with pytest.raises(LeverlabError, match=r"asks for the metric 'grpo\.shots_4', which no stage measures"):
        load_experiment(tmp_path, "mine", params=params)
