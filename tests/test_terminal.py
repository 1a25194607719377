"""What users, data sets and models write cannot steer a terminal."""

import io
import re
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from leverlab.cli import main
from leverlab.console import SafeConsole
from leverlab.errors import LeverlabError
from leverlab.terminal import one_line, printable

GONE = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\rc\nd é…", f"a{GONE}[2Jb{GONE}c\nd é…"),
        ("\x9b31m\x7f\a\b\0\t", f"{GONE}31m{GONE * 4}\t"),  # C1's CSI, DEL, BEL, backspace, NUL; a tab is white space
        ("\u202eabc\u2066\u200f", f"{GONE}abc{GONE * 2}"),  # marks that reorder what is read
        ("a\u2028b\udcff\ufeff", f"a{GONE}b{GONE * 2}"),
        ("می\u200cخواهم 👩\u200d🚀 10\u00a0€ 日本\u3000語", "می\u200cخواهم 👩\u200d🚀 10\u00a0€ 日本\u3000語"),
    ],
)
def test_what_would_steer_the_terminal_is_taken_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_cannot_forge_another() -> None:
    assert one_line("a\nanswer: 42\r\n\x1b[A b\n") == f"a answer: 42 {GONE}[A b"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_texts_and_keeps_its_own_styles(terminal: bool) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, width=60, markup=False)
    table = Table("a\x1b]0;title\x07", "b\x9b", title="\x1b[2J")
    table.add_row("evil\x1b[31m\u202e", Text("\x1b[8m"), style="red")
    console.print(table)
    console.print("\x1b[1Aover", soft_wrap=True)
    shown = out.getvalue()
    assert ("\x1b[31m" in shown) == terminal  # the console's own red
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(bare)
    assert all(part in bare for part in (f"evil{GONE}[31m", f"{GONE}[8", f"{GONE}[2J", f"{GONE}[1Aover"))


def test_an_error_is_printable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise LeverlabError("the id '\x1b[2J\udcff' comes twice")

    monkeypatch.setattr("leverlab.cli.app", refuse)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"leverlab: the id '{GONE}[2J{GONE}' comes twice\n"


def test_an_error_of_a_stage_is_printable() -> None:
    code = """
from leverlab.errors import LeverlabError
from leverlab.stage import run_stage
run_stage("\\x1b[2J", None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"leverlab: stage {GONE}[2J: " in done.stderr
    assert "\x1b" not in done.stderr


def test_printable_needs_neither_torch_nor_rich() -> None:
    code = "import sys, leverlab.terminal; print(sorted({'torch', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
