"""`leverlab plan ledger` on a real DVC repository: a base, two plans on it, and plans that did not run."""

import json
import shutil
from pathlib import Path

import pytest

from leverlab.errors import LeverlabError
from leverlab.pipeline.answers_of import experiments
from leverlab.pipeline.ledger_inputs import read_outcome, read_plans
from tests.pipeline.conftest import Run as CommandLine
from tests.pipeline.test_answers_of import call, commit, dvc

REPOSITORY = Path(__file__).parents[2]

PIPELINE = """\
stages:
  prepare:
    cmd: python job.py prepare
    params: [data]
    outs: [data/prepared]
  grpo:
    matrix:
      seed: ${seeds}
    cmd: python job.py grpo ${item.seed}
    params: [grpo]
    outs: ["models/grpo/${item.seed}"]
  infer-800:
    cmd: python job.py infer
    deps: [data/prepared, models/grpo]
    outs: [data/answers.parquet, models/best]
"""

# Of forty questions 20 are right at rate .001 and 38 at .01; validation says .5 and .7 for seed 0, .02 more for seed 1.
JOB = """\
import json, os, sys
from ruamel.yaml import YAML

params = YAML(typ="safe").load(open("params.yaml"))
fast = params["grpo"]["lr"] == 0.01
names = [f"q{i:02}" for i in range(40)]
if sys.argv[1] == "grpo":
    seed = sys.argv[2]
    os.makedirs(f"models/grpo/{seed}/grpo")
    with open(f"models/grpo/{seed}/grpo/metrics.csv", "w") as file:
        file.write("epoch,val_accuracy,clipfrac\\n0,0.5,0.25\\n1,0.5,0.75\\n")
    json.dump(params["grpo"], open(f"models/grpo/{seed}/made_with.json", "w"))
    seconds = 100 if fast else 10
    record = {"params": {"params.yaml:grpo": params["grpo"]}, "seconds": seconds + int(seed)}
    json.dump(record, open(f"provenance/grpo@{seed}.json", "w"))
if sys.argv[1] == "prepare":
    import pyarrow as pa, pyarrow.parquet as pq
    os.makedirs("data/prepared")
    for split in ("val", "test"):
        asked = [f"{name} of {params['data']['seed']}?" for name in names]
        pq.write_table(pa.table({"id": names, "question": asked}), f"data/prepared/{split}.parquet")
if sys.argv[1] == "infer":
    import pyarrow as pa, pyarrow.parquet as pq
    os.makedirs("models/best")
    with open("models/best/checkpoints.csv", "w") as file:
        file.write("method,seed,epoch,val_accuracy,val_loss,kl,chosen\\n")
        for seed in (0, 1):
            accuracy = (0.7 if fast else 0.5) + 0.02 * seed
            file.write(f"grpo,{seed},0,0.9,1,0,False\\ngrpo,{seed},1,{accuracy},1,{seed + 1},True\\n")
            file.write(f"sft,{seed},0,0.1,1,,True\\n")
    rows = [
        dict(method="grpo", seed=seed, shots=1, question_id=name, question_type="digit", demos=["d"], prediction="x",
             vqa_accuracy=float(i < (38 if fast else 20)), answer_prob=0.5)
        for seed in (0, 1) for i, name in enumerate(names)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "data/answers.parquet")
"""

