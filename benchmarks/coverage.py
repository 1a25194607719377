"""What no selector can pass: the share of test questions whose answer their candidates tell at all.

In a world whose answers only the pool tells, a question is *covered* when every word of its answer stands in the answer
of some candidate; the rest can be answered by luck alone. `python -m benchmarks.coverage` reads what the pipeline wrote
and prints the coverage, and how each method does on covered questions and on the others, at the largest shot count.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from leverlab.records import read_examples, read_table
from leverlab.selector.candidates import read_candidates

PREPARED, ANSWERS = Path("data/prepared"), Path("data/answers.parquet")


def covered(answer: str, candidate_answers: Iterable[str]) -> bool:
    """Return whether every word of `answer` stands in one of `candidate_answers`."""
    return set(answer.split()) <= {word for other in candidate_answers for word in other.split()}


def covered_questions(folder: Path, split: str) -> pd.Series:
    """Return question id → whether it is covered by its first candidate set, for the questions of `split`."""
    pool = {demo.id: demo.answer for demo in read_examples(folder / "pool.parquet")}
    candidates = read_candidates(folder / "candidates.parquet", pool)
    return pd.Series(
        {
            question.id: covered(question.answer, (pool[demo] for demo in candidates.of(question.id, 0)))
            for question in read_examples(folder / f"{split}.parquet")
        }
    )


def main() -> None:
    """Print the coverage of the test questions and the accuracy of every method inside and outside it."""
    inside = covered_questions(PREPARED, "test")
    answers = read_table(ANSWERS, ("method", "shots", "question_id", "vqa_accuracy")).to_pandas()
    answers = answers[answers["shots"] == answers["shots"].max()]
    is_covered = answers["question_id"].map(inside)
    table = Table("method", "all", "covered", "not covered", title=f"{inside.mean():.1%} of {len(inside)} are covered")
    for method, rows in answers.groupby("method", sort=False):
        parts = (rows, rows[is_covered.loc[rows.index]], rows[~is_covered.loc[rows.index]])
        table.add_row(str(method), *(f"{100 * part['vqa_accuracy'].mean():.1f}" for part in parts))
    Console().print(table)


if __name__ == "__main__":
    main()
