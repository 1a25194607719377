"""The sections `sft`, `rce` and `dpo` of a language-model recipe: how adapters learn from fixed dialogues."""

from pydantic import Field

from leverlab.config.base import Section


class UpdateParams(Section):
    """AdamW with warm-up, a cosine to 0, and gradient clip."""

    batch: int = Field(ge=1, le=65_536)  # dialogues of one update
    lr: float = Field(gt=0, le=1)
    warmup: float = Field(ge=0, lt=1)  # share of the updates
    weight_decay: float = Field(ge=0, le=10)
    grad_clip: float = Field(gt=0)
    save_every: int = Field(ge=1)  # updates between two checkpoints


class DialogueSftParams(UpdateParams):
    """Teacher-forcing on the teacher's dialogues."""

    epochs: int = Field(ge=1, le=10_000)


class DialogueRceParams(UpdateParams):
    """Reward-weighted cross-entropy over each group: weights softmax(reward / tau)."""

    steps: int = Field(ge=1)  # updates
    tau: float = Field(gt=0)


class DpoParams(UpdateParams):
    """Preferences between dialogues on one question."""

    epochs: int = Field(ge=1, le=10_000)
    beta: float = Field(gt=0)  # KL weight
    margin: float = Field(gt=0)  # smallest difference of rewards of a pair
    pairs: int = Field(ge=1)  # of one question, at most
