"""Known names that are near to an unknown one, for messages."""

import difflib
from collections.abc import Iterable

AT_MOST = 3


def did_you_mean(name: str, known: Iterable[str], listing: str) -> str:
    """Return the end of a message on the unknown `name`: the nearest of the `known` names, and how to see them all.

    listing: a command or place, such as "`leverlab plan list`".
    """
    near = difflib.get_close_matches(name, sorted(set(known)), n=AT_MOST)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"; {question}{listing} shows all"
