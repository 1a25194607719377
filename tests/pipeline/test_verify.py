"""Stages that are run again elsewhere: small real ones, built once by `dvc repro` in a repository of their own."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from leverlab.errors import LeverlabError
from leverlab.pipeline.compare import largest_difference
from leverlab.pipeline.deps import closure
from leverlab.pipeline.verify import select, verify_stage

Run = Callable[..., tuple[int, str, str]]
REPOSITORY = Path(__file__).parents[2]

PIPELINE = """\
stages:
  after:
    cmd: python -m stages.job after
    deps: [CODE, out/same]
    outs: [out/after.txt]
  same:
    cmd: python -m stages.job same
    deps: [CODE, data]
    params: [job, grid.size]
    outs: [out/same]
    metrics:
      - out/same.json:
          cache: false
  noise:
    cmd: python -m stages.job noise
    deps: [CODE]
    outs: [out/noise, out/still.txt]
  loss:
    cmd: python -m stages.job loss
    deps: [CODE]
    meta: {tolerance: 1e-2}
    outs: [out/loss]
  reader:
    cmd: python -m stages.job reader
    deps: [CODE]
    outs: [out/reader.txt]
  importer:
    cmd: python -m stages.job importer
    deps: [CODE]
    outs: [out/importer.txt]
  surroundings:
    cmd: python -m stages.job surroundings
    deps: [CODE]
    outs: [out/surroundings.json]
  items:
    matrix:
      seed: ${seeds}
    cmd: python -m stages.job items ${item.seed}
    deps: [CODE]
    params: [job.lr]
    outs:
      - out/items/${item.seed}
"""

WORLD = """\
stages:
  vlm:
    wdir: ..
    cmd: python -m stages.job vlm
    deps: [CODE]
    params:
      - world/params.yaml: [vlm]
    outs: [world/vlm]
"""

# No real stage may ask where it runs; these do, to differ by a known amount when they are run again.
MODULE = """\
import json, os, sys
from pathlib import Path
import leverlab
from leverlab.stage import run_stage, workspace_store

name, *seed = sys.argv[1:]
again = "leverlab-verify-" in os.getcwd()


