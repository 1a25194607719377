"""The section `clarify_base` of worlds/clarify/params.yaml: training of the embedded world's language model."""

from pydantic import Field, model_validator

from leverlab.config.base import Section, Seed


class ClarifyBaseParams(Section):
    """Training from random weights, and the reading test that its result must pass."""

    steps: int = Field(ge=1)
    warmup: int = Field(ge=0)  # first steps, in which it repeats sequences and does nothing else
    rows: int = Field(ge=2)  # sequences of one step
    repetitions: int = Field(ge=0)  # of those, sequences to repeat, once the warm-up is over
    length: int = Field(ge=2, le=200)  # tokens of a sequence and the pieces of it that come again
    lr: float = Field(gt=0, le=1)  # peak of AdamW's
    echo_weight: float = Field(ge=0)  # in the warm-up, loss weight of the readers of earlier tokens
    seed: Seed
    save_every: int = Field(ge=1)  # steps between two resume points
    test_dialogues: int = Field(ge=1)  # of the reading test
    min_reading: float = Field(ge=0, le=1)  # share read without a slip, of any family, below which the stage fails

    @model_validator(mode="after")
    def _rows_hold_dialogues(self) -> "ClarifyBaseParams":
        if self.repetitions >= self.rows:
            raise ValueError(f"repetitions = {self.repetitions} leave no room for dialogues in {self.rows} rows")
        return self
