"""Sets of experiments ranked, with the setting that they recommend and the effects of their params.

They are ranked by what their chosen GRPO checkpoints reach on the validation questions, never on the test questions: a
setting chosen on those would make their figures too good. Test figures stand beside it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.pipeline.answers_of import flat
from leverlab.pipeline.compare_runs import accuracies, as_text, differing
from leverlab.pipeline.ledger_inputs import METHOD, Outcome

EFFECT_COLUMNS = ("key", "value", "runs", "mean", "lowest", "highest")
_SAME = 1e-9  # accuracies that differ by less are equal


@dataclass(frozen=True)
class Ranked:
    """A run to be ranked. validation: by seed, its figure on the validation questions; beside: figures by column that
    are shown and have no say. All are shares, at most 1."""

    name: str
    revision: str | None
    params: Mapping[str, Any]
    validation: Mapping[int, float]
    beside: Mapping[str, float]


@dataclass(frozen=True)
class Sweep:
    """Experiments ranked, and what their params did. Figures are shares, at most 1.

    measure: what they are ranked by, on the validation questions.
    table: one row a run, the best first: rank, run, revision, validation (mean over seeds), standard_error (of that
        mean over seeds; NaN for one seed), seeds, then `Ranked.beside`. Equal validation is equal rank.
    keys: by dotted key that differs, what each run that has it says.
    best: the run with the highest validation figure, the first given among equals.
    tied, near: other runs with the same, and those within one standard error of the best.
    effects: one row a key and value: key, value (as JSON; None for runs without the key), runs, and the mean, lowest
        and highest validation figure of these runs.
    together: groups of keys that change together in all runs: their effects cannot be told apart.
    """

    measure: str
    table: pd.DataFrame
    keys: Mapping[str, Mapping[str, Any]]
    best: str
    tied: Sequence[str]
    near: Sequence[str]
    effects: pd.DataFrame
    together: Sequence[Sequence[str]]
    warnings: Sequence[str]


def sweep(outcomes: Sequence[Outcome]) -> Sweep:
    """Return the ranked experiments and the effects of their params.

    Raises `LeverlabError` for fewer than two runs, for the same run twice, and unless all were validated on the same
    questions at the same shot counts and answered the same test questions.
    """
    test = accuracies([outcome.run for outcome in outcomes], METHOD)
    warnings = [*(warning for outcome in outcomes for warning in outcome.run.warnings), *_check_validation(outcomes)]
    runs = [
        Ranked(
            name=outcome.run.name,
            revision=outcome.run.revision,
            params=outcome.run.params,
            validation=outcome.validation,
            beside={f"test_shots_{shots}": value for shots, value in test[outcome.run.name].items()},
        )
        for outcome in outcomes
    ]
    return rank(runs, "accuracy", warnings)


def rank(runs: Sequence[Ranked], measure: str, warnings: Sequence[str]) -> Sweep:
    """Return runs that can be ranked by `measure`, ranked, and the effects of their params."""
    validation = {run.name: fmean(run.validation.values()) for run in runs}
    errors = {run.name: _standard_error(run) for run in runs}
    top = max(validation.values())
    best, *tied = [name for name, value in validation.items() if value > top - _SAME]
    near = [name for name, value in validation.items() if name not in (best, *tied) and top - value <= errors[best]]
    rows = [
        {
            "run": run.name,
            "revision": run.revision or "",
            "validation": validation[run.name],
            "standard_error": errors[run.name],
            "seeds": len(run.validation),
            **run.beside,
        }
        for run in runs
    ]
    table = pd.DataFrame(rows).sort_values("validation", ascending=False, kind="stable", ignore_index=True)
    ranks = [1 + sum(other > value + _SAME for other in validation.values()) for value in table["validation"]]
    table.insert(0, "rank", ranks)
    keys = differing({run.name: flat(run.params) for run in runs})
    return Sweep(
        measure=measure,
        table=table,
        keys=keys,
        best=best,
        tied=tied,
        near=near,
        effects=_effects(keys, validation),
        together=_together(keys, list(validation)),
        warnings=list(dict.fromkeys(warnings)),
    )


def setting(found: Sweep, run: str) -> dict[str, str | None]:
    """Return what a run says for each key that differs, as JSON, and None for a key that it lacks."""
    return {key: as_text(said[run]) if run in said else None for key, said in found.keys.items()}


def _check_validation(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a warning for runs whose validation questions cannot be read."""
    first = outcomes[0]
    for other in outcomes[1:]:
        one, two = (outcome.run.params.get("eval") for outcome in (first, other))
        if one != two:
            raise LeverlabError(
                f"'{first.run.name}' and '{other.run.name}' were validated at other shot counts (eval is "
                f"{as_text(one)} and {as_text(two)}): their validation accuracies cannot be ranked"
            )
        if None not in (first.validation_set, other.validation_set) and first.validation_set != other.validation_set:
            raise LeverlabError(
                f"'{first.run.name}' and '{other.run.name}' were validated on other questions: their validation "
                "accuracies cannot be ranked; give runs with the same data params"
            )
    unread = [outcome.run.name for outcome in outcomes if outcome.validation_set is None]
    if not unread:
        return []
    return [f"the validation questions of {', '.join(unread)} cannot be read: that they are the same is not checked"]


def _standard_error(run: Ranked) -> float:
    values = list(run.validation.values())
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _effects(keys: Mapping[str, Mapping[str, Any]], validation: Mapping[str, float]) -> pd.DataFrame:
    rows = []
    for key, said in keys.items():
        runs: dict[str | None, list[str]] = {}
        for name in validation:
            runs.setdefault(as_text(said[name]) if name in said else None, []).append(name)
        values = {text: said[names[0]] if text is not None else None for text, names in runs.items()}
        for text in sorted(runs, key=lambda text: _place(text, values[text])):
            reached = [validation[name] for name in runs[text]]
            rows.append((key, text, len(reached), fmean(reached), min(reached), max(reached)))
    frame = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))
    return frame.assign(value=pd.Series([row[1] for row in rows], dtype=object))  # that None stays None


def _place(text: str | None, value: Any) -> tuple[int, float, str]:
    """Return where a value stands: numbers by size, then all others by their text, then none."""
    if text is None:
        return 2, 0.0, ""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, text)


def _together(keys: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """Return the groups of keys that split the runs in the same way."""
    groups: dict[frozenset[frozenset[str]], list[str]] = {}
    for key, said in keys.items():
        text = {name: as_text(said[name]) if name in said else None for name in names}
        by_value = itertools.groupby(sorted(names, key=lambda name: str(text[name])), key=lambda name: str(text[name]))
        groups.setdefault(frozenset(frozenset(members) for _, members in by_value), []).append(key)
    return [members for members in groups.values() if len(members) > 1]
