"""Answers as they are compared: numbers by their value, everything else as text."""

import math
import re
from fractions import Fraction

from leverlab.texts import normalised

_CURRENCIES = "$€£¥"
_START = re.compile(rf"^(?:[ {_CURRENCIES}]|\.(?!\d))+")  # a point before a digit is a decimal point
_NUMBER = re.compile(
    rf"""(?<![\w.,/])(?<!\d['\u2019 ])     # no part of a word, a date, a version or a longer number
    (?P<sign>[-+\u2212\u2013])?            # hyphen, plus, minus, en dash
    [{_CURRENCIES}]?
    (?P<size>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|\d+)(?:\.\d+)?|\.\d+)
    (?P<rest>e[-+]?\d{{1,3}}|/\d+)?        # a power of ten, or a denominator
    (?!\w|[.,/'\u2019 ]\d)""",
    re.VERBOSE,
)


def plain_answer(text: str) -> str:
    """Return an answer as it is compared: two answers are the same when this is.

    Numbers are compared exactly, by their value: "12.0" and "$12" are 12, "07" is 7, "1,234" is 1234, "1/2" is 0.5 and
    "1e3" is 1000, while "1.25" is not 125, "-3" is not 3, and "48/2", a sum that is not done, is not 24. A sign may be
    a hyphen, a Unicode minus or an en dash; a currency sign before a number or at the edges of an answer does not
    matter, whatever the currency. Commas are part of a number only between groups of three digits; digits that a blank
    or an apostrophe divides ("10 000") are text. Case, spaces, an article before the answer, the point after it and
    the Unicode normal form do not matter.
    """
    words = " ".join(normalised(text.lower()).split())
    words = _START.sub("", words.rstrip(f" .{_CURRENCIES}"))
    words = words.removeprefix("the ").removeprefix("a ").removeprefix("an ")
    return _NUMBER.sub(_value, words)


def _value(number: re.Match[str]) -> str:
    """Return a number as its reduced fraction; as it is written when it has more digits than Python reads, or when it
    is a fraction that is not in lowest terms, or whole: a sum that is not done."""
    sign, size, rest = number.group("sign", "size", "rest")
    try:
        value = Fraction(size.replace(",", ""))
        if rest and rest[0] == "/":
            below = int(rest[1:])
            if below < 2 or value.denominator > 1 or math.gcd(value.numerator, below) > 1:
                return number[0]
            value /= below
        elif rest:
            value *= Fraction(10) ** int(rest[1:])
        return str(-value if sign and sign != "+" else value)
    except ValueError:
        return number[0]
