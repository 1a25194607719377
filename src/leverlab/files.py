"""Files that are whole or absent, and digests of what they hold."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from leverlab.errors import LeverlabError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a run that follows a kill, sees the old file or the new one, never
    half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of `name`, which a file in `folder` or its user names.

    Raises `LeverlabError` when it lies outside of the folder: by an absolute name, by `..` or through a link.
    """
    path = folder / name
    try:
        inside = not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        inside = False
    if not inside:
        raise LeverlabError(f"{name!r:.200} names no file inside {folder}; copy the file itself into the folder")
    return path


def files_below(path: Path) -> Iterator[Path]:
    """Yield `path` itself when it is a file, else every file below it in sorted order.

    Caches of Python and `.gitignore` files, which DVC writes into folders, are left out, as `.dvcignore` tells DVC.
    """
    if path.is_file():
        yield path
        return
    for child in sorted(path.rglob("*")):
        if child.is_file() and child.name != ".gitignore" and "__pycache__" not in child.parts:
            yield child


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents. Raises `FileNotFoundError`."""
    if not path.exists():
        raise FileNotFoundError(path)
    sha = hashlib.sha256()
    for file in files_below(path):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        sha.update(f"{file.relative_to(path).as_posix()}\0{content}\0".encode())
    return sha.hexdigest()


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes whenever a file or folder is written: name, size and modification time of every file."""
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files_below(path))
