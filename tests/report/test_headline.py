"""The first sentence, by hand."""

import pandas as pd
import pytest

from leverlab.report.headline import Headline, headline, subject_of


def sentence(found: Headline) -> str:
    return found.sentence.replace("\u00a0", " ")


def shots(**accuracy: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"method": method, "shots": k, "accuracy": value - 0.1 * (k < 4), "n": 800, "seeds": 3}
            for method, value in accuracy.items()
            for k in (1, 4)
        ]
    )


def comparisons(**rows: tuple[float, str]) -> pd.DataFrame:
    """Comparisons of GRPO at 4 shots, and at 1 shot with other numbers, which must not be taken."""
    columns = ["method_a", "method_b", "shots", "difference", "verdict"]
    return pd.DataFrame(
        [
            ("grpo", method, k, difference if k == 4 else 0.99, verdict)
            for method, (difference, verdict) in rows.items()
            for k in (1, 4)
        ],
        columns=columns,
    )


def test_the_sentence_gives_each_lift_with_its_verdict() -> None:
    found = headline(
        shots(image_sim=0.55, type_sim=0.61, sft=0.9, sft_control=0.818, grpo=0.82, oracle=0.95),
        comparisons(
            image_sim=(0.27, "A above B"),
            type_sim=(0.21, "A above B"),
            sft=(-0.08, "A below B"),
            sft_control=(0.002, "no difference shown"),
            oracle=(-0.13, "A below B"),
        ),
    )
    assert sentence(found) == (
        "With 4 demos, GRPO reaches 82.0 % accuracy on 800 test questions: 8.0 points below SFT, no difference shown "
        "from the control of equal budget (+0.2 points) and 21.0 points above the best retrieval baseline (type + "
        "image similarity)."
    )
    assert [(lift.role, lift.comparison["method_b"]) for lift in found.lifts] == [
        ("", "sft"),
        ("equal budget", "sft_control"),
        ("best retrieval baseline", "type_sim"),
    ]
    assert (found.subject, found.cell["shots"]) == ("grpo", 4)


def test_what_is_missing_is_left_out() -> None:
    one = headline(shots(grpo=0.82), comparisons())
    assert sentence(one) == "With 4 demos, GRPO reaches 82.0 % accuracy on 800 test questions."
    two = headline(shots(sft=0.8, grpo=0.82).query("shots == 1"), comparisons(sft=(0.02, "A above B")))
    assert sentence(two) == "With 1 demo, GRPO reaches 72.0 % accuracy on 800 test questions: 99.0 points above SFT."


@pytest.mark.parametrize(
    ("methods", "subject"),
    [
        ({"sft", "rce", "grpo", "sft_control", "oracle"}, "grpo"),
        ({"sft", "rce", "oracle", "mix"}, "rce"),
        ({"sft", "sft_control", "random"}, "sft"),
        ({"random", "mix", "oracle"}, "mix"),
        ({"oracle"}, "oracle"),
    ],
)
def test_the_report_is_about_the_last_training_stage(methods: set[str], subject: str) -> None:
    assert subject_of(methods) == subject
