"""The figures of the report of the recipe `clarify`. The same numbers give the same bytes.

Colours and style are those of `leverlab.report.figures`; every figure comes wide, for a page, and narrow, for a phone.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leverlab.lm.acceptance import GREEDY, SAMPLED
from leverlab.report.clarify_inputs import POLICIES, Runs
from leverlab.report.clarify_tables import of_split
from leverlab.report.figures import COLOURS, GREY, PAPER, _style

POLICY_COLOURS = {name: COLOURS[name] for name in ("sft", "rce", "grpo")} | {"dpo": COLOURS["sft_control"]}
WIDE, NARROW = 8.6, 4.1  # inches
MEASURES = ("over_clarification", "need_success")  # across, and up


class Panel(NamedTuple):
    """One panel of the learning curves: where the column stands, its scale, and what it says."""

    rows: str  # evaluations | steps
    column: str
    scale: float
    title: str


PANELS = (
    Panel("evaluations", "need_success", 100, "need-success (%)"),
    Panel("evaluations", "over_clarification", 100, "over-clarification (%)"),
    Panel("evaluations", "kl", 1, "KL (nats a token)"),
    Panel("evaluations", "entropy", 1, "entropy (nats a token)"),
    Panel("evaluations", "beta", 1, "β, weight of the KL"),
    Panel("evaluations", "alpha", 1, "α, cost of a needless ask"),
    Panel("steps", "reward", 1, "reward"),
    Panel("steps", "terms/correct", 100, "term: correct (%)"),
    Panel("steps", "terms/needless", 1, "term: needless asks"),
    Panel("steps", "terms/parses", 100, "term: parses (%)"),
    Panel("steps", "terms/thought", 100, "term: thought (%)"),
    Panel("steps", "flat_groups", 100, "groups without spread (%)"),
)


def policies_figure(splits: pd.DataFrame, narrow: bool = False) -> Figure:
    """Return need-success against over-clarification (percent) on the test questions, with 95 % intervals.

    A policy is a point: filled when it speaks greedily, hollow at temperature 1. Up and left is better.
    """
    with _style():
        figure = Figure(figsize=(NARROW if narrow else WIDE, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, axis="both")
        for temperature, filled in ((GREEDY, True), (SAMPLED, False)):
            rows = of_split(splits, "test", temperature)
            for row in rows.to_dict("records"):
                _draw_policy(axes, row, filled)
        axes.margins(0.08, 0.12)
        axes.set_xlabel("over-clarification (%): asked though nothing was missing")
        axes.set_title("Need-success (%)", color=GREY)
    return figure


def curves_figure(runs: Runs, narrow: bool = False) -> Figure:
    """Return how GRPO learned, a panel for each figure (`PANELS`) by optimiser step, a line per seed.

    A ring is the evaluation that was chosen, a cross one at which the guard did something. Panels whose column no run
    has are left out.
    """
    sources = {"evaluations": runs.evaluations["grpo"], "steps": runs.steps["grpo"]}
    panels = [panel for panel in PANELS if all(panel.column in rows for rows in sources[panel.rows].values())]
    columns = 2 if narrow else 3
    lines = -(-len(panels) // columns)
    with _style():
        figure = Figure(figsize=(NARROW if narrow else WIDE, 0.4 + 1.6 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for seed, rows in sources[panel.rows].items():
                _draw_run(axes, panel, rows, runs.choices[runs.choices["seed"] == seed]["step"])
            axes.set_title(panel.title)
            _ticks(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("step")
    return figure


def losses_figure(runs: Runs, narrow: bool = False) -> Figure:
    """Return the loss of SFT, RCE and DPO by optimiser step, a panel each, a line per seed."""
    policies = [policy for policy in POLICIES if policy != "grpo"]
    with _style():
        size = (NARROW, 4.6) if narrow else (WIDE, 2.1)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(policies) if narrow else 1, 1 if narrow else len(policies), squeeze=False)
        for axes, policy in zip(grid.flat, policies, strict=True):
            for rows in runs.steps[policy].values():
                axes.plot(rows["step"], rows["loss"], color=POLICY_COLOURS[policy], linewidth=1.1, alpha=0.8)
            axes.set_title(f"{POLICIES[policy]}: loss")
            axes.set_xlabel("step")
            _ticks(axes)
    return figure


def _draw_policy(axes: Axes, row: dict[str, float], filled: bool) -> None:
    policy = str(row["policy"])
    colour, x, y = POLICY_COLOURS[policy], 100 * row["over_clarification"], 100 * row["need_success"]
    if not np.isfinite([x, y]).all():
        return
    ends = {name: 100 * row[name] for name in row if name.endswith(("_low", "_high"))}
    left, right, low, high = (ends[f"{name}_{end}"] for name in MEASURES for end in ("low", "high"))
    axes.hlines(y, left, right, color=colour, linewidth=1.2, alpha=0.55)
    axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.55)
    axes.plot(x, y, "o", color=colour, markerfacecolor=colour if filled else PAPER, markersize=6, zorder=4)
    if filled:
        axes.annotate(POLICIES[policy], (x, y), (6, 6), textcoords="offset points", color=colour, fontweight="bold")


def _draw_run(axes: Axes, panel: Panel, rows: pd.DataFrame, chosen: "pd.Series[int]") -> None:
    colour = POLICY_COLOURS["grpo"]
    x, y = rows["step"].to_numpy(), panel.scale * rows[panel.column].to_numpy(float)
    axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.8, marker="o" if len(x) == 1 else "", markersize=3)
    if panel.rows == "evaluations":
        ringed, stopped = np.isin(x, chosen), (rows["action"] != "none").to_numpy()
        axes.plot(x[ringed], y[ringed], "o", color=colour, markerfacecolor=PAPER, markersize=6, zorder=4)
        axes.plot(x[stopped], y[stopped], "x", color=colour, markersize=6, zorder=5)


def _ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.margins(y=0.1)
