"""The section `selector` of params.yaml: the policy's architecture."""

from typing import Literal

from pydantic import Field, StrictBool

from leverlab.config.base import Section

StateUpdate = Literal["gru", "gated", "static"]
HeadKind = Literal["dot", "bilinear", "additive"]


class SelectorParams(Section):
    """The pointer network."""

    width: int = Field(ge=8, le=4096)
    dropout: float = Field(ge=0, lt=1)  # on the image features, in SFT and RCE only
    state: StateUpdate  # how the query vector changes with a pick
    head: HeadKind  # how query vector and candidate make a logit
    mmr: StrictBool  # whether logits fall with the similarity to demos already picked
    stop: StrictBool  # whether the policy may end a list before it has all demos
