"""Experiments ranked: numbers derived by hand, what cannot be ranked, and equal bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leverlab.errors import LeverlabError
from leverlab.pipeline.ledger_inputs import Outcome
from leverlab.pipeline.sweep import Sweep, sweep
from leverlab.pipeline.sweep_report import effects_figure, sentences, tables, to_markdown, write
from leverlab.report.figures import svg
from tests.pipeline.test_compare_runs import run


def outcome(name: str, validation: Sequence[float], params: Mapping[str, Any], right: int = 0) -> Outcome:
    """A run with a validation accuracy for each seed, and `right` of ten test questions at two shots."""
    scores = {shots: {0: [1] * right + [0] * (10 - right)} for shots in (1, 2)}
    return Outcome(run(name, scores, params), dict(enumerate(validation)), "same")


def grid(lr: float, group: int) -> dict[str, Any]:
    return {"grpo": {"lr": lr, "group": group, "epochs": 8}, "eval": {"shots": 2}}


@pytest.fixture
def four() -> list[Outcome]:
    """Two rates and two group sizes; the best on test questions, `c`, is the worst on validation questions."""
    return [
        outcome("a", [0.5, 0.7], grid(1e-3, 8), 5),
        outcome("b", [0.56, 0.54], grid(1e-3, 16), 2),
        outcome("c", [0.2, 0.2], grid(5e-4, 8), 10),
        outcome("d", [0.3, 0.4], grid(5e-4, 16), 1),
    ]


def test_ranks_are_by_validation_accuracy(four: list[Outcome]) -> None:
    """Means .6, .55, .2, .35. Standard errors: |one - other| / 2 for two seeds."""
    found = sweep(four)
    table = found.table.set_index("run")
    assert found.table["run"].tolist() == ["a", "b", "d", "c"]
    assert found.table["rank"].tolist() == [1, 2, 3, 4]
    assert table["validation"].tolist() == pytest.approx([0.6, 0.55, 0.35, 0.2])
    assert table["standard_error"].tolist() == pytest.approx([0.1, 0.01, 0.05, 0])
    assert table["test_shots_2"].tolist() == [0.5, 0.2, 0.1, 1]
    assert table.loc["a", "revision"] == f"{'a':0>40}"


def test_the_best_is_recommended_and_what_is_near_is_told(four: list[Outcome]) -> None:
    """.55 is within .6 - .1; .35 is not."""
    found = sweep(four)
    assert (found.best, found.tied, found.near) == ("a", [], ["b"])
    first, second = sentences(found)
    assert first == (
        "Recommended: a (grpo.group = 8; grpo.lr = 0.001), with the highest validation accuracy, 60.0 % over 2 seeds. "
        "Test questions had no say. Take it over with `dvc exp apply a`."
    )
    assert second.startswith("Within one standard error over seeds (10.0 points) of it: b: ")


def test_equal_accuracy_is_a_tie() -> None:
    """.1 + .2 is not .3 in floating point, and is all the same; the first given is recommended."""
    runs = [
        outcome("b", [0.3, 0.3], grid(1, 8)),
        outcome("a", [0.1 + 0.2] * 2, grid(2, 8)),
        outcome("c", [0.1] * 2, grid(3, 8)),
    ]
    found = sweep(runs)
    assert (found.best, found.tied, found.near) == ("b", ["a"], [])
    assert dict(zip(found.table["run"], found.table["rank"], strict=True)) == {"a": 1, "b": 1, "c": 3}
    assert sentences(found)[1:] == [
        "The same validation accuracy have a: nothing recommends one above the other.",
        "Within one standard error over seeds (0.0 points) of it: no other run.",
    ]


def test_one_seed_has_no_standard_error(four: list[Outcome]) -> None:
    found = sweep([replace(it, validation={0: it.validation[0]}) for it in four])
    assert (found.best, found.near) == ("b", [])
    assert all(map(math.isnan, found.table["standard_error"]))
    assert sentences(found)[1] == "One seed has no standard error: how sure this is cannot be said."


def test_effects_are_means_by_value(four: list[Outcome]) -> None:
    """Rate .001: .6 and .55; .0005: .2 and .35. Groups of 8: .6 and .2; of 16: .55 and .35."""
    rows = sweep(four).effects.to_dict("records")
    assert [(row["key"], row["value"], row["runs"]) for row in rows] == [
        ("grpo.group", "8", 2),
        ("grpo.group", "16", 2),
        ("grpo.lr", "0.0005", 2),
        ("grpo.lr", "0.001", 2),
    ]
    assert [row["mean"] for row in rows] == pytest.approx([0.4, 0.45, 0.275, 0.575])
    assert [(row["lowest"], row["highest"]) for row in rows][2:] == [
        pytest.approx((0.2, 0.35)),
        pytest.approx((0.55, 0.6)),
    ]


def test_values_stand_in_order_and_a_missing_key_is_one() -> None:
    """Numbers by size, then texts and switches, then no value."""
    values: list[Any] = ["x", 10, 9.5, True, None]
    runs = [outcome(f"r{place}", [0.1 * place], {"k": value}) for place, value in enumerate(values)]
    found = sweep([*runs, outcome("none", [0.9], {})])
    assert found.effects["value"].tolist() == ["9.5", "10", '"x"', "null", "true", None]
    assert "k = (none)" in sentences(found)[0]
    assert "| k | (none) | 1 | 90.0 |" in " ".join(to_markdown(found, "x.svg").split())


def test_keys_that_change_together_are_told() -> None:
    """lr and group go hand in hand; epochs does not."""
    runs = [
        outcome("a", [0.1], {"lr": 1, "group": 8, "epochs": 1}),
        outcome("b", [0.2], {"lr": 2, "group": 16, "epochs": 1}),
        outcome("c", [0.3], {"lr": 2, "group": 16, "epochs": 2}),
    ]
    found = sweep(runs)
    assert found.together == [["group", "lr"]]
    assert "group, lr change together: their effects cannot be told apart." in sentences(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: replace(it, validation_set="others"), "'a' and 'b' were validated on other questions"),
        (
            lambda it: replace(it, run=replace(it.run, params={"eval": {"shots": 4}})),
            r"'a' and 'b' were validated at other shot counts \(eval is {\"shots\": 2} and {\"shots\": 4}\)",
        ),
        (lambda it: replace(it, run=replace(it.run, test_set="others")), "other test questions behind them"),
        (lambda it: replace(it, run=replace(it.run, name="a")), "'a' and 'a' are the same run"),
    ],
)
def test_what_cannot_be_ranked(four: list[Outcome], change: Any, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        sweep([four[0], change(four[1])])


def test_one_run_is_no_ranking(four: list[Outcome]) -> None:
    with pytest.raises(LeverlabError, match="at least two runs"):
        sweep(four[:1])


def test_warnings_and_validation_questions_that_cannot_be_read(four: list[Outcome]) -> None:
    first = replace(four[0], validation_set=None, run=replace(four[0].run, warnings=("first",)))
    assert sweep([first, four[1]]).warnings == [
        "first",
        "the validation questions of a cannot be read: that they are the same is not checked",
    ]


def test_files(four: list[Outcome], tmp_path: Path) -> None:
    """The same bytes each time; numbers with six digits, and a column for every key that differs."""
    for folder in ("one", "other"):
        paths = write(sweep(four), tmp_path / folder)
    names = ["ledger.csv", "ledger_effects.csv", "ledger.md", "ledger.svg"]
    assert [path.name for path in paths] == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    lines = (tmp_path / "one/ledger.csv").read_text().splitlines()
    assert lines[0] == (
        "rank,run,revision,validation,standard_error,seeds,test_shots_1,test_shots_2,grpo.group,grpo.lr"
    )
    assert lines[1] == f"1,a,{'a':0>40},0.600000,0.100000,2,0.500000,0.500000,8,0.001"
    assert (tmp_path / "one/ledger_effects.csv").read_text().splitlines()[1] == (
        "grpo.group,8,2,0.400000,0.200000,0.600000"
    )
    text = " ".join((tmp_path / "one/ledger.md").read_text().split())
    assert "| 1 | a | grpo.group = 8; grpo.lr = 0.001 | 60.0 | 10.0 | 2 | 50.0 | 50.0 | recommended |" in text
    assert "| 2 | b | grpo.group = 16; grpo.lr = 0.001 | 55.0 | 1.0 | 2 | 20.0 | 20.0 | within one" in text
    assert "![Validation accuracy by value of each param](ledger.svg)" in text
    assert "has no say in rank or recommendation" in text
    assert "<dc:date>" not in (tmp_path / "one/ledger.svg").read_text()


def test_the_picture_shows_runs_and_means(four: list[Outcome]) -> None:
    """A panel a key: a ring at each run's accuracy, a dash at the mean of each value, values in order."""
    figure = effects_figure(sweep(four))
    group, rate = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["grpo.group", "grpo.lr"]
    assert [label.get_text() for label in rate.get_xticklabels()] == ["0.0005", "0.001"]
    rings = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in rate.lines)
    assert rings == [(0, pytest.approx(20)), (0, pytest.approx(35)), (1, pytest.approx(55)), (1, pytest.approx(60))]
    dashes = [float(dash.get_segments()[0][0][1]) for dash in group.collections]
    assert dashes == pytest.approx([40, 45])


