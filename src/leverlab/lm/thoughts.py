"""Whether the thought of a turn says something about what the policy was told."""

import re
from collections.abc import Iterable, Sequence

from leverlab.lm.questions import UNKNOWN
from leverlab.lm.turns import TAGS
from leverlab.texts import normalised


def words(text: str) -> list[str]:
    """Return the words of a text in order, in lower case and Unicode's normal form C, without punctuation."""
    return re.findall(r"\w+", normalised(text.lower()))


_FUNCTION_WORDS = frozenset(
    words(
        "a an and are as at be been but by can could did do does for from had has have he her his how i if in "
        "is it its let may me my no not of on one or our s said she should so some t than that the their them "
        "then there these they this those to was we well were what when where which who whom whose why will "
        "with would yes you your"
    )
).union(TAGS)
_NOBODY_KNOWS = re.compile(r"\b(?:do not|don't|does not|doesn't) know\b", re.IGNORECASE)


def nobody_knows(reply: str) -> bool:
    """Return whether a user's reply is that the fact is not known."""
    return _NOBODY_KNOWS.search(reply) is not None


def grounded_thought(thought: str, question: str, replies: Sequence[str], slots: Iterable[str]) -> bool:
    """Return whether a thought says something about what the policy was told.

    replies: those before the turn. slots: names that the thought may say as well. Of the distinct content words of the
    thought (all but function words and the names of tags) two must be in question, replies or slots, or every one;
    there must be one. After a reply that nobody knows, "known" and "unknown" count as told. Case, punctuation and
    repetition do not matter, so "#", a copied tag and filler are not grounded. Whether the thought leads to the answer
    is not judged: a thought that copies words of the question is grounded.
    """
    told = set(words(" ".join([question, *replies, *slots])))
    if any(map(nobody_knows, replies)):
        told |= {"known", UNKNOWN}
    content = set(words(thought)) - _FUNCTION_WORDS
    shared = content & told
    return bool(shared) and (len(shared) >= 2 or shared == content)
