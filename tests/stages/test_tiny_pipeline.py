"""The real pipeline on the profile `tiny`: every stage, twice from nothing in two places, then once more with a change.

Copies of the repository are made with their own DVC cache, score cache and home. The VLM of `digits` is an input here:
training it takes ten minutes, and its stage has a test of its own.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo

from leverlab.config.base import read_params, read_yaml
from leverlab.files import digest
from tests.stages.clones import Cold, comparable, stages_run

pytestmark = pytest.mark.slow

BASELINES = ["zero_shot", "random", "fixed", "image_sim", "text_sim", "mix", "type_sim"]
METHODS = [*BASELINES, "sft", "rce", "sft_control", "grpo", "oracle"]
COLUMNS = ["method", "shots", "accuracy", "ci_low", "ci_high", "n", "seed_std", "distinct_demos"]
TRAINED = {"sft", "rce", "sft_control", "grpo"}


@pytest.fixture(scope="session")
def index(cold: Cold) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
            patch.setenv(name, cold.clone.environment[name])
        with Repo(str(cold.root)) as repo:
            yield repo.index


@pytest.fixture(scope="session")
def answers(cold: Cold) -> pd.DataFrame:
    return pq.read_table(cold.root / "data/answers.parquet").to_pandas()


@pytest.fixture(scope="session")
def tiny(cold: Cold) -> dict[str, Any]:
    return read_params(cold.root / "params.yaml")


def test_every_stage_ran_once(cold: Cold, index: Any, tiny: dict[str, Any]) -> None:
    names = set()
    for name, body in read_yaml(cold.root / "dvc.yaml")["stages"].items():
        names |= {f"{name}@{seed}" for seed in tiny["seeds"]} if "matrix" in body else {name}
    assert sorted(cold.ran) == sorted(names) == sorted(stage.name for stage in index.stages)


def test_every_out_is_there_and_in_provenance(cold: Cold, index: Any) -> None:
    for stage in index.stages:
        record = json.loads((cold.root / "provenance" / f"{stage.name}.json").read_text())
        outs = {Path(out.fs_path).relative_to(cold.root).as_posix() for out in stage.outs}
        assert record["outs"] == {out: digest(cold.root / out) for out in outs}
        assert record["dirty"] is False or stage.name != "prepare"
        assert record["stage"] == stage.name


def test_git_sees_the_small_reports_alone(cold: Cold) -> None:
    """`reports/` and the provenance are for Git, `data/` and `models/` for DVC; nothing else was left behind."""
    seen = cold.clone.run("git", "ls-files", "--others", "--exclude-standard").split()
    assert {"reports/shots.csv", "reports/metrics.json", "reports/health.json", "provenance/prepare.json"} <= set(seen)
    known = re.compile(r"reports/|provenance/|dvc\.lock$|(data|models)/(\w+/)?\.gitignore$")
    assert [name for name in seen if not known.match(name)] == []


def test_shots_hold_every_method(cold: Cold, tiny: dict[str, Any]) -> None:
    with (cold.root / "reports/shots.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    counts = defaultdict(list)
    for row in rows:
        counts[row["method"]].append(int(row["shots"]))
        assert int(row["n"]) == tiny["data"]["test"]
        assert 0 <= float(row["ci_low"]) <= float(row["accuracy"]) <= float(row["ci_high"]) <= 1
    all_shots = list(range(1, tiny["eval"]["shots"] + 1))
    assert list(counts) == METHODS
    assert {method: sorted(found) for method, found in counts.items()} == {
        method: [0] if method == "zero_shot" else all_shots for method in METHODS
    }


def test_accuracies_are_those_of_the_answers(cold: Cold, answers: pd.DataFrame, tiny: dict[str, Any]) -> None:
    """A slow loop: in `digits` a question has one answer, and a prediction is right when it is exactly that."""
    questions = pq.read_table(cold.root / "data/prepared/test.parquet", columns=["id", "answers"]).to_pylist()
    truth = {question["id"]: question["answers"] for question in questions}
    assert all(len(found) == 1 for found in truth.values())
    right: dict[tuple[str, int], list[bool]] = defaultdict(list)
    distinct: dict[tuple[str, int], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in answers.itertuples():
        right[row.method, row.shots].append(row.prediction.strip() == truth[row.question_id][0])
        distinct[row.method, row.shots][row.seed] |= set(row.demos)
    with (cold.root / "reports/shots.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            key = line["method"], int(line["shots"])
            accuracy = sum(right[key]) / len(right[key])
            assert float(line["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
            sets = [len(demos) for demos in distinct[key].values()]
            assert float(line["distinct_demos"]) == pytest.approx(sum(sets) / len(sets), rel=1e-5)
    metrics = json.loads((cold.root / "reports/metrics.json").read_text())
    for (method, shots), found in right.items():
        assert metrics[method][f"shots_{shots}"] == pytest.approx(sum(found) / len(found), abs=1e-6)


def test_every_answer_is_kept_once(answers: pd.DataFrame, tiny: dict[str, Any]) -> None:
    seeds = {"random": tiny["infer"]["random_seeds"], **dict.fromkeys(TRAINED, len(tiny["seeds"]))}
    for method in METHODS:
        rows = answers[answers["method"] == method]
        shots = 1 if method == "zero_shot" else tiny["eval"]["shots"]
        assert len(rows) == seeds.get(method, 1) * shots * tiny["data"]["test"]
        assert not rows.duplicated(["seed", "shots", "question_id"]).any()


def test_demos_are_candidates_and_no_demo_comes_twice(cold: Cold, answers: pd.DataFrame) -> None:
    """Every list has distinct demos of the pool; all but the fixed one come from the question's own candidates."""
    pool = set(pq.read_table(cold.root / "data/prepared/pool.parquet", columns=["id"])["id"].to_pylist())
    table = pq.read_table(cold.root / "data/prepared/candidates.parquet").to_pandas()
    (identifier,) = [name for name in table.columns if name in {"query_id", "question_id", "id"}]
    (offered_in,) = [name for name in table.columns if name.startswith(("candidate", "demo"))]
    offered = {row[identifier]: set(row[offered_in]) for _, row in table.iterrows()}
    for row in answers.itertuples():
        assert len(row.demos) == len(set(row.demos)) == row.shots
        assert set(row.demos) <= (pool if row.method == "fixed" else offered[row.question_id])


