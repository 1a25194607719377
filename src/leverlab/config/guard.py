"""The section `grpo.guard` of params.yaml."""

from pydantic import Field, model_validator

from leverlab.config.base import Section


class GuardParams(Section):
    """What a policy must keep to after each epoch, on the validation questions; null switches a limit off.

    Beyond a limit the run goes back to its last good epoch with a smaller learning rate, at most `max_rollbacks` times;
    then it stops. An epoch that was beyond a limit is never chosen.
    """

    window: int = Field(ge=1)  # evaluations over which the KL is averaged
    min_kl: float | None = Field(ge=0)  # nats per pick; below it there is an alarm, and no way back
    max_kl: float | None = Field(gt=0)  # nats per pick
    min_entropy: float | None = Field(gt=0)  # nats per pick
    min_distinct: float | None = Field(gt=0, lt=1)  # different demos as a share of all picks
    max_identical: float | None = Field(gt=0, lt=1)  # share of the questions that get the most frequent list
    max_falls: int | None = Field(ge=1)  # falls of the validation accuracy in a row, after which the run stops
    max_rollbacks: int = Field(ge=0)
    lr_factor: float = Field(gt=0, lt=1)  # on the learning rate, for each time that the run went back

    @model_validator(mode="after")
    def _window_is_open(self) -> "GuardParams":
        if self.min_kl is not None and self.max_kl is not None and self.min_kl >= self.max_kl:
            raise ValueError(f"min_kl = {self.min_kl} must be below max_kl = {self.max_kl}")
        return self