PLANS = {
    "small": "title: S\nhypothesis: Less costs less.\noverrides:\n  data.train: 600\n",
    "fast": "title: F\nhypothesis: Faster is better.\noverrides:\n  grpo.lr: 0.01\naccept:\n"
    "  metric: over_parent.shots_1.ci_low\n  at_least: 0.0\n",
    "wide": "title: W\nhypothesis: Wider helps.\nparent: fast\noverrides:\n  grpo.group: 32\naccept:\n"
    "  metric: chosen.grpo.kl\n  at_most: 1.0\n",
    "later": "title: L\nhypothesis: Not yet.\noverrides:\n  grpo.group: 8\n",
    "same": "title: N\nhypothesis: Nothing.\nparent: small\noverrides:\n  data.train: 600\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Branch `small`, tag `first`: a run of params.yaml, with the experiments small, small-fast, small-wide.

    The workspace is as the last of them left it, params.yaml too.
    """
    root = tmp_path_factory.mktemp("ledger") / "work"
    for folder in (".dvc", "plans", "provenance"):
        (root / folder).mkdir(parents=True)
    (root / ".dvc/config").touch()
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    params = (REPOSITORY / "params.yaml").read_text().replace("  - 0\n  - 1\n  - 2\n", "  - 0\n  - 1\n")
    for name, text in {"dvc.yaml": PIPELINE, "params.yaml": params, "job.py": JOB}.items():
        (root / name).write_text(text)
    for seed in (0, 1):
        (root / f"provenance/grpo@{seed}.json").write_text("{}")
    for name, text in PLANS.items():
        (root / f"plans/{name}.yaml").write_text(text)
    call(root, "git", "init", "-q", "-b", "small")
    dvc(root, ["repro", "-q"])
    commit(root, "first")
    run = ["exp", "run", "-q", "-S", "data.train=600"]
    dvc(
        root,
        [*run, "-n", "small"],
        [*run, "-n", "small-fast", "-S", "grpo.lr=0.01"],
        [*run, "-n", "small-wide", "-S", "grpo.lr=0.01", "-S", "grpo.group=32"],
    )
    return root


def test_an_outcome(root: Path) -> None:
    """The chosen checkpoints say .7 and .72, their KL is 1 and 2; the stage took 100 and 101 s."""
    outcome = read_outcome(root, "small-fast", experiments(root))
    assert outcome.validation == {0: 0.7, 1: 0.72}
    assert outcome.accuracy == pytest.approx(0.71)
    assert outcome.seconds == 201
    assert outcome.measured["grpo"] == {"shots_1": 0.95}
    assert outcome.measured["chosen"]["grpo"] == {"val_accuracy": pytest.approx(0.71), "kl": 1.5}
    assert outcome.measured["training"] == {"grpo": {"clipfrac": 0.5}}
    assert outcome.measured["health"] == {}
    assert outcome.validation_set is not None


def test_seconds_of_another_run_are_none(root: Path) -> None:
    """As when DVC takes the stage from its cache and leaves the record of an earlier run behind."""
    record = json.loads((root / "provenance/grpo@1.json").read_text())
    record["params"]["params.yaml:grpo"]["lr"] = 0.5
    (root / "provenance/grpo@1.json").write_text(json.dumps(record))
    assert read_outcome(root, "workspace", {}).seconds is None


def test_all_plans(root: Path, command_line: CommandLine) -> None:
    """18 of 40 questions more for `fast`: 45 points; `wide` does what its parent does. `small` is a branch, too."""
    code, out, _ = command_line("plan", "ledger", "--base", "small", "--write")
    assert code == 0
    assert "docs/plans.md is written" in out
    lines = [" ".join(line.split()) for line in (root / "docs/plans.md").read_text().splitlines()]
    for start in (
        "| fast | Faster is better. | grpo.lr 0.001 → 0.01 | above | over_parent.shots_1.ci_low ≥ 0 | yes (0.",
        "| wide | Wider helps. | grpo.group 16 → 32 | no difference shown (least detectable –) | chosen.grpo.kl ≤ 1 "
        "| no (1.5) |",
        "| small | Less costs less. | data.train = 600 | the base | – | – |",
        "| fast | 71.0 | 95.0 | small | +45.0 | [+",
        "| wide | 71.0 | 95.0 | small-fast | 0.0 | [0.0, 0.0] | 1.000 | – | 201 |",
        "| small | 51.0 | 50.0 | – | – | – | – | – | 21 |",
        "| later | Not yet. | leverlab plan run later --base small |",
        "- `same` cannot run here: plan 'same' changes nothing of its parent 'small' (no-op plan).",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert "Warning" not in "".join(lines)


def test_all_plans_without_a_base(root: Path, command_line: CommandLine) -> None:
    """Of the experiments `small` alone has the name of a plan; it is judged against HEAD, whose answers are equal."""
    found = read_plans(root)
    assert sorted(found.outcomes) == ["HEAD", "small"]
    assert found.outcomes["small"].run.params["data"]["train"] == 600  # the experiment, not the branch
    code, out, _ = command_line("plan", "ledger")
    assert code == 0
    assert "no difference shown" in out
    assert not (root / "docs/plans.md").exists()


def test_the_state_of_each_plan(root: Path, command_line: CommandLine) -> None:
    """`wide` is queued again, `fast` says another rate now than its run had, `later` and `same` never ran."""
    path = root / "plans/fast.yaml"
    path.write_text(path.read_text().replace("0.01", "0.02"))
    dvc(root, ["exp", "run", "-q", "--queue", "-n", "small-wide", "-f", "-S", "grpo.lr=0.01"])
    code, out, _ = command_line("plan", "list", "--base", "small", "--json")
    assert code == 0
    states = {"small": "ran", "fast": "stale", "wide": "queued", "later": "never", "same": "never"}
    assert {plan["plan"]: plan["state"] for plan in json.loads(out)} == states
    code, out, _ = command_line("plan", "list", "--base", "small")
    assert code == 0
    rows = [line.split("│")[2].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows == ["same", "small", "fast", "later", "wide"]  # two change data, three grpo


def test_the_ledger_as_json(root: Path, command_line: CommandLine) -> None:
    code, out, _ = command_line("plan", "ledger", "--base", "small", "--json")
    assert code == 0
    found = {plan["plan"]: plan for plan in json.loads(out)["plans"]}
    assert (found["fast"]["verdict"], found["fast"]["accepted"]) == ("above", True)
    assert found["fast"]["validation"] == pytest.approx(0.71)
    assert found["fast"]["changes"] == {"grpo.lr": {"before": "0.001", "after": "0.01"}}
    assert found["fast"]["pairs"][0]["difference"] == pytest.approx(0.45)
    code, out, _ = command_line("plan", "ledger", "small", "small-fast", "--json")
    assert code == 0
    assert (json.loads(out)["best"], len(json.loads(out)["runs"])) == ("small-fast", 2)


def test_plans_beside_each_other(root: Path, command_line: CommandLine) -> None:
    """By their names as plans; one alone stands beside its parent."""
    code, out, _ = command_line("plan", "compare", "fast", "wide", "--base", "small", "--json")
    assert code == 0
    assert [row["run"] for row in json.loads(out)["accuracy"]] == ["small-fast", "small-wide"]
    code, out, _ = command_line("plan", "compare", "fast", "--base", "small", "--json")
    assert code == 0
    assert json.loads(out)["params"] == {"grpo.lr": {"small-fast": 0.01, "small": 0.001}}
    code, _, err = command_line("plan", "compare", "later", "--base", "small")
    assert code == 1
    assert "there is no experiment or Git revision 'small-later'" in err


def test_given_experiments(root: Path, command_line: CommandLine) -> None:
    code, out, _ = command_line("plan", "ledger", "small", "small-fast", "small-wide", "--out", "found")
    assert code == 0
    assert "Recommended: small-fast (grpo.group = 16; grpo.lr = 0.01)" in out
    assert "The same validation accuracy have small-wide" in out
    effects = (root / "found/ledger_effects.csv").read_text().splitlines()
    assert effects[1:] == [
        "grpo.group,16,2,0.610000,0.510000,0.710000",
        "grpo.group,32,1,0.710000,0.710000,0.710000",
        "grpo.lr,0.001,1,0.510000,0.510000,0.510000",
        "grpo.lr,0.01,2,0.710000,0.710000,0.710000",
    ]
    assert {path.name for path in (root / "found").iterdir()} == {
        "ledger.csv",
        "ledger_effects.csv",
        "ledger.md",
        "ledger.svg",
    }


def refs(root: Path) -> list[str]:
    return call(root, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()


def test_nothing_and_the_base_have_not_run(root: Path, command_line: CommandLine) -> None:
    call(root, "git", "update-ref", "-d", next(ref for ref in refs(root) if ref.endswith("/small")))
    with pytest.raises(LeverlabError, match=r"the base 'small' has not run.* `leverlab plan run small`"):
        read_plans(root, "small")
    with pytest.raises(LeverlabError, match="no plan has run yet: run one with `leverlab plan run NAME`"):
        read_plans(root)
    code, _, err = command_line("plan", "ledger", "--base", "fast")
    assert code == 1
    assert err == "leverlab: no plan has run yet: run one with `leverlab plan run NAME --base fast`\n"
    code, _, err = command_line("plan", "ledger", "--base", "smal")
    assert code == 1
    assert "there is no plan 'smal'" in err


def test_one_name_of_two_experiments(root: Path) -> None:
    ref = next(ref for ref in refs(root) if ref.endswith("/small-fast"))
    other = call(root, "git", "rev-parse", next(ref for ref in refs(root) if ref.endswith("/small-wide")))
    call(root, "git", "update-ref", f"refs/exps/{other[:2]}/{other[2:]}/small-fast", other)
    commits = sorted(one[:7] for one in (call(root, "git", "rev-parse", ref), other))
    with pytest.raises(LeverlabError, match=rf"'small-fast' names 2 experiments \(commits {', '.join(commits)}\)"):
        read_plans(root, "small")


def test_files_that_the_cache_lost(root: Path) -> None:
    """First the list of models/best, then everything."""
    lock = call(root, "git", "show", "first:dvc.lock")
    digest = lock.split("path: models/best")[1].split("md5: ")[1].split()[0]
    (root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    with pytest.raises(LeverlabError, match=r"models/best/checkpoints\.csv of 'first' is not in DVC's cache"):
        read_outcome(root, "first", {})
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(LeverlabError, match=r"the answers of 'small-fast' .* are not in DVC's cache"):
        read_plans(root, "small")


def test_damaged_checkpoints_are_named_without_a_temporary_folder(root: Path) -> None:
    table = root / "models/best/checkpoints.csv"
    text = table.read_text().replace("True", "False")
    table.unlink()
    table.write_text(text)
    with pytest.raises(LeverlabError) as caught:
        read_outcome(root, "workspace", {})
    assert str(caught.value).startswith("run 'workspace': models/best/checkpoints.csv chooses 0 epochs of grpo, seed 0")


@pytest.mark.parametrize("options", [["small", "--base", "small"], ["small", "--write"], ["--out", "x"]])
def test_options_that_do_not_go_together(root: Path, command_line: CommandLine, options: list[str]) -> None:
    assert command_line("plan", "ledger", *options)[0] == 2
