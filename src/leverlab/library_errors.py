"""Errors of other libraries, quoted inside the sentences of this project."""

LONGEST = 300  # characters


def reason_of(error: BaseException) -> str:
    """Return the beginning of an error's message on one line; the name of its type where it has no message."""
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__
