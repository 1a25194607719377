"""`leverlab health`: the report on a groups file of two queries, by hand, and what makes it stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from leverlab.errors import LeverlabError
from leverlab.evaluation.health import Finding, failures
from leverlab.pipeline.groups_health import groups_health, render
from leverlab.records import write_table
from leverlab.report.inputs import read_findings
from leverlab.selector.candidates import CandidateSet, write_candidates
from leverlab.training.groups import TERMS, Group, write_groups

Run = Callable[..., tuple[int, str, str]]
POOL = ["a", "b", "c", "d"]
LIMITS = {
    "max_flat_groups": 0.5,
    "max_winner_groups": 0.5,
    "min_positives": 0.25,
    "min_oracle_accuracy": 0.5,
    "max_random_accuracy": 0.5,
    "min_headroom": 0.25,
    "min_answer_prob_median": 0.01,
    "max_answer_prob_tiny": 0.25,
    "min_distinct_candidates": 0.75,
}
OF_THE_POOL = [
    "pool_identity",
    "candidates_outside_pool",
    "demos_outside_pool",
    "demos_outside_candidates",
    "distinct_candidates",
]


def group(query_id: str, demos: list[str], correct: Any, vqa: Any, probability: Any) -> Group:
    blank = np.zeros((2, 2))
    values = {
        "beam_score": blank,
        "correct": correct,
        "vqa_accuracy": vqa,
        "answer_prob": probability,
        "relevance": blank,
    }
    lists = (tuple(demos), tuple(reversed(demos)))
    return Group(query_id, lists, ("beam", "random"), {term: np.asarray(values[term], np.float64) for term in TERMS})


def groups() -> list[Group]:
    """q1: the beam is right at 2 shots, the random list at 1. q2: nothing is right, and annotators half agree."""
    return [
        group("q1", ["a", "b"], [[0, 1], [1, 0]], [[0, 1], [1, 0]], [[0.25, 0.5], [0.25, 0.5]]),
        group("q2", ["c", "d"], [[0, 0], [0, 0]], [[0.5, 0.5], [0, 0]], [[0.125, 0.125], [0.125, 0.125]]),
    ]


def write_params(root: Path, reward: dict[str, Any] | None = None, **limits: float) -> None:
    params = {
        "eval": {"shots": 2},
        "reward": {"mode": "soft_only", "weights": None, "shot_weights": [1, 1]} | (reward or {}),
        "rl_data": {"queries": 2, "beam_width": 1, "random_lists": 1, "seed": 0, "health": LIMITS | limits},
    }
    (root / "params.yaml").write_text(json.dumps(params))


def write_prepared(folder: Path, offered: dict[str, list[list[str]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "pool.parquet", [{"id": name} for name in POOL], pa.schema([("id", pa.string())]))
    sets = [
        CandidateSet("train", query, number, tuple(ids))
        for query, numbered in offered.items()
        for number, ids in enumerate(numbered)
    ]
    write_candidates(folder / "candidates.parquet", sets)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".dvc").mkdir()
    write_params(tmp_path)
    write_prepared(tmp_path / "data/prepared", {"q1": [["a", "b"]], "q2": [["c", "d"]]})
    write_groups(tmp_path / "groups.parquet", groups())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(root: Path, prepared: Path | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in groups_health(root, root / "groups.parquet", prepared)}


def test_every_value_by_hand(root: Path) -> None:
    """soft_only: the rewards are the means of vqa_accuracy, 1/2 and 1/2 for q1 (flat), 1/2 and 0 for q2.

    Beams: 1 of 4 answers right; random: 1 of 4. At 2 shots the best lists have 1 and 1/2, the random ones 0 and 0.
    Probabilities: four of .125, two of .25, two of .5, so the median is (.125 + .25) / 2.
    """
    assert {name: finding.value for name, finding in report(root, root / "data/prepared").items()} == {
        "pool_identity": 1,
        "candidates_outside_pool": 0,
        "demos_outside_pool": 0,
        "demos_outside_candidates": 0,
        "distinct_candidates": 1,
        "flat_groups": 0.5,
        "winner_groups": 0,
        "positives_beam": 0.25,
        "positives_random": 0.25,
        "oracle_accuracy": 0.75,
        "random_accuracy": 0,
        "headroom": 0.75,
        "answer_prob_median": 0.1875,
        "answer_prob_tiny": 0,
    }
    assert not failures(list(report(root, root / "data/prepared").values()))


def test_alone_a_file_gets_all_findings_but_those_on_candidates_and_pool(root: Path) -> None:
    """By the reward of params either way: by correct alone both groups are flat."""
    write_params(root, {"mode": "hard_only"})
    whole = report(root, root / "data/prepared")
    assert list(whole)[:5] == OF_THE_POOL
    assert whole["flat_groups"].value == 1
    assert report(root) == {name: finding for name, finding in whole.items() if name not in OF_THE_POOL}
    assert list(report(root)) == list(whole)[5:]


def test_reward_and_limits_are_those_of_params(root: Path) -> None:
    """With 3 : 1 shot weights q1's rewards are 1/4 and 3/4: no group is flat. By correct alone q2 is flat as well."""
    write_params(root, {"shot_weights": [3, 1]})
    assert report(root)["flat_groups"].value == 0
    write_params(root, {"mode": "hard_only"})
    assert report(root)["flat_groups"].value == 1
    write_params(root, max_flat_groups=0.4)
    assert [finding.name for finding in failures(list(report(root).values()))] == ["flat_groups"]


