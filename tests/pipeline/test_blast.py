"""The blast radius of every leaf of a small repository, derived by hand and checked against what DVC really runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from leverlab.config.base import read_params, read_yaml
from leverlab.errors import LeverlabError
from leverlab.pipeline.blast import Rerun, blast, page
from leverlab.pipeline.resolved import open_pipeline

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quiet_dvc")

Run = Callable[..., tuple[int, str, str]]

# Each out holds both params files, so that a stage that runs after a change never writes what it wrote before.
# No key is named `size`: DVC leaves that name out of the key of its run cache, and would take old outs for new ones.
DVC_YAML = """\
stages:
  prepare:
    cmd: cat params.yaml world/params.yaml world/world.txt > prepared.txt
    deps: [world/world.txt]
    params: [data]
    outs: [prepared.txt]
  train:
    matrix:
      seed: ${seeds}
    cmd: mkdir -p models && echo ${item.seed} | cat - params.yaml world/params.yaml > models/${item.seed}
    deps: [prepared.txt]
    params: [train]
    outs: ['models/${item.seed}']
  side:
    cmd: cat params.yaml world/params.yaml > side.txt
    params: [data.noise]
    outs: [side.txt]
  first:
    cmd: cat params.yaml world/params.yaml > first.txt
    deps: [models/0]
    outs: [first.txt]
  gather:
    cmd: cat params.yaml world/params.yaml > gathered.txt
    deps: [models]
    params: [seeds]
    outs: [gathered.txt]
  report:
    cmd: echo ${data_title} > report.txt
    deps: [gathered.txt, side.txt]
    params: [train.lr]
    outs: [report.txt]
"""
WORLD_DVC_YAML = """\
stages:
  world:
    wdir: ..
    cmd: cat params.yaml world/params.yaml > world/world.txt
    params:
      - world/params.yaml:
          - world
          - data.rows
    outs: [world/world.txt]
"""
PARAMS = """\
seeds: [0, 1]
data:
  rows: 3
  noise: 0.5
train:
  lr: 1.0e-3
  steps: [1, 2]
data_title: hello
dead:
  knob: 1
"""
WORLD_PARAMS = "world:\n  colour: red\ndata:\n  rows: 4\n"

WORLD = "world/dvc.yaml:world"
BELOW_WORLD = {
    WORLD: WORLD,
    "prepare": f"{WORLD} → prepare",
    "train@0": f"{WORLD} → prepare → train@0",
    "train@1": f"{WORLD} → prepare → train@1",
    "first": f"{WORLD} → prepare → train@0 → first",
    "gather": f"{WORLD} → prepare → train@0 → gather",
    "report": f"{WORLD} → prepare → train@0 → gather → report",
}
# leaf: the stages that a change re-runs in order, each with the path after the key
BY_HAND: dict[str, dict[str, str]] = {
    # models/2 is new: `gather` needs the whole folder, `first` only models/0, and the old items stay as they are
    "seeds": {"train@<new>": "matrix of train", "gather": "gather", "report": "gather → report"},
    "params.yaml:data.rows": {
        "prepare": "prepare",
        "train@0": "prepare → train@0",
        "train@1": "prepare → train@1",
        "first": "prepare → train@0 → first",
        "gather": "prepare → train@0 → gather",
        "report": "prepare → train@0 → gather → report",
    },
    "data.noise": {
        "prepare": "prepare",
        "train@0": "prepare → train@0",
        "train@1": "prepare → train@1",
        "side": "side",
        "first": "prepare → train@0 → first",
        "gather": "prepare → train@0 → gather",
        "report": "side → report",
    },
    "train.lr": {
        "train@0": "train@0",
        "train@1": "train@1",
        "first": "train@0 → first",
        "gather": "train@0 → gather",
        "report": "report",
    },
    "train.steps": {
        "train@0": "train@0",
        "train@1": "train@1",
        "first": "train@0 → first",
        "gather": "train@0 → gather",
        "report": "train@0 → gather → report",
    },
    "data_title": {"report": "report"},
    "dead.knob": {},
    "world.colour": BELOW_WORLD,
    "world/params.yaml:data.rows": BELOW_WORLD,
}
CHANGES = {
    "seeds": ("seeds: [0, 1]", "seeds: [0, 1, 2]"),
    "params.yaml:data.rows": ("rows: 3", "rows: 30"),
    "data.noise": ("noise: 0.5", "noise: 0.6"),
    "train.lr": ("lr: 1.0e-3", "lr: 2.0e-3"),
    "train.steps": ("steps: [1, 2]", "steps: [1, 3]"),
    "data_title": ("data_title: hello", "data_title: bye"),
    "dead.knob": ("knob: 1", "knob: 2"),
    "world.colour": ("colour: red", "colour: blue"),
    "world/params.yaml:data.rows": ("rows: 4", "rows: 40"),
}


def make_repository(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    Repo.init(str(root), no_scm=True).close()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS}
    return make_repository(tmp_path, files | {"world/dvc.yaml": WORLD_DVC_YAML, "world/params.yaml": WORLD_PARAMS})


@pytest.fixture
def run(root: Path, command_line: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, called in a folder below the root."""
    monkeypatch.chdir(root / "world")
    return command_line


