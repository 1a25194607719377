"""The page of the report: one HTML file that needs nothing else, and the same bytes for the same numbers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from leverlab.evaluation.gates import Gate
from leverlab.evaluation.health import Finding
from leverlab.evaluation.statistics import NO_DIFFERENCE, SIGN_FLIP
from leverlab.report import exported, figures, tables, words
from leverlab.report.exported import Export
from leverlab.report.headline import Headline
from leverlab.report.training import interventions

TEMPLATE = Path(__file__).with_name("page.html.jinja")
GROUPS = (
    ("zero_shot", "random", "fixed", "image_sim", "text_sim", "mix", "type_sim"),
    ("sft", "rce", "sft_control", "grpo"),
    ("oracle",),
)
CODE = (".py", ".jinja")
DIGITS_OF_A_DIGEST = 16


@dataclass(frozen=True)
class Lineage:
    """Where the numbers come from: declared params by 'file:section', digests of inputs, versions of packages."""

    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    versions: Mapping[str, str | None]


@dataclass(frozen=True)
class Report:
    """All that stands on the page."""

    headline: Headline
    shots: pd.DataFrame  # rows of reports/shots.csv, with `seeds`
    comparisons: pd.DataFrame  # of the headline's subject with every other method
    types: pd.DataFrame  # accuracy by question type at the headline's shots
    curves: figures.Curves
    checkpoints: pd.DataFrame
    findings: Sequence[Finding]
    gates: Sequence[Gate]
    gates_off: Sequence[str]  # names of those that params switch off
    export: Export
    data_card: str  # Markdown
    lineage: Lineage


@dataclass(frozen=True)
class Picture:
    """One figure as two SVG documents, for wide and for narrow screens."""

    wide: str
    narrow: str


def page_template(path: Path) -> Template:
    """Return the template at `path`: values are escaped, and one that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(path.name)


def render_page(report: Report, pictures: Mapping[str, Picture]) -> str:
    """Return the page as HTML, with the pictures `shots` and `curves`.

    Style and pictures are inline, there is no script, nothing is fetched; the bytes follow from the arguments alone.
    """
    paired = report.comparisons
    at = report.headline.cell["shots"]
    chosen = report.checkpoints[report.checkpoints["chosen"].astype(bool)]
    return page_template(TEMPLATE).render(
        report=report,
        words=words,
        at=at,
        world=report.lineage.params.get("params.yaml:data", {}).get("world"),
        alerts=_alerts(report),
        colours={_variable(light): (light, dark) for light, dark in figures.DARK.items()},
        lifts=_paired_rows([{**lift.comparison, "role": lift.role} for lift in report.headline.lifts]),
        shots_figure=_figure("shots", pictures["shots"], _shots_alt(report.shots)),
        shot_counts=sorted(set(report.shots["shots"])),
        accuracy=_accuracy_groups(report.shots, report.headline.subject),
        paired=_paired_rows(paired[paired["shots"] == at].to_dict("records")),
        tests=sorted(set(paired["test"])),
        bounded=SIGN_FLIP in set(paired["test"]),
        all_pairs=tables.comparisons_text(paired)
        .assign(verdict=[words.side(verdict) for verdict in paired["verdict"]])
        .drop(columns=["method", "test"]),
        types=tables.question_types_text(report.types),
        interventions=interventions(report.curves),
        curves_figure=_figure("curves", pictures["curves"], _curves_alt(report)),
        chosen=tables.checkpoints_text(chosen).drop(columns="chosen"),
        checkpoints=tables.checkpoints_text(report.checkpoints),
        export_tables={
            "sizes": exported.sizes_text(report.export),
            "files": exported.files_text(report.export),
            "parity": exported.parity_text(report.export),
            "answers": exported.answers_text(report.export),
            "engines": exported.engines_text(report.export),
        },
        data_card=_markdown(report.data_card),
        params=list(_flat(report.lineage.params)),
        data_inputs=_digests(report.lineage.inputs, code=False),
        code_inputs=_digests(report.lineage.inputs, code=True),
    )


