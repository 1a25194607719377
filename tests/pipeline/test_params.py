"""The whole of params.yaml: what must hold between sections, and all problems at once."""

import copy
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import read_params
from leverlab.errors import LeverlabError
from leverlab.pipeline.params import SECTIONS, check_params, check_params_file

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
    assert problems(params | {"grop": {}}) == ["params.yaml: unknown section 'grop'"]


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
