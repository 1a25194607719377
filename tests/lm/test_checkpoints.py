"""Which checkpoints are whole."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from leverlab.lm.checkpoints import MarkWhole, resume_point


def write(folder: Path, step: int, mark: bool = True, main: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ref").mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"12345")
    (checkpoint / "ref" / "adapter.safetensors").write_bytes(b"123")
    if mark:
        state = SimpleNamespace(is_world_process_zero=main, global_step=step)
        MarkWhole().on_save(SimpleNamespace(output_dir=str(folder)), state, None)
    return checkpoint


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    """By number: 10 comes after 9. What is not whole is removed, what is none is left alone."""
    assert resume_point(tmp_path / "nothing") is None
    write(tmp_path, 9)
    newest = write(tmp_path, 10)
    half, by_another = write(tmp_path, 11, mark=False), write(tmp_path, 12, main=False)
    (tmp_path / "runs").mkdir()
    assert resume_point(tmp_path) == str(newest)
    assert not half.exists()
    assert not by_another.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10", "runs"}


@pytest.mark.parametrize("damage", ["delete", "cut", "cut the mark", "delete the mark"])
def test_a_kill_while_one_is_deleted_or_written(tmp_path: Path, damage: str) -> None:
    """Old checkpoints are deleted file by file; the mark may go last."""
    older, newer = write(tmp_path, 2), write(tmp_path, 4)
    if damage == "delete":
        (newer / "ref" / "adapter.safetensors").unlink()
    elif damage == "cut":
        (newer / "optimizer.pt").write_bytes(b"1234")
    elif damage == "cut the mark":
        (newer / "whole.json").write_text((newer / "whole.json").read_text()[:20])
    else:
        (newer / "whole.json").unlink()
    assert resume_point(tmp_path) == str(older)
    assert not newer.exists()


def test_what_is_added_later_does_no_harm(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 3)
    (checkpoint / "more.json").write_text("{}")
    assert resume_point(tmp_path) == str(checkpoint)


def test_nothing_to_mark(tmp_path: Path) -> None:
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    MarkWhole().on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert list(tmp_path.iterdir()) == []
