"""The answers and params of runs, read from a real DVC repository with two experiments in it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leverlab.config.base import read_yaml
from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.pipeline.answers_of import Run, read_run
from leverlab.pipeline.compare_runs import compare
from leverlab.pipeline.compare_runs_report import sentences, tables
from tests.pipeline.conftest import Run as CommandLine

PIPELINE = """\
stages:
  prepare:
    cmd: python job.py prepare
    params: [data.seed]
    outs: [data/prepared]
  infer-800:
    cmd: python job.py infer
    deps: [data/prepared]
    params: [grpo]
    outs: [data/answers.parquet]
  report:
    cmd: echo done > report.txt
    deps: [data/answers.parquet]
    params: [report]
    outs:
      - report.txt:
          cache: false
"""

PARAMS = "data: {seed: 0, other: 1}\ngrpo: {right: 2, lr: 5e-05}\nreport: x\n"

# Twenty questions, of which `grpo.right` are answered rightly by both seeds.
JOB = """\
import os, sys
import pyarrow as pa, pyarrow.parquet as pq
from ruamel.yaml import YAML

params = YAML(typ="safe").load(open("params.yaml"))
names = [f"q{i:02}" for i in range(20)]
if sys.argv[1] == "prepare":
    os.makedirs("data/prepared", exist_ok=True)
    asked = [f"{name} of {params['data']['seed']}?" for name in names]
    pq.write_table(pa.table({"id": names, "question": asked}), "data/prepared/test.parquet")
if sys.argv[1] == "infer":
    rows = [
        dict(method="grpo", seed=seed, shots=1, question_id=name, question_type="digit", demos=["d"], prediction="x",
             vqa_accuracy=float(i < params["grpo"]["right"]), answer_prob=0.5)
        for seed in (0, 1) for i, name in enumerate(names)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "data/answers.parquet")
