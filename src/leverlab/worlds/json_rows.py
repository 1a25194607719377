"""Rows of JSON files, read as a stream: about one row is in memory, however large the file is."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from leverlab.errors import LeverlabError

CHUNK = 1 << 16  # characters read at once; more where a row is longer
LONGEST_TOKEN = 12  # characters, of what may be cut at the end of a chunk: "-Infinity", an escaped pair of surrogates
_BLANK = re.compile(r"[ \t\n\r]*")
_LIST = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*\{")
_LIST_SO_FAR = re.compile(r"[ \t\n\r]*\[?[ \t\n\r]*")


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, or of one JSON list, each with its file and line (or entry).

    A byte order mark is left out. Raises `LeverlabError` naming the place when the file is not UTF-8, not JSON, or
    holds something else than objects; the rows before it are yielded.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            is_list = _begins_a_list(file)
            file.seek(0)
            for where, row in _entries(file, path) if is_list else _lines(file, path):
                if not isinstance(row, dict):
                    raise LeverlabError(f"{where} must be a JSON object, not {str(row)[:100]}")
                yield where, row
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {_first_bad_byte(path)}"
        raise LeverlabError(f"{path} is not UTF-8 text ({place}); save it so") from None


def _begins_a_list(file: TextIO) -> bool:
    """Return whether a file begins a list of objects. A line of JSON lines may begin a list of other things."""
    text = ""
    while _LIST_SO_FAR.fullmatch(text) and (chunk := file.read(CHUNK)):
        text += chunk
    return _LIST.match(text) is not None


def _lines(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                row = json.loads(line.removesuffix("\n"))
            except (ValueError, RecursionError) as error:
                raise _not_json(where, str(error)) from None
            yield where, row


def _entries(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    text, number = _Text(file), 0
    text.take()  # the bracket
    while True:
        where = f"{path} entry {number}"
        yield where, text.value(where)
        number += 1
        sign = text.take()
        if sign == "]":
            break
        if sign != ",":
            text.refuse(where, "expecting ',' or ']' after it", len(sign))
    if sign := text.take():
        text.refuse(str(path), "extra data after the list", len(sign))


class _Text:
    """The text of a file, of which only what is not parsed yet is in memory."""

    def __init__(self, file: TextIO):
        self._file, self._decoder = file, json.JSONDecoder()
        self._buffer, self._at = "", 0
        self._line, self._column = 1, 1  # of the buffer's first character

    def take(self) -> str:
        """Return the next character that is not blank, and go behind it; nothing at the end of the file."""
        self._skip_blanks()
        sign = self._buffer[self._at : self._at + 1]
        self._at += len(sign)
        return sign

    def value(self, where: str) -> Any:
        """Return the next value. Raises `LeverlabError`, which `where` opens, when it is not JSON."""
        self._skip_blanks()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._more():
                    continue
                self.refuse(where, error.msg, self._at - error.pos)
            except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits
                self.refuse(where, str(error), 0)
            if end == len(self._buffer) and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def refuse(self, where: str, problem: str, back: int) -> NoReturn:
        """Raise the error for what is wrong `back` characters before the place that was reached."""
        before = self._buffer[: self._at - back]
        line = self._line + before.count("\n")
        column = len(before) - before.rfind("\n") if "\n" in before else self._column + len(before)
        raise _not_json(where, f"{problem}: line {line} column {column} of the file")

    def _skip_blanks(self) -> None:
        while True:
            blank = _BLANK.match(self._buffer, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._buffer) or not self._more():
                return

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - LONGEST_TOKEN

    def _more(self) -> bool:
        """Read on, as much again as is there; return whether there was more."""
        left = self._buffer[self._at :]
        chunk = self._file.read(max(CHUNK, len(left)))
        if not chunk:
            return False
        done = self._buffer[: self._at]
        self._line += done.count("\n")
        self._column = len(done) - done.rfind("\n") if "\n" in done else self._column + len(done)
        self._buffer, self._at = left + chunk, 0
        return True


def _not_json(where: str, problem: str) -> LeverlabError:
    return LeverlabError(f"{where} is not JSON ({problem}); write one object a line, or one list of them")


def _first_bad_byte(path: Path) -> int:
    """Return where a file stops being UTF-8; its size when it does not."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return read - kept + error.start
            if not chunk:
                return read
            read += len(chunk)