def answer(root: Path, key: str) -> list[tuple[str, str]]:
    return [(rerun.stage, " → ".join(rerun.why)) for rerun in blast(root, key)]


def leaves(data: Any, above: str = "") -> list[str]:
    if not isinstance(data, dict):
        return [above]
    return [leaf for name, value in data.items() for leaf in leaves(value, f"{above}.{name}".lstrip("."))]


def rows(text: str) -> dict[str, list[list[str]]]:
    """The cells of the tables of a page, by the params file in the heading above them."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("## "):
            current = found.setdefault(line[3:], [])
        elif line.startswith("| `"):
            current.append([cell.replace("`", "") for cell in line.strip("| ").split(" | ")])
    return found


@pytest.mark.parametrize("key", BY_HAND)
def test_every_leaf_by_hand(root: Path, key: str) -> None:
    dotted = key.rpartition(":")[2]
    assert answer(root, key) == [(stage, f"{dotted} → {why}") for stage, why in BY_HAND[key].items()]


def test_the_hand_derived_answers_leave_out_no_leaf(root: Path) -> None:
    known = [leaf for name in ("params.yaml", "world/params.yaml") for leaf in leaves(read_params(root / name))]
    assert sorted(key.rpartition(":")[2] for key in BY_HAND) == sorted(known)
    assert CHANGES.keys() == BY_HAND.keys()


@pytest.mark.slow
def test_dvc_runs_the_stages_that_blast_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every leaf is really changed, one after the other; `train@2` is the item of the new seed.

    The keys after `seeds` have one item of `train` more than in the answers by hand.
    """
    monkeypatch.chdir(root)

    def repro() -> list[str]:
        with Repo(str(root)) as repo:
            return sorted(stage.addressing for stage in repo.reproduce(all_pipelines=True))

    assert len(repro()) == 8
    for key, (old, new) in reversed(CHANGES.items()):
        expected = sorted(rerun.stage.replace("<new>", "2") for rerun in blast(root, key))
        path = root / ("world/params.yaml" if key.startswith("world") else "params.yaml")
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
        assert repro() == expected, key


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("train", BY_HAND["train.steps"] | {"report": "report"}),
        ("params.yaml:data", BY_HAND["data.noise"]),
        ("world/params.yaml:data", BELOW_WORLD),
    ],
)
def test_a_section_re_runs_what_its_keys_re_run(root: Path, section: str, expected: dict[str, str]) -> None:
    """`report` declares train.lr alone, so its shortest path from `train` is the direct one. It reads `data_title`
    too, which is no key of `data`."""
    dotted = section.rpartition(":")[2]
    assert answer(root, section) == [(stage, f"{dotted} → {why}") for stage, why in expected.items()]


def test_a_section_that_holds_the_list_of_a_matrix(tmp_path: Path) -> None:
    """`runs.lr` re-runs the items that are there, `runs` those and the new one, `runs.seeds` the new one alone.

    The matrix has a second variable, written into dvc.yaml: a new seed has an item for each of its values.
    """
    grid = (
        "stages:\n  grid:\n    matrix:\n      seed: ${runs.seeds}\n      kind: [a, b]\n"
        "    cmd: echo ${item.seed} ${item.kind}\n    params: [runs.lr]\n"
    )
    make_repository(tmp_path, {"dvc.yaml": grid, "params.yaml": "runs:\n  seeds: [7]\n  lr: 1\n"})
    old = [("grid@7-a", "grid@7-a"), ("grid@7-b", "grid@7-b")]
    new = [("grid@<new>-a", "matrix of grid"), ("grid@<new>-b", "matrix of grid")]
    for key, expected in {"runs.lr": old, "runs.seeds": new, "runs": [*old, *new]}.items():
        assert answer(tmp_path, key) == [(stage, f"{key} → {why}") for stage, why in expected]


