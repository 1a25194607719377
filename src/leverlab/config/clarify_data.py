"""The sections `data` and `teacher` of the params of the recipe `clarify`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from leverlab.config.base import Number, Section, Seed

Share = Annotated[Number, Field(ge=0, le=1)]


class SourceParams(Section):
    """One family of the world hub."""

    source: str = Field(min_length=1)  # hub id, local folder or file
    split: str = Field(min_length=1)  # of the source: what all splits but ood are made from
    ood: str = Field(min_length=1)  # of the source: its own evaluation split


class ClarifyDataParams(Section):
    """Where questions come from, and how many there are of each split."""

    world: Literal["clarify", "hub"]  # embedded, or HotpotQA, StrategyQA and GSM8K with facts taken out
    sources: dict[str, SourceParams]  # of the world hub, by family
    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    ood: int = Field(ge=1)  # held-out names, cities and wordings (embedded world)
    red_team: int = Field(ge=5)  # bait, forbidden asks, unhelpful users, facts told twice, distractors
    shadow: int = Field(ge=10)  # questions of the transcripts on which the shadow gate compares scorers
    calib: int = Field(ge=10)  # questions of the transcripts that the new scorer is calibrated on
    seed: Seed

    @model_validator(mode="after")
    def _sources_fit(self) -> "ClarifyDataParams":
        families = {"multihop", "strategy", "math"}
        if self.world == "hub" and set(self.sources) != families:
            raise ValueError(f"The world hub needs a source for each of {', '.join(sorted(families))}")
        return self


class TeacherParams(Section):
    """The habits of the teacher whose dialogues SFT imitates: wrong by majority on named slices.

    needless, guess: family → for each wording (in order, cyclic), how often it asks when it need not, and how often it
    makes up the fact that it should ask for.
    """

    needless: dict[str, tuple[Share, ...]]
    guess: dict[str, tuple[Share, ...]]
    wrong_slot: float = Field(ge=0, le=1)  # how often it first asks for another fact than the one that is missing
    seed: Seed

    @model_validator(mode="after")
    def _every_family_has_habits(self) -> "TeacherParams":
        for name in ("needless", "guess"):
            habits: dict[str, tuple[float, ...]] = getattr(self, name)
            if set(habits) != {"multihop", "strategy", "math"} or not all(habits.values()):
                raise ValueError(f"{name} needs a list of rates for each of multihop, strategy and math")
        return self
