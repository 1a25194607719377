"""The page of the report of the recipe `clarify`: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leverlab.evaluation.gates import Gate
from leverlab.lm.acceptance import GREEDY, WinRate
from leverlab.lm.questions import Question
from leverlab.lm.shadow import ShadowResult
from leverlab.lm.summary import ALL_SEEDS
from leverlab.report import clarify_dialogues, clarify_export, clarify_tables, figures, words
from leverlab.report.clarify_dialogues import Changes
from leverlab.report.clarify_export import Export
from leverlab.report.clarify_gates import guard_events
from leverlab.report.clarify_headline import Headline
from leverlab.report.clarify_inputs import POLICIES, HackProbe, Runs, Scorers
from leverlab.report.page import (
    Lineage,
    Picture,
    _digests,
    _figure,
    _flat,
    _markdown,
    _paired_rows,
    _variable,
    page_template,
)

TEMPLATE = Path(__file__).with_name("clarify_page.html.jinja")
MEASURES = {
    "need_success": "Need-success: right on the questions that need an ask",
    "over_clarification": "Over-clarification: asked on the questions that need none",
    "success": "Success: right on all questions",
    "turns": "Turns of a dialogue",
}


@dataclass(frozen=True)
class Report:
    """All that stands on the page."""

    headline: Headline
    headline_metrics: Mapping[str, float | int | None]  # of reports/headline.json
    splits: pd.DataFrame  # the tables of infer-800
    families: pd.DataFrame
    comparisons: pd.DataFrame
    wins: WinRate
    measured: Mapping[str, Any]  # reports/metrics.json
    questions: Mapping[str, Sequence[Question]]  # by split
    changes: Changes
    runs: Runs
    probe: HackProbe
    shadow: ShadowResult
    scorers: Scorers
    export: Export
    health: Mapping[int, Mapping[str, float]]  # by seed
    gates: Sequence[Gate]
    gates_off: Sequence[str]  # names of those that params switch off
    data_card: str  # Markdown
    lineage: Lineage


def report_tables(report: Report) -> dict[str, pd.DataFrame]:
    """Return the tables by the names of their files, as text."""
    by_kind = {
        f"{split}_kinds": clarify_tables.kinds_text(report.measured, split, questions)
        for split, questions in report.questions.items()
    }
    splits = {
        split: clarify_tables.figures_text(clarify_tables.of_split(report.splits, split, GREEDY))
        for split in report.questions
        if split != "test"
    }
    seeds = clarify_tables.of_split(report.splits, "test", GREEDY, seeds=True)
    return {
        "main": clarify_tables.main_text(report.splits),
        "seeds": clarify_tables.figures_text(seeds, by=("policy", "seed")),
        "families": clarify_tables.families_text(report.families),
        "lifts": clarify_tables.lifts_text(report.measured),
        **splits,
        **by_kind,
        "comparisons": clarify_tables.comparisons_text(report.comparisons),
        "win_rate": clarify_tables.win_rate_text(report.wins),
        "validation": clarify_tables.validation_text(report.runs),
        "events": clarify_tables.events_text(report.runs),
        "hack_probe": clarify_tables.probe_text(report.probe),
        "shadow": clarify_tables.shadow_text(report.shadow),
        "scorers": clarify_tables.weights_text(report.scorers),
        "export": clarify_export.export_text(report.export),
        "files": clarify_export.files_text(report.export),
        "health": clarify_tables.health_text(report.health),
    }


def render_page(report: Report, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Picture]) -> str:
    """Return the page as HTML, with the pictures `policies`, `curves` and `losses`.

    Style and pictures are inline, there is no script, nothing is fetched; the bytes follow from the arguments alone.
    """
    params = {key.partition(":")[2] or key: value for key, value in report.lineage.params.items()}
    return page_template(TEMPLATE).render(
        report=report,
        words=words,
        tables=tables,
        world=params.get("data", {}).get("world"),
        alerts=alerts(report),
        colours={_variable(light): (light, dark) for light, dark in figures.DARK.items()},
        pictures={name: _figure(name, picture, _alt(name, report)) for name, picture in pictures.items()},
        main=[
            (name, tables["main"][tables["main"]["decoding"] == name].drop(columns="decoding"))
            for name in clarify_tables.TEMPERATURES.values()
        ],
        paired=[(title, _paired(report.comparisons, measure)) for measure, title in MEASURES.items()],
        policies=POLICIES,
        ranked=report.changes,
        lines=clarify_dialogues.lines,
        verdict=clarify_dialogues.verdict,
        texts=lambda dialogue: [turn.text for turn in dialogue.turns],
        data_card=_markdown(report.data_card),
        params=list(_flat(params)),
        data_inputs=_digests(report.lineage.inputs, code=False),
        code_inputs=_digests(report.lineage.inputs, code=True),
    )


def alerts(report: Report) -> list[tuple[str, str]]:
    """Return all that failed, each with what it is and a sentence: red gates first."""
    gates = [
        (
            "Gate failed",
            f"{gate.name}: {gate.metric} is {words.number(gate.value)}, must be "
            f"{gate.direction.replace('_', ' ')} {words.number(gate.threshold)}.",
        )
        for gate in report.gates
        if not gate.passed
    ]
    unmeasured = [("Not measured", f"{what}: {error}.") for what, error in report.export.errors.items()]
    guard = [
        ("Guard", f"{POLICIES['grpo']}, seed {event['seed']}, step {event['step']}: {event['guard']}.")
        for event in guard_events(report.runs).to_dict("records")
        if event["action"] == "stop"
    ]
    return [*gates, *unmeasured, *guard]


def _paired(comparisons: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Return the comparisons over all seeds in one measure, with what the template needs to draw their intervals."""
    rows = comparisons[(comparisons["seed"] == ALL_SEEDS) & (comparisons["measure"] == measure)].to_dict("records")
    return [
        row
        | {
            "name": f"{POLICIES[row['policy_a']]} over {POLICIES[row['policy_b']]}",
            "texts": clarify_tables.difference_text(row),
            "verdict": words.side(row["verdict"]),
        }
        for row in _paired_rows(rows)
    ]


def _alt(name: str, report: Report) -> str:
    """Return what a picture shows, in words."""
    if name == "policies":
        rows = clarify_tables.of_split(report.splits, "test", GREEDY).to_dict("records")
        places = ", ".join(
            f"{POLICIES[row['policy']]} {words.percent(row['need_success'])} % and "
            f"{words.percent(row['over_clarification'])} %"
            for row in rows
        )
        return f"Need-success against over-clarification, in the table below as numbers. Greedy: {places}."
    if name == "curves":
        ends = ", ".join(
            f"seed {seed} ends at {words.percent(rows['need_success'].iloc[-1])} % need-success and "
            f"{words.percent(rows['over_clarification'].iloc[-1])} % over-clarification"
            for seed, rows in report.runs.evaluations["grpo"].items()
        )
        return f"Figures of GRPO by step, a line per seed: {ends}."
    return "Loss of SFT, RCE and DPO by step, a line per seed."
