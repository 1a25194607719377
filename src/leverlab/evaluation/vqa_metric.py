"""The official VQA accuracy, with its answer normalisation.

Follows the evaluation code of VQA v2 (Agrawal et al., `GT-Vision-Lab/VQA`, master a013f00,
`PythonEvaluationTools/vqaEvaluation/vqaEval.py`) in all that changes a score, its oddities included, so that figures
stand beside published ones:

- Prediction and answers lose newlines, tabs and outer blanks. They are normalised further *only when the answers
  differ*. When all annotators agree the comparison is exact: "Yes." scores 0 against ten times "yes". Its author
  confirms the intent (issue #14: answers that are text read from the image are to stay as they are). Many
  re-implementations normalise always and score higher on such questions.
- A punctuation mark becomes nothing where it touches a blank anywhere in the text, or where the text holds a number
  with a comma ("1,000"); otherwise it becomes a blank ("t-shirt" → "t shirt").
- A period is dropped unless a digit follows (".5" and "2.5" stay, "5." becomes "5"), the first 32 of a text at most:
  the official call passes a flag of value 32 where `re.sub` takes a count.
- The table of contractions is looked up after lower-casing, so its capitalised keys never match.
"""

import re
from collections.abc import Sequence

from leverlab.errors import LeverlabError
from leverlab.records import UNSCORABLE

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# The official pattern opens with `(?!<=\d)`, meant as a lookbehind; as written it is always true before a period.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DROPPED = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
# Data of the official evaluation code, entry for entry.
_CONTRACTIONS = {
    "aint": "ain't",
    "arent": "aren't",
    "cant": "can't",
    "couldve": "could've",
    "couldnt": "couldn't",
    "couldn'tve": "couldn't've",
    "couldnt've": "couldn't've",
    "didnt": "didn't",
    "doesnt": "doesn't",
    "dont": "don't",
    "hadnt": "hadn't",
    "hadnt've": "hadn't've",
    "hadn'tve": "hadn't've",
    "hasnt": "hasn't",
    "havent": "haven't",
    "hed": "he'd",
    "hed've": "he'd've",
    "he'dve": "he'd've",
    "hes": "he's",
    "howd": "how'd",
    "howll": "how'll",
    "hows": "how's",
    "Id've": "I'd've",
    "I'dve": "I'd've",
    "Im": "I'm",
    "Ive": "I've",
    "isnt": "isn't",
    "itd": "it'd",
    "itd've": "it'd've",
    "it'dve": "it'd've",
    "itll": "it'll",
    "let's": "let's",
    "maam": "ma'am",
    "mightnt": "mightn't",
    "mightnt've": "mightn't've",
    "mightn'tve": "mightn't've",
    "mightve": "might've",
    "mustnt": "mustn't",
    "mustve": "must've",
    "neednt": "needn't",
    "notve": "not've",
    "oclock": "o'clock",
    "oughtnt": "oughtn't",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "shant": "shan't",
    "shed've": "she'd've",
    "she'dve": "she'd've",
    "she's": "she's",
    "shouldve": "should've",
    "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've",
    "shouldn'tve": "shouldn't've",
    "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've",
    "somebody'dve": "somebody'd've",
    "somebodyll": "somebody'll",
    "somebodys": "somebody's",
    "someoned": "someone'd",
    "someoned've": "someone'd've",
    "someone'dve": "someone'd've",
    "someonell": "someone'll",
    "someones": "someone's",
    "somethingd": "something'd",
    "somethingd've": "something'd've",
    "something'dve": "something'd've",
    "somethingll": "something'll",
    "thats": "that's",
    "thered": "there'd",
    "thered've": "there'd've",
    "there'dve": "there'd've",
    "therere": "there're",
    "theres": "there's",
    "theyd": "they'd",
    "theyd've": "they'd've",
    "they'dve": "they'd've",
    "theyll": "they'll",
    "theyre": "they're",
    "theyve": "they've",
    "twas": "'twas",
    "wasnt": "wasn't",
    "wed've": "we'd've",
    "we'dve": "we'd've",
    "weve": "we've",
    "werent": "weren't",
    "whatll": "what'll",
    "whatre": "what're",
    "whats": "what's",
    "whatve": "what've",
    "whens": "when's",
    "whered": "where'd",
    "wheres": "where's",
    "whereve": "where've",
    "whod": "who'd",
    "whod've": "who'd've",
    "who'dve": "who'd've",
    "wholl": "who'll",
    "whos": "who's",
    "whove": "who've",
    "whyll": "why'll",
    "whyre": "why're",
    "whys": "why's",
    "wont": "won't",
    "wouldve": "would've",
    "wouldnt": "wouldn't",
    "wouldnt've": "wouldn't've",
    "wouldn'tve": "wouldn't've",
    "yall": "y'all",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "youd": "you'd",
    "youd've": "you'd've",
    "you'dve": "you'd've",
    "youll": "you'll",
    "youre": "you're",
    "youve": "you've",
}


def normalise_answer(text: str) -> str:
    """Return `text` as the official code compares it when the annotators' answers differ.

    In order: newlines and tabs to blanks, punctuation, periods, lower case, number words up to ten to digits ("none" is
    0), articles dropped, contractions given their apostrophe. May return "" ("the").
    """
    text = _strip_blanks(text)
    has_number_with_comma = _NUMBER_WITH_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        touches_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches_blank or has_number_with_comma else " ")
    cleaned = _PERIOD.sub("", cleaned, count=_PERIODS_DROPPED)
    words = (_NUMBERS.get(word, word) for word in cleaned.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the official VQA accuracy of `prediction`, in [0, 1]: the mean over annotators of min(1, matches / 3).

    The matches are counted among the *other* annotators' answers (VQA v2 evaluation code; see the module's docstring).
    answers: one string per annotator, ten in VQA v2 and OK-VQA. A single answer stands for ten annotators who agree, so
        the score is 1 for exactly that answer and else 0.
    Raises `LeverlabError` for no answer, and for two or three: full agreement could not reach 1 there.
    """
    count = len(answers)
    if count == 0:
        raise LeverlabError("VQA accuracy needs at least one answer, got an empty list; drop or repair the question")
    if count in UNSCORABLE:
        raise LeverlabError(
            f"VQA accuracy cannot reach 1 with {count} answers ({', '.join(answers)}); give one answer per question, "
            "or at least four annotators' answers (ten is the standard)"
        )
    prediction, truths = _strip_blanks(prediction), [_strip_blanks(answer) for answer in answers]
    if len(set(truths)) > 1:
        prediction, truths = normalise_answer(prediction), [normalise_answer(truth) for truth in truths]
    matches = truths.count(prediction)
    if count == 1:
        return float(matches)
    # A matching annotator leaves matches - 1 others, any other annotator leaves all; whole numbers keep 9/10 exact.
    thirds = matches * min(3, matches - 1) + (count - matches) * min(3, matches)
    return thirds / (3 * count)


def _strip_blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
