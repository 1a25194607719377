"""Texts in one form: what is read, shown to a model, and compared."""

import unicodedata


def normalised(text: str) -> str:
    """Return `text` in Unicode's normal form C, in which every text of a data set, a user and a model is kept.

    "é" is one character there, however it was typed. Some tokenizers bring text into this form and others, llama.cpp's
    among them, do not: in this form all of them read the same tokens.
    """
    return unicodedata.normalize("NFC", text)
