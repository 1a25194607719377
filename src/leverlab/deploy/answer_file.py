"""The file of answers: refused before any work where it must not be written, locked, and whole or absent.

What was answered is kept beside it as it comes, so that a run that was stopped goes on where it was.
"""

import csv
import fcntl
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("demos", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("answer", pa.string()),
    ]
)
SUFFIXES = (".parquet", ".csv", ".jsonl")
Row = dict[str, Any]


class AnswerFile:
    """The file `out`, claimed for one run; a context manager.

    inputs: files that the run reads, which it must not replace. Raises `LeverlabError` when `out` is one of them, a
    folder, of an unknown type, there already without `overwrite`, in no folder that can be written, or claimed by
    another run. What was answered is kept in `out`.partial.jsonl, which is gone once `out` is written.
    """

    def __init__(self, out: Path, inputs: Sequence[Path], overwrite: bool):
        self._shown, self._path = out, _real(out)
        self.kept = self._path.with_name(f"{self._path.name}.partial.jsonl")
        _check(out, self._path, self.kept, inputs, overwrite)
        self._overwrite = overwrite
        self._descriptor = _lock(out, self.kept)
        self._owner = ""

    def read_kept(self, owner: str) -> dict[str, Row]:
        """Return the rows that an earlier run of the same `owner` has kept, by key.

        owner: a digest of all that answers depend on. A last line that was cut is left out. Raises `LeverlabError`
        when the rows belong to another owner, or are damaged.
        """
        self._owner = owner
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            whole, line_break, cut = file.read().rpartition(b"\n")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            rows = {line["key"]: line for line in lines[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise LeverlabError(f"{self.kept} is damaged ({error}); move it away and run again") from None
        head = {"of": owner}
        if lines[:1] != [head] if line_break else not json.dumps(head).encode().startswith(cut):
            raise LeverlabError(
                f"{self.kept} holds answers of another bundle or other options; finish that run, move the file away, "
                "or give --out another name"
            )
        os.ftruncate(self._descriptor, len(whole + line_break))
        return rows

    def keep(self, rows: Sequence[Row]) -> None:
        """Add rows, each with its `key`, to those that are kept."""
        head = [{"of": self._owner}] if os.fstat(self._descriptor).st_size == 0 else []
        data = "".join(json.dumps(line) + "\n" for line in [*head, *rows]).encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise LeverlabError(
                f"{self.kept} cannot be written ({error.strerror}); what was answered is kept"
            ) from None

    def write(self, rows: Sequence[Row]) -> None:
        """Write `rows`, which have the fields of `SCHEMA`, whole or not at all, and drop what was kept.

        Raises `LeverlabError` when a file has come to be there meanwhile, which nobody allowed to be replaced.
        """
        if self._path.exists() and not self._overwrite:
            raise LeverlabError(
                f"{self._shown} came to be there during the run; move it away and run again: what was answered is kept"
            )
        try:
            write_bytes(self._path, _encoded(rows, self._path.suffix.lower()))
        except OSError as error:
            raise LeverlabError(
                f"{self._shown} cannot be written ({error.strerror}); what was answered is kept"
            ) from None
        os.ftruncate(self._descriptor, 0)

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.fstat(self._descriptor).st_size == 0:
            self.kept.unlink(missing_ok=True)
        os.close(self._descriptor)


def _real(out: Path) -> Path:
    try:
        return out.resolve()  # two names of one file share what is kept, and its lock
    except (OSError, ValueError, RuntimeError) as error:
        raise LeverlabError(f"--out {str(out)!r:.200} names no file ({error}); give another name") from None


def _check(out: Path, path: Path, kept: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    if path.is_dir():
        raise LeverlabError(f"--out {out} is a folder; name a file in it, such as {out / 'answers.parquet'}")
    if path.suffix.lower() not in SUFFIXES:
        raise LeverlabError(f"--out {out} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.parent.is_dir():
        raise LeverlabError(f"the folder {out.parent} of --out does not exist; make it")
    for given in inputs:
        if any(other.exists() and given.exists() and other.samefile(given) for other in (path, kept)):
            raise LeverlabError(f"--out {out} would replace {given}, which the run reads; give it another name")
    if path.exists() and not path.is_file():
        raise LeverlabError(f"--out {out} is no plain file; give it another name")
    if path.exists() and not overwrite:
        raise LeverlabError(f"{out} is there already; give --out another name, or add --overwrite to replace it")


def _lock(out: Path, kept: Path) -> int:
    """Return the descriptor of the file `kept`, made and locked; the lock ends with the process."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(kept, flags, 0o666)
        except OSError as error:
            raise LeverlabError(f"{kept}, beside --out, cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise LeverlabError(f"{kept}, beside --out, is no plain file; give --out another name")
            if kept.exists() and os.path.samestat(found, kept.stat()):  # else the run before has just ended
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise LeverlabError(f"another run writes {out}; wait for it, or give --out another name") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _encoded(rows: Sequence[Row], suffix: str) -> bytes:
    """Return rows as parquet, as JSON lines, or as CSV, where demos and scores are JSON lists."""
    if suffix == ".parquet":
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), data, write_page_checksum=True)
        return data.getvalue()
    ordered = [{name: row[name] for name in SCHEMA.names} for row in rows]
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    lists = ("demos", "scores")
    writer.writerows(row | {name: json.dumps(row[name], ensure_ascii=False) for name in lists} for row in ordered)
    return text.getvalue().encode()