def test_many_keys_and_none() -> None:
    """Four keys take two lines of panels; equal params say so."""
    runs = [
        outcome(name, [0.1], dict.fromkeys("pqrs", value)) for name, value in (("a", 1), ("b", "a $long_$ text" * 3))
    ]
    figure = effects_figure(sweep(runs))
    assert len(figure.axes) == 4
    assert "$" in svg(figure)
    same = sweep([outcome("a", [0.1], {}), outcome("b", [0.2], {})])
    assert "No parameter differs." in svg(effects_figure(same))
    assert "(no parameter differs)" in sentences(same)[0]
    assert "Effects" not in to_markdown(same, "x.svg")


def test_tables_on_a_terminal(four: list[Outcome]) -> None:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        for table in tables(sweep(four)):
            console.print(table)
    titles = ("Ranked by validation accuracy", "Effects of the params")
    assert [line.strip() for line in capture.get().splitlines() if line.startswith(titles)] == list(titles)


def as_bytes(found: Sweep) -> str:
    return svg(effects_figure(found))


def test_other_numbers_give_another_picture(four: list[Outcome]) -> None:
    other = [replace(four[0], validation={0: 0.9}), *four[1:]]
    assert as_bytes(sweep(four)) == as_bytes(sweep(four))
    assert as_bytes(sweep(four)) != as_bytes(sweep(other))
