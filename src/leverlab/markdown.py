"""Text in a Markdown document: what users and data sets write is shown as it is, and is never markup.

Only what CommonMark or GitHub would read as markup is escaped, so ordinary text keeps its bytes.
"""

import re

from leverlab.terminal import one_line

_LIVE = re.compile(
    r"""[\\`|$]                                                # escapes, code, cells of a table, GitHub's mathematics
    | (?<=\S)[*~] | [*~](?=\S) | (?<!\w)_+ | _+(?!\w)          # emphasis, but for 2 * 3 and snake_case
    | <(?=[A-Za-z/!?]) | &(?=\#?\w+;)                          # tags and entities
    | \](?=[(\[:])                                             # links, images, definitions
    | (?:(?<=http)|(?<=https)|(?<=ftp)|(?<=mailto)|(?<=xmpp)):(?=\S) | (?<=www)\. | (?<=\w)@(?=\w)  # GitHub's links
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BLOCK = re.compile(r"[#>+=-]|(?<=\d)[.)](?=\s|$)")  # what begins a heading, quote, list or rule


def inline(text: str) -> str:
    """Return `text` as one line of Markdown that shows it, for a cell of a table or within a paragraph."""
    return _LIVE.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), one_line(text))


def paragraph(text: str) -> str:
    """Return `text` as one line of Markdown that shows it and begins a paragraph or an item of a list."""
    line = inline(text)
    digits = len(line) - len(line.lstrip("0123456789"))
    return f"{line[:digits]}\\{line[digits:]}" if _BLOCK.match(line, digits) else line


def code(text: str) -> str:
    """Return `text` as a code span, with more backticks around it than it holds in a row."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if not line or line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{blank}{line}{blank}{fence}"
