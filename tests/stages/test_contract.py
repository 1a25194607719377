"""The contract of stages, kept by small stages that run as processes of their own in a small repository."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.workplace import ALL, PATIENCE, Workplace, wait_for


def test_a_stage_writes_its_outs_and_leaves_nothing_else(place: Workplace) -> None:
    place.body("""
        params, more = stage.section("job", JobParams), stage.section("more", MoreParams)
        assert (params.steps, params.lr, more.depth) == (3, 5e-5, 2)
        assert stage.dep("data/in.txt").read_text() == "input"
        assert stage.dep("data/folder/b/c.txt").read_text() == "c"
        assert not Path("out").exists()
        stage.say("half way")
        write_all(stage)
        assert not Path("out").exists()  # aside until the end
    """)
    assert place.succeeds() == "job: half way\n"
    assert place.outs() == ALL
    assert place.states() == []
    assert not (place.root / ".leverlab/staging/job").exists()


def test_provenance_tells_what_went_in_and_where_nothing_of_the_place(place: Workplace) -> None:
    """The digests are those of a slow loop here; a change of a tracked file makes the run dirty."""
    revision = place.commit()
    place.succeeds()
    text = place.read("provenance/job.json")
    record = json.loads(text)
    assert set(record) == {
        "stage",
        "revision",
        "dirty",
        "params",
        "inputs",
        "outs",
        "versions",
        "hardware",
        "seconds",
        "peak_mib",
    }
    assert (record["stage"], record["revision"], record["dirty"]) == ("job", revision, False)
    assert record["params"] == {"params.yaml:job": {"steps": 3, "lr": 5e-5}, "other.yaml:more": {"depth": 2}}
    assert set(record["inputs"]) == {"data/in.txt", "data/folder", "job.py"}
    assert set(record["outs"]) == {"out/one.txt", "out/many", "out/metrics.json"}
    assert record["outs"]["out/many"] == folder_digest({"a.txt": b"new", "b.txt": b"new"})
    assert record["inputs"]["data/folder"] == folder_digest({"a.txt": b"a", "b/c.txt": b"c"})
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "transformers"} <= set(record["versions"])
    assert 0 <= record["seconds"] < PATIENCE
    assert 5 < record["peak_mib"] < 2000
    assert str(place.root) not in text
    assert os.uname().nodename not in text
    assert text.endswith("}\n")

    place.write("data/in.txt", "edited")
    place.succeeds()
    assert json.loads(place.read("provenance/job.json"))["dirty"] is True


def folder_digest(files: dict[str, bytes]) -> str:
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\0".encode())
    return sha.hexdigest()


def test_items_of_a_matrix_are_runs_of_their_own(place: Workplace) -> None:
    place.succeeds("0")
    place.succeeds("1")
    assert place.outs() == {"0": "0", "1": "1"}
    assert json.loads(place.read("provenance/many@1.json"))["outs"].keys() == {"out/1"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('stage.section("unrelated", JobParams)', "reads the params 'unrelated' without declaring them"),
        ('stage.section("hidden", JobParams)', "reads the params 'hidden' without declaring them"),
        ('stage.value("seeds")', "reads the params 'seeds' without declaring them"),
        ('stage.dep("data/in.txt.secret")', "reads 'data/in.txt.secret' without declaring it"),
        ('stage.dep("data")', "reads 'data' without declaring it"),
        ('stage.dep("data/folderly/a.txt")', "reads 'data/folderly/a.txt' without declaring it"),
        ('stage.out("out/two.txt")', "writes 'out/two.txt' without declaring it"),
        ('stage.out("out")', "writes 'out' without declaring it"),
        ('stage.out("out/many-more/a.txt")', "writes 'out/many-more/a.txt' without declaring it"),
        ('stage.section("job", MoreParams)', "unknown key 'job.steps'"),
        ('raise LeverlabError("the data cannot teach")', "the data cannot teach"),
    ],
)
def test_what_is_not_declared_is_one_sentence(place: Workplace, code: str, message: str) -> None:
    place.body(f"write_all(stage)\n{code}")
    code_, _, err = place.run()
    assert code_ == 1
    assert message in err
    assert "Traceback" not in err
    if "stage.section" not in code:  # a section with many wrong keys has a line for each
        assert err.count("\n") == 1
    assert place.outs() == {}


def test_single_keys_of_a_section_can_be_declared(place: Workplace) -> None:
    """The stage sees them as a section that has no other keys, and a change of another key is nothing to it."""
    place.write(
        "dvc.yaml", place.read("dvc.yaml").replace("      - job\n      - other", "      - job.lr\n      - other")
    )
    place.body(
        """
        class Rate(Section):
            lr: float

        rate = stage.section("job", Rate)
        assert (rate.lr, stage.value("job.lr")) == (5e-05, 5e-05)
        pause()
        write_all(stage, str(rate.lr))
        """
    )
    with place.paused() as process:
        place.write("params.yaml", place.read("params.yaml").replace("steps: 3", "steps: 4"))
        code, err = place.go_on(process)
    assert (code, err) == (0, "")
    assert json.loads(place.read("provenance/job.json"))["params"] == {
        "params.yaml:job.lr": 5e-05,
        "other.yaml:more": {"depth": 2},
    }
    place.body('stage.section("job", JobParams)')
    assert "key 'job.steps' is missing" in place.fails()


@pytest.mark.parametrize("code", ['stage.dep("data/folder/../in.txt.secret")', 'stage.out("out/many/../two.txt")'])
def test_a_declared_folder_ends_at_its_edge(place: Workplace, code: str) -> None:
    place.body(f"write_all(stage)\n{code}")
    assert "without declaring it" in place.fails()


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("params.yaml", "job:", "jop:", "params.yaml has no 'job', which dvc.yaml declares"),
        ("params.yaml", "lr: 5e-05", "lr: fast", "'job.lr' = 'fast' is not allowed"),
        ("params.yaml", "lr: 5e-05", "lrr: 5e-05", "did you mean 'job.lr'?"),
        ("params.yaml", "seeds:", "seeds: [", "params.yaml is not valid YAML"),
        ("dvc.yaml", "  job:\n", "  jobs:\n", "has no stage 'job'"),
        ("dvc.yaml", "out/one.txt", "out/${seeds}.txt", "interpolation that stages do not resolve"),
        (
            "dvc.yaml",
            "data/in.txt\n      - data/folder",
            "data/lost\n      - data/folder",
            "'data/lost' does not exist",
        ),
    ],
)
def test_bad_files_are_one_sentence(place: Workplace, file: str, before: str, after: str, message: str) -> None:
    place.body('stage.section("job", JobParams)\nwrite_all(stage)')
    text = place.read(file)
    assert before in text
    place.write(file, text.replace(before, after, 1))
    code, _, err = place.run()
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert place.outs() == {}


def test_a_matrix_stage_needs_its_item(place: Workplace) -> None:
    place.write("job.py", place.read("job.py").replace('run_stage("job", body)', 'run_stage("many", body)'))
    assert "needs a value for each of ['seed']" in place.fails()


def test_a_body_that_fails_leaves_the_old_outs_and_its_state(place: Workplace) -> None:
    place.body("""
        write_all(stage, "old")
    """)
    place.succeeds()
    old = place.outs()
    place.body("""
        write_all(stage)
        (stage.state_dir / "progress").write_text("2 of 3")
        raise LeverlabError("the loss is not a number")
    """)
    assert "the loss is not a number" in place.fails()
    assert place.outs() == old
    (state,) = place.states()
    assert (state / "progress").read_text() == "2 of 3"


def test_an_error_of_the_code_keeps_its_traceback_and_the_outs_away(place: Workplace) -> None:
    place.body('write_all(stage)\n(stage.state_dir / "progress").write_text("2")\n{}["bug"]')
    code, _, err = place.run()
    assert code == 1
    assert "Traceback" in err
    assert "KeyError: 'bug'" in err
    assert place.outs() == {}
    assert len(place.states()) == 1


def test_all_outs_or_none(place: Workplace) -> None:
    """The folder and the metrics were written, one.txt was not: none appears."""
    place.body('stage.out("out/many/a.txt").write_text("new")\nstage.out("out/metrics.json").write_text("{}")')
    assert "ended without writing ['out/one.txt']" in place.fails()
    assert place.outs() == {}


def test_an_out_replaces_the_old_one_whole(place: Workplace) -> None:
    for name in ("many/old.txt", "many/deep/old.txt", "one.txt", "metrics.json"):
        place.write(f"out/{name}", "old")
    place.succeeds()
    assert place.outs() == ALL


def test_what_a_failed_run_wrote_aside_is_not_published_later(place: Workplace) -> None:
    place.body('stage.out("out/many/left-over.txt").write_text("x")\nraise LeverlabError("no")')
    place.fails()
    place.body("write_all(stage)")
    place.succeeds()
    assert place.outs() == ALL


def replace_input(root: Path) -> None:
    (root / "data/in.txt").write_text("INPUT")


def remove_input(root: Path) -> None:
    (root / "data/in.txt").unlink()


def edit_folder(root: Path) -> None:
    (root / "data/folder/b/c.txt").write_text("C")


def add_to_folder(root: Path) -> None:
    (root / "data/folder/new.txt").write_text("")


def rename_in_folder(root: Path) -> None:
    (root / "data/folder/a.txt").rename(root / "data/folder/z.txt")


def remove_from_folder(root: Path) -> None:
    shutil.rmtree(root / "data/folder/b")


def edit_code(root: Path) -> None:
    with (root / "job.py").open("a") as file:
        file.write("# edited\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replace_input, "data/in.txt"),
        (remove_input, "data/in.txt"),
        (edit_folder, "data/folder"),
        (add_to_folder, "data/folder"),
        (rename_in_folder, "data/folder"),
        (remove_from_folder, "data/folder"),
        (edit_code, "job.py"),
    ],
)
def test_an_input_that_changes_meanwhile_is_an_error(
    place: Workplace, change: Callable[[Path], None], named: str
) -> None:
    place.body('(stage.state_dir / "progress").write_text("2")\npause()\nwrite_all(stage)')
    with place.paused() as process:
        change(place.root)
        code, err = place.go_on(process)
    assert code == 1
    assert f"'{named}' changed while the stage ran" in err
    assert err.count("\n") == 1
    assert place.outs() == {}
    assert len(place.states()) == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("params.yaml", "seeds: [0, 1]\njob:\n  steps: 4\n  lr: 5e-05\nunrelated: 1\n", "'job' of params.yaml"),
        ("params.yaml", "seeds: [0, 1]\nunrelated: 1\n", "'job' of params.yaml"),
        ("other.yaml", "more:\n  depth: 3\n", "'more' of other.yaml"),
    ],
)
def test_a_param_that_changes_meanwhile_is_an_error(place: Workplace, file: str, text: str, message: str) -> None:
    """The change comes after the section was read: what counts is what DVC will record at the end."""
    place.body('stage.section("job", JobParams)\npause()\nwrite_all(stage)')
    with place.paused() as process:
        place.write(file, text)
        code, err = place.go_on(process)
    assert code == 1
    assert f"{message} changed while the stage ran" in err
    assert err.count("\n") == 1
    assert place.outs() == {}


def test_a_file_that_is_written_again_with_the_same_bytes_is_fine(place: Workplace) -> None:
    """Touched inputs, another section's params, another comment in params.yaml, a cache of Python, a new neighbour."""
    place.body('stage.section("job", JobParams)\npause()\nwrite_all(stage)')
    with place.paused() as process:
        for name in ("data/in.txt", "data/folder/a.txt", "job.py"):
            os.utime(place.root / name, (1, 1))
        place.write("data/folder/b/c.txt", "c")
        place.write("data/folder/__pycache__/x.pyc", "x")
        place.write("data/neighbour.txt", "x")
        place.write("params.yaml", "# said\njob:\n  lr: 0.00005\n  steps: 3\nunrelated: 2\nseeds: [7]\n")
        assert place.go_on(process) == (0, "")
    assert place.outs() == ALL


