"""The words and number formats that tables, figures and the page share."""

import math

from leverlab.evaluation.statistics import NO_DIFFERENCE

LABELS = {
    "zero_shot": "Zero-shot",
    "random": "Random demos",
    "fixed": "Fixed demos",
    "image_sim": "Image similarity",
    "text_sim": "Text similarity",
    "mix": "Mixed similarity",
    "type_sim": "Type + image similarity",
    "sft": "SFT",
    "rce": "RCE",
    "sft_control": "SFT control",
    "grpo": "GRPO",
    "oracle": "Greedy oracle",
}
MEANINGS = {
    "zero_shot": "no demo",
    "random": "demos drawn at random from the candidates of the question",
    "fixed": "one list of demos for every question",
    "image_sim": "the candidates whose images are most similar to that of the question",
    "text_sim": "the candidates whose questions are most similar",
    "mix": "the candidates most similar by the mean of both",
    "type_sim": "candidates of the same question type first, then by image similarity",
    "sft": "the selector, taught the best beams that the VLM scored",
    "rce": "the selector after reward-weighted cross-entropy",
    "sft_control": "GRPO's start, scorings and updates, spent on imitating the best lists (rejection sampling)",
    "grpo": "the selector after group-relative policy optimisation",
    "oracle": "each next demo is the one that makes the true answer most probable: no method, but a yardstick",
}
NOTHING = "–"


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage with one digit: 0.8163 is "81.6"."""
    return NOTHING if math.isnan(share) else f"{_rounded(share):.1f}"


def points(share: float) -> str:
    """Return a difference of shares as percentage points with a sign: -0.004 is "−0.4"."""
    if math.isnan(share):
        return NOTHING
    value = _rounded(share)
    return f"{'+' if value > 0 else ''}{value:.1f}".replace("-", "−")


def percent_interval(low: float, high: float) -> str:
    """Return an interval of shares as percentages: "[79.0, 84.1]"."""
    return f"[{percent(low)}, {percent(high)}]"


def points_interval(low: float, high: float) -> str:
    """Return an interval of differences as percentage points: "[−1.2, +3.0]"."""
    return f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """Return a p-value with three digits, and "< 0.001" below that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def side(verdict: str) -> str:
    """Return what a verdict of `leverlab.evaluation.statistics` says of A: above, below or no difference shown."""
    return verdict.removeprefix("A ").removesuffix(" B")


def verdict_text(verdict: str, a: str, b: str) -> str:
    """Return a verdict with the methods' labels for A and B."""
    return verdict if verdict == NO_DIFFERENCE else f"{LABELS[a]} {side(verdict)} {LABELS[b]}"


def number(value: object) -> str:
    """Return any value of a JSON file as text for a table cell: counts in full, other numbers with four digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def count(n: int, noun: str) -> str:
    """Return "1 seed" or "3 seeds"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _rounded(share: float) -> float:
    return round(100 * share, 1) + 0.0  # + 0.0: no negative zero
