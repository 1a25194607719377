"""The section `alarms` of the params of the recipe `clarify`."""

from pydantic import Field

from leverlab.config.base import Section


class AlarmLimits(Section):
    """Beyond which figures a policy is taken to game its reward; the limit itself is kept to. See `lm.alarms`."""

    ask_spam: float = Field(ge=0, le=1)  # share of the dialogues with more than three asks, or the same one twice
    format_exploit: float = Field(ge=0, le=1)  # share that is wrong or ungrounded, and paid well
    variance_spike: float = Field(ge=0, le=1)  # share on which the ensemble of scorers disagrees
    kl: float = Field(gt=0)  # nats per token from the reference, mean of the evaluations in the guard's window
