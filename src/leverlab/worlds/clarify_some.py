"""A number of a sentence replaced by "some", where the sentence stays English.

"She bought 12 eggs" becomes "She bought some eggs", but "a 5-day trip" has no such twin. The rules are strict: a
sentence that they do not know is not used.
"""

import re

SOME = "some"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# before a number: determiners ("the some friends"), and what a number is the name of ("page some")
_NOT_AFTER = _words(
    "a an the this that these those my your his her its our their whose what which each every another any no all both "
    "either neither other others first second third last next previous past final remaining additional extra same per "
    "or times x plus minus by is was turns turned equals than number age aged ages page chapter room grade level size "
    "day week month year route line unit version episode half double dozen one two three four five six seven eight "
    "nine ten eleven twelve twenty thirty forty fifty hundred"
)
# after a number: what it does not count ("some and", "some am"), and units in the singular ("some inch nails")
_NOT_BEFORE = _words(
    "and or to by x plus minus out in on at for from is are was were has have had if when as than times time old the a "
    "an o'clock am pm a.m p.m per each inch foot yard mile meter hour minute second day week month year pound ounce cm "
    "km kg gram gallon liter cup cent dollar degree story page piece person bedroom point card player seat dozen "
    "hundred thousand million billion"
)
# after an amount of money or a share: they need no noun ("some dollars for", "some percent of")
_AFTER_AMOUNT = _words(
    "and or for each per a an on to in from more less fewer if when at every of as he she it they we i you while but "
    "that the with after before off because so then total his her their"
)


def with_some(text: str, begin: int, end: int) -> str | None:
    """Return `text` with "some" in place of the number at [begin, end), or None where that is no English.

    The number may have a dollar sign before its digits, or a percent sign after them.
    """
    number, before, after = text[begin:end], text[:begin], text[end:]
    unit = " dollars" if number.startswith("$") else " percent" if number.endswith("%") else ""
    if not _may_follow(before) or not (_ends_amount(after) if unit else number != "1" and _is_counted(after)):
        return None
    some = SOME.capitalize() if _begins_sentence(before) else SOME
    return f"{before}{some}{unit}{after}"


def _begins_sentence(before: str) -> bool:
    return not before.strip() or before.rstrip()[-1] in ".?!"


def _may_follow(before: str) -> bool:
    """Return whether "some" may come after `before`."""
    if _begins_sentence(before):
        return True
    word = before.split()[-1].lower()
    possessive_or_number = re.search(r"\d|['’]s?$", word) is not None
    between = re.search(r"\bbetween \S+ and $", before) is not None
    return before.endswith(" ") and word not in _NOT_AFTER and not possessive_or_number and not between


def _is_counted(after: str) -> bool:
    """Return whether what comes after a number is what it counts, in the plural as far as is known."""
    noun = re.match(r" ([a-z]+)(?=$|[ .,;?!'])(?! old\b)", after)
    return noun is not None and noun[1] not in _NOT_BEFORE


def _ends_amount(after: str) -> bool:
    """Return whether an amount of money, or a share, needs no noun after it."""
    word = re.match(r" ([\w'-]+)", after)
    return re.match(r"$|[ .,;?!]", after) is not None and (word is None or word[1].lower() in _AFTER_AMOUNT)