def write(stage, out, text):
    path = stage.out(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def body(stage):
    if name == "after":
        write(stage, "out/after.txt", stage.dep("out/same/a.txt").read_text() + "!")
    if name == "same":
        write(stage, "out/same/a.txt", Path("data/in.txt").read_text())
        write(stage, "out/same.json", json.dumps(stage.declared_params()))
    if name == "noise":
        write(stage, "out/noise/a.txt", "a")
        write(stage, "out/noise/b.txt", os.urandom(8).hex())
        write(stage, "out/still.txt", "still")
    if name == "loss":
        write(stage, "out/loss/a.json", json.dumps({"losses": [7, 0.503 if again else 0.5]}))
        write(stage, "out/loss/b.txt", "b")
    if name == "reader":
        write(stage, "out/reader.txt", Path("data/in.txt").read_text())
    if name == "importer":
        import leverlab.extra as extra
        write(stage, "out/importer.txt", "imported")
    if name == "surroundings":
        found = {
            "library": Path(leverlab.__file__).is_relative_to(Path.cwd()),
            "store": workspace_store().is_relative_to(Path.cwd()),
            "scores": (workspace_store() / "scores").exists(),
            "workspace": sum(path.endswith("/work/src") for path in sys.path),
        }
        write(stage, "out/surroundings.json", json.dumps(found))
    if name == "items":
        write(stage, f"out/items/{seed[0]}", f"seed {seed[0]}, lr {stage.value('job.lr')}")
    if name == "vlm":
        write(stage, "world/vlm/config.json", json.dumps(stage.declared_params()))


run_stage(name, body, {"seed": seed[0]} if seed else None, home="world" if name == "vlm" else ".")
"""


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def dvc(root: Path, *arguments: str) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "config"),
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with its own copy of the library, in which `dvc repro` ran, with a store of earlier scores."""
    root = tmp_path_factory.mktemp("verify") / "work"
    library = [path.as_posix() for path in closure(Path("src/leverlab/stage.py"), REPOSITORY)]
    code = ", ".join([*library, "stages/__init__.py", "stages/job.py"])
    for name in [*library, "stages/__init__.py"]:
        write(root, name, (REPOSITORY / name).read_text())
    for name, text in {
        "dvc.yaml": PIPELINE.replace("CODE", code),
        "world/dvc.yaml": WORLD.replace("CODE", code),
        "params.yaml": "seeds: [0, 1]\njob:\n  steps: 2\n  lr: 5e-05\ngrid: {size: 3, hidden: 4}\nhidden: 1\n",
        "world/params.yaml": "vlm: {width: 8}\nhidden: 1\n",
        "stages/job.py": MODULE,
        "src/leverlab/extra.py": "",
        "data/in.txt": "input",
        "data/.ignored": "no part of the dep",
        ".leverlab/scores": "of an earlier run",
    }.items():
        write(root, name, text)
    dvc(root, "init", "--no-scm", "-q")
    write(root, ".dvcignore", ".ignored\n__pycache__\n")
    dvc(root, "repro", "-q", "dvc.yaml", "world/dvc.yaml")
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shutil.copytree(built, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


def test_a_deterministic_stage_passes(root: Path, tmp_path: Path) -> None:
    verdict = verify_stage(root, "same")
    assert (verdict.passed, verdict.result) == (True, "same bytes")
    assert verdict.outs == ("out/same", "out/same.json")
    assert list(tmp_path.glob("leverlab-verify-*")) == []


def test_the_copy_holds_only_what_is_declared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at right before the copy is thrown away: declared sections and keys alone, no ignored file, no store."""
    seen: dict[str, Any] = {}

    cleanup = tempfile.TemporaryDirectory.cleanup

    def look(folder: Any) -> None:
        copy = Path(folder.name) / "repository"
        files = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
        seen["files"] = {name for name in files if not name.startswith((".dvc/", "src/", "stages/", ".leverlab/"))}
        seen["params"] = (copy / "params.yaml").read_text().split()
        seen["caches"] = {name for name in files if name.startswith((".dvc/cache", ".leverlab/scores"))}
        cleanup(folder)

    monkeypatch.setattr("tempfile.TemporaryDirectory.cleanup", look)
    assert verify_stage(root, "same").passed
    made = {"dvc.lock", "out/same/a.txt", "out/same.json", "provenance/same.json"}
    assert seen["files"] == {".dvcignore", "dvc.yaml", "params.yaml", "data/in.txt", *made}
    assert seen["params"] == ["grid:", "{size:", "3}", "job:", "{lr:", "5e-05,", "steps:", "2}"]
    assert seen["caches"] == set()


def test_random_bytes_are_named(root: Path) -> None:
    verdict = verify_stage(root, "noise")
    assert not verdict.passed
    assert verdict.result == "differs: out/noise/b.txt"
    assert (verdict.outs, verdict.largest) == (("out/noise", "out/still.txt"), None)


def test_a_stage_that_states_to_be_random_is_run_and_not_compared(root: Path) -> None:
    path = root / "dvc.yaml"
    path.write_text(
        path.read_text().replace("stages.job noise\n", "stages.job noise\n    meta: {deterministic: false}\n")
    )
    verdict = verify_stage(root, "noise")
    assert (verdict.passed, verdict.differing) == (True, ())
    assert verdict.result == "runs; not deterministic, not compared"


def test_noise_within_the_stated_tolerance(root: Path) -> None:
    """0.503 for 0.5 is .003 off, within the 1e-2 that the stage states in dvc.yaml, and not within 1e-3."""
    verdict = verify_stage(root, "loss")
    assert (verdict.passed, verdict.close, verdict.tolerance) == (True, ("out/loss/a.json",), 0.01)
    assert verdict.largest == pytest.approx(0.003)
    assert verdict.result == "within tolerance; largest difference 0.003, tolerance 0.01 (out/loss/a.json)"
    verdict = verify_stage(root, "loss", tolerance=1e-3)
    assert (verdict.passed, verdict.differing) == (False, ("out/loss/a.json",))
    assert verdict.result == "differs: out/loss/a.json; largest difference 0.003, tolerance 0.001"


def test_an_undeclared_file_fails_the_stage(root: Path) -> None:
    verdict = verify_stage(root, "reader")
    assert (verdict.passed, verdict.result) == (False, "failed: the stage does not run on what it declares")
    assert "No such file or directory: 'data/in.txt'" in verdict.tail


def test_an_undeclared_module_fails_the_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the workspace's source folder is on the path of Python."""
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    verdict = verify_stage(root, "importer")
    assert not verdict.passed
    assert "No module named 'leverlab.extra'" in verdict.tail


def test_the_workspace_helps_in_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the workspace a store of scores stood by, in the copy none does; the library is the copy's own."""
    expected = {"library": True, "store": True, "scores": True, "workspace": 1}
    assert json.loads((root / "out/surroundings.json").read_text()) == expected
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    kept: dict[str, Any] = {}

    def keep(before: Path, after: Path) -> float:
        kept.update(json.loads(after.read_text()))
        return largest_difference(before, after)

    monkeypatch.setattr("leverlab.pipeline.verify.largest_difference", keep)
    assert verify_stage(root, "surroundings", tolerance=0).differing == ("out/surroundings.json",)
    assert kept == {"library": True, "store": True, "scores": False, "workspace": 0}


@pytest.mark.parametrize(
    ("file", "stage", "changed"),
    [
        ("data/in.txt", "same", "'data'"),
        ("params.yaml", "items@0", "'params.yaml'"),
        ("dvc.yaml", "noise", "its command"),
    ],
)
def test_a_stale_lock_is_refused(root: Path, file: str, stage: str, changed: str) -> None:
    text = (root / file).read_text()
    write(root, file, text.replace("5e-05", "6e-05").replace("job noise", "job  noise").replace("input", "other"))
    expected = f"stage '{stage}' is not up to date: dvc.lock records another {changed}; run dvc repro first"
    for refused in (lambda: verify_stage(root, stage), lambda: select(root, [stage])):
        with pytest.raises(LeverlabError) as raised:
            refused()
        assert str(raised.value) == expected


def test_inputs_that_change_while_they_are_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests that count are those of the copy."""
    monkeypatch.setattr("leverlab.pipeline.verify._stale", lambda *_: [])
    write(root, "data/in.txt", "edited")
    verdict = verify_stage(root, "same")
    assert (verdict.passed, verdict.differing) == (False, ())
    assert verdict.result.startswith("failed: its inputs are not what dvc.lock records")


def test_a_stage_that_never_ran_is_refused(root: Path) -> None:
    (root / "dvc.lock").unlink()
    with pytest.raises(LeverlabError, match=r"stage .same. has no entry in dvc\.lock"):
        verify_stage(root, "same")


def test_a_matrix_item(root: Path) -> None:
    """Without the section `seeds`, which the stage does not declare, and with 5e-05 still a number."""
    verdict = verify_stage(root, "items@1")
    assert (verdict.result, verdict.outs) == ("same bytes", ("out/items/1",))


def test_a_stage_of_another_folder(root: Path) -> None:
    verdict = verify_stage(root, "world/dvc.yaml:vlm")
    assert (verdict.result, verdict.outs) == ("same bytes", ("world/vlm",))


def test_outs_that_are_not_here_are_compared_by_digest(root: Path) -> None:
    """As in a fresh clone. Only to tell how far outs are apart both must be there."""
    shutil.rmtree(root / "out/same")
    assert verify_stage(root, "same").passed
    shutil.rmtree(root / "out/loss")
    verdict = verify_stage(root, "loss")
    assert (verdict.passed, verdict.differing) == (False, ("out/loss",))
    assert verdict.error is not None
    assert "run dvc checkout first" in verdict.error


def test_selection_is_in_the_order_of_the_pipeline(root: Path) -> None:
    """`after` stands first in dvc.yaml and needs `same`; stages of other folders come only when they are named."""
    everything = select(root, [])
    assert set(everything) == {
        "after",
        "same",
        "noise",
        "loss",
        "reader",
        "importer",
        "surroundings",
        "items@0",
        "items@1",
    }
    assert everything.index("same") < everything.index("after")
    assert select(root, ["after", "items", "dvc.yaml:same", "world/dvc.yaml:vlm", "items@1"]) == [
        name for name in [*everything, "world/dvc.yaml:vlm"] if name in {"same", "after", "items@0", "items@1"}
    ] + ["world/dvc.yaml:vlm"]
    for name, near in (("items@2", "'items@1' or 'items@0'"), ("item", "'items'"), ("wolrd/dvc.yaml:vlm", "'world/")):
        with pytest.raises(LeverlabError, match=f"there is no stage '{name}'; did you mean .*{near}"):
            select(root, [name])
    with pytest.raises(LeverlabError, match=r"there is no stage 'zzz'; `dvc stage list --all` shows all$"):
        select(root, ["zzz"])


@pytest.mark.parametrize("tolerance", ["-1", "'1'", "true", ".nan"])
def test_a_tolerance_is_a_number(root: Path, tolerance: str) -> None:
    write(root, "dvc.yaml", (root / "dvc.yaml").read_text().replace("tolerance: 1e-2", f"tolerance: {tolerance}"))
    with pytest.raises(LeverlabError, match=r"the tolerance of stage 'loss' is .* must be a number from 0 on"):
        verify_stage(root, "loss")


def test_the_command(root: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> None:
    """A line for each stage as it ends, a table, code 1 when any differs; what fails does not stop the rest."""
    monkeypatch.chdir(root / "out")
    call = partial(command_line, "verify")
    code, out, err = call("reader", "loss", "--tolerance", "0.5")
    lines = out.splitlines()
    assert (code, err) == (1, "")
    assert [line.split(":")[0] for line in lines if line.startswith(("reader:", "loss:"))] == ["loss", "reader"]
    assert lines[0].startswith("loss: within tolerance; largest difference 0.003, tolerance 0.5 (out/loss/a.json) (")
    assert lines[1].startswith("reader: failed: the stage does not run on what it declares (")
    assert any("No such file or directory: 'data/in.txt'" in line for line in lines)
    assert [line.split("│")[1:3] for line in lines if line.startswith("│ reader")] == [[" reader ", " 1    "]]
    code, out, err = call("items@0", "--json")
    (found,) = json.loads(out)
    assert (code, found["stage"], found["passed"], found["result"]) == (0, "items@0", True, "same bytes")
    assert "items@0: same bytes" in err
    code, out, err = call("nothing")
    assert (code, out) == (1, "")
    assert err.startswith("leverlab: there is no stage 'nothing'")


def pair(tmp_path: Path, name: str, one: str, other: str) -> float:
    write(tmp_path, f"one/{name}", one)
    write(tmp_path, f"other/{name}", other)
    return largest_difference(tmp_path / "one" / name, tmp_path / "other" / name)


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ('{"a": [1, 2.5], "b": "x"}', '{"b": "x", "a": [1, 2.5]}', 0),
        ("[0.25, 3]", "[0.5, 3]", 0.25),  # below 1: absolute
        ("[100]", "[104]", 4 / 104),  # above: relative to the larger
        ("[-1]", "[1]", 2),
        ("[NaN, Infinity]", "[NaN, Infinity]", 0),
        ("[NaN]", "[1]", math.inf),
        ("[Infinity]", "[1]", math.inf),
        ("[1]", "[true]", math.inf),
        ("[1]", '["1"]', math.inf),
        ("[1]", "[1, 1]", math.inf),
        ('{"a": 1}', '{"b": 1}', math.inf),
        ('{"a": 1}', "[1]", math.inf),
        ("[null]", "[null]", 0),
        ("[1]", "[1", math.inf),
    ],
)
def test_differences_of_json(tmp_path: Path, one: str, other: str, difference: float) -> None:
    assert pair(tmp_path, "a.json", one, other) == pytest.approx(difference)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("name,x\na,1\nb,2.5\n", 0.2),  # |2 − 2.5| / 2.5
        ("name,x\na,1\nc,2\n", math.inf),
        ("name,x\na,1\n", math.inf),
        ("name,y\na,1\nb,2\n", math.inf),
        ("x,name\n1,a\n2,b\n", math.inf),
    ],
)
def test_differences_of_csv(tmp_path: Path, other: str, difference: float) -> None:
    assert pair(tmp_path, "a.csv", "name,x\na,1\nb,2\n", other) == pytest.approx(difference)


def test_differences_of_parquet(tmp_path: Path) -> None:
    """Lists of numbers in a cell, as features and rewards are, count as numbers; strings and bytes must be equal."""
    rows = {"id": ["a", "b"], "rewards": [[0.0, 0.5], [1.0]], "image": [{"bytes": b"1"}, {"bytes": b"2"}]}
    pd.DataFrame(rows).to_parquet(tmp_path / "one.parquet")
    pd.DataFrame(rows | {"rewards": [[0.0, 0.625], [1.0]]}).to_parquet(tmp_path / "close.parquet")
    pd.DataFrame(rows | {"rewards": [[0.0, 0.5], [1.0, 1.0]]}).to_parquet(tmp_path / "longer.parquet")
    pd.DataFrame(rows | {"image": [{"bytes": b"1"}, {"bytes": b"3"}]}).to_parquet(tmp_path / "other.parquet")
    distances = [
        largest_difference(tmp_path / "one.parquet", tmp_path / f"{name}.parquet")
        for name in ("one", "close", "longer", "other", "absent")
    ]
    assert distances == [0, 0.125, math.inf, math.inf, math.inf]


def test_differences_of_safetensors(tmp_path: Path) -> None:
    """bfloat16 too, which numpy does not have."""
    tensors = {"w": torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16), "n": torch.tensor(3)}
    versions = {
        "one": tensors,
        "close": tensors | {"w": torch.tensor([[1.0, 0.25]], dtype=torch.bfloat16)},
        "shape": tensors | {"w": torch.tensor([1.0, 0.5], dtype=torch.bfloat16)},
        "dtype": tensors | {"w": torch.tensor([[1.0, 0.5]])},
        "fewer": {"n": tensors["n"]},
    }
    for name, content in versions.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    one = tmp_path / "one.safetensors"
    distances = [largest_difference(one, tmp_path / f"{name}.safetensors") for name in versions]
    assert distances == [0, 0.25, math.inf, math.inf, math.inf]
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert largest_difference(one, tmp_path / "broken.safetensors") == math.inf


def test_other_files_have_no_distance(tmp_path: Path) -> None:
    assert pair(tmp_path, "a.txt", "1", "1.0") == math.inf
