"""`leverlab plan ledger --recipe` on a real DVC repository whose pipeline stands in a folder of it."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from leverlab.errors import LeverlabError
from leverlab.pipeline.recipe_runs import recipe_sweep
from tests.pipeline.conftest import Run as CommandLine
from tests.pipeline.test_answers_of import call, commit, dvc

PARAMS = """\
seeds: [0, 1]
data: 1
reward:
  alpha: 0.05
grpo:
  lr: 0.001
  evaluate_on: 8
select_best:
  by: reward
"""
PIPELINE = """\
stages:
  prepare:
    wdir: ../..
    cmd: python job.py prepare
    params:
      - recipes/ask/params.yaml: [data]
    outs: [recipes/ask/data/questions]
  grpo:
    matrix:
      seed: ${seeds}
    wdir: ../..
    cmd: python job.py grpo ${item.seed}
    deps: [recipes/ask/data/questions]
    params:
      - recipes/ask/params.yaml: [grpo, reward]
    outs: ["recipes/ask/models/grpo/${item.seed}"]
  select-best:
    wdir: ../..
    cmd: python job.py select
    deps: [recipes/ask/models/grpo]
    params:
      - recipes/ask/params.yaml: [select_best]
    outs: [recipes/ask/models/best]
"""
# At rate .01 the rewards of the two seeds are .8 and .9, else .5 and .6; need-success is 1 - reward.
JOB = """\
import os, sys
from ruamel.yaml import YAML

params = YAML(typ="safe").load(open("recipes/ask/params.yaml"))
if sys.argv[1] == "prepare":
    os.makedirs("recipes/ask/data/questions")
    open("recipes/ask/data/questions/val.jsonl", "w").write(str(params["data"]))
elif sys.argv[1] == "grpo":
    os.makedirs(f"recipes/ask/models/grpo/{sys.argv[2]}")
    open(f"recipes/ask/models/grpo/{sys.argv[2]}/rate", "w").write(str(params["grpo"]["lr"]))
else:
    os.makedirs("recipes/ask/models/best")
    rewards = [0.8, 0.9] if params["grpo"]["lr"] == 0.01 else [0.5, 0.6]
    with open("recipes/ask/models/best/choices.csv", "w") as file:
        file.write("seed,step,reward,success,need_success,over_clarification,sound\\n")
        for seed, reward in enumerate(rewards):
            file.write(f"{seed},8,{reward},1,{1 - reward},0.25,True\\n")
"""


EXPERIMENTS = {
    "fast": "grpo.lr=0.01",
    "other-data": "data=2",
    "other-figure": "select_best.by=success",
    "other-reward": "reward.alpha=0.0",
    "fewer-questions": "grpo.evaluate_on=4",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `first`, and experiments."""
    root = tmp_path_factory.mktemp("recipe") / "work"
    for folder in (".dvc", "recipes/ask"):
        (root / folder).mkdir(parents=True)
    (root / ".dvc/config").touch()
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    for name, text in {"recipes/ask/dvc.yaml": PIPELINE, "recipes/ask/params.yaml": PARAMS, "job.py": JOB}.items():
        (root / name).write_text(text)
    call(root, "git", "init", "-q", "-b", "main")
    file = "recipes/ask/dvc.yaml"
    dvc(root, ["repro", "-q", file])
    commit(root, "first")
    for name, override in EXPERIMENTS.items():
        dvc(root, ["exp", "run", "-q", "-n", name, "-S", f"recipes/ask/params.yaml:{override}", file])
        call(root, "git", "checkout", "-q", "-f", "HEAD")
    return root


def test_runs_are_ranked_by_the_validation_reward(root: Path) -> None:
    """Means .85 and .55; for two seeds the standard error is half their difference."""
    found = recipe_sweep(root, root / "recipes/ask", ["first", "fast"])
    assert (found.measure, found.best) == ("reward", "fast")
    rows = found.table.set_index("run")
    assert rows["validation"].to_dict() == pytest.approx({"fast": 0.85, "first": 0.55})
    assert rows["standard_error"].tolist() == pytest.approx([0.05, 0.05])
    assert rows.loc["fast", ["success", "need_success", "over_clarification"]].tolist() == pytest.approx(
        [1, 0.15, 0.25]
    )
    assert found.effects[["key", "value", "mean"]].to_numpy().tolist() == [
        ["grpo.lr", "0.001", pytest.approx(0.55)],
        ["grpo.lr", "0.01", pytest.approx(0.85)],
    ]
    assert not found.warnings


