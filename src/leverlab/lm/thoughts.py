"""Whether the thought of a turn says something about what the policy was told."""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from leverlab.lm.questions import UNKNOWN
from leverlab.lm.turns import TAGS
from leverlab.texts import normalised

# scripts without blanks between words: South-East Asian ones, kana, Han
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
_LETTER = rf"[^\W{_UNSPACED}]"
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_WORD = re.compile(rf"(?<!{_LETTER})(?P<number>{_NUMBER})(?!{_LETTER})|[{_UNSPACED}]|{_LETTER}+")


def words(text: str) -> list[str]:
    """Return the words of a text in order, in lower case and Unicode's normal form C, without punctuation.

    A number is its value: "1,234" and "1234.0" are "1234", "2.5" is "5/2". Where a script has no blanks between words,
    every character is one.
    """
    return [_value(found) if found["number"] else found[0] for found in _WORD.finditer(normalised(text.lower()))]


def is_number(word: str) -> bool:
    """Return whether one of `words` is a number."""
    return word.replace("/", "", 1).isdecimal()


def _value(found: re.Match[str]) -> str:
    try:
        return str(Fraction(found["number"].replace(",", "")))
    except ValueError:  # it has more digits than Python reads
        return found[0]


# Words that say nothing of their own: of grammar, of asking, the names of tags, and the label before a question.
_FUNCTION_WORDS = frozenset(
    words(
        "a an and are as at be been but by can could did do does for from had has have he her his how i if in "
        "is it its let may me my no not of on one or our s said she should so some t than that the their them "
        "then there these they this those to was we well were what when where which who whom whose why will "
        "with would yes you your missing need needed needs question "
        "的 了 是 在 我 你 他 她 它 们 这 那 有 和 也 不 吗 呢 什 么 怎 谁 哪"
    )
).union(TAGS)
_NOBODY_KNOWS = re.compile(r"\b(?:do not|don't|does not|doesn't) know\b", re.IGNORECASE)


def nobody_knows(reply: str) -> bool:
    """Return whether a user's reply is that the fact is not known."""
    return _NOBODY_KNOWS.search(reply) is not None


def grounded_thought(thought: str, question: str, replies: Sequence[str], slots: Iterable[str]) -> bool:
    """Return whether a thought says something about what the policy was told.

    replies: those before the turn. slots: names that the thought may say as well. Of the distinct content words of the
    thought (all but function words, names of tags, and numbers that nobody told, which may be computed) two must be in
    question, replies or slots, or every one; there must be one. After a reply that nobody knows, "known" and "unknown"
    count as told. Case, punctuation and repetition do not matter, so "#", a copied tag and filler are not grounded.
    Whether the thought leads to the answer is not judged: a thought that copies words of the question is grounded.
    """
    told = set(words(" ".join([question, *replies, *slots])))
    if any(map(nobody_knows, replies)):
        told |= {"known", UNKNOWN}
    content = {word for word in words(thought) if word in told or not is_number(word)} - _FUNCTION_WORDS
    shared = content & told
    return bool(shared) and (len(shared) >= 2 or shared == content)
