"""The contract of stages on a disk that is full: one sentence, and nothing that was computed is lost."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.workplace import ALL, Workplace


@pytest.mark.parametrize(
    "error",
    [
        'OSError(errno.ENOSPC, "No space left on device", "data/scores")',
        'OSError(errno.EDQUOT, "Disk quota exceeded", "data/scores")',
        'sqlite3.OperationalError("database or disk is full")',
        'RuntimeError("write failed: No space left on device (os error 28)")',
        'RuntimeError("\\x1b[2J: no space left on device")',
    ],
)
def test_a_full_disk_is_told_in_the_last_line(place: Workplace, error: str) -> None:
    """The traceback says where it was; the sentence below it says what to do. The state is kept."""
    place.body(f"""
        import errno, sqlite3
        write_all(stage)
        (stage.state_dir / "progress").write_text("2")
        raise {error}
    """)
    code, _, err = place.run()
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("leverlab: stage job: no space left on the disk (")
    assert "free some and run dvc repro again" in last
    assert "\x1b" not in last
    assert place.outs() == {}
    (state,) = place.states()
    assert (state / "progress").read_text() == "2"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Workplace]:
    """A repository on a disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        place = Workplace(disk)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Workplace) -> None:
    """Two megabytes do not fit: one sentence, no out, and the run goes on once there is room (here: fewer bytes)."""
    small_disk.body("""
        progress = stage.state_dir / "progress"
        first = int(progress.read_text()) if progress.exists() else 0
        print("from", first, flush=True)
        if first == 0:
            progress.write_text("2")
        write_all(stage)
        if not Path("go").exists():
            stage.out("out/one.txt").write_bytes(bytes(2_000_000))
    """)
    code, out, err = small_disk.run()
    assert (code, out) == (1, "from 0\n")
    assert err.splitlines()[-1].startswith("leverlab: stage job: no space left on the disk ([Errno 28]")
    assert small_disk.outs() == {}
    (state,) = small_disk.states()
    assert (state / "progress").read_text() == "2"
    small_disk.write("go", "")
    assert small_disk.succeeds() == "from 2\n"
    assert small_disk.outs() == ALL


def test_a_record_that_cannot_be_written_costs_no_work(place: Workplace) -> None:
    """A stage that fails at its very last act has finished its work, and must still have it when it is run again."""
    place.body("""
        progress = stage.state_dir / "progress"
        print("again" if progress.exists() else "first time", flush=True)
        progress.write_text("3")
        write_all(stage)
    """)
    place.write("provenance", "a file in the way of the folder")
    code, out, _ = place.run()
    assert (code, out) == (1, "first time\n")
    (place.root / "provenance").unlink()
    assert place.succeeds() == "again\n"
