"""Known names that are near to an unknown one, for messages."""

import difflib
from collections.abc import Iterable

AT_MOST = 3


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the `known` names that are spelled nearly as `name`, the nearest first: three at most, often none."""
    return difflib.get_close_matches(name, sorted(set(known)), n=AT_MOST)


def did_you_mean(name: str, known: Iterable[str], listing: str | None = None) -> str:
    """Return the end of a message on the unknown `name`: the nearest of the `known` names, and how to see them all.

    listing: a command or place, such as "`leverlab plan list`"; None where the message itself lists the names: it then
    ends here, or is empty when no name is near.
    """
    near = nearest(name, known)
    question = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    if listing is None:
        return question and f"; {question}"
    return f"; {question} {listing} shows all" if question else f"; {listing} shows all"
