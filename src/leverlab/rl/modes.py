"""Names of the choices in the reinforcement-learning maths, for params and for the functions that read them."""

from typing import Literal, get_args

AdvantageMode = Literal["zscore", "rank", "mean_centred"]
ADVANTAGE_MODES: tuple[str, ...] = get_args(AdvantageMode)
RatioLevel = Literal["pick", "trajectory"]
RATIO_LEVELS: tuple[str, ...] = get_args(RatioLevel)
