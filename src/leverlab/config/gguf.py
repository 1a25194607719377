"""The section `gguf` of params.yaml."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section


class GgufParams(Section):
    """Which files are written."""

    kinds: tuple[Literal["f16", "q8_0"], ...] = Field(min_length=1)
