"""Files that are whole or absent, and digests that see what counts and nothing else."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leverlab.files import digest, files_below, stamp, write_bytes, write_text

REPOSITORY = Path(__file__).parents[2]


def test_text_is_utf_8_and_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "τ × 2\n")
    assert (tmp_path / "a/b/c.txt").read_bytes() == "τ × 2\n".encode()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c.txt"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the bytes are to be safe: the old file is whole, and nothing lies beside it."""
    write_bytes(tmp_path / "f", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "f", b"new" * 1000)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """A process writes 1 MB of one letter again and again, and is killed six times at another moment."""
    script = (
        "import sys; from pathlib import Path; from leverlab.files import write_bytes\n"
        "while True:\n"
        "    for letter in b'ab':\n"
        "        write_bytes(Path(sys.argv[1]), bytes([letter]) * 1_000_000)\n"
    )
    path = tmp_path / "f"
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/bin"}
        )
        try:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(0.02 + 0.007 * attempt)
        finally:
            process.kill()
            process.wait()
        content = path.read_bytes()
        assert len(content) == 1_000_000
        assert len(set(content)) == 1


def test_files_come_sorted_and_without_what_dvc_ignores(tmp_path: Path) -> None:
    for name in ("b/z.txt", "a.txt", "b/__pycache__/z.pyc", "b-a.txt", "b/y/x.txt", "b/.gitignore"):
        write_text(tmp_path / name, name)
    names = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert sorted(names) == ["a.txt", "b-a.txt", "b/y/x.txt", "b/z.txt"]
    assert names == [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert list(files_below(tmp_path / "a.txt")) == [tmp_path / "a.txt"]


def test_digest_by_hand(tmp_path: Path) -> None:
    write_text(tmp_path / "d" / "a.txt", "1")
    write_text(tmp_path / "d" / "b" / "c.txt", "2")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert digest(tmp_path / "d") == hashlib.sha256(f"a.txt\0{one}\0b/c.txt\0{two}\0".encode()).hexdigest()
    assert digest(tmp_path / "d" / "a.txt") == hashlib.sha256(f".\0{one}\0".encode()).hexdigest()


def test_digest_does_not_depend_on_the_place_or_the_time(tmp_path: Path) -> None:
    for place in ("one", "another/place"):
        write_text(tmp_path / place / "a.txt", "1")
        write_text(tmp_path / place / "b/c.txt", "2")
    os.utime(tmp_path / "one/a.txt", (1, 1))
    write_text(tmp_path / "one/__pycache__/a.pyc", "x")
    assert digest(tmp_path / "one") == digest(tmp_path / "another/place")


@pytest.mark.parametrize(
    "files",
    [
        {"a": "1", "b": "3"},
        {"a": "1"},
        {"a": "1", "c": "2"},
        {"a": "2", "b": "1"},
        {"a": "1", "b": "2", "c": ""},
        {"a": "1", "x/b": "2"},
        {"a": "12", "b": ""},
        {},
    ],
)
def test_digest_and_stamp_see_every_change(tmp_path: Path, files: dict[str, str]) -> None:
    """Against a folder with a = 1, b = 2: content, a file less, another name, a swap, an empty file more, …"""
    (tmp_path / "changed").mkdir()
    for name, text in {"a": "1", "b": "2"}.items():
        write_text(tmp_path / "original" / name, text)
    for name, text in files.items():
        write_text(tmp_path / "changed" / name, text)
    assert digest(tmp_path / "original") != digest(tmp_path / "changed")
    before = stamp(tmp_path / "original")
    assert stamp(tmp_path / "original") == before
    (tmp_path / "original").rename(tmp_path / "put-away")
    (tmp_path / "changed").rename(tmp_path / "original")
    assert stamp(tmp_path / "original") != before


def test_stamp_sees_a_second_writing_of_the_same_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "x")
    os.utime(tmp_path / "f", ns=(1, 1))
    before = stamp(tmp_path / "f")
    write_text(tmp_path / "f", "x")
    assert stamp(tmp_path / "f") != before
    assert len(before) == 1


def test_what_is_not_there_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "lost")
