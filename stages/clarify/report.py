"""report: gates, figures, tables, the acceptance report, and one self-contained page."""

import json
from importlib import metadata
from pathlib import Path

from leverlab.config.clarify_grpo import DialogueGrpoParams
from leverlab.config.report import ReportParams
from leverlab.evaluation.gates import evaluate_gates, headline_metrics
from leverlab.evaluation.gates_file import gates_record
from leverlab.files import write_bytes, write_text
from leverlab.lm.acceptance import rc1_final_report
from leverlab.lm.questions import read_questions
from leverlab.lm.records import DialogueRecord, read_records
from leverlab.lm.stages import seeds_of
from leverlab.lm.summary import plain
from leverlab.report import clarify_figures, figures, tables
from leverlab.report import clarify_inputs as inputs
from leverlab.report.clarify import Report, render_page, report_tables
from leverlab.report.clarify_dialogues import changes
from leverlab.report.clarify_export import read_export
from leverlab.report.clarify_gates import gate_metrics
from leverlab.report.clarify_headline import headline
from leverlab.report.page import Lineage, Picture
from leverlab.stage import Stage, run_stage

SPLITS = ("test", "ood", "red_team")
SHOWN = 6  # dialogues that improved, and as many that got worse
PACKAGES = ("pandas", "statsmodels", "matplotlib")  # beside those that every stage records


def body(stage: Stage) -> None:
    """Write the report from the files of all other stages; a red gate is told and fails nothing."""
    report = read_report(stage)
    stage.dep("src/leverlab/report/clarify_page.html.jinja")  # code that no import shows
    pictures, frames = write_pictures(stage, report), report_tables(report)
    for name, frame in frames.items():
        left = tuple(str(column) for column in frame.columns if column in ("verdict", "test", "reason", "meaning"))
        tables.write_markdown(stage.out("recipes/clarify/reports/tables") / f"{name}.md", frame, left)
    gates = tables.gates_text(report.gates, report.gates_off)
    tables.write_markdown(stage.out("recipes/clarify/reports/tables") / "gates.md", gates, ("metric", "result"))
    write_text(stage.out("recipes/clarify/reports/report.html"), render_page(report, frames, pictures))
    write_text(
        stage.out("recipes/clarify/reports/gates.json"), _json(plain(gates_record(report.gates, report.gates_off)))
    )
    write_text(stage.out("recipes/clarify/reports/headline.json"), _json(report.headline_metrics))
    accepted = rc1_final_report(report.measured, report.gates, report.comparisons, report.wins, off=report.gates_off)
    write_text(stage.out("recipes/clarify/reports/rc1_final_report.json"), _json(accepted))
    for gate in report.gates:
        stage.say(f"gate {gate.name}: {'pass' if gate.passed else 'FAIL'} ({gate.metric} = {gate.value:.4g})")
    for name in report.gates_off:
        stage.say(f"gate {name}: off")
    stage.say(report.headline.sentence)
    stage.say(report.headline.credit)


def read_report(stage: Stage) -> Report:
    """Return all that the page shows, from the declared inputs."""
    params, grpo = stage.section("report", ReportParams), stage.section("grpo", DialogueGrpoParams)
    seeds, models = seeds_of(stage.value("seeds")), Path("recipes/clarify/models")
    for folder in ("sft", "rce", "grpo", "dpo", "best"):
        stage.dep(f"recipes/clarify/models/{folder}")
    questions = {
        split: read_questions(stage.dep("recipes/clarify/data/questions") / f"{split}.jsonl") for split in SPLITS
    }
    answers = read_records(stage.dep("recipes/clarify/data/answers") / "answers.jsonl", DialogueRecord)
    of_answers = stage.dep("recipes/clarify/reports/answers")
    splits = inputs.read_figures(of_answers / "splits.csv", inputs.SPLIT_COLUMNS)
    compared = inputs.read_figures(of_answers / "comparisons.csv", inputs.COMPARISON_COLUMNS)
    measured = inputs.read_metrics(stage.dep("recipes/clarify/reports/metrics.json"))
    probe = inputs.read_hack_probe(stage.dep("recipes/clarify/reports/hack_probe.json"))
    shadow, runs = inputs.read_shadow(stage.dep("recipes/clarify/reports/shadow.json")), inputs.read_runs(models, seeds)
    export = read_export(
        stage.dep("recipes/clarify/reports/gguf.json"), stage.dep("recipes/clarify/reports/benchmark.json")
    )
    merged = gate_metrics(measured, probe, shadow, runs, grpo.guard.window, export)
    gates = evaluate_gates(params.rules, merged)
    return Report(
        headline=headline(splits, compared),
        headline_metrics=headline_metrics(params.headline, merged, gates),
        splits=splits,
        families=inputs.read_figures(of_answers / "families.csv", (*inputs.SPLIT_COLUMNS, "family")),
        comparisons=compared,
        wins=inputs.read_win_rate(of_answers / "win_rate.json"),
        measured=measured,
        questions=questions,
        changes=changes(answers, {question.id: question for question in questions["test"]}, SHOWN),
        runs=runs,
        probe=probe,
        shadow=shadow,
        scorers=inputs.read_scorers(stage.dep("recipes/clarify/models/scorers")),
        export=export,
        health={seed: inputs.read_health(stage.dep(f"recipes/clarify/reports/health/{seed}.json")) for seed in seeds},
        gates=gates,
        gates_off=params.gates_off,
        data_card=stage.dep("recipes/clarify/reports/data_card.md").read_text(encoding="utf-8"),
        lineage=Lineage(
            params=stage.declared_params(),
            inputs=stage.inputs,
            versions={**stage.versions, **{package: metadata.version(package) for package in PACKAGES}},
        ),
    )


def write_pictures(stage: Stage, report: Report) -> dict[str, Picture]:
    """Write the figures and return them for the page."""
    folder, pictures = stage.out("recipes/clarify/reports/figures"), {}
    for name, (wide, narrow) in {
        "policies": [clarify_figures.policies_figure(report.splits, narrow) for narrow in (False, True)],
        "curves": [clarify_figures.curves_figure(report.runs, narrow) for narrow in (False, True)],
        "losses": [clarify_figures.losses_figure(report.runs, narrow) for narrow in (False, True)],
    }.items():
        pictures[name] = Picture(figures.svg(wide), figures.svg(narrow))
        write_text(folder / f"{name}.svg", pictures[name].wide)
        write_bytes(folder / f"{name}.png", figures.png(wide))
    return pictures


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


if __name__ == "__main__":
    run_stage("report", body, home="recipes/clarify")
