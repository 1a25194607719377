"""The section `rl_data` of a language-model recipe: groups of dialogues for RCE and DPO."""

from pydantic import Field

from leverlab.config.base import Section


class DialogueGroupParams(Section):
    """Sampling from the SFT policy."""

    questions: int = Field(ge=1)  # of the training split, from its beginning
    group: int = Field(ge=2)  # dialogues of a question
    temperature: float = Field(gt=0)
    alpha: float = Field(ge=0)  # cost of a needless ask in their rewards
    batch: int = Field(ge=1)  # questions of one batch of dialogues; changes the draws
    min_live: float = Field(ge=0, le=1)  # share of groups with any spread of rewards below which the stage fails
