"""The data card of the recipe `clarify`: what its splits hold, as Markdown that is the same for the same data."""

import hashlib
from collections.abc import Mapping, Sequence

import pandas as pd

from leverlab.lm.questions import Question
from leverlab.lm.records import Taught
from leverlab.markdown import code, inline

_EXAMPLES = 2  # of each split


def data_card(
    world: str, splits: Mapping[str, Sequence[Question]], taught: Sequence[Taught], notes: Sequence[str]
) -> str:
    """Return the card: counts by family, need and user, what the teacher does, digests, examples. No time, no path."""
    rows = [
        {"split": name, "family": q.family, "kind": q.kind, "needs ask": q.needs_ask, "user": q.user}
        for name, questions in splits.items()
        for q in questions
    ]
    frame = pd.DataFrame(rows)
    order = list(splits)
    counts = frame.groupby(["split", "family"], sort=False)["needs ask"].agg(["size", "mean"]).reset_index()
    counts.columns = pd.Index(["split", "family", "questions", "share that needs an ask"])
    kinds = frame.pivot_table(index="kind", columns="split", aggfunc="size", fill_value=0)[order].reset_index()
    users = frame.pivot_table(index="user", columns="split", aggfunc="size", fill_value=0)[order].reset_index()
    digests = pd.DataFrame([{"split": name, "sha256": digest(found)} for name, found in splits.items()])
    examples = pd.DataFrame(
        [
            {"split": name, "kind": q.kind, "text": q.text[:300], "slot": q.slot, "answer": q.answer}
            for name, questions in splits.items()
            for q in questions[:_EXAMPLES]
        ]
    )
    return "\n\n".join(
        [
            f"# Data card: {inline(world)}",
            *notes,
            "## Questions",
            _table(counts),
            "## By kind",
            _table(kinds),
            "## By user",
            _table(users),
            "## The teacher",
            _table(teacher_table(splits["train"], taught)),
            "## Digests",
            _table(digests, code_of="sha256"),
            "## Examples",
            _table(examples),
            "",
        ]
    )


def teacher_table(questions: Sequence[Question], taught: Sequence[Taught]) -> pd.DataFrame:
    """Return what the teacher does, by family: how often it asks in need and without, and answers without a needed
    ask."""
    by_id = {question.id: question for question in questions}
    rows = [(by_id[found.question], len(found.turns) > 1) for found in taught]
    table = []
    for family in sorted({question.family for question, _ in rows}):
        needed = [asked for question, asked in rows if question.family == family and question.needs_ask]
        others = [asked for question, asked in rows if question.family == family and not question.needs_ask]
        table.append(
            {
                "family": family,
                "asks when it needs to": _share(needed),
                "asks when it need not": _share(others),
            }
        )
    return pd.DataFrame(table)


def digest(questions: Sequence[Question]) -> str:
    """Return the SHA-256 over the questions, in their order."""
    return hashlib.sha256("\n".join(question.model_dump_json() for question in questions).encode()).hexdigest()


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _table(frame: pd.DataFrame, code_of: str | None = None) -> str:
    """Return a table in Markdown that shows texts as they are, also one that is a number: the answer 12.50 stays.

    code_of: the column that is set as code.
    """
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    shown = frame.assign(**{name: frame[name].map(code if name == code_of else inline) for name in texts})
    places = [frame.columns.get_loc(name) for name in texts]
    return str(shown.to_markdown(index=False, floatfmt=".3f", disable_numparse=places))
