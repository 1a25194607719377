"""The whole of params.yaml: what must hold between sections, and all problems at once."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import read_params
from leverlab.config.gguf import KINDS
from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import METHODS, RETRIEVAL, SELECTORS
from leverlab.pipeline.gate_names import BASELINES, TRAINED, main_metrics, recipe_metrics, unknown_metric
from leverlab.pipeline.params import RETRIEVAL_LISTS, SECTIONS, check_params, check_params_file
from leverlab.pipeline.plans import load_plan, overridden
from leverlab.pipeline.recipe_params import check_recipe

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def params() -> dict[str, Any]:
    return read_params(REPOSITORY / "params.yaml")


def problems(params: dict[str, Any]) -> list[str]:
    with pytest.raises(LeverlabError) as caught:
        check_params(params, "params.yaml")
    return str(caught.value).splitlines()


def test_the_committed_file_passes_and_is_not_changed(params: dict[str, Any]) -> None:
    before = copy.deepcopy(params)
    check_params(params, "params.yaml")
    check_params_file(REPOSITORY / "params.yaml")
    assert params == before


def test_an_unknown_section_is_named(params: dict[str, Any]) -> None:
    """Also where a section is misspelled, and so missing."""
    assert problems(params | {"grop": {}}) == ["params.yaml: unknown section 'grop'; did you mean 'grpo'?"]
    assert problems(params | {"zzz": {}}) == ["params.yaml: unknown section 'zzz'"]
    renamed = {"seed" if name == "seeds" else name: value for name, value in params.items()}
    assert problems(renamed)[0] == "params.yaml: unknown section 'seed'; did you mean 'seeds'?"


def test_a_key_that_the_run_cache_of_dvc_ignores_is_refused(params: dict[str, Any]) -> None:
    params["report"]["gates"]["size"] = {"metric": "x", "at_least": 0}
    (problem,) = problems(params)
    assert problem.startswith("params.yaml: no key may be named 'size': DVC's run cache")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_needed(params: dict[str, Any], section: str) -> None:
    del params[section]
    (problem,) = problems(params)
    assert problem.startswith(f"params.yaml has no section '{section}'")


def test_all_problems_are_told_at_once(params: dict[str, Any]) -> None:
    params["grpo"]["lrr"] = params["grpo"].pop("lr")
    params["data"]["pool"] = 0
    params["sedes"] = params.pop("seeds")
    lines = problems(params)
    assert len(lines) == 5
    for part in ("'sedes'", "'data.pool' = 0", "'grpo.lr' is missing", "'grpo.lrr'", "'seeds' = None"):
        assert sum(part in line for line in lines) == 1, part


@pytest.mark.parametrize("seeds", [None, 3, [], [0, -1], ["0"], [0.0], [True], [[0]], {"a": 0}, "012"])
def test_seeds_are_whole_numbers_from_0_on(params: dict[str, Any], seeds: Any) -> None:
    (problem,) = problems(params | {"seeds": seeds})
    assert problem.startswith(f"params.yaml: 'seeds' = {seeds!r} must be a list of whole numbers")


def test_a_seed_twice_is_refused(params: dict[str, Any]) -> None:
    """It would give one matrix item where two are believed."""
    assert problems(params | {"seeds": [1, 0, 1]}) == ["params.yaml: 'seeds' = [1, 0, 1] names a seed twice"]


def test_one_weight_for_each_shot_count(params: dict[str, Any]) -> None:
    params["eval"]["shots"] = len(params["reward"]["shot_weights"]) + 1
    (problem,) = problems(params)
    assert "reward.shot_weights has" in problem
    assert f"eval.shots = {params['eval']['shots']}" in problem


def test_as_many_candidates_as_shots(params: dict[str, Any]) -> None:
    shots = params["eval"]["shots"]
    params["prepare"]["candidates"] = shots
    check_params(params, "params.yaml")
    params["prepare"]["candidates"] = shots - 1
    (problem,) = problems(params)
    assert f"prepare.candidates = {shots - 1} is less than eval.shots = {shots}" in problem


def test_as_many_demos_as_candidates(params: dict[str, Any]) -> None:
    params["data"]["pool"] = params["prepare"]["candidates"]
    check_params(params, "params.yaml")
    params["data"]["pool"] -= 1
    (problem,) = problems(params)
    assert f"data.pool = {params['data']['pool']} holds fewer demos than prepare.candidates" in problem


def test_no_more_lists_are_kept_than_there_are(params: dict[str, Any]) -> None:
    params["grpo"]["control"]["keep"] = params["grpo"]["group"]
    check_params(params, "params.yaml")
    params["grpo"]["control"]["keep"] += 1
    (problem,) = problems(params)
    assert "lists cannot be kept of a group of" in problem


def test_numbers_that_came_as_text_pass(params: dict[str, Any]) -> None:
    params["grpo"]["lr"] = "5e-5"
    check_params(params, "params.yaml")


def test_the_files_own_name_stands_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("seeds: [0]\n")
    with pytest.raises(LeverlabError, match=r"^other\.yaml has no section 'data'"):
        check_params_file(tmp_path / "other.yaml")


def test_a_seed_that_no_generator_takes_is_refused(params: dict[str, Any]) -> None:
    check_params(params | {"seeds": [2**32 - 1]}, "params.yaml")
    (problem,) = problems(params | {"seeds": [0, 2**32]})
    expected = "params.yaml: 'seeds' = [0, 4294967296] must be a list of whole numbers from 0 to 4294967295"
    assert problem == f"{expected}; on the command line -S 'seeds=[0,1,2]'"
    for section, key in (("data", "seed"), ("prepare", "seed"), ("rl_data", "seed"), ("infer", "fixed_seed")):
        changed = copy.deepcopy(params)
        changed[section][key] = 2**32
        assert f"'{section}.{key}' = 4294967296 is not allowed" in problems(changed)[0]


@pytest.mark.parametrize("weights", [[0, 0, 0, 0], [1, 1, 1, -1]])
def test_shot_weights_that_make_no_reward_are_refused(params: dict[str, Any], weights: list[float]) -> None:
    params["reward"]["shot_weights"] = weights
    (problem,) = problems(params)
    assert problem.startswith("params.yaml: 'reward.shot_weights' = ")
    assert "the shot weights: " in problem


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (None, "needs weights for its terms: correct"),
        ({}, "every weight is zero"),
        ({"correct": 0}, "every weight is zero"),
        ({"correct": -0.5}, "must be a finite number >= 0"),
        ({"corect": 1}, "'corect' has weight 1.0 but is not read"),
        ({"correct": {"kind": "linear", "start": 1, "end": 0}}, "every weight is zero"),
        (
            {"correct": {"kind": "piecewise", "start": 1, "end": 1, "points": [[0.5, -1]]}},
            "must be a finite number >= 0, got -1.0 (at 50% of the training)",
        ),
    ],
)
def test_reward_weights_that_make_no_reward_are_refused(params: dict[str, Any], weights: Any, reason: str) -> None:
    params["reward"]["weights"] = weights
    (problem,) = problems(params)
    assert problem.startswith("params.yaml: 'reward.weights' = ")
    assert reason in problem


def test_weights_that_pass_each_other_are_allowed(params: dict[str, Any]) -> None:
    falling, rising = ({"kind": "linear", "start": start, "end": 1 - start} for start in (1, 0))
    params["reward"]["weights"] = {"correct": falling, "answer_prob": rising}
    check_params(params, "params.yaml")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"low": 0.1, "high": 0.1}, "low = 0.1 must be below high = 0.1"),
        ({"minimum": 2.0, "maximum": 1.0}, "minimum = 2.0 must be at most maximum = 1.0"),
        ({"enabled": True, "minimum": 0.5}, "kl_beta = 0.02 must lie between adaptive_kl.minimum = 0.5"),
    ],
)
def test_an_adaptive_beta_has_room(params: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    params["grpo"]["adaptive_kl"] |= changes
    (problem,) = problems(params)
    assert reason in problem


def test_no_more_stored_lists_are_kept_than_there_are(params: dict[str, Any]) -> None:
    """5 beams, 4 retrieval lists and 7 random ones are 16; online there are as many as params say."""
    params["grpo"] |= {"group": 32, "rollouts": "online"}
    params["grpo"]["control"]["keep"] = 17
    check_params(params, "params.yaml")
    params["grpo"]["rollouts"] = "offline"
    (problem,) = problems(params)
    assert "grpo.control.keep = 17 exceeds the 16 lists of a stored group" in problem
    params["grpo"]["control"]["keep"] = 16
    check_params(params, "params.yaml")


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "grpo.shots_0",
        "grpo.shots_5",
        "zero_shot.shots_1",
        "lift.over_rce",
        "comparisons.grpo.shots_4.ci_low",
        "comparisons.sft.shots_4.low",
        "comparisons.sft.shots_4",
        "chosen.grpo.kll",
        "chosen.oracle.kl",
        "gguf.q9_0.mean_kl",
        "gguf.q8_0",
    ],
)
def test_a_gate_on_what_no_stage_measures_is_refused(params: dict[str, Any], metric: str) -> None:
    params["report"]["gates"]["mine"] = {"metric": metric, "at_least": 0}
    (problem,) = problems(params)
    assert f"report.gates.mine asks for the metric '{metric}', which no stage measures" in problem


@pytest.mark.parametrize("metric", ["gguf.q4_0.mean_kl", "gguf.q8_0.over_q4_0.difference"])
def test_a_gate_on_a_file_that_is_not_exported_is_refused_and_can_be_off(params: dict[str, Any], metric: str) -> None:
    params["report"]["gates"] = {"mine": {"metric": metric, "at_most": 1}}
    check_params(params, "params.yaml")
    params["gguf"]["kinds"] = ["f16", "q8_0"]
    assert problems(params) == [
        f"params.yaml: report.gates.mine asks for '{metric}', but gguf.kinds exports f16, q8_0 only; "
        "export q4_0 too, or switch the gate off with null: -S report.gates.mine=null"
    ]
    params["report"]["gates"] = {"mine": None}
    check_params(params, "params.yaml")


def test_tiny_switches_off_the_gates_of_the_files_that_it_does_not_export_and_no_others(params: dict[str, Any]) -> None:
    changed = overridden(params, load_plan(REPOSITORY, "tiny").overrides)
    missing = set(params["gguf"]["kinds"]) - set(changed["gguf"]["kinds"])
    off = {name for name, rule in changed["report"]["gates"].items() if rule is None}
    about = {name: rule["metric"].split(".") for name, rule in params["report"]["gates"].items()}
    assert off == {name for name, parts in about.items() if parts[0] == "gguf" and parts[1] in missing}
    assert len(off) == 2


@pytest.mark.parametrize(
    "metric",
    [
        "",
        ".",
        "grpo",
        "grpo.",
        "grpo.shots_1.x",
        ".grpo.shots_1",
        "health",
        "health.",
        "health.a.b",
        "gguf.f16",
        "gguf..x",
    ],
)
def test_a_part_too_few_or_too_many_is_no_metric(metric: str) -> None:
    assert unknown_metric(metric, main_metrics(4, KINDS)) is not None


@pytest.mark.parametrize("metric", ["grpo.shots_1", "health.flat_groups", "gguf.f16.files.bytes", "gguf.f16.x"])
def test_a_metric_with_all_its_parts(metric: str) -> None:
    assert unknown_metric(metric, main_metrics(4, KINDS)) is None


def leaves(metrics: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in metrics.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_a_gate_on_anything_that_was_measured_is_allowed(params: dict[str, Any]) -> None:
    """The committed reports/metrics.json, and every gate that was evaluated for the report."""
    measured = json.loads((REPOSITORY / "reports/metrics.json").read_text())
    gates = json.loads((REPOSITORY / "reports/gates.json").read_text())
    known = main_metrics(params["eval"]["shots"], KINDS)
    names = [*leaves(measured), *(gate["metric"] for gate in gates)]
    assert len(names) > 50
    assert [name for name in names if unknown_metric(name, known)] == []
    assert {"zero_shot", *BASELINES, *TRAINED} == set(METHODS)
    assert set(TRAINED) == set(SELECTORS)
    assert len(RETRIEVAL) == RETRIEVAL_LISTS


def test_the_headline_names_metrics_of_any_shot_count_and_no_others(params: dict[str, Any]) -> None:
    changed = copy.deepcopy(params)
    changed["report"]["headline"] = {"more": "grpo.shots_8"}
    check_params(changed, "params.yaml")
    changed["report"]["headline"] = {"less": "grpo.shots_0", "typo": "grpo.shot_4"}
    changed["report"]["headline"]["far"] = "zzz"
    less, typo, far = problems(changed)
    asks, unmeasured = "asks for the metric", "which no stage measures"
    assert less.startswith(f"params.yaml: report.headline.less {asks} 'grpo.shots_0', {unmeasured}; did you mean ")
    assert typo.startswith(f"params.yaml: report.headline.typo {asks} 'grpo.shot_4', {unmeasured}; did you mean ")
    assert "'grpo.shots_4'" in typo
    assert far == f"params.yaml: report.headline.far {asks} 'zzz', {unmeasured}; correct its name"


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"mine": None}, "report.gates has no gate that is on"),
        ({"mine": {"metric": "gguf.q5_1.mean_kl", "at_most": 1}}, "gguf.kinds exports f16, q8_0, q5_0, q4_0 only"),
    ],
)
def test_gates_of_a_recipe_that_cannot_be_judged_are_refused(tmp_path: Path, gates: Any, message: str) -> None:
    folder = tmp_path / "recipes" / "clarify"
    folder.mkdir(parents=True)
    params = read_params(REPOSITORY / "recipes/clarify/params.yaml")
    params["report"]["gates"] = gates
    (folder / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(LeverlabError, match=message):
        check_recipe(folder)


def test_a_gate_of_a_recipe_asks_for_what_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "clarify"
    folder.mkdir(parents=True)
    text = (REPOSITORY / "recipes/clarify/params.yaml").read_text()
    (folder / "params.yaml").write_text(text)
    check_recipe(folder)
    (folder / "params.yaml").write_text(
        text.replace("metric: hack_probe.proxy.silent", "metric: hack_prob.proxy.silent")
    )
    with pytest.raises(LeverlabError, match=r"'hack_prob\.proxy\.silent', which .* mean 'hack_probe\.proxy\.silent'"):
        check_recipe(folder)
    measured = json.loads((REPOSITORY / "recipes/clarify/reports/metrics.json").read_text())
    known = recipe_metrics(["f16"])
    assert [name for name in leaves(measured) if unknown_metric(name, known)] == []
