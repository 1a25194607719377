"""Ranked experiments as tables for a terminal, as Markdown, as CSV and as a picture of the effects."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from leverlab.files import write_text
from leverlab.pipeline.compare_runs_report import rich_table
from leverlab.pipeline.sweep import Sweep, setting
from leverlab.report import figures, words
from leverlab.report.tables import markdown, write_csv

LEFT = ("run", "setting", "note", "value")
EFFECTS = "Effects of the params"
COLUMNS = 3  # panels beside each other
ABSENT = "(none)"


def tables(found: Sweep) -> list[Table]:
    """Return the tables to print on a terminal."""
    return [rich_table(title, frame, LEFT) for title, frame in _frames(found).items()]


def sentences(found: Sweep) -> list[str]:
    """Return the recommendation, what can be held against it, and warnings."""
    values = "; ".join(f"{key} = {_text(value)}" for key, value in setting(found, found.best).items())
    top = found.table.iloc[0]
    said = [
        f"Recommended: {found.best} ({values or 'no parameter differs'}), with the highest validation {found.measure}, "
        f"{words.percent(top['validation'])} % over {words.count(int(top['seeds']), 'seed')}. Test questions had no "
        f"say. Take it over with `dvc exp apply {found.best}`."
    ]
    if found.tied:
        said.append(
            f"The same validation {found.measure} have {', '.join(found.tied)}: nothing recommends one above the other."
        )
    error = top["standard_error"]
    if math.isnan(error):
        said.append("One seed has no standard error: how sure this is cannot be said.")
    else:
        within = f"{', '.join(found.near)}: the order among these may be chance" if found.near else "no other run"
        said.append(f"Within one standard error over seeds ({words.percent(error)} points) of it: {within}.")
    said += [f"{', '.join(keys)} change together: their effects cannot be told apart." for keys in found.together]
    return [*said, *(f"Warning: {warning}." for warning in found.warnings)]


def as_dict(found: Sweep) -> dict[str, Any]:
    """Return the ranks and effects as plain data for JSON; a number that is not defined (NaN) is None."""
    frames = {"runs": found.table, "effects": found.effects}
    return {
        "measure": found.measure,
        "best": found.best,
        "settings": {str(run): setting(found, str(run)) for run in found.table["run"]},
        **{name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()},
        "remarks": sentences(found),
    }


def to_markdown(found: Sweep, picture: str) -> str:
    """Return the ledger as Markdown, with the picture in the file `picture` beside it."""
    frames = _frames(found)
    parts = [
        "# Ledger of experiments",
        "\n".join(f"- {sentence}" for sentence in sentences(found)),
        f"## {_ranks(found)}\n\n{markdown(frames[_ranks(found)], LEFT)}".rstrip(),
        f"Validation: {found.measure} of the chosen GRPO checkpoints on the validation questions, mean over seeds, "
        "with the standard error over seeds. What stands beside, in percent too, has no say in rank or recommendation.",
    ]
    if EFFECTS in frames:
        parts += [
            f"## {EFFECTS}\n\n![Validation {found.measure} by value of each param]({picture})",
            markdown(frames[EFFECTS], LEFT).rstrip(),
            "A mean over all runs with a value: the other params are not held fixed, unless the runs are a full grid.",
        ]
    return "\n\n".join(parts) + "\n"


def write(found: Sweep, folder: Path) -> list[Path]:
    """Write ledger.csv, ledger_effects.csv, ledger.md and ledger.svg to `folder` and return their paths."""
    names = ("ledger.csv", "ledger_effects.csv", "ledger.md", "ledger.svg")
    ranks, effects, text, picture = paths = [folder / name for name in names]
    settings = pd.DataFrame([setting(found, run) for run in found.table["run"]], index=found.table.index)
    write_csv(ranks, pd.concat([found.table, settings], axis=1))
    write_csv(effects, found.effects)
    write_text(picture, figures.svg(effects_figure(found)))
    write_text(text, to_markdown(found, picture.name))
    return paths


def effects_figure(found: Sweep) -> Figure:
    """Return validation figures (percent) by value: a panel a key, a ring a run, the best in colour, a dash a mean."""
    keys = list(found.keys)
    with figures._style():
        if not keys:
            figure = Figure(figsize=(4.1, 0.6))
            figure.text(0.02, 0.4, "No parameter differs.", color=figures.GREY)
            return figure
        columns = min(COLUMNS, len(keys))
        lines = math.ceil(len(keys) / columns)
        figure = Figure(figsize=(2.9 * columns, 0.3 + 2.5 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(keys):
                axes.remove()
                continue
            _draw(axes, keys[place], found)
            if place % columns == 0:
                axes.set_ylabel(f"val {found.measure} (%)")
    return figure


def _draw(axes: Axes, key: str, found: Sweep) -> None:
    validation = dict(zip(found.table["run"], found.table["validation"], strict=True))
    rows = found.effects[found.effects["key"] == key].to_dict("records")
    places = {row["value"]: place for place, row in enumerate(rows)}
    for run, accuracy in validation.items():
        colour = figures.COLOURS["grpo"] if run == found.best else figures.GREY
        x = places[setting(found, run)[key]]
        axes.plot([x], [100 * accuracy], "o", color=colour, markerfacecolor=figures.PAPER, markersize=5, zorder=3)
    for place, row in enumerate(rows):
        axes.hlines(100 * row["mean"], place - 0.3, place + 0.3, color=figures.INK, linewidth=1.6, zorder=2)
    labels = [_short(_text(row["value"])) for row in rows]
    axes.set_xticks(range(len(rows)))
    turned = sum(map(len, labels)) > 24
    axes.set_xticklabels(labels, rotation=30 if turned else 0, ha="right" if turned else "center", parse_math=False)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.margins(y=0.1)
    axes.set_title(key)


def _short(label: str) -> str:
    return label if len(label) <= 16 else f"{label[:15]}…"


def _text(value: object) -> str:
    return ABSENT if value is None else str(value)


def _frames(found: Sweep) -> dict[str, pd.DataFrame]:
    frames = {_ranks(found): pd.DataFrame([_rank_row(row, found) for row in found.table.to_dict("records")])}
    if found.keys:
        rows = [
            {
                "key": row["key"],
                "value": _text(row["value"]),
                "runs": str(row["runs"]),
                "validation (mean)": words.percent(row["mean"]),
                "lowest": words.percent(row["lowest"]),
                "highest": words.percent(row["highest"]),
            }
            for row in found.effects.to_dict("records")
        ]
        frames[EFFECTS] = pd.DataFrame(rows)
    return frames


def _ranks(found: Sweep) -> str:
    return f"Ranked by validation {found.measure}"


def _rank_row(row: dict[str, object], found: Sweep) -> dict[str, str]:
    run = str(row["run"])
    beside = list(row)[list(row).index("seeds") + 1 :]
    note = "recommended" if run == found.best else "tied" if run in found.tied else ""
    return {
        "rank": str(row["rank"]),
        "run": run,
        "setting": "; ".join(f"{key} = {_text(value)}" for key, value in setting(found, run).items()),
        "validation": words.percent(float(str(row["validation"]))),
        "std. error": words.percent(float(str(row["standard_error"]))),
        "seeds": str(row["seeds"]),
        **{_heading(column): words.percent(float(str(row[column]))) for column in beside},
        "note": note or ("within one standard error" if run in found.near else ""),
    }


def _heading(column: str) -> str:
    shots = column.removeprefix("test_shots_")
    return f"test, {words.count(int(shots), 'shot')}" if shots != column else column.replace("_", " ")
