"""The VQA accuracy against hand-worked cases and against a plain leave-one-out loop."""

import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.vqa_metric import normalise_answer, vqa_accuracy


def leave_one_out(prediction: str, answers: list[str]) -> float:
    """The definition, as a loop: each annotator is left out once."""
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(1.0, others.count(prediction) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("agree", "expected"),
    # 1: the one who agrees sees 0 others, nine see 1: 9 x 1/3 / 10. 2: 2 see 1, 8 see 2: (2/3 + 16/3) / 10.
    # 3: 3 see 2, 7 see 3: (3 x 2/3 + 7) / 10. 4: all see at least 3.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)],
)
def test_ten_annotators_by_hand(agree: int, expected: float) -> None:
    answers = ["cat"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_accuracy("cat", answers) == expected
    assert vqa_accuracy("cat", answers[::-1]) == expected


@pytest.mark.parametrize("count", [4, 5, 10])
def test_equals_the_leave_one_out_loop(count: int) -> None:
    for agree in range(count):
        answers = ["dog"] * agree + [f"w{i}" for i in range(count - agree)]
        assert vqa_accuracy("dog", answers) == pytest.approx(leave_one_out("dog", answers), abs=1e-12)


def test_one_answer_is_ten_annotators_who_agree() -> None:
    for prediction in ("zog", "Zog", "other"):
        assert vqa_accuracy(prediction, ["zog"]) == vqa_accuracy(prediction, ["zog"] * 10)
    assert vqa_accuracy(" zog\n", ["zog"]) == 1.0
    assert vqa_accuracy("blik", ["zog"]) == 0.0


def test_annotators_who_agree_are_compared_exactly() -> None:
    """Official behaviour: nothing but outer blanks, newlines and tabs is touched when all answers are the same."""
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("stop\tsign ", ["stop\nsign"] * 10) == 1.0
    assert vqa_accuracy("none", ["none"] * 10) == 1.0
    assert vqa_accuracy("the cat", ["the cat"] * 10) == 1.0


def test_annotators_who_differ_are_normalised_as_the_prediction_is() -> None:
    answers = ["Two.", "two", "2", "the two", *["three"] * 6]
    assert vqa_accuracy("2", answers) == 1.0
    assert vqa_accuracy("a TWO!", answers) == 1.0
    # Spelling alone makes the answers differ, so the prediction's full stop is forgiven too.
    assert vqa_accuracy("yes.", ["yes"] * 9 + ["Yes"]) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("a\tman and\nan owl", "man and owl"),
        ("none", "0"),
        ("Ten one eleven", "10 1 eleven"),
        ("dont", "don't"),
        ("it's", "it's"),
        ("im", "im"),  # the table's key is "Im", looked up after lower-casing
        ("somebody'd", "somebodyd"),  # the table's own slip
        ("t-shirt", "t shirt"),  # a mark inside a word becomes a blank
        ("t- shirt", "t shirt"),  # beside a blank it goes
        ("t- shirt x-y", "t shirt xy"),  # and then everywhere in the text
        ("1,000", "1000"),  # a number with a comma: all marks go
        ("1,000-2", "10002"),
        ("yes,no", "yes no"),
        ("yes, no", "yes no"),
        ("2.5", "2.5"),
        ("5.", "5"),
        ("1. 2", "1 2"),
        ("u.s.a.", "usa"),
        ("v.2", "v.2"),  # a digit follows
        ("what?!", "what"),
        ("[{x}]", "x"),
        ("rock&roll", "rock&roll"),  # no mark of the list
        ("the", ""),
        (".." * 16 + "..x", "..x"),  # 34 periods, 32 dropped
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_answers_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(LeverlabError, match="at least one answer"):
        vqa_accuracy("x", [])
    for count in (2, 3):
        with pytest.raises(LeverlabError, match="cannot reach 1"):
            vqa_accuracy("x", ["x"] * count)
