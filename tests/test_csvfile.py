"""CSV files of other stages: whole, or one sentence that says what is wrong with them."""

from pathlib import Path

import pandas as pd
import pytest

from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError


def test_a_table_reads_back(tmp_path: Path) -> None:
    rows = pd.DataFrame({"epoch": [0, 1], "loss": [1.5, None], "method": ["sft", "grpo"]})
    rows.to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "a.csv", ["epoch", "method"]), rows, check_dtype=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no CSV"),
        (b"epoch,loss\n", "it has no rows"),
        (b"epoch,loss\n0,1.25\n1,1.2", "its last line is cut"),
        (b"epoch,loss\n0,1.25,7\n1,1.2,8\n", "damaged or no CSV .*header"),
        (b"epoch,loss\n0,1\n1,2,3\n", "damaged or no CSV"),
        (b"\xff\xfe\x00\x81\n", "damaged or no CSV"),
        (b"epoch,los\n0,1\n", r"lacks the columns \['loss'\], it holds \['epoch', 'los'\]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(LeverlabError, match=rf"a\.csv .*{message}"):
        read_csv(tmp_path / "a.csv", ["epoch", "loss"])


def test_a_file_that_is_missing_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"a\.csv does not exist; run the stage that writes it"):
        read_csv(tmp_path / "a.csv", [])
    with pytest.raises(LeverlabError, match="damaged or no CSV"):
        read_csv(tmp_path, [])
