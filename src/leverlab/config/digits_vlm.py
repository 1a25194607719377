"""The section `digits_vlm` of worlds/digits/params.yaml: training of the embedded world's VLM."""

from pydantic import Field

from leverlab.config.base import Section, Seed


class DigitsVlmParams(Section):
    """Meta-training on episodes, and the gate that its result must pass."""

    steps: int = Field(ge=1)
    episodes: int = Field(ge=1)  # of one step
    items: int = Field(ge=2, le=64)  # questions of one episode
    lr: float = Field(gt=0, le=1)
    unseen_weight: float = Field(ge=0, le=1)  # loss weight of answers that cannot be known yet
    head_weight: float = Field(ge=0)  # loss weight of the class heads
    seed: Seed
    save_every: int = Field(ge=1)  # steps between two resume points
    test_episodes: int = Field(ge=1)  # of the matching test
    min_matching: float = Field(ge=0, le=1)  # accuracy at 4 shots below which the stage fails
