"""The stage `report`: gates, figures, tables, and one self-contained page."""

import json
from importlib import metadata

import pandas as pd

from leverlab.config.report import ReportParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import evaluate_gates, headline_metrics
from leverlab.evaluation.gates_file import gates_record
from leverlab.evaluation.summary import ANSWER_SCHEMA, comparisons
from leverlab.files import write_bytes, write_text
from leverlab.records import read_table
from leverlab.report import exported, figures, tables
from leverlab.report.exported import gate_metrics, read_export
from leverlab.report.headline import headline, subject_of
from leverlab.report.inputs import (
    CURVE_COLUMNS,
    SHOTS_COLUMNS,
    read_checkpoints,
    read_csv,
    read_findings,
    read_json,
)
from leverlab.report.page import Lineage, Picture, Report, render_page
from leverlab.report.training import training_metrics
from leverlab.stage import Stage, run_stage

RUNS = {"sft": "sft/{seed}", "rce": "rce/{seed}", "sft_control": "grpo/{seed}/sft_control", "grpo": "grpo/{seed}/grpo"}
PACKAGES = ("pandas", "statsmodels", "matplotlib")  # beside those that every stage records


def body(stage: Stage) -> None:
    """Write the report from the files of all other stages."""
    params = stage.section("report", ReportParams)
    answers = read_table(stage.dep("data/answers.parquet"), ANSWER_SCHEMA).to_pandas()
    shots = tables.with_seeds(read_csv(stage.dep("reports/shots.csv"), SHOTS_COLUMNS), answers)
    stage.say("comparing the methods on the same questions")
    paired = comparisons(answers, method=subject_of(set(answers["method"])))
    head = headline(shots, paired)
    curves, findings = _curves(stage), read_findings(stage.dep("reports/health.json"))
    checkpoints = read_checkpoints(stage.dep("models/best/checkpoints.csv"))
    measured = read_json(stage.dep("reports/metrics.json")) | {"comparisons": tables.comparison_metrics(paired)}
    measured |= training_metrics(checkpoints, curves, findings)
    export = read_export(
        stage.dep("reports/gguf.json"),
        stage.dep("reports/gguf_metrics.json"),
        stage.dep("reports/gguf_accuracy.csv"),
        stage.dep("reports/gguf_differences.csv"),
        stage.dep("reports/benchmark.json"),
    )
    measured["gguf"] = gate_metrics(export)
    report = Report(
        headline=head,
        shots=shots,
        comparisons=paired,
        types=tables.question_types(answers, head.cell["shots"]),
        curves=curves,
        checkpoints=checkpoints,
        findings=findings,
        gates=evaluate_gates(params.rules, measured),
        gates_off=params.gates_off,
        export=export,
        data_card=stage.dep("reports/data_card.md").read_text(encoding="utf-8"),
        lineage=Lineage(
            params=stage.declared_params(),
            inputs=stage.inputs,
            versions={**stage.versions, **{package: metadata.version(package) for package in PACKAGES}},
        ),
    )
    # The template is code that no import shows: this line fails when dvc.yaml does not list it.
    stage.dep("src/leverlab/report/page.html.jinja")
    pictures = _write_figures(stage, report)
    write_text(stage.out("reports/report.html"), render_page(report, pictures))
    record = gates_record(report.gates, report.gates_off)
    write_text(stage.out("reports/gates.json"), json.dumps(record, indent=2) + "\n")
    first = headline_metrics(params.headline, measured, report.gates)
    write_text(stage.out("reports/headline.json"), json.dumps(first, indent=2) + "\n")
    _write_tables(stage, report)
    for gate in report.gates:
        stage.say(f"gate {gate.name}: {'pass' if gate.passed else 'FAIL'} ({gate.metric} = {gate.value:.4g})")
    for name in report.gates_off:
        stage.say(f"gate {name}: off")
    stage.say(head.sentence)


def _curves(stage: Stage) -> dict[str, dict[int, pd.DataFrame]]:
    """Return the metrics of every training run, by method and seed of params."""
    seeds = stage.value("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise LeverlabError(f"params.yaml: 'seeds' must be a list of whole numbers, not {seeds!r}")
    return {
        method: {
            seed: read_csv(stage.dep(f"models/{run.format(seed=seed)}/metrics.csv"), CURVE_COLUMNS) for seed in seeds
        }
        for method, run in RUNS.items()
    }


def _write_tables(stage: Stage, report: Report) -> None:
    folder = stage.out("reports/tables")
    verdicts = ("against", "verdict", "test")
    tables.write_markdown(folder / "accuracy.md", tables.accuracy_text(report.shots))
    tables.write_csv(folder / "accuracy.csv", report.shots)
    tables.write_markdown(folder / "comparisons.md", tables.comparisons_text(report.comparisons), left=verdicts)
    tables.write_csv(folder / "comparisons.csv", report.comparisons)
    tables.write_markdown(folder / "question_types.md", tables.question_types_text(report.types))
    tables.write_csv(folder / "question_types.csv", report.types)
    tables.write_markdown(folder / "checkpoints.md", tables.checkpoints_text(report.checkpoints))
    for name, frame in {
        "gguf_answers": exported.answers_text(report.export),
        "gguf_parity": exported.parity_text(report.export),
        "gguf_speed": exported.engines_text(report.export),
    }.items():
        tables.write_markdown(folder / f"{name}.md", frame, left=("images",))
    tables.write_markdown(
        folder / "gates.md", tables.gates_text(report.gates, report.gates_off), left=("metric", "result")
    )


def _write_figures(stage: Stage, report: Report) -> dict[str, Picture]:
    """Write the figures and return them for the page."""
    folder = stage.out("reports/figures")
    pictures = {}
    for name, (wide, narrow) in {
        "shots": [figures.shots_figure(report.shots, narrow) for narrow in (False, True)],
        "curves": [figures.curves_figure(report.curves, report.checkpoints, narrow) for narrow in (False, True)],
    }.items():
        pictures[name] = Picture(figures.svg(wide), figures.svg(narrow))
        write_text(folder / f"{name}.svg", pictures[name].wide)
        write_bytes(folder / f"{name}.png", figures.png(wide))
    return pictures


if __name__ == "__main__":
    run_stage("report", body)
