"""Where files come from: four small stages that really ran, and the tree back from the last one's figure."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leverlab.errors import LeverlabError
from leverlab.pipeline.lineage import Origin, lineage, render

Run = Callable[..., tuple[int, str, str]]
REPOSITORY = Path(__file__).parents[2]

PIPELINE = """\
stages:
  load:
    cmd: python -m job load
    deps: [raw.txt, job.py]
    params: [data]
    outs: [build/rows]
  train:
    matrix:
      seed: ${seeds}
    cmd: python -m job train ${item.seed}
    deps: [build/rows, job.py]
    params: [train]
    outs:
      - models/${item.seed}
  judge:
    cmd: python -m job judge
    deps: [build/rows/a.txt, models, job.py]
    outs: [reports/score.json]
  report:
    cmd: python -m job report
    deps: [reports/score.json, models/0, page.txt, job.py]
    params: [data, report]
    outs: [reports/figures, reports/page.html]
"""

MODULE = """\
import sys
from leverlab.stage import run_stage

OUTS = {
    "load": ["build/rows/a.txt", "build/rows/b.txt"],
    "train": ["models/{}/weights.txt"],
    "judge": ["reports/score.json"],
    "report": ["reports/figures/plot.txt", "reports/page.html"],
}


def body(stage):
    for out in OUTS[name]:
        path = stage.out(out.format(*seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(out.format(*seed))


name, *seed = sys.argv[1:]
run_stage(name, body, {"seed": seed[0]} if seed else None)
"""

TREE = """\
reports/figures/plot.txt ✓
└── ← report · revision abcdef1 · 1.5 s
    ├── data: {source=null world="tiny"}
    ├── report: {title="A b"}
    ├── 1 module of this repository ✓
    ├── models/0 ✓
    │   └── ← train@0 · revision abcdef1 with uncommitted edits · 1.5 s
    │       ├── train: {kl={beta=0.1} lr=0.5}
    │       ├── 1 module of this repository ✓
    │       └── build/rows ✓
    │           └── ← load · revision abcdef1 · 1.5 s
    │               ├── as above: data
    │               ├── 1 module of this repository ✓
    │               ├── raw.txt ✓
    │               └── raw rows: data.source = null, data.world = "tiny"
    ├── page.txt ✓
    └── reports/score.json ✓
        └── ← judge · revision abcdef1 · 1.5 s
            ├── 1 module of this repository ✓
            ├── build/rows/a.txt ✓ ← load (see above)
            └── models ✓ ← train@0 (see above)
                └── ← train@1 · revision abcdef1 · 1.5 s
                    ├── as above: train
                    ├── 1 module of this repository ✓
                    └── build/rows ✓ ← load (see above)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose stages ran, with the facts of one run (revision, seconds) set to known ones."""
    root = tmp_path_factory.mktemp("lineage") / "work"
    for name, text in {
        ".dvc/config": "[core]\n    no_scm = true\n    analytics = false\n",
        "dvc.yaml": PIPELINE,
        "params.yaml": (
            "seeds: [0, 1]\ndata: {world: tiny, source: null}\n"
            "train: {lr: 0.5, kl: {beta: 0.1}}\nreport: {title: A b}\n"
        ),
        "job.py": MODULE,
        "raw.txt": "raw",
        "page.txt": "page",
    }.items():
        write(root, name, text)
    for stage in (["load"], ["train", "0"], ["train", "1"], ["judge"], ["report"]):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([sys.executable, "-m", "job", *stage], cwd=root, env=environment, check=True)
    for path in (root / "provenance").iterdir():
        record = json.loads(path.read_text())
        facts = {"revision": "abcdef1234", "dirty": path.stem == "train@0", "seconds": 1.5}
        path.write_text(json.dumps(record | facts))
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.copytree(built, tmp_path / "work")
    return tmp_path / "work"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def printed(origin: Origin, code: bool = False) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(render(origin, code))
    return [line.rstrip() for line in capture.get().splitlines()]


def lines_of(root: Path, file: str) -> list[str]:
    """The lines without the branches."""
    return [line.lstrip("│├└─ ") for line in printed(lineage(root, file))]


def test_the_tree_of_a_figure(root: Path) -> None:
    """From the file below a folder out to the raw rows; every stage is told once, deps above and below outs are met."""
    assert printed(lineage(root, "reports/figures/plot.txt")) == TREE.splitlines()


def test_a_folder_of_outs_has_several_makers(root: Path) -> None:
    origin = lineage(root, "models")
    assert (origin.mark, [step.stage for step in origin.made_by]) == ("✓", ["train@0", "train@1"])


def test_a_changed_input_is_marked_where_it_was_used(root: Path) -> None:
    """models/1 is below the dep models of judge, and no input of report."""
    write(root, "models/1/weights.txt", "edited")
    lines = lines_of(root, "reports/page.html")
    assert "models changed since ← train@0 (see above)" in lines
    assert {"reports/page.html ✓", "models/0 ✓", "build/rows/a.txt ✓ ← load (see above)"} <= set(lines)
    assert sum("changed since" in line for line in lines) == 1
    assert lineage(root, "models").mark == "changed since"  # one of its two outs


def test_an_absent_input_and_an_absent_file(root: Path) -> None:
    shutil.rmtree(root / "build")
    shutil.rmtree(root / "reports/figures")
    lines = lines_of(root, "reports/figures/plot.txt")
    assert lines[0] == "reports/figures/plot.txt absent"
    assert "build/rows absent" in lines
    assert "build/rows/a.txt absent ← load (see above)" in lines
    assert "raw.txt ✓" in lines


def test_a_changed_figure_is_marked(root: Path) -> None:
    write(root, "reports/figures/plot.txt", "drawn by hand")
    assert lineage(root, "reports/figures/plot.txt").mark == "changed since"
    assert lineage(root, "reports/page.html").mark == "✓"


def test_code_is_one_line_or_each_module(root: Path) -> None:
    write(root, "job.py", MODULE + "# edited\n")
    origin = lineage(root, "build/rows")
    assert [line.lstrip("│├└─ ") for line in printed(origin)][3] == "1 module of this repository, 1 changed since"
    assert [line.lstrip("│├└─ ") for line in printed(origin, code=True)][4] == "job.py changed since"


def test_params_that_were_shown_are_only_named(root: Path) -> None:
    """train@0 and train@1 read the same section; with another value in one record it is shown again."""
    shown = "train: {kl={beta=0.1} lr=0.5}"
    lines = lines_of(root, "models")
    assert (lines.count(shown), lines.count("as above: train")) == (1, 1)
    path = root / "provenance/train@1.json"
    record = json.loads(path.read_text())
    record["params"]["params.yaml:train"]["lr"] = 0.25
    path.write_text(json.dumps(record))
    lines = lines_of(root, "models")
    assert (lines.count(shown), lines.count(shown.replace("0.5", "0.25")), lines.count("as above: train")) == (1, 1, 0)


def test_a_stage_without_a_record(root: Path) -> None:
    """Told as it is, with what dvc.yaml declares now; nothing can be compared but what is not there."""
    (root / "provenance/train@0.json").unlink()
    write(root, "params.yaml", (root / "params.yaml").read_text().replace("lr: 0.5", "lr: 0.25"))
    (step,) = lineage(root, "models/0").made_by
    assert (step.record, step.revision, step.seconds) == (None, None, None)
    assert step.params == {"params.yaml:train": {"lr": 0.25, "kl": {"beta": 0.1}}}
    assert [(origin.path, origin.mark) for origin in step.inputs] == [("build/rows", None)]
    assert step.code == {"job.py": None}
    assert "← train@0 · no provenance record: this is what dvc.yaml declares now" in lines_of(root, "models/0")


def test_a_record_of_another_run_than_the_one_that_was_used(root: Path) -> None:
    """load ran again and made other rows: its record no longer tells of those that train read."""
    path = root / "provenance/load.json"
    record = json.loads(path.read_text())
    record["outs"]["build/rows"] = "0" * 64
    path.write_text(json.dumps(record))
    (train,) = lineage(root, "models/0").made_by
    assert [step.other_run for origin in train.inputs for step in origin.made_by] == [True]
    remark = "its record is of another run than the one that was used"
    assert f"← load · revision abcdef1 · 1.5 s · {remark}" in lines_of(root, "models/0")
    assert f"build/rows ✓ ← load (see above) · {remark}" in lines_of(root, "models")


def test_dotted_params(root: Path) -> None:
    """A stage that declares single keys: the params without a record, and the ones that choose the raw rows."""
    write(root, "dvc.yaml", PIPELINE.replace("params: [data]", "params: [data.world, train.kl.beta]"))
    (root / "provenance/load.json").unlink()
    (step,) = lineage(root, "build/rows").made_by
    assert step.params == {"params.yaml:data.world": "tiny", "params.yaml:train.kl.beta": 0.1}
    assert step.raw == {"data.world": "tiny"}
    assert 'raw rows: data.world = "tiny"' in lines_of(root, "build/rows")


def test_a_pipeline_in_a_folder_of_its_own(root: Path) -> None:
    """Paths of records are relative to wdir, the root here; the record lies beside the dvc.yaml."""
    write(
        root,
        "world/dvc.yaml",
        "stages:\n  vlm:\n    wdir: ..\n    cmd: make\n    deps: [raw.txt]\n    outs: [world/vlm]\n",
    )
    record: dict[str, Any] = {"revision": None, "dirty": False, "seconds": 2, "params": {}, "outs": {"world/vlm": "0"}}
    write(root, "world/provenance/vlm.json", json.dumps(record | {"inputs": {"raw.txt": "0"}}))
    write(root, "world/vlm/config.json", "{}")
    assert lines_of(root, "world/vlm/config.json") == [
        "world/vlm/config.json changed since",
        "← world/dvc.yaml:vlm · revision unknown · 2 s",
        "raw.txt changed since",
    ]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("plot.txt", "no stage makes 'plot.txt'; did you mean reports/figures/plot.txt?"),
        ("reports/scores.json", "no stage makes 'reports/scores.json'; did you mean reports/score.json"),
        ("reports/figures/plots.txt", "'reports/figures', which stage 'report' makes, holds no"),
        ("raw.txt", "no stage makes 'raw.txt'; `dvc stage list` shows what stages make"),
        ("../elsewhere.txt", "no stage makes '../elsewhere.txt'"),
    ],
)
def test_a_file_that_no_stage_makes(root: Path, file: str, message: str) -> None:
    with pytest.raises(LeverlabError, match=r"\w") as raised:
        lineage(root, file)
    assert str(raised.value).startswith(message)


def test_a_broken_record_is_named(root: Path) -> None:
    write(root, "provenance/load.json", "{")
    with pytest.raises(LeverlabError, match=r"provenance/load\.json is no provenance record"):
        lineage(root, "models/0")
    write(root, "provenance/load.json", "{}")
    with pytest.raises(LeverlabError, match=r"provenance/load\.json lacks \['dirty', 'inputs'"):
        lineage(root, "models/0")


def test_the_command(root: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> None:
    """A path is relative to the working directory; JSON holds the same tree."""
    monkeypatch.chdir(root / "reports")
    call = partial(command_line, "lineage")
    code, out, err = call("figures/plot.txt")
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == TREE.splitlines()
    code, out, _ = call("--json", f"figures{os.sep}plot.txt")
    expected = dataclasses.asdict(lineage(root, "reports/figures/plot.txt"))
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(expected)))
    code, out, err = call("figure")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no stage makes 'reports/figure'; did you mean reports/figures" in err
