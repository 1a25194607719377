"""What a provenance record calls dirty: an edit of what goes into the run, not what DVC and the stages write."""

import json

import pytest

from tests.stages.workplace import PIPELINE, Workplace


@pytest.fixture
def job(place: Workplace) -> Workplace:
    """The repository with the stage `job` alone."""
    place.write("dvc.yaml", PIPELINE.split("  many:")[0])
    return place


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("out/one.txt", False),
        ("out/many/b.txt", False),
        ("out/metrics.json", False),
        ("out/7", False),  # of the matrix
        ("dvc.lock", False),
        ("provenance/job.json", False),
        ("recipe/deep/a.csv", False),  # declared from the root, by wdir and foreach
        ("recipe/dvc.lock", False),
        ("recipe/provenance/x.json", False),
        ("out/.gitignore", False),
        ("job.py", True),
        ("params.yaml", True),
        ("dvc.yaml", True),
        ("plan/provenance/x.json", True),  # no dvc.yaml there
        ("recipe/deep/a/b.csv", True),
        ("recipe/params.yaml", True),
        ("data/in.txt", True),
    ],
)
def test_dirty_is_an_edit_of_what_goes_into_the_run(place: Workplace, path: str, dirty: bool) -> None:
    """All of these files are tracked; what DVC and the stages write themselves does not count."""
    place.write(".gitignore", ".leverlab/\n")
    each = "{wdir: .., cmd: x, outs: ['recipe/deep/${item}.csv']}"
    place.write("recipe/dvc.yaml", f"stages: {{each: {{foreach: [a], do: {each}}}}}")
    if not (place.root / path).exists():
        place.write(path, "{}")
    place.commit()
    place.write(path, place.read(path) + "\n")
    assert json.loads(provenance_of(place))["dirty"] is dirty


def provenance_of(place: Workplace) -> str:
    place.succeeds("0")
    return place.read("provenance/many@0.json")


def test_dirty_of_staged_new_and_removed_files(place: Workplace) -> None:
    place.write(".gitignore", ".leverlab/\nout/\n")
    place.commit()
    place.write("new.py", "")
    assert json.loads(provenance_of(place))["dirty"] is False  # untracked
    place.git("add", "new.py")
    assert json.loads(provenance_of(place))["dirty"] is True
    place.commit()
    (place.root / "new.py").unlink()
    assert json.loads(provenance_of(place))["dirty"] is True


def test_dirty_beside_a_damaged_pipeline(place: Workplace) -> None:
    """A dvc.yaml elsewhere that cannot be read does not fail the stage: its outs count as edits."""
    place.write("recipe/dvc.yaml", "stages: [")
    place.write("recipe/out.csv", "1")
    place.commit()
    assert json.loads(provenance_of(place))["dirty"] is False
    place.write("recipe/out.csv", "2")
    assert json.loads(provenance_of(place))["dirty"] is True


def test_a_second_run_is_clean_and_an_experiment_with_other_params_is_not(job: Workplace) -> None:
    """Outs and provenance that Git tracks are rewritten by DVC; `-S` edits params.yaml."""
    job.write(".gitignore", ".leverlab/\n")
    job.body("write_all(stage, str(stage.section('job', JobParams).lr))")
    job.write("dvc.yaml", PIPELINE.split("  many:")[0].replace("out/many\n", "out/many: {cache: false}\n"))
    job.dvc("status")
    job.commit()
    for _ in range(2):
        code, out = job.dvc("repro", "-f")
        assert code == 0, out
        assert json.loads(job.read("provenance/job.json"))["dirty"] is False
        job.commit()
        job.write("out/metrics.json", "stale")
    for options in ([], ["--temp"]):
        code, out = job.dvc("exp", "run", *options, "-n", f"e{len(options)}", "-S", f"job.lr=0.{5 + len(options)}")
        assert code == 0, out
        record = job.git("show", f"{experiment(job, f'e{len(options)}')}:provenance/job.json")
        assert json.loads(record)["dirty"] is True


def experiment(job: Workplace, name: str) -> str:
    return job.git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}")
