"""The section `sft` of params.yaml."""

from leverlab.config.training import OptimiserParams


class SftParams(OptimiserParams):
    """Teacher-forcing on the best beams."""