def test_a_params_file_that_is_declared_whole(tmp_path: Path) -> None:
    text = "stages:\n  all:\n    cmd: echo\n    params:\n      - other.yaml:\n"
    make_repository(tmp_path, {"dvc.yaml": text, "other.yaml": "a:\n  b: 1\n"})
    assert answer(tmp_path, "a.b") == [("all", "a.b → all")]


def test_a_key_with_the_name_of_a_stage(tmp_path: Path) -> None:
    """The key `sft` is not the stage `sft`: what needs that stage stands in the path behind it."""
    text = "stages:\n  sft:\n    cmd: echo\n    params: [sft]\n    outs: [a]\n  report:\n    cmd: echo\n    deps: [a]\n"
    make_repository(tmp_path, {"dvc.yaml": text, "params.yaml": "sft: 1\n"})
    assert answer(tmp_path, "sft") == [("sft", "sft → sft"), ("report", "sft → sft → report")]


def test_seconds_and_memory_are_those_of_the_last_run(root: Path) -> None:
    """The record lies in `provenance/` beside the dvc.yaml of the stage; a stage without one has no cost to show."""
    for name, record in {
        "provenance/train@1.json": {"seconds": 12.5, "peak_mib": 300, "stage": "train@1"},
        "provenance/report.json": {"seconds": 1.0, "peak_mib": 50},
        "world/provenance/world.json": {"seconds": 99.0, "peak_mib": 7},
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(record))
    costs = {rerun.stage: (rerun.seconds, rerun.peak_mib) for rerun in blast(root, "world.colour")}
    nothing = (None, None)
    assert costs == {
        WORLD: (99.0, 7),
        "prepare": nothing,
        "train@0": nothing,
        "train@1": (12.5, 300),
        "first": nothing,
        "gather": nothing,
        "report": (1.0, 50),
    }
    assert blast(root, "data_title") == [Rerun("report", 1.0, 50, ("data_title", "report"))]


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": 1.0}'])
def test_a_broken_record_is_named(root: Path, text: str) -> None:
    (root / "provenance").mkdir()
    (root / "provenance" / "report.json").write_text(text)
    with pytest.raises(LeverlabError, match=r"provenance/report\.json is no record of a run"):
        blast(root, "data_title")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.lrr", "no key 'train.lrr' in params.yaml, world/params.yaml; did you mean 'train.lr'"),
        ("seeds.0", "did you mean 'seeds'?"),
        ("nothing.alike", "world/params.yaml; docs/blast_radius.md shows all"),
        ("world/params.yaml:seeds", "no key 'seeds' in world/params.yaml;"),
        ("word/params.yaml:data", "no stage reads a params file 'word/params.yaml'; did you mean 'world/params.yaml'"),
    ],
)
def test_a_key_that_names_no_leaf_or_two(root: Path, key: str, message: str) -> None:
    with pytest.raises(LeverlabError) as caught:
        blast(root, key)
    assert message in str(caught.value)


def test_the_key_of_two_files_is_that_of_the_root(root: Path) -> None:
    """`data.rows` of both files, and the section."""
    for key in ("data.rows", "data"):
        assert answer(root, key) == [
            (stage, why.removeprefix("params.yaml:")) for stage, why in answer(root, f"params.yaml:{key}")
        ]
        assert answer(root, key) != answer(root, f"world/params.yaml:{key}")


def test_a_key_of_two_files_beside_the_root_needs_a_name(tmp_path: Path) -> None:
    stage = "stages:\n  {0}:\n    cmd: echo\n    params:\n      - {0}.yaml: [a]\n"
    files = {f"{name}/dvc.yaml": stage.format(name) for name in ("one", "two")}
    make_repository(tmp_path, files | {f"{name}/{name}.yaml": "a: 1\n" for name in ("one", "two")})
    with pytest.raises(LeverlabError, match=r"name one: one/one\.yaml:a or two/two\.yaml:a"):
        blast(tmp_path, "a")


def test_a_matrix_over_a_number_is_one_sentence(tmp_path: Path) -> None:
    """As `-S seeds=3` leaves it; DVC itself says "'Value' object is not iterable"."""
    text = "stages:\n  sft:\n    matrix: {seed: '${seeds}'}\n    cmd: echo ${item.seed}\n"
    make_repository(tmp_path, {"dvc.yaml": text, "params.yaml": "seeds: 3\n"})
    with pytest.raises(LeverlabError, match=r"a matrix in dvc\.yaml goes over .* no list.* -S 'seeds=\[0,1,2\]'"):
        blast(tmp_path, "seeds")
    with pytest.raises(LeverlabError, match=r"-S 'seeds=\[0,1,2\]'"), open_pipeline(tmp_path):
        pass