"""


def call(root: Path, *command: str) -> str:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(root.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "config"),
        **{f"GIT_{role}_{key}": "leverlab@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tag `empty`: nothing ran; tag `never`: dvc.lock records nothing; tag `first`, which is main: a run. From it the
    experiment `better`, and from that `other-data`; the workspace is as the last one left it."""
    root = tmp_path_factory.mktemp("runs") / "work"
    root.mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc/config").touch()
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    for name, text in {"dvc.yaml": PIPELINE, "params.yaml": PARAMS, "job.py": JOB}.items():
        (root / name).write_text(text)
    call(root, "git", "init", "-q", "-b", "main")
    commit(root, "empty")
    (root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    commit(root, "never")
    dvc(root, ["repro", "-q"])
    commit(root, "first")
    better = ["exp", "run", "-q", "-n", "better", "-S", "grpo.right=18", "-S", "data.other=2"]
    dvc(root, better, ["exp", "run", "-q", "-n", "other-data", "-S", "data.seed=1"])
    return root


def dvc(root: Path, *commands: list[str]) -> None:
    """Run DVC's commands in one process, which is imported once."""
    script = "import sys\nfrom dvc.cli import main\n" + "".join(f"assert main({it}) == 0\n" for it in commands)
    call(root, sys.executable, "-c", script)


def commit(root: Path, tag: str) -> None:
    call(root, "git", "add", "-A")
    call(root, "git", "commit", "-q", "-m", tag)
    call(root, "git", "tag", tag)


@pytest.fixture
def root(built: Path, tmp_path: Path, quiet_dvc: None) -> Path:
    shutil.copytree(built, tmp_path / "work", symlinks=True)
    return tmp_path / "work"


def right(run: Run) -> int:
    return int(run.answers["vqa_accuracy"].sum()) // 2


def files(root: Path) -> dict[str, bytes]:
    """All files of the work tree and of Git, without DVC's own notes in .dvc/tmp."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".dvc/tmp" not in path.as_posix()
    }


def cached(root: Path, path: Path) -> Path:
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def test_experiments_revisions_and_the_workspace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own answers and params, from a folder below the root too, and nothing in the clone changes."""
    before = files(root)
    monkeypatch.chdir(root / "data")
    head = call(root, "git", "rev-parse", "main")
    runs = {name: read_run(root, name) for name in ("main", "first", head[:8], "HEAD", "better", "workspace")}
    assert {name: right(run) for name, run in runs.items()} == {
        **dict.fromkeys(("main", "first", head[:8], "HEAD"), 2),
        "better": 18,
        "workspace": 18,
    }
    assert {runs[name].revision for name in ("main", "first", head[:8], "HEAD")} == {head}
    assert runs["better"].revision == call(
        root, "git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/better"
    )
    assert runs["workspace"].revision is None
    assert runs["main"].params == {
        "data": {"seed": 0, "other": 1},
        "grpo": {"right": 2, "lr": 5e-5},
        "report": "x",
    }
    assert runs["better"].params["grpo"]["right"] == 18
    assert runs["better"].answers.columns.tolist() == ANSWER_SCHEMA.names
    assert runs["better"].answers["demos"].map(list).tolist() == [["d"]] * 40
    assert [run.warnings for run in runs.values()] == [()] * 6
    assert files(root) == before


def test_experiments_are_compared(root: Path) -> None:
    """16 of 20 questions differ, all one way: the permutation's p is 2 / 2^16 at best."""
    better, first = read_run(root, "better"), read_run(root, "main")
    found = compare([better, first])
    assert sentences(found)[0].startswith("better is 80.0 points above main at 1 shot (95 % interval +60.0 to")
    assert found.params == {"data.other": {"better": 2, "main": 1}, "grpo.right": {"better": 18, "main": 2}}
    assert len(tables(found)) == 4


def test_other_questions_under_the_same_ids_are_refused(root: Path) -> None:
    with pytest.raises(LeverlabError, match="equal question ids, but other test questions behind them"):
        compare([read_run(root, "main"), read_run(root, "other-data")])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beter", "there is no experiment or Git revision 'beter'; did you mean 'better'"),
        ("mian", "did you mean 'main'"),
        ("worksapce", "did you mean 'workspace'"),
        ("zzzzzz", "revision 'zzzzzz'; `dvc exp list -A` shows all, `dvc queue status`"),
        ("", "the name of a run is empty"),
        ("empty", r"'empty' has no dvc\.lock: nothing ran at that revision"),
        ("never", r"'never' has no answers: its dvc\.lock records no run that wrote data/answers\.parquet"),
    ],
)
def test_names_without_answers(root: Path, name: str, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        read_run(root, name)


def test_one_name_of_two_experiments(root: Path) -> None:
    commit_of = call(root, "git", "rev-parse", "main")
    for baseline in ("empty", "never"):
        place = call(root, "git", "rev-parse", baseline)
        call(root, "git", "update-ref", f"refs/exps/{place[:2]}/{place[2:]}/twice", commit_of)
    with pytest.raises(LeverlabError, match="'twice' names more than one experiment or commit"):
        read_run(root, "twice")


def test_answers_that_the_cache_lost(root: Path) -> None:
    """Those of main; the workspace's own lie on the disk. A remote may have them, also one set up later."""
    content = cached_of_main(root)
    (root.parent / "store/files/md5" / content.parent.name).mkdir(parents=True)
    shutil.move(content, root.parent / "store/files/md5" / content.parent.name / content.name)
    with pytest.raises(LeverlabError, match=r"the answers of 'main' .* not in DVC's cache, and no remote has them"):
        read_run(root, "main")
    assert right(read_run(root, "better")) == 18
    dvc(root, ["remote", "add", "-q", "-d", "store", str(root.parent / "store")])
    assert right(read_run(root, "main")) == 2
    assert not content.exists()


def cached_of_main(root: Path) -> Path:
    lock = call(root, "git", "show", "main:dvc.lock")
    digest = lock.split("path: data/answers.parquet")[1].split("md5: ")[1].split()[0]
    return root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def test_the_workspace_without_its_file_is_read_from_the_cache(root: Path) -> None:
    (root / "data/answers.parquet").unlink()
    assert right(read_run(root, "workspace")) == 18
    assert not (root / "data/answers.parquet").exists()


def test_damaged_answers_are_refused(root: Path) -> None:
    content = cached_of_main(root)
    content.chmod(0o644)
    content.write_bytes(content.read_bytes()[:100])
    with pytest.raises(LeverlabError, match=r"data/answers\.parquet of 'main' holds no answers of infer-800"):
        read_run(root, "main")


def test_a_table_of_something_else_is_refused(root: Path) -> None:
    shutil.copy(root / "data/prepared/test.parquet", root / "data/answers.parquet")
    with pytest.raises(LeverlabError, match=r"data/answers\.parquet of 'workspace' holds no answers of infer-800"):
        read_run(root, "workspace")


def test_test_questions_that_the_cache_lost(root: Path) -> None:
    """They cannot be checked, and this is told; the answers can be compared."""
    for path in (root / ".dvc/cache/files/md5").glob("*/*.dir"):
        path.unlink()
    run = read_run(root, "main")
    assert run.test_set is None
    assert "the test questions of 'main' cannot be read" in compare([run, read_run(root, "better")]).warnings[0]


def test_params_edited_since_the_run_are_told(root: Path) -> None:
    """Those behind the answers: report's are not, and data.other is read by no stage."""
    text = (root / "params.yaml").read_text()
    edited = text.replace("seed: 1", "seed: 7").replace("report: x", "report: y").replace("other: 2", "other: 8")
    assert sum(one != other for one, other in zip(text, edited, strict=True)) == 3
    (root / "params.yaml").write_text(edited.replace("lr: 5e-05", "rate: 1"))
    assert read_run(root, "workspace").warnings == (
        "params.yaml of 'workspace' says data.seed = 7, but its answers were computed with 1: run dvc repro",
        "params.yaml of 'workspace' says grpo.lr = nothing, but its answers were computed with 5e-05: run dvc repro",
    )


def test_what_the_lock_says_of_other_seeds_and_former_stages_does_not_count(root: Path) -> None:
    """Entries that DVC leaves in dvc.lock: `grpo@2` of a run with more seeds, `pretrain` of an earlier dvc.yaml.

    Both wrote a dep of the answers. `grpo@1` is declared, so its other params count.
    """
    lock = read_yaml(root / "dvc.lock")
    entry = {"cmd": "x", "params": {"params.yaml": {"grpo": {"lr": 7}}}}
    lock["stages"] |= {
        name: entry | {"outs": [{"path": f"models/{name}"}]} for name in ("grpo@1", "grpo@2", "pretrain")
    }
    lock["stages"]["infer-800"]["deps"].append({"path": "models"})
    (root / "dvc.lock").write_text(json.dumps(lock))
    assert read_run(root, "workspace").warnings == ()
    (root / "params.yaml").write_text("seeds: [0, 1]\n" + (root / "params.yaml").read_text())
    matrix = "  grpo:\n    matrix: {seed: '${seeds}'}\n    cmd: x\n    outs: ['models/grpo@${item.seed}']\n"
    (root / "dvc.yaml").write_text(PIPELINE + matrix)
    (warning,) = read_run(root, "workspace").warnings
    assert "grpo.lr = 5e-05, but its answers were computed with 7" in warning


def test_answers_that_dvc_does_not_know_are_told(root: Path) -> None:
    content = cached(root, root / "data/answers.parquet")
    assert content.exists()
    other = next(path for path in content.parents[1].glob("*/*") if path not in (content,) and is_answers(path))
    (root / "data/answers.parquet").unlink()
    shutil.copy(other, root / "data/answers.parquet")
    (warning,) = read_run(root, "workspace").warnings
    assert warning == "the answers of 'workspace' are not those that its dvc.lock records: run dvc repro"


def is_answers(path: Path) -> bool:
    return b"vqa_accuracy" in path.read_bytes()


@pytest.mark.parametrize(("text", "message"), [("a: [", "is broken|YAML"), ("- 1", "must hold a mapping, not list")])
def test_broken_params(root: Path, text: str, message: str) -> None:
    (root / "params.yaml").write_text(text)
    with pytest.raises(LeverlabError, match=message):
        read_run(root, "workspace")


def test_outside_of_git(root: Path) -> None:
    shutil.rmtree(root / ".git")
    with pytest.raises(LeverlabError, match="DVC cannot read the run 'main'"):
        read_run(root, "main")


def test_the_command(root: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine) -> None:
    """2 of 20 right before, 18 after: 80 points, in words, as Markdown, as an object and as a page."""
    monkeypatch.chdir(root)
    code, out, _ = command_line("compare", "first", "better", "--html", "page.html")
    assert code == 0
    assert "grpo.right" in out
    assert "first is 80.0 points below better at 1 shot" in out
    assert "80.0" in (root / "page.html").read_text()
    code, out, _ = command_line("compare", "better", "first", "--json")
    assert code == 0
    assert json.loads(out)["pairs"][0]["difference"] == pytest.approx(0.8)
    code, out, _ = command_line("compare", "better", "first", "--markdown")
    assert code == 0
    assert out.startswith("#")
    assert command_line("compare", "first", "better", "--json", "--markdown")[0] == 2
    code, _, err = command_line("compare", "first", "bettr")
    assert code == 1
    assert "there is no experiment or Git revision 'bettr'; did you mean 'better'" in err
    assert "Traceback" not in err
