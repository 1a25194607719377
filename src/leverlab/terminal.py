"""Text on a terminal: what users, data sets and models write is shown, and never obeyed."""

import sys
import unicodedata

_KEPT = "\n\t\u200c\u200d"  # line breaks, tabs, and the joiners (Cf) that Persian, Hindi and emoji are spelled with
_STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (with bidi), surrogate, unassigned, separators


def printable(text: str) -> str:
    """Return `text` with U+FFFD for each character that could steer a terminal; line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if sign not in _KEPT and unicodedata.category(sign) in _STEERING else sign
        for sign in text
    )


def one_line(text: str) -> str:
    """Return `printable` text with every run of white space as one blank, so that it cannot forge a line."""
    return printable(" ".join(text.split()))


def echo(text: str, err: bool = False) -> None:
    """Print `text`, printable, with a line break after it; to standard error if `err`."""
    print(printable(text), file=sys.stderr if err else sys.stdout, flush=True)
