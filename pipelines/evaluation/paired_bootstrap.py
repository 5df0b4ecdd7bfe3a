"""Intervals and paired significance of ratios (errors over words, distance over frames) measured on sentences x seeds.

Everything is resampled by whole sentences, since repeat takes and seeds of one sentence are no independent evidence,
and by training seeds where there are several, crossed with the sentences. Two systems are compared on the same draws.
Few seeds say little about how much seeds vary: with three, their part of an interval is about a fifth too narrow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval. For a difference, `p_value` is two-sided; otherwise it is None."""

    value: float
    low: float
    high: float
    p_value: float | None = None


@dataclass(frozen=True)
class Measurements:
    """Numerators and denominators (seeds, sentences) of a ratio: edits and words, distances and frames."""

    seeds: tuple[int, ...]
    sentences: tuple[str, ...]
    numerators: np.ndarray
    denominators: np.ndarray

    @classmethod
    def collect(cls, records: Iterable[tuple[int, str, float, float]]) -> "Measurements":
        """From (seed, sentence, numerator, denominator); takes of one sentence are added up.

        Raises ValueError for no records, a sentence that some seed lacks, and figures that are not finite.
        """
        sums: dict[tuple[int, str], np.ndarray] = {}
        for seed, sentence, numerator, denominator in records:
            key = (seed, sentence)
            sums[key] = np.add(sums.get(key, 0.0), (numerator, denominator))
        if not sums:
            raise ValueError("There are no measurements to compute an interval of.")
        seeds, sentences = sorted({seed for seed, _ in sums}), sorted({sentence for _, sentence in sums})
        missing = [(seed, sentence) for seed in seeds for sentence in sentences if (seed, sentence) not in sums]
        if missing:
            raise ValueError(f"Every seed must be measured on the same sentences; missing are {missing[:5]}.")
        table = np.array([[sums[seed, sentence] for sentence in sentences] for seed in seeds])
        if not np.isfinite(table).all():
            raise ValueError("Some measurements are not finite; look for NaN in the files they come from.")
        if not table[..., 1].sum() > 0:
            raise ValueError("The denominators are all zero: there is no ratio to compute.")
        return cls(tuple(seeds), tuple(sentences), table[..., 0], table[..., 1])

    @property
    def ratio(self) -> float:
        return float(self.numerators.sum() / self.denominators.sum())

    def restrict(self, seeds: Sequence[int]) -> "Measurements":
        """The same for some of the seeds."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        return Measurements(tuple(seeds), self.sentences, self.numerators[chosen], self.denominators[chosen])


def _draws(count: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of `count` units is drawn in each resample, (resamples, count)."""
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def _ratios(measured: Measurements, seeds: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    numerators = ((seeds @ measured.numerators) * sentences).sum(axis=1)
    denominators = ((seeds @ measured.denominators) * sentences).sum(axis=1)
    # A draw of nothing but sentences without words has no ratio.
    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators > 0)


def _resampled(measured: Sequence[Measurements], resamples: int, seed: int) -> list[np.ndarray]:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    generator = np.random.default_rng(seed)
    sentences = _draws(len(measured[0].sentences), resamples, generator)
    seeds = _draws(len(measured[0].seeds), resamples, generator)
    return [_ratios(item, seeds, sentences) for item in measured]


def interval(measured: Measurements, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The ratio and its 95 % percentile interval."""
    (ratios,) = _resampled([measured], resamples, seed)
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    return Interval(measured.ratio, float(low), float(high))


def paired_difference(first: Measurements, second: Measurements, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Ratio of `first` less that of `second`, on the seeds that both have, with interval and p value.

    The p value is twice the smaller share of resamples on either side of zero, one added to both counts, so that it is
    never 0. Raises ValueError if the two were measured on different sentences or share no seed.
    """
    if first.sentences != second.sentences:
        odd = sorted(set(first.sentences) ^ set(second.sentences))
        raise ValueError(f"A paired comparison needs the same sentences; only one of the two has {odd[:3]}.")
    common = [item for item in first.seeds if item in second.seeds]
    if not common:
        raise ValueError(f"No seed in common: {first.seeds} and {second.seeds}.")
    first, second = first.restrict(common), second.restrict(common)
    ratios = _resampled([first, second], resamples, seed)
    differences = ratios[0] - ratios[1]
    differences = differences[np.isfinite(differences)]
    low, high = np.quantile(differences, [0.025, 0.975])
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (smaller + 1) / (len(differences) + 1))
    return Interval(first.ratio - second.ratio, float(low), float(high), float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several comparisons: adjusted p values in the given order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
