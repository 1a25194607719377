"""Scores on disk, keyed by what was asked: the VLM, the batch of prompts, the kind of answer.

An entry is one whole batch, because a batched forward is not bit-invariant to what else is in the batch: an entry is
either found whole, with the bytes that a forward would give, or computed whole. SQLite keeps several writers apart and
survives kills; every entry carries a checksum.
"""

import shutil
import sqlite3
import time
import zlib
from pathlib import Path
from types import TracebackType

from leverlab.errors import LeverlabError

TIMEOUT = 60  # seconds to wait for another writer
_SCHEMA = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


class ScoreCache:
    """A dictionary of bytes on disk that processes share. Raises `LeverlabError` for a damaged file and a full disk."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)
            self._switch_to_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._explain(error) from None

    def _switch_to_wal(self) -> None:
        """Change the journal mode; SQLite's own timeout does not cover this, so another opener is waited for here."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def get(self, key: bytes) -> bytes | None:
        """Return the entry of `key`, or None. Raises `LeverlabError` when the file or the entry is damaged."""
        try:
            row = self._db.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._explain(error) from None
        if row is None:
            return None
        entry = row[0] if isinstance(row[0], bytes) else b""  # a damaged page can give any type
        checksum, value = entry[:4], entry[4:]
        if zlib.crc32(key + value).to_bytes(4, "big") != checksum:
            raise LeverlabError(
                f"an entry of the score cache {self._path} is damaged; delete the file: it holds nothing that cannot "
                "be computed again"
            )
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`; an entry that is already there stays (it holds the same bytes)."""
        entry = zlib.crc32(key + value).to_bytes(4, "big") + value
        try:
            self._db.execute("INSERT OR IGNORE INTO scores VALUES (?, ?)", (key, entry))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> LeverlabError:
        # SQLite calls a disk too full for its shared memory file an I/O error
        io_error = "disk I/O error" in str(error) and shutil.disk_usage(self._path.parent).free < 1_000_000
        if "full" in str(error) or io_error:
            return LeverlabError(
                f"no space left for the score cache {self._path}; free some and run again: all earlier scores are kept"
            )
        if isinstance(error, sqlite3.OperationalError):
            return LeverlabError(
                f"the score cache {self._path} cannot be used ({error}); check its folder, or delete it"
            )
        return LeverlabError(
            f"the score cache {self._path} is damaged ({error}); delete it: it holds nothing that cannot be computed "
            "again"
        )

    def __enter__(self) -> "ScoreCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