COUNT = """
    progress = stage.state_dir / "progress"
    first = int(progress.read_text()) if progress.exists() else 0
    for step in range(first, 3):
        print("step", step, flush=True)
        progress.write_text(str(step + 1))
        if step == 1:
            pause()
    write_all(stage, f"{first} to 3")
"""


FORGETS_AND_IS_KILLED = """
part, progress = stage.state_dir / "part", stage.state_dir / "progress"
assert part.exists() or not progress.exists(), "half a state"
part.write_text("1")
progress.write_text("1 of 1")
write_all(stage)
if not Path("go").exists():
    import shutil, signal

    def rmtree(path, **_):
        if (Path(path) / "part").exists():
            (Path(path) / "part").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    shutil.rmtree = rmtree
"""


def test_killed_while_it_forgets_its_state_it_can_run_again(place: Workplace) -> None:
    """Of a state of which half is gone nothing could go on, at no run that follows."""
    place.body(FORGETS_AND_IS_KILLED)
    code, _, _ = place.run()
    assert code == -signal.SIGKILL
    place.write("go", "")
    place.succeeds()
    assert place.outs() == ALL
    assert place.states() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_stage_goes_on_where_it_was(place: Workplace, how: signal.Signals) -> None:
    place.body(COUNT)
    with place.paused() as process:
        process.send_signal(how)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
    assert out == "step 0\nstep 1\n"
    assert place.outs() == {}
    assert len(place.states()) == 1
    assert place.succeeds() == "step 2\n"
    assert place.outs()["one.txt"] == "2 to 3"
    assert place.states() == []


