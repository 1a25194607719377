"""Answers as they are compared: numbers by their value, everything else as text."""

import re
from fractions import Fraction

from leverlab.texts import normalised

_CURRENCIES = "$€£¥"
_START = re.compile(rf"^(?:[ {_CURRENCIES}]|\.(?!\d))+")  # a point before a digit is a decimal point
_NUMBER = re.compile(
    rf"""(?<![\w.,/])                      # no part of a word, a date or a version
    (?P<sign>[-+\u2212\u2013])?            # hyphen, plus, minus, en dash
    [{_CURRENCIES}]?
    (?P<size>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|\d+)(?:\.\d+)?|\.\d+)
    (?P<rest>e[-+]?\d{{1,3}}|/\d+)?        # a power of ten, or a denominator
    (?!\w|[.,/]\d)""",
    re.VERBOSE,
)


def plain_answer(text: str) -> str:
    """Return an answer as it is compared: two answers are the same when this is.

    Numbers are compared exactly, by their value: "12.0" and "$12" are 12, "07" is 7, "1,234" is 1234, "1/2" is 0.5 and
    "1e3" is 1000, while "1.25" is not 125 and "-3" is not 3. A sign may be a hyphen, a Unicode minus or an en dash; a
    currency sign before a number or at the edges of an answer does not matter, whatever the currency. Commas are part
    of a number only between groups of three digits. Case, spaces, an article before the answer, the point after it and
    the Unicode normal form do not matter.
    """
    words = " ".join(normalised(text.lower()).split())
    words = _START.sub("", words.rstrip(f" .{_CURRENCIES}"))
    words = words.removeprefix("the ").removeprefix("a ").removeprefix("an ")
    return _NUMBER.sub(_value, words)


def _value(number: re.Match[str]) -> str:
    """Return a number as its reduced fraction, or as it is written when it has more digits than Python reads."""
    sign, size, rest = number.group("sign", "size", "rest")
    try:
        value = Fraction(size.replace(",", ""))
        if rest:
            value *= Fraction(1, int(rest[1:])) if rest[0] == "/" else Fraction(10) ** int(rest[1:])
        return str(-value if sign and sign != "+" else value)
    except (ValueError, ZeroDivisionError):
        return number[0]
