"""The one exception type that leverlab raises for bad input."""


class LeverlabError(Exception):
    """Bad input or a broken promise: the message says what, where and what to do.

    Stages and commands print the message as one sentence and exit with a non-zero code; no traceback is shown, because
    none is needed. Anything else that escapes is a bug in leverlab.
    """