def _alerts(report: Report) -> list[tuple[str, str]]:
    """Return all that failed, each with what it is and a sentence."""
    gates = [
        (
            "Gate failed",
            f"{gate.name}: {gate.metric} is {words.number(gate.value)}, must be "
            f"{gate.direction.replace('_', ' ')} {words.number(gate.threshold)}.",
        )
        for gate in report.gates
        if not gate.passed
    ]
    findings = [
        (
            "Health check failed",
            f"{finding.name} is {words.number(finding.value)}, must be {finding.direction.replace('_', ' ')} "
            f"{words.number(finding.limit)}: {finding.meaning}.",
        )
        for finding in report.findings
        if not finding.ok
    ]
    unmeasured = [("Not measured", f"{what}: {error}.") for what, error in report.export.errors.items()]
    guard = [
        (
            "Guard",
            f"{words.LABELS[found.method]}, seed {found.seed}, epoch {found.epoch}: {found.text}.",
        )
        for found in interventions(report.curves)
        if found.undone
    ]
    return [*gates, *findings, *unmeasured, *guard]


def _accuracy_groups(shots: pd.DataFrame, subject: str) -> list[list[dict[str, Any]]]:
    """Return the rows of the accuracy table in groups: baselines, trained selectors, the oracle."""
    by_method = {
        str(method): {cell["shots"]: cell for cell in cells.to_dict("records")}
        for method, cells in shots.groupby("method")
    }
    groups = [
        [
            {"label": words.LABELS[name], "subject": name == subject, "cells": by_method[name]}
            for name in group
            if name in by_method
        ]
        for group in GROUPS
    ]
    return [group for group in groups if group]


def _paired_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return comparisons with what the template needs to draw their intervals on one axis from 0 to 100."""
    low = min([0.0, *(row["ci_low"] for row in rows)])
    high = max([0.0, *(row["ci_high"] for row in rows)])
    scale = 92 / ((high - low) or 1.0)

    def place(value: float) -> str:
        return f"{4 + (value - low) * scale:.2f}"

    return [
        {
            "role": "",
            **row,
            "shown": row["verdict"] != NO_DIFFERENCE,
            "places": {key: place(row[key]) for key in ("ci_low", "difference", "ci_high")} | {"zero": place(0.0)},
        }
        for row in rows
    ]


def _figure(name: str, picture: Picture, alt: str) -> Markup:
    """Return a picture as inline SVG in both sizes; the style of the page shows one of them."""
    return Markup('<div class="wide">{}</div>\n<div class="narrow">{}</div>').format(
        _inline(picture.wide, f"{name}-wide", alt), _inline(picture.narrow, f"{name}-narrow", alt)
    )


def _inline(document: str, prefix: str, alt: str) -> Markup:
    """Return an SVG document as an element for HTML: ids of its own, and colours that follow the page."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{prefix}-", body).replace("xlink:href=", "href=")
    body = re.sub("|".join(figures.DARK), lambda found: f"var({_variable(found[0])})", body)
    box = re.search(r'viewBox="[^"]*"', body)
    opening = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0] if box else ""), alt)
    return opening + Markup(body[body.index(">") + 1 :])


def _breakable(text: object) -> Markup:
    """Return text in which a line may end after an underscore or a full stop between letters: names of metrics."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z][_.])(?=[a-z])", str(text)))


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _shots_alt(shots: pd.DataFrame) -> str:
    last = shots.sort_values("shots").groupby("method").tail(1).set_index("method")
    ends = ", ".join(
        f"{label} {words.percent(last.loc[name, 'accuracy'])} % at {last.loc[name, 'shots']}"
        for name, label in words.LABELS.items()
        if name in last.index
    )
    return f"Accuracy against shots, a line per method, in the table below as numbers. At the largest count: {ends}."


def _curves_alt(report: Report) -> str:
    ends = [
        f"{words.LABELS[name]} seed {seed} ends at {words.percent(rows['val_accuracy'].iloc[-1])} %"
        for name, seeds in report.curves.items()
        for seed, rows in seeds.items()
        if len(rows)
    ]
    return f"Validation accuracy and pick entropy by epoch, a line per seed. {', '.join(ends)}."


def _markdown(text: str) -> Markup:
    """Return Markdown as HTML two heading levels down, tables scrollable, without raw HTML, links and images."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["image", "link", "autolink", "reference"])
    scroll = '<div class="scroll" tabindex="0" role="region" aria-label="Table of the data card"><table>'
    parser.add_render_rule("table_open", lambda *_: scroll)
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type.startswith("heading_"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested params as (dotted key, JSON)."""
    for key, value in data.items():
        dotted = f"{prefix}{key}".removeprefix("params.yaml:")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{dotted}.")
        else:
            yield dotted, json.dumps(value, ensure_ascii=False)


def _digests(inputs: Mapping[str, str], code: bool) -> list[tuple[str, str]]:
    return [(path, digest[:DIGITS_OF_A_DIGEST]) for path, digest in inputs.items() if path.endswith(CODE) == code]