def test_prefixes_of_a_list_are_the_lists_of_fewer_shots(answers: pd.DataFrame) -> None:
    lists = {(row.method, row.seed, row.question_id, row.shots): list(row.demos) for row in answers.itertuples()}
    for (method, seed, question, shots), demos in lists.items():
        if method in TRAINED | {"oracle", "fixed"} and shots > 1:
            assert lists[method, seed, question, shots - 1] == demos[:-1]


def test_the_oracle_has_the_most_probable_first_demo(answers: pd.DataFrame) -> None:
    """It sees the answer and all candidates, so at one shot no other method makes the answer more probable."""
    first = answers[(answers["shots"] == 1) & (answers["method"] != "fixed")]
    best = first[first["method"] == "oracle"].set_index("question_id")["answer_prob"]
    others = first.groupby("question_id")["answer_prob"].max()
    assert (others <= best.loc[others.index] * 1.05 + 1e-6).all()  # bfloat16 scores move a little with their batch


def test_the_health_report_and_the_proofs_are_there(cold: Cold, tiny: dict[str, Any]) -> None:
    assert json.loads((cold.root / "reports/health.json").read_text())["findings"]
    picks = json.loads((cold.root / "models/selectors/proof.json").read_text())["equal_picks"]
    assert set(picks) == {f"{method}-{seed}" for method in TRAINED for seed in tiny["seeds"]}
    assert all(count > 0 for count in picks.values())


def test_exported_files_answer_in_llama_cpp(cold: Cold, tiny: dict[str, Any]) -> None:
    """Every kind was run: its parity, its answers to all test questions, and its speed are there."""
    exported = json.loads((cold.root / "reports/gguf.json").read_text())
    assert set(exported["files"]) == {*(f"text-{kind}.gguf" for kind in tiny["gguf"]["kinds"]), "mmproj-f16.gguf"}
    assert all(file["values_beyond"] == 0 for file in exported["files"].values())
    f16 = exported["parity"]["f16"]["all"]
    assert f16["equal_tokens"] == 1
    assert f16["prompts"] == 12 * tiny["gguf"]["parity"]["prompts"]
    assert f16["max_delta"] < 0.03
    answered = pq.read_table(cold.root / "data/gguf_answers.parquet").to_pandas()
    for kind in ("transformers", *tiny["gguf"]["kinds"]):
        rows = answered[(answered["kind"] == kind) & (answered["method"] == "selector")]
        assert len(rows) == tiny["eval"]["shots"] * tiny["data"]["test"]
    engines = json.loads((cold.root / "reports/benchmark.json").read_text())["engines"]
    assert set(engines) == {"transformers float32", "transformers bfloat16", *tiny["gguf"]["kinds"]}
    assert all(engine["latency_ms"]["shots_4"]["p50"] > 0 for engine in engines.values())


