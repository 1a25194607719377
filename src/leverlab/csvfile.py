"""CSV files that stages leave for each other, read whole or refused."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pandas.errors import ParserWarning

from leverlab.errors import LeverlabError


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a CSV file, at least one.

    Raises `LeverlabError` when it is missing, cut or damaged, has no rows, or lacks one of `columns`.
    """
    try:
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut")
        with warnings.catch_warnings(action="error", category=ParserWarning):  # rows with more fields than the header
            table = pd.read_csv(path, index_col=False)
        if table.empty:
            raise ValueError("it has no rows")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except (OSError, ValueError, OverflowError, ParserWarning) as error:
        raise LeverlabError(f"{path} is damaged or no CSV ({error}); delete it and run dvc repro again") from None
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise LeverlabError(
            f"{path} lacks the columns {lacking}, it holds {table.columns.tolist()}; run the stage that writes it again"
        )
    return table
