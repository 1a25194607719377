"""The metrics that gates, the headline and accept rules can name, known before anything has been measured."""

import itertools
from collections.abc import Iterable, Sequence

from leverlab.config.report import ReportParams
from leverlab.nearest import did_you_mean

# `leverlab.evaluation.summary` has the methods too; it takes seconds to import, and params are checked by every stage
BASELINES = ("random", "fixed", "image_sim", "text_sim", "mix", "type_sim", "oracle")
TRAINED = ("sft", "rce", "sft_control", "grpo")
MOST_SHOTS = 16  # that eval.shots may be; a headline metric of more shots than a run has is shown as not measured
OVER_PARENT = "over_parent"  # the paired comparison of a plan with its parent …
OVER_PARENT_COLUMNS = ("difference", "ci_low", "ci_high", "p_value", "p_holm")  # … and what accept rules may ask of it
Names = tuple[tuple[str, ...], ...]  # of dotted keys: for each part between dots, what it may be
ANY = ("*",)  # a part that may be anything
REST = ("**",)  # one or more parts that may be anything; only at the end


def main_metrics(shots: int, kinds: Iterable[str]) -> list[Names]:
    """Return the metrics that gates of the main pipeline can name. kinds: all types of exported files."""
    return [*_without_export(shots), (("gguf",), tuple(kinds), REST)]


def plan_metrics(shots: int) -> list[Names]:
    """Return the metrics that accept rules of plans can name: those of gates but for the export, which the ledger does
    not read, and the comparison with the parent."""
    return [*_without_export(shots), ((OVER_PARENT,), _shots(shots), OVER_PARENT_COLUMNS)]


def recipe_metrics(kinds: Iterable[str]) -> list[Names]:
    """Return the metrics that gates of a language-model recipe can name."""
    return [
        (("sft", "rce", "grpo", "dpo", "comparisons", "lift", "shadow"), REST),
        (("hack_probe",), ("proxy", "verified"), REST),
        (("gguf",), tuple(kinds), REST),
    ]


def unknown_metrics(report: ReportParams, gates: Sequence[Names], headline: Sequence[Names], where: str) -> list[str]:
    """Return a sentence for every gate and every headline metric that is not among those it can name."""
    asked = [(f"gates.{name}", gate.metric, gates) for name, gate in report.rules.items()]
    asked += [(f"headline.{name}", metric, headline) for name, metric in report.headline.items()]
    return [
        f"{where}: report.{name} {problem}"
        for name, metric, known in asked
        if (problem := unknown_metric(metric, known)) is not None
    ]


def gates_without_file(report: ReportParams, exported: Sequence[str], kinds: Sequence[str], where: str) -> list[str]:
    """Return a sentence for every gate on a type of file that is not among the `exported` ones, of all `kinds`."""
    asked = [
        (name, gate.metric, {part.removeprefix("over_") for part in gate.metric.split(".")[1:]})
        for name, gate in report.rules.items()
        if gate.metric.startswith("gguf.")
    ]
    return [
        f"{where}: report.gates.{name} asks for '{metric}', but gguf.kinds exports {', '.join(exported)} only; export "
        f"{kind} too, or switch the gate off with null: -S report.gates.{name}=null"
        for name, metric, parts in asked
        for kind in kinds
        if kind in parts and kind not in exported
    ]


def unknown_metric(metric: str, known: Sequence[Names]) -> str | None:
    """Return what is wrong with a metric that is not among the `known` ones, with the nearest of them; else None."""
    parts = metric.split(".")
    if any(_fits(parts, names) for names in known):
        return None
    hint = did_you_mean(metric, (name for names in known for name in _spelled_out(names, parts)))
    return f"asks for the metric '{metric}', which no stage measures{hint or '; correct its name'}"


def _without_export(shots: int) -> list[Names]:
    rivals = tuple(name for name in (*BASELINES, *TRAINED) if name != "grpo")
    return [
        (("zero_shot",), ("shots_0",)),
        ((*BASELINES, *TRAINED), _shots(shots)),
        (("lift",), ("shots", "over_sft", "over_best_retrieval", "over_sft_control")),
        (
            ("comparisons",),
            ("zero_shot", *rivals),
            _shots(shots),
            ("difference", "ci_low", "ci_high", "p_holm", "least_detectable_difference"),
        ),
        (("chosen",), TRAINED, ("val_accuracy", "kl", "entropy", "distinct_share", "identical")),
        (("training",), TRAINED, ("flat_groups", "clipfrac")),
        (("health",), ANY),
    ]


def _shots(most: int) -> tuple[str, ...]:
    return tuple(f"shots_{count}" for count in range(1, most + 1))


def _fits(parts: Sequence[str], names: Names) -> bool:
    fixed = names[:-1] if names[-1] == REST else names
    if not all(parts) or (len(parts) <= len(fixed) if names[-1] == REST else len(parts) != len(fixed)):
        return False
    return all(part in may_be or may_be == ANY for part, may_be in zip(parts, fixed, strict=False))


def _spelled_out(names: Names, parts: Sequence[str]) -> Iterable[str]:
    """Return every name of `names`; what may be anything is as in `parts`."""
    filled = [
        (".".join(parts[place:]),) if may_be == REST else parts[place : place + 1] if may_be == ANY else may_be
        for place, may_be in enumerate(names)
    ]
    return map(".".join, itertools.product(*filled))