@pytest.mark.parametrize("what", ["param", "input", "code"])
def test_another_run_does_not_see_the_state(place: Workplace, what: str) -> None:
    """The state of a killed run is for the same params, inputs and code alone; put back, it is found again."""
    file, before, after = {
        "param": ("params.yaml", "lr: 5e-05", "lr: 6e-05"),
        "input": ("data/folder/b/c.txt", "c", "d"),
        "code": ("job.py", "import os", "import  os"),
    }[what]
    place.body(COUNT)
    with place.paused() as process:
        process.kill()
    (killed,) = place.states()
    text = place.read(file)
    place.write(file, text.replace(before, after, 1))
    place.write("go", "")
    assert place.succeeds() == "step 0\nstep 1\nstep 2\n"
    assert place.states() == [killed]
    place.write(file, text)
    assert place.succeeds() == "step 2\n"
    assert place.states() == []


def test_an_unrelated_param_keeps_the_state(place: Workplace) -> None:
    place.body(COUNT)
    with place.paused() as process:
        process.kill()
    place.write("params.yaml", place.read("params.yaml").replace("unrelated: 1", "unrelated: 2"))
    assert place.succeeds() == "step 2\n"


def test_a_stage_of_the_same_name_in_another_pipeline_is_another_stage(place: Workplace) -> None:
    """Neither waits for the other, takes its state, or empties the folder that it writes to."""
    place.write("recipe/dvc.yaml", place.read("dvc.yaml").replace("out/", "recipe/out/"))
    place.body("""
        home = "recipe/" * ("HOME_OF_STAGE" in os.environ)
        stage.out(f"{home}out/one.txt").write_text(home)
        pause() if not home else None
        stage.out(f"{home}out/many").mkdir()
        stage.out(f"{home}out/metrics.json").write_text("{}")
    """)
    with place.paused() as process:
        assert place.succeeds(HOME_OF_STAGE="recipe") == ""
        assert len(place.states()) == 1
        place.write("go", "")
        assert process.wait() == 0
    assert place.read("out/one.txt") == ""
    assert place.read("recipe/out/one.txt") == "recipe/"
    assert place.states() == []