def test_a_pipeline_that_dvc_cannot_read(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo ${nothing}\n")
    with pytest.raises(LeverlabError, match="DVC cannot read the pipeline"):
        blast(root, "data_title")


def test_the_command_prints_a_table_with_the_total(root: Path, run: Run) -> None:
    (root / "provenance").mkdir()
    for stage, seconds in {"train@0": 10.25, "train@1": 20.5}.items():
        record = {"seconds": seconds, "peak_mib": 300}
        (root / "provenance" / f"{stage}.json").write_text(json.dumps(record))
    code, out, err = run("blast", "train.lr")
    assert (code, err) == (0, "")
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in out.splitlines() if "│" in line]
    assert lines[0] == ["train@0", "10.2", "300", "train.lr → train@0"]
    assert lines[2] == ["first", "–", "–", "train.lr → train@0 → first"]
    assert [line[0] for line in lines[:5]] == list(BY_HAND["train.lr"])
    assert lines[5][:2] == ["total", "30.8"]
    assert "3 without a recorded run" in lines[5][3]


def test_json_from_a_folder_below_the_root(run: Run) -> None:
    code, out, err = run("blast", "world.colour", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [entry["stage"] for entry in found] == list(BELOW_WORLD)
    assert found[1] == {
        "stage": "prepare",
        "seconds": None,
        "peak_mib": None,
        "why": ["world.colour", WORLD, "prepare"],
    }


def test_a_dead_knob_is_told(run: Run) -> None:
    assert run("blast", "dead.knob") == (0, "no stage reads dead.knob: a change of it re-runs nothing\n", "")
    assert run("blast", "dead.knob", "--json") == (0, "[]\n", "")


def test_an_unknown_key_is_one_line_and_code_1(run: Run) -> None:
    code, out, err = run("blast", "data_titel")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "did you mean 'data_title' or " in err


@pytest.mark.parametrize("arguments", [(), ("data_title", "--all"), ("--all", "--json")])
def test_a_key_or_all(root: Path, run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run("blast", *arguments)
    assert (code, out) == (2, "")
    assert "give one KEY, or --all alone" in err
    assert not (root / "docs").exists()


def test_all_writes_a_row_for_every_leaf(root: Path, run: Run) -> None:
    everything = "prepare, train@{0,1}, first, gather, report"
    assert run("blast", "--all") == (0, "docs/blast_radius.md is written\n", "")
    text = (root / "docs/blast_radius.md").read_text(encoding="utf-8")
    assert rows(text) == {
        "params.yaml": [
            ["seeds", "3", "train@<new>, gather", "train@<new>, gather, report"],
            ["data.rows", "6", "prepare", everything],
            ["data.noise", "7", "prepare, side", "prepare, train@{0,1}, side, first, gather, report"],
            ["train.lr", "5", "train@{0,1}, report", "train@{0,1}, first, gather, report"],
            ["train.steps", "5", "train@{0,1}", "train@{0,1}, first, gather, report"],
            ["data_title", "1", "report", "report"],
            ["dead.knob", "0", "–", "–"],
        ],
        "world/params.yaml": [
            ["world.colour", "7", WORLD, f"{WORLD}, {everything}"],
            ["data.rows", "7", WORLD, f"{WORLD}, {everything}"],
        ],
    }
    head = text.partition("## ")[0]
    assert "`leverlab blast --all`" in head
    assert "`leverlab blast KEY`" in head
    assert "8 stages" in head


def test_the_page_of_this_repository_is_current() -> None:
    """Run `leverlab blast --all` after a change of a dvc.yaml or a params.yaml."""
    assert page(REPOSITORY) == (REPOSITORY / "docs/blast_radius.md").read_text(encoding="utf-8")


def test_the_page_of_this_repository_has_every_leaf_of_every_params_file() -> None:
    files = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("params.yaml")]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    assert {"params.yaml", "worlds/digits/params.yaml"} <= {file.as_posix() for file in files}
    found = rows((REPOSITORY / "docs/blast_radius.md").read_text(encoding="utf-8"))
    assert {file: [row[0] for row in table] for file, table in found.items()} == {
        file.as_posix(): leaves(read_params(REPOSITORY / file)) for file in files
    }


def test_every_stage_of_this_repository_stands_on_the_page() -> None:
    """The VLM is below every stage: a change of its training re-runs all of them."""
    names = {name for file in ("dvc.yaml", "worlds/digits/dvc.yaml") for name in read_yaml(REPOSITORY / file)["stages"]}
    last = rows(page(REPOSITORY))["worlds/digits/params.yaml"][0]
    assert {stage.partition("@")[0].rpartition(":")[2] for stage in last[3].replace(",", " ").split()} >= names
