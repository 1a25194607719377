"""The figures of the report. The same numbers give the same bytes.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart: trained selectors have one each,
baselines are grey, the oracle is dashed. Every figure comes wide, for a page, and narrow, for a phone.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from leverlab.report.words import LABELS

Points = NDArray[np.float64]
Curves = Mapping[str, Mapping[int, pd.DataFrame]]  # method -> seed -> the rows of its metrics.csv

PAPER, INK, GREY, PALE = "#ffffff", "#1f2328", "#6e7781", "#d8dee4"
RETRIEVAL_GREY, RANDOM_GREY = "#4f575f", "#747b83"
COLOURS = {
    "zero_shot": RANDOM_GREY,
    "random": RANDOM_GREY,
    "fixed": RANDOM_GREY,
    "image_sim": RETRIEVAL_GREY,
    "text_sim": RETRIEVAL_GREY,
    "mix": RETRIEVAL_GREY,
    "type_sim": RETRIEVAL_GREY,
    "sft": "#0072b2",
    "rce": "#009e73",
    "sft_control": "#b8578f",  # Okabe and Ito's reddish purple, darker: it carries text
    "grpo": "#d55e00",
    "oracle": INK,
}
DARK = {  # what stands for each colour on a dark page
    PAPER: "#12161b",
    INK: "#e6e9ed",
    GREY: "#9aa4af",
    PALE: "#323a43",
    RETRIEVAL_GREY: "#b4bcc4",
    RANDOM_GREY: "#858e98",
    "#0072b2": "#56b4e9",
    "#009e73": "#2fc79b",
    "#b8578f": "#e08fc0",
    "#d55e00": "#ff8f4d",
}
SELECTORS = ("sft", "rce", "sft_control", "grpo")
_RC = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": PALE,
    "xtick.labelcolor": GREY,
    "ytick.labelcolor": GREY,
    "ytick.major.size": 0,
    "svg.hashsalt": "leverlab",
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and takes the page's font
}


class _End(NamedTuple):
    """Where a method's line ends, and the upper end of its last interval."""

    method: str
    x: float
    y: float
    top: float


def shots_figure(shots: pd.DataFrame, narrow: bool = False) -> Figure:
    """Return accuracy (percent) against shots, a line per method with its 95 % intervals, labelled at its end.

    shots: the rows of reports/shots.csv; any subset of methods and shot counts.
    """
    methods = [method for method in LABELS if method in set(shots["method"])]
    width, height = (4.1, 4.9) if narrow else (8.6, 4.9)
    with _style():
        figure = Figure(figsize=(width, height))
        label_inches = 1.72
        axes = figure.add_axes((0.4 / width, 0.1, (width - 0.4 - label_inches) / width, 0.82))
        ends = []
        for place, method in enumerate(methods):
            rows = shots[shots["method"] == method].sort_values("shots")
            dodge = (place - (len(methods) - 1) / 2) * 0.02 * (method != "zero_shot")
            x, y = rows["shots"].to_numpy(float) + dodge, 100 * rows["accuracy"].to_numpy()
            _draw_method(axes, method, x, y, 100 * rows["ci_low"].to_numpy(), 100 * rows["ci_high"].to_numpy())
            ends.append(_End(method, x[-1], y[-1], 100 * rows["ci_high"].iloc[-1]))
        counts = sorted(set(shots["shots"].tolist()))
        axes.set_xlim(counts[0] - 0.25, counts[-1] + 0.2)
        axes.set_xticks(counts)
        _percent_axis(axes, 100 * shots["ci_low"].min(), 100 * shots["ci_high"].max())
        axes.set_title("Accuracy (%)", color=GREY)
        axes.set_xlabel("shots (demos in the prompt)")
        inside = [end for end in ends if end.method == "zero_shot" and counts[-1] > 0]
        _label_ends(axes, [end for end in ends if end not in inside], counts[-1] + 0.2, 0.17)
        for end in inside:
            where, colour = (end.x, end.top), COLOURS[end.method]
            axes.annotate(LABELS[end.method], where, (0, 4), textcoords="offset points", color=colour, ha="center")
    return figure