def test_a_second_process_is_told_and_the_first_goes_on(place: Workplace) -> None:
    place.body("pause()\nwrite_all(stage)")
    with place.paused() as process:
        assert "'job' is already running in another process" in place.fails()
        assert place.go_on(process) == (0, "")
    assert place.outs() == ALL


def test_two_items_of_a_matrix_may_run_at_once(place: Workplace) -> None:
    place.body("pause()\nwrite_all(stage)")
    with place.paused() as process:
        place.succeeds("0")
        assert place.go_on(process) == (0, "")


def test_a_killed_process_leaves_no_lock(place: Workplace) -> None:
    place.body("pause()\nwrite_all(stage)")
    with place.paused() as process:
        process.kill()
    place.write("go", "")
    place.succeeds()


def test_copies_share_state_through_dvc_root(place: Workplace, tmp_path: Path) -> None:
    """`dvc exp run --temp` runs a stage in a copy, with DVC_ROOT = the workspace: the copy's state lies there. Another
    copy waits until it is free, and goes on with it."""
    place.body(COUNT)
    copies = [tmp_path / "first", tmp_path / "second"]
    for copy in copies:
        shutil.copytree(place.root, copy, ignore=shutil.ignore_patterns(".leverlab"))
    shutil.rmtree(place.root / ".leverlab", ignore_errors=True)
    process = place.start(cwd=copies[0], DVC_ROOT=str(place.root))
    try:
        wait_for((copies[0] / "at").exists, process)
        assert len(place.states()) == 1
        assert not (copies[0] / ".leverlab/state").exists()
        later = place.start(cwd=copies[1], DVC_ROOT=str(place.root))
        assert later.stdout
        told = later.stdout.readline()
        assert "waiting for another process that runs the same 'job'" in told
        assert not (copies[1] / "at").exists()
    finally:
        process.kill()
        process.communicate()
    assert later.communicate(timeout=60)[0] == "step 2\n"
    assert later.returncode == 0
    assert (copies[1] / "out/one.txt").read_text() == "2 to 3"
    assert (copies[1] / "provenance/job.json").exists()
    assert place.outs() == {}
    assert place.states() == []
