"""Which epoch a strategy chooses, by hand, and runs that cannot be read."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.selector.checkpoints import save_selector
from leverlab.training.loop import checkpoint_name
from leverlab.training.runs import choose_epoch, load_epoch, publish_run, read_metrics

NAN = float("nan")
ROWS = pd.DataFrame(
    {
        "epoch": [0, 1, 2, 3, 4],
        "val_accuracy": [0.20, 0.50, 0.70, 0.70, 0.60],
        "val_loss": [3.0, 1.0, 1.5, 1.0, 2.0],
        "kl": [NAN, 0.10, 0.40, 0.30, 0.50],
    }
)


def test_each_strategy_by_hand() -> None:
    """Accuracy .7 stands at 2 and 3, loss 1 at 1 and 3: the earliest among equals."""
    assert choose_epoch(ROWS, "val_accuracy") == 2
    assert choose_epoch(ROWS, "val_loss") == 1
    assert choose_epoch(ROWS, "last") == 4


@pytest.mark.parametrize(("max_kl", "epoch"), [(10.0, 2), (0.4, 2), (0.39, 3), (0.2, 1), (0.05, 0)])
def test_kl_takes_the_best_accuracy_within_the_divergence(max_kl: float, epoch: int) -> None:
    """The start has no divergence and counts as 0; a divergence of just the limit is within it."""
    assert choose_epoch(ROWS, "kl", max_kl) == epoch


def test_other_strategies_do_not_look_at_the_divergence() -> None:
    for strategy, epoch in (("val_accuracy", 2), ("val_loss", 1), ("last", 4)):
        assert choose_epoch(ROWS, strategy, max_kl=0.0) == epoch


def test_a_run_beyond_the_divergence_is_refused() -> None:
    with pytest.raises(LeverlabError, match=r"max_kl = 0\.05"):
        choose_epoch(ROWS[1:], "kl", 0.05)


def test_no_strategy_chooses_an_epoch_that_the_guard_undid() -> None:
    """Epochs 1, 2 and 4 were undone; of the others 3 is the best, has the lowest loss and is the last."""
    guarded = ROWS.assign(sound=[True, False, False, True, False])
    for strategy in ("val_accuracy", "val_loss", "last", "kl"):
        assert choose_epoch(guarded, strategy, max_kl=1.0) == 3


def test_the_answer_is_an_epoch_and_not_a_row() -> None:
    later = ROWS.assign(epoch=ROWS["epoch"] * 10 + 5)
    assert choose_epoch(later, "val_accuracy") == 25
    assert choose_epoch(later, "kl", 0.2) == 15
    assert choose_epoch(later, "last") == 45


def test_metrics_read_back(tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(read_metrics(tmp_path / "metrics.csv"), ROWS)


BAD: dict[str, str | bytes] = {
    "empty": "",
    "only a header": "epoch,val_accuracy,val_loss,kl\n",
    "no kl": "epoch,val_accuracy,val_loss\n0,0.1,1.0\n",
    "no accuracy in a row": "epoch,val_accuracy,val_loss,kl\n0,0.1,1.0,\n1,,1.0,\n",
    "ragged": "epoch,val_accuracy,val_loss,kl\n0,0.1,1.0,0\n1,1,1,1,1,1\n",
    "no text": b"\xff\xfe\x00\x81",
}


@pytest.mark.parametrize("name", BAD)
def test_metrics_that_are_no_run_are_refused(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / "metrics.csv", BAD[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LeverlabError, match="again") as error:
        read_metrics(path)
    assert str(path) in str(error.value)


def test_missing_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match="does not exist"):
        read_metrics(tmp_path / "metrics.csv")


@pytest.fixture(name="run")
def write_run(toy: Any, tmp_path: Path) -> Path:
    """A run of five epochs, each with other weights."""
    folder = tmp_path / "run"
    for epoch in range(5):
        save_selector(folder / checkpoint_name(epoch), toy.selector(seed=epoch))
    ROWS.to_csv(folder / "metrics.csv", index=False)
    (folder / "resume.pt").write_bytes(b"state")
    return folder


@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("last", 4)])
def test_the_best_or_last_epoch_is_loaded(run: Path, toy: Any, which: str, epoch: int) -> None:
    selector = load_epoch(run, which)
    assert torch.equal(selector.key.weight, toy.selector(seed=epoch).key.weight)
    assert not selector.training


def test_a_run_is_published_without_what_is_not_its_result(run: Path, tmp_path: Path) -> None:
    """Neither the resume state nor the beginning of a file that a kill has cut off."""
    (run / ".epoch-002.safetensors.123.partial").write_bytes(b"half")
    publish_run(run, tmp_path / "outs" / "0")
    names = {"metrics.csv", *(checkpoint_name(epoch) for epoch in ROWS["epoch"])}
    assert {file.name for file in (tmp_path / "outs" / "0").iterdir()} == names
    for name in names:
        assert (tmp_path / "outs" / "0" / name).read_bytes() == (run / name).read_bytes()
