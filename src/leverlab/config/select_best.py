"""The section `select_best` of params.yaml."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section


class SelectBestParams(Section):
    """How one checkpoint of each method and seed is chosen, on validation questions."""

    strategy: Literal["val_accuracy", "val_loss", "kl", "last"]
    max_kl: float = Field(gt=0)  # for strategy 'kl': the best accuracy among checkpoints within this divergence