def test_only_set_0_of_the_candidates_counts(root: Path) -> None:
    """q1's demos are of set 1: training on the file would not find them in set 0. Its 4 places hold 3 of 4 demos."""
    write_prepared(root / "data/prepared", {"q1": [["c", "b"], ["a", "b"]], "q2": [["c", "d"], ["a", "b"]]})
    found = report(root, root / "data/prepared")
    assert found["demos_outside_candidates"].value == 2
    assert found["distinct_candidates"].value == 0.75


def test_files_that_cannot_be_judged_are_named(root: Path) -> None:
    prepared, empty = root / "data/prepared", root / "empty.parquet"
    with pytest.raises(LeverlabError, match=r"none\.parquet does not exist"):
        groups_health(root, root / "none.parquet", None)
    write_groups(empty, [])
    with pytest.raises(LeverlabError, match=r"empty\.parquet holds no groups"):
        groups_health(root, empty, None)
    with pytest.raises(LeverlabError, match=r"elsewhere, the prepared data .* is no folder.*--prepared"):
        report(root, root / "elsewhere")
    (prepared / "pool.parquet").write_bytes(b"cut")
    with pytest.raises(LeverlabError, match=r"pool\.parquet is damaged"):
        report(root, prepared)


def test_groups_that_training_would_refuse_are_refused(root: Path) -> None:
    """A query without candidates, another number of shots, and a value out of range."""
    write_prepared(root / "data/prepared", {"q1": [["a", "b"]]})
    with pytest.raises(LeverlabError, match="holds no candidates for query 'q2'"):
        report(root, root / "data/prepared")
    write_groups(root / "groups.parquet", [group("q1", ["a", "b", "c"], *[[[0, 1], [1, 0]]] * 3)])
    with pytest.raises(LeverlabError, match="row 0: 'demos' must hold 2 values"):
        report(root)
    write_groups(root / "groups.parquet", [group("q1", ["a", "b"], *[[[0, 1], [1, 2]]] * 3)])
    with pytest.raises(LeverlabError, match=r"row 1: 'correct' must hold values in 0\.\.1"):
        report(root)


def test_the_table_names_value_limit_and_verdict() -> None:
    findings = [
        Finding("flat_groups", 0.25, 0.5, "at_most", True, "no signal"),
        Finding("headroom", 1 / 3, 0.5, "at_least", False, "an id [red]x[/red] :smile:"),
    ]
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(render(Path("some/[bold]groups.parquet"), findings))
    lines = [" ".join(line.strip("│ ").split()) for line in capture.get().splitlines()]
    assert lines[0] == "Health of some/[bold]groups.parquet"
    assert "flat_groups │ 0.25 │ ≤ 0.5 │ ok │ no signal" in lines
    assert "headroom │ 0.333333 │ ≥ 0.5 │ FAIL │ an id [red]x[/red] :smile:" in lines
    assert lines[-1] == "1 of 2 checks fail"


def test_the_command_fails_with_code_1_beyond_a_limit(root: Path, command_line: Run) -> None:
    code, out, err = command_line("health", "groups.parquet")
    assert (code, err) == (0, "")
    assert "0 of 14 checks fail" in out
    write_params(root, max_flat_groups=0.4)
    code, out, err = command_line("health", "groups.parquet")
    assert (code, err) == (1, "")
    assert "1 of 14 checks fail" in out
    (line,) = [line for line in out.splitlines() if "FAIL" in line]
    assert "flat_groups" in line


def test_the_command_writes_the_findings_as_reports_health_json(root: Path, command_line: Run) -> None:
    write_params(root, max_flat_groups=0.4)
    code, out, _ = command_line("health", "groups.parquet", "--json")
    (root / "health.json").write_text(out)
    assert code == 1
    assert read_findings(root / "health.json") == groups_health(root, Path("groups.parquet"), Path("data/prepared"))


def test_the_command_checks_another_pool_or_none(root: Path, command_line: Run, monkeypatch: Any) -> None:
    """By default the pool is that of the repository, wherever the command is called in it."""
    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    assert command_line("health", "../groups.parquet")[0] == 0
    write_prepared(root / "below/mine", {"q1": [["c", "b"]], "q2": [["c", "d"]]})
    code, out, _ = command_line("health", "../groups.parquet", "--prepared", "mine")
    assert code == 1
    assert "demos_outside_candidates" in "".join(line for line in out.splitlines() if "FAIL" in line)
    code, out, _ = command_line("health", "../groups.parquet", "--alone")
    assert (code, "0 of 9 checks fail" in out) == (0, True)
    code, _, err = command_line("health", "../groups.parquet", "--alone", "--prepared", "mine")
    assert (code, "not both" in err) == (2, True)


def test_an_error_of_the_command_is_one_line(command_line: Run, root: Path) -> None:
    code, out, err = command_line("health", "none.parquet")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("leverlab: none.parquet does not exist")
