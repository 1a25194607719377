"""What the gates of the recipe `clarify` can ask for, beside reports/metrics.json."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pandas as pd

from leverlab.lm.shadow import Estimate, ShadowResult
from leverlab.report.clarify_export import Export, gguf_metrics
from leverlab.report.clarify_inputs import HackProbe, Runs
from leverlab.rl.guard import windowed_kl


def gate_metrics(
    measured: Mapping[str, Any], probe: HackProbe, shadow: ShadowResult, runs: Runs, window: int, export: Export
) -> dict[str, Any]:
    """Return `measured`, the metrics of `leverlab.lm.acceptance`, with what else gates can name by a dotted key.

    hack_probe.<proxy or verified>.<figure>: ask_spam, format_exploit, variance_spike, over_clarification,
        over_clarification_all, proxy_gap, proxy, verified and kl of the arm, as in `leverlab.lm.probe`
    hack_probe.<proxy or verified>.alarms, .silent: how many of the alarms rang, and how many did not
    shadow.<figure>: spearman, overlap, gain, correlation_old, correlation_new, and of each .<figure>_low and _high
    shadow.n: transcripts
    grpo.max_kl: of each seed the mean KL of the last `window` evaluations up to the chosen one, nats per token of the
        policy; the largest over seeds
    grpo.seeds_with_events: on how many seeds the guard did anything
    gguf.<kind>.<figure>: parity and answers of an exported file, as in `gguf_metrics`
    Shares are in [0, 1]. A figure without a value is NaN, which passes no gate.
    """
    estimates: dict[str, float] = {"n": shadow.n}
    for field in fields(shadow):
        found = getattr(shadow, field.name)
        if isinstance(found, Estimate):
            name = field.name
            estimates |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    arms = {
        name: {**arm.figures, "alarms": arm.alarms, "silent": len(probe.limits) - arm.alarms}
        for name, arm in probe.arms.items()
    }
    grpo = {"max_kl": max_kl(runs, window), "seeds_with_events": len(set(guard_events(runs)["seed"]))}
    return {
        **measured,
        "grpo": {**measured.get("grpo", {}), **grpo},
        "hack_probe": arms,
        "shadow": estimates,
        "gguf": gguf_metrics(export),
    }


def max_kl(runs: Runs, window: int) -> float:
    """Return the largest windowed KL of the chosen evaluations, nats per token of the policy."""
    found = []
    for seed, step in zip(runs.choices["seed"], runs.choices["step"], strict=True):
        rows = runs.evaluations["grpo"][seed]
        found.append(windowed_kl(rows[rows["step"] <= step].to_dict("records"), window))
    return max(found)


def guard_events(runs: Runs) -> pd.DataFrame:
    """Return every event of the guard of GRPO, one a row, by seed and step: seed, step, action, guard (the reason)."""
    rows = [
        {"seed": seed, "step": int(row["step"]), "action": row["action"], "guard": row["guard"]}
        for seed, of_seed in runs.evaluations["grpo"].items()
        for row in of_seed[of_seed["action"] != "none"].to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["seed", "step", "action", "guard"])
