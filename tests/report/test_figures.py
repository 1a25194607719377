"""Figures: labels that do not meet, the same bytes for the same numbers, and any subset of methods."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from leverlab.report.figures import COLOURS, DARK, SELECTORS, _spread, curves_figure, png, shots_figure, svg
from leverlab.report.words import LABELS, MEANINGS

NO_CHECKPOINTS = pd.DataFrame({"method": [], "seed": [], "epoch": [], "chosen": []})


def shots(*methods: str, counts: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    rows = [
        {"method": method, "shots": k, "accuracy": 0.3 + 0.02 * i, "ci_low": 0.25, "ci_high": 0.5}
        for i, method in enumerate(methods)
        for k in ([0] if method == "zero_shot" else counts)
    ]
    return pd.DataFrame(rows)


def curve(*epochs: int) -> pd.DataFrame:
    return pd.DataFrame({"epoch": epochs, "val_accuracy": [0.1 * e for e in epochs], "entropy": [2.0 for _ in epochs]})


def texts(document: str) -> list[str]:
    root = ElementTree.fromstring(document)
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_labels_move_apart_as_little_as_possible() -> None:
    """5 and 6 with gap 3 become 4 and 7: the middle stays, both move by 1. 20 is far off and stays."""
    assert _spread([5, 6, 20], 3, 0, 100) == pytest.approx([4, 7, 20])
    assert _spread([1, 1], 4, 0, 100) == pytest.approx([0, 4])  # -1 and 3 would leave the axes
    assert _spread([99, 100], 4, 0, 100) == pytest.approx([96, 100])
    assert _spread([], 4, 0, 100) == []
    crowd = _spread(sorted(np.random.default_rng(0).random(12)), 0.05, 0, 1)
    assert min(np.diff(crowd)) >= 0.05 - 1e-12


def test_every_method_has_a_label_a_meaning_and_a_colour_in_both_schemes() -> None:
    assert set(LABELS) == set(MEANINGS) == set(COLOURS)
    assert set(COLOURS.values()) <= set(DARK)
    assert len({COLOURS[method] for method in SELECTORS}) == len(SELECTORS)
    assert not {COLOURS[method] for method in SELECTORS} & {COLOURS[m] for m in set(LABELS) - set(SELECTORS)}


@pytest.mark.parametrize("narrow", [False, True])
def test_each_method_that_is_there_is_labelled(narrow: bool) -> None:
    found = texts(svg(shots_figure(shots("zero_shot", "random", "grpo"), narrow)))
    assert {"Zero-shot", "Random demos", "GRPO"} <= set(found)
    assert not {"SFT", "Greedy oracle"} & set(found)
    assert {"0", "1", "2"} <= set(found)


@pytest.mark.parametrize("table", [shots("zero_shot"), shots("oracle", counts=(7,)), shots(*LABELS, counts=(1, 2, 8))])
def test_any_methods_and_shot_counts_can_be_drawn(table: pd.DataFrame) -> None:
    found = texts(svg(shots_figure(table)))
    assert {LABELS[method] for method in table["method"]} <= set(found)
    assert {str(k) for k in table["shots"]} <= set(found)


def test_same_numbers_same_bytes_and_no_date() -> None:
    first, second = (shots_figure(shots("sft", "grpo")) for _ in range(2))
    assert svg(first) == svg(second)
    assert png(first) == png(second)
    assert png(first).startswith(b"\x89PNG")
    assert b"Software" not in png(first)
    assert "date" not in svg(first)
    assert "Matplotlib v" not in svg(first)
    assert svg(shots_figure(shots("sft", "rce"))) != svg(first)


def test_curves_show_the_stages_that_have_epochs() -> None:
    curves = {"grpo": {0: curve(1, 2), 1: curve(1, 2, 3)}, "sft": {0: curve(1)}, "rce": {0: curve()}}
    chosen = pd.DataFrame({"method": ["grpo"], "seed": [1], "epoch": [3], "chosen": [True]})
    for narrow in (False, True):
        figure = curves_figure(curves, chosen, narrow)
        found = " ".join(texts(svg(figure)))
        assert "GRPO" in found
        assert "SFT" in found
        assert "RCE" not in found
        points = [tuple(map(float, line.get_xydata().ravel())) for axes in figure.axes for line in axes.lines]
        assert points.count((3.0, pytest.approx(30.0))) == 1  # the ring; no line has a single point
    assert "No training stage" in " ".join(texts(svg(curves_figure({"sft": {0: curve()}}, NO_CHECKPOINTS))))


def test_curves_without_entropy_show_accuracy_alone() -> None:
    rows = curve(1, 2).drop(columns="entropy")
    assert len(curves_figure({"sft": {0: rows}}, NO_CHECKPOINTS).axes) == 1
