"""The section `selector` of params.yaml: the policy's architecture."""

from pydantic import Field

from leverlab.config.base import Section


class SelectorParams(Section):
    """The pointer network."""

    width: int = Field(ge=8, le=4096)
    dropout: float = Field(ge=0, lt=1)  # on the image features, in SFT and RCE only
