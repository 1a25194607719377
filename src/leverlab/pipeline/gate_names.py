"""The metrics that gates and the headline can name, known before anything has been measured."""

import re
from collections.abc import Iterable, Sequence

from leverlab.config.report import ReportParams

# `leverlab.evaluation.summary` has the methods too; it takes seconds to import, and params are checked by every stage
BASELINES = ("random", "fixed", "image_sim", "text_sim", "mix", "type_sim", "oracle")
TRAINED = ("sft", "rce", "sft_control", "grpo")
MOST_SHOTS = 16  # that eval.shots may be; a headline metric of more shots than a run has is shown as not measured


def main_metrics(shots: int, kinds: Iterable[str]) -> list[str]:
    """Return patterns of the metrics that gates of the main pipeline can name. kinds: all types of exported files."""
    counts = f"shots_({_one_of(map(str, range(1, shots + 1)))})"
    rivals = [name for name in (*BASELINES, *TRAINED) if name != "grpo"]
    return [
        r"zero_shot\.shots_0",
        rf"({_one_of([*BASELINES, *TRAINED])})\.{counts}",
        r"lift\.(shots|over_sft|over_best_retrieval|over_sft_control)",
        rf"comparisons\.({_one_of(['zero_shot', *rivals])})\.{counts}\."
        r"(difference|ci_low|ci_high|p_holm|least_detectable_difference)",
        rf"chosen\.({_one_of(TRAINED)})\.(val_accuracy|kl|entropy|distinct_share|identical)",
        rf"training\.({_one_of(TRAINED)})\.(flat_groups|clipfrac)",
        r"health\.[a-z_]+",
        rf"gguf\.({_one_of(kinds)})\..+",
    ]


def recipe_metrics(kinds: Iterable[str]) -> list[str]:
    """Return patterns of the metrics that gates of a language-model recipe can name."""
    return [
        r"(sft|rce|grpo|dpo|comparisons|lift|shadow)\..+",
        r"hack_probe\.(proxy|verified)\..+",
        rf"gguf\.({_one_of(kinds)})\..+",
    ]


def unknown_metrics(report: ReportParams, gates: Sequence[str], headline: Sequence[str], where: str) -> list[str]:
    """Return a sentence for every gate and every headline metric that none of its patterns matches in full."""
    asked = [(f"gates.{name}", gate.metric, gates) for name, gate in report.gates.items()]
    asked += [(f"headline.{name}", metric, headline) for name, metric in report.headline.items()]
    return [
        f"{where}: report.{name} asks for the metric '{metric}', which no stage measures; correct its name"
        for name, metric, known in asked
        if not any(re.fullmatch(pattern, metric) for pattern in known)
    ]


def _one_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))
