"""Opening what the prepare stage wrote, and the scorer on top of it."""

from collections.abc import Sequence
from pathlib import Path

from leverlab.config.vlm import VlmParams
from leverlab.records import Example, read_examples
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import read_candidates
from leverlab.selector.features import read_features
from leverlab.vlm.cache import ScoreCache
from leverlab.vlm.model import load_vlm
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.turns import TurnTable

FEATURES = "features.parquet"


def features_of(folder: Path) -> Path | None:
    """Return the features that go with the selectors in `folder`, or None for those of the prepare stage.

    `folder` is that of an SFT run or of a converted selector; it holds features when the run trained the encoder.
    """
    path = folder / FEATURES
    return path if path.exists() else None


class Prepared:
    """The prepared data in `folder`: `pool`, the asked `splits`, and their features and candidates as `queries`.

    `features` may name a file of other features.
    """

    def __init__(self, folder: Path, splits: Sequence[str], features: Path | None = None):
        self.pool = read_examples(folder / "pool.parquet")
        self.splits = {split: read_examples(folder / f"{split}.parquet") for split in splits}
        self._candidates = read_candidates(folder / "candidates.parquet", [demo.id for demo in self.pool])
        self.queries = self.queries_with(features or folder / FEATURES)

    def queries_with(self, features: Path | None) -> QueryData:
        """Return the features in the file `features` with the candidates; `queries`, which are there, for None."""
        return self.queries if features is None else QueryData(read_features(features), self._candidates)

    def question_types(self) -> dict[str, str]:
        """Return id → question type of all demos and questions."""
        everything = [*self.pool, *(example for examples in self.splits.values() for example in examples)]
        return {example.id: example.question_type for example in everything}

    def scorer(self, questions: Sequence[Example], cache: Path, vlm: VlmParams) -> Scorer:
        """Return a scorer of `questions` before demos of the pool, with its cache at `cache`."""
        table = TurnTable(load_vlm(vlm.source, vlm.dtype))
        table.add_demos(self.pool)
        table.add_questions(questions)
        return Scorer(table, vlm.batch_tokens, vlm.max_new_tokens, ScoreCache(cache))
