"""A figure with its interval: what every metric gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from .paired_bootstrap import Measurements, interval


@dataclass(frozen=True)
class Figure:
    """A value, the ends of its 95 % bootstrap interval over utterances, and how many utterances it rests on.

    The interval says how far the value would move with other utterances of the same kind. It is too narrow below some
    twenty utterances, and it is a single point where all utterances agree.
    """

    value: float
    low: float
    high: float
    utterances: int


def ratio_figure(
    numerators: Sequence[float], denominators: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Figure:
    """The sum of the numerators over the sum of the denominators, one of each an utterance.

    Raises ValueError for sequences of different lengths, none at all, values that are not finite, and denominators that
    are all zero.
    """
    pairs = zip(numerators, denominators, strict=True)
    measured = Measurements.collect((0, f"{index:09d}", *pair) for index, pair in enumerate(pairs))
    result = interval(measured, resamples=resamples, seed=seed)
    return Figure(result.value, result.low, result.high, len(numerators))


def mean_figure(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Figure:
    """The mean of one value an utterance. Raises ValueError as `ratio_figure` does."""
    return ratio_figure(values, [1.0] * len(values), resamples=resamples, seed=seed)