def test_the_command(root: Path, command_line: CommandLine) -> None:
    code, out, _ = command_line("plan", "ledger", "first", "fast", "--recipe", "recipes/ask", "--out", "swept")
    assert code == 0
    assert "Recommended: fast (grpo.lr = 0.01), with the highest validation reward, 85.0 % over 2 seeds." in out
    text = " ".join((root / "swept/ledger.md").read_text().split())
    assert "| 1 | fast | grpo.lr = 0.01 | 85.0 | 5.0 | 2 | 100.0 | 15.0 | 25.0 | recommended |" in text
    assert command_line("plan", "ledger", "--recipe", "recipes/ask")[0] == 2


def test_params_that_did_not_run_are_told(root: Path) -> None:
    path = root / "recipes/ask/params.yaml"
    path.write_text(path.read_text().replace("0.001", "0.5"))
    (warning,) = recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"]).warnings
    assert warning.startswith("'workspace' says grpo.lr = 0.5, but its policies were chosen with 0.001")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first", "other-data"], r"'first' and 'other-data' were not measured alike \(questions: "),
        (["first", "other-figure"], r"not measured alike \(by: reward and success\)"),
        (["first", "other-reward"], r"not measured alike \(reward: .'alpha': 0.05. and .'alpha': 0.0.\)"),
        (["first", "fewer-questions"], r"not measured alike \(evaluate_on: 8 and 4\)"),
        (["first"], "two runs or more, each once; got first"),
        (["fast", "fast"], "two runs or more, each once; got fast, fast"),
        (["first", "nothing"], "there is no experiment or Git revision 'nothing'"),
    ],
)
def test_what_cannot_be_ranked(root: Path, names: list[str], message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        recipe_sweep(root, root / "recipes/ask", names)


def test_what_the_lock_says_of_other_seeds_does_not_count(root: Path) -> None:
    """As of a run with fewer seeds than the one before it."""
    path = root / "recipes/ask/dvc.lock"
    yaml = YAML()
    lock = yaml.load(path.read_text())
    other = json.loads(json.dumps(lock["stages"]["grpo@0"]))
    other["params"]["recipes/ask/params.yaml"]["grpo"]["lr"] = 0.5
    for seed, warned in (("7", False), ("1", True)):
        lock["stages"][f"grpo@{seed}"] = other
        with path.open("w") as file:
            yaml.dump(lock, file)
        assert bool(recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"]).warnings) is warned


def test_params_that_say_something_else_do_not_change_the_measure(root: Path) -> None:
    path = root / "recipes/ask/params.yaml"
    path.write_text(path.read_text().replace("by: reward", "by: success"))
    found = recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"])
    assert found.measure == "reward"
    assert "but its policies were chosen with reward" in found.warnings[0]


def test_choices_that_somebody_wrote_over(root: Path) -> None:
    path = root / "recipes/ask/models/best/choices.csv"
    text = path.read_text().replace("0,8,0.5", "0,8,0.99")
    path.unlink()
    path.write_text(text)
    found = recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"])
    assert found.warnings == [
        "models/best/choices.csv of 'workspace' is not what select-best wrote: run dvc repro select-best"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reward,", "prize,", "lacks the columns"),
        ("0,8,0.5", "0,8,half", "could not convert string to float"),
        ("True\n1", "True,,,\n1", "is damaged or no CSV"),
        ("\n", " ", "its last line is cut"),
    ],
)
def test_damaged_choices(root: Path, old: str, new: str, message: str) -> None:
    path = root / "recipes/ask/models/best/choices.csv"
    text = path.read_text().replace(old, new)
    path.unlink()
    path.write_text(text)
    with pytest.raises(LeverlabError, match=message) as caught:
        recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"])
    assert str(caught.value).startswith("run 'workspace': ")
    assert "/tmp" not in str(caught.value)


def test_a_lock_without_the_stages(root: Path) -> None:
    path = root / "recipes/ask/dvc.lock"
    path.write_text(path.read_text().replace("grpo@", "former@"))
    with pytest.raises(LeverlabError, match="records no whole run of prepare, grpo and select-best"):
        recipe_sweep(root, root / "recipes/ask", ["workspace", "fast"])


def test_choices_that_are_lost(root: Path) -> None:
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(LeverlabError, match=r"choices\.csv of 'fast' cannot be read .* run it as far as select-best"):
        recipe_sweep(root, root / "recipes/ask", ["fast", "first"])


def test_a_folder_elsewhere(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match="is no recipe of the repository"):
        recipe_sweep(root, tmp_path, ["first", "fast"])