def test_the_bundle_picks_as_the_pipeline_does(cold: Cold, tiny: dict[str, Any]) -> None:
    """But for near ties: the pipeline's features are those of a bfloat16 model, the bundle's are float32."""
    info = json.loads((cold.root / "models/bundle/bundle.json").read_text())
    assert info["compared_picks"] == tiny["eval"]["shots"] * tiny["data"]["val"] * tiny["prepare"]["val_sets"]
    assert info["equal_picks"] >= 0.9 * info["compared_picks"]


def test_two_cold_runs_in_two_places_give_the_same_lock(cold: Cold, finished: Cold) -> None:
    """Also with another number of workers: no out holds a time, a host, a place or the order of processes.

    But for what the benchmark measured, and what shows it.
    """
    assert cold.root != finished.root
    assert comparable(cold.lock) == comparable(finished.lock)
    for folder in ("reports/tables", "reports/figures"):
        names = sorted(path.name for path in (cold.root / folder).iterdir())
        assert names == sorted(path.name for path in (finished.root / folder).iterdir())
        for name in set(names) - {"gguf_speed.md", "export.svg", "export.png"}:
            assert (cold.root / folder / name).read_bytes() == (finished.root / folder / name).read_bytes(), name


def test_no_out_names_the_place(cold: Cold, index: Any) -> None:
    for stage in index.stages:
        for out in stage.outs:
            path = Path(out.fs_path)
            for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
                assert str(cold.root.parent).encode() not in file.read_bytes(), file


@pytest.fixture(scope="session")
def again(cold: Cold) -> str:
    return cold.clone.run("dvc", "repro")


def test_a_second_repro_runs_nothing(cold: Cold, again: str) -> None:
    assert stages_run(again) == []
    assert "up to date" in again
    assert (cold.root / "dvc.lock").read_bytes() == cold.lock


@pytest.fixture(scope="session")
def lower_rate(cold: Cold, again: str) -> tuple[str, dict[str, int]]:
    """What `dvc exp run -n plan-6 -S grpo.lr=5e-5` prints, and when the provenance of each stage was written before."""
    cold.clone.commit("first run")
    before = provenance_times(cold.root)
    return cold.clone.run("dvc", "exp", "run", "-n", "plan-6", "-S", "grpo.lr=5e-5"), before


def provenance_times(root: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (root / "provenance").glob("*.json")}


def test_a_lower_rate_runs_grpo_and_what_follows(
    cold: Cold, index: Any, lower_rate: tuple[str, dict[str, int]], tiny: dict[str, Any]
) -> None:
    """By DVC's own graph; a stage after grpo may stay as it is only when what it reads came out the same."""
    output, before = lower_rate
    ran = set(stages_run(output))
    must = {f"grpo@{seed}" for seed in tiny["seeds"]} | {"select-best", "convert"}
    below = {stage.name for stage in index.stages if descends(index.graph, stage)}
    assert must <= ran <= below | must
    assert not ran & {"prepare", "rl-data", "gguf", *(f"{name}@{seed}" for name in ("sft", "rce") for seed in (0, 1))}
    after = provenance_times(cold.root)
    assert {name for name, time in after.items() if time != before[name]} == ran
    for name in below - ran:
        record = json.loads((cold.root / "provenance" / f"{name}.json").read_text())
        assert record["inputs"] == {path: digest(cold.root / path) for path in record["inputs"]}


def descends(graph: Any, stage: Any) -> bool:
    """Whether `stage` depends on a stage of grpo, in DVC's graph (edges point to what a stage needs)."""
    seen, pending = set(), [stage]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += graph.successors(node)
    return any(node.name.startswith("grpo@") for node in seen)


def test_the_rate_arrives_as_a_number(cold: Cold, lower_rate: tuple[str, dict[str, int]]) -> None:
    """DVC writes `5e-05`; the provenance of grpo tells what the stage read."""
    assert re.search(r"^  lr: 5e-05", (cold.root / "params.yaml").read_text(), flags=re.MULTILINE)
    record = json.loads((cold.root / "provenance/grpo@0.json").read_text())
    assert record["params"]["params.yaml:grpo"]["lr"] == 5e-5


def test_the_experiment_is_kept(cold: Cold, lower_rate: tuple[str, dict[str, int]]) -> None:
    assert cold.clone.run("dvc", "exp", "list", "--name-only").split() == ["plan-6"]
    changed = json.loads(cold.clone.run("dvc", "params", "diff", "--json"))
    assert list(changed["params.yaml"]) == ["grpo.lr"]
    assert changed["params.yaml"]["grpo.lr"]["new"] == 5e-5
