"""A clone has the bytes of the repository, whatever its owner's git does with line ends."""

import subprocess
from pathlib import Path

import pytest

from tests.stages.clones import Clone


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.eol=crlf"])
def test_a_clone_keeps_every_byte(tmp_path: Path, setting: str) -> None:
    """Other bytes of a dep make its stages stale: with git's own setting for Windows all of them were."""
    clone = Clone(tmp_path / "repository", workers=1)
    clone.commit("all")
    clone.run("git", "clone", "-q", "-c", setting, str(clone.root), str(tmp_path / "copy"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=clone.root, check=True, capture_output=True, text=True)
    names = listed.stdout.removesuffix("\0").split("\0")
    assert len(names) > 500
    assert [n for n in names if (tmp_path / "copy" / n).read_bytes() != (clone.root / n).read_bytes()] == []