def curves_figure(curves: Curves, checkpoints: pd.DataFrame, narrow: bool = False) -> Figure:
    """Return the learning curves: validation accuracy (percent) and pick entropy per epoch, a line per seed.

    checkpoints: method, seed, epoch, chosen; a chosen checkpoint has a ring. Wide, a method is a column; narrow, a row.
    Methods without an epoch are left out; without any the figure says so.
    """
    methods = [method for method in LABELS if any(len(rows) for rows in curves.get(method, {}).values())]
    frames = [rows for method in methods for rows in curves[method].values() if len(rows)]
    measures = ["val_accuracy", *(["entropy"] if frames and all("entropy" in rows for rows in frames) else [])]
    columns, lines = (len(measures), len(methods)) if narrow else (len(methods), len(measures))
    with _style():
        if not methods:
            figure = Figure(figsize=(4.1, 0.6))
            figure.text(0.02, 0.4, "No training stage kept an epoch.", color=GREY)
            return figure
        size = (4.1, 0.5 + 1.75 * lines) if narrow else (8.6, 0.5 + (2.6 if lines == 1 else 4.1))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            lines,
            columns,
            squeeze=False,
            height_ratios=None if narrow or lines == 1 else [1.8, 1],
            sharey="col" if narrow else "row",
        )
        for i, method in enumerate(methods):
            for j, measure in enumerate(measures):
                axes = grid[i, j] if narrow else grid[j, i]
                _draw_curves(axes, method, measure, curves[method], checkpoints)
                name = "val accuracy (%)" if measure == "val_accuracy" else "pick entropy (nats)"
                named = name if narrow or i == 0 else " "
                axes.set_title(f"{LABELS[method]}\n{named}" if j == 0 or narrow else named)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as an SVG document without date or version."""
    with _style():
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, 200 dots an inch, without date or version."""
    with _style():
        stream = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """The defaults of matplotlib, whatever the user's own file says, and what is set here."""
    with matplotlib.style.context(["default", _RC]):
        yield


def _draw_method(axes: Axes, method: str, x: Points, y: Points, low: Points, high: Points) -> None:
    colour, selector = COLOURS[method], method in SELECTORS
    strong = selector or method == "oracle"
    axes.vlines(x, low, high, color=colour, linewidth=1.4 if strong else 0.8, alpha=0.55, zorder=3 if strong else 2)
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=2.4 if method == "grpo" else 1.6 if strong else 1.0,
        linestyle=(0, (4, 2)) if method == "oracle" else "solid",
        marker="o",
        markersize=5 if method == "grpo" else 4 if strong else 3,
        zorder=5 if method == "grpo" else 4 if strong else 2,
    )


def _draw_curves(
    axes: Axes, method: str, measure: str, seeds: Mapping[int, pd.DataFrame], checkpoints: pd.DataFrame
) -> None:
    scale = 100 if measure == "val_accuracy" else 1
    for seed, rows in seeds.items():
        if rows.empty:
            continue
        x, y = rows["epoch"].to_numpy(), scale * rows[measure].to_numpy(float)
        axes.plot(
            x, y, color=COLOURS[method], linewidth=1.2, alpha=0.9, marker="o" if len(x) == 1 else "", markersize=3
        )
        chosen = checkpoints[
            (checkpoints["method"] == method) & (checkpoints["seed"] == seed) & checkpoints["chosen"].astype(bool)
        ]["epoch"]
        ringed = np.isin(x, chosen)
        axes.plot(x[ringed], y[ringed], "o", color=COLOURS[method], markerfacecolor=PAPER, markersize=6, zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.margins(y=0.08)


def _percent_axis(axes: Axes, low: float, high: float) -> None:
    """Set limits at multiples of ten that hold all intervals."""
    bottom = 10 * np.floor(low / 10)
    top = 10 * np.ceil(high / 10)
    axes.set_ylim(bottom - (1.5 if bottom == 0 else 0), max(top, bottom + 10))
    axes.yaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))


def _label_ends(axes: Axes, ends: Sequence[_End], x: float, inches: float) -> None:
    """Write each line's label right of the axes at its height, moved apart by `inches` where they would meet."""
    ends = sorted(ends, key=lambda end: end.y)
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    gap = inches * axes.figure.dpi / axes.bbox.height * (top - bottom)
    step = 0.02 * (right - left)
    for end, height in zip(ends, _spread([end.y for end in ends], gap, bottom, top), strict=True):
        colour, weight = COLOURS[end.method], "bold" if end.method == "grpo" else "normal"
        axes.plot([end.x, x, x + step], [end.y, height, height], color=colour, linewidth=0.5, alpha=0.6, clip_on=False)
        axes.text(x + 1.5 * step, height, LABELS[end.method], color=colour, va="center", fontweight=weight)
    axes.set_xlim(left, right)


def _spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ascending `heights` moved as little as possible (least squares) so that neighbours are `gap` apart."""
    steps = gap * np.arange(len(heights))
    if not len(heights):
        return []
    free = isotonic_regression(np.asarray(heights) - steps).x
    return list(np.clip(free, low, max(low, high - steps[-1])) + steps)
