"""Clustered intervals and paired significance on constructed numbers whose answer is known."""

import numpy as np
import pytest

from e2e_tts.pipelines.evaluation.paired_bootstrap import Measurements, holm, interval, paired_difference


def measured(values: np.ndarray) -> Measurements:
    """Means of values (seeds, sentences)."""
    return Measurements(
        tuple(range(len(values))),
        tuple(f"sentence {index:03d}" for index in range(values.shape[1])),
        values.astype(float),
        np.ones(values.shape),
    )


def test_records_are_added_up_by_sentence_and_seed():
    records = [(1, "b", 1, 4), (0, "a", 2, 5), (0, "b", 0, 3), (1, "a", 3, 5), (0, "a", 1, 5)]
    table = Measurements.collect(records)
    assert table.seeds == (0, 1) and table.sentences == ("a", "b")
    assert table.numerators.tolist() == [[3, 0], [3, 1]] and table.denominators.tolist() == [[10, 3], [5, 4]]
    assert table.ratio == pytest.approx(7 / 22)


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "no measurements"),
        ([(0, "a", 1, 2), (1, "b", 1, 2)], r"same sentences; missing are \[\(0, 'b'\)"),
        ([(0, "a", float("nan"), 2)], "not finite"),
        ([(0, "a", 0, 0)], "all zero"),
    ],
)
def test_unusable_records_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        Measurements.collect(records)


def test_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(3.0, 2.0, (1, 400))
    result = interval(measured(values), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert result.value == pytest.approx(values.mean())
    assert result.high - result.value == pytest.approx(half, rel=0.08)
    assert result.value - result.low == pytest.approx(half, rel=0.08)


def test_repeats_of_a_sentence_are_no_new_evidence():
    values = np.random.default_rng(1).normal(size=40)
    once = Measurements.collect((0, f"{index:02d}", value, 1) for index, value in enumerate(values))
    takes = Measurements.collect((0, f"{index % 40:02d}", values[index % 40], 1) for index in range(400))
    # Seeds that all agree are none either.
    seeds = measured(np.tile(values, (3, 1)))
    narrow = interval(once)
    for other in (takes, seeds):
        wide = interval(other)
        assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.1)


def test_seeds_that_differ_widen_the_interval_but_cancel_in_a_pair():
    random = np.random.default_rng(2)
    base = random.normal(size=(1, 200)) * 0.1
    offsets = np.array([[-1.0], [0.0], [1.0]])
    first, second = measured(base + offsets), measured(base + offsets + 0.05 + 0.01 * random.normal(size=(3, 200)))
    result = interval(first)
    assert result.high - result.low > 1.0
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(-0.05, abs=0.005)
    assert difference.high < -0.04 and difference.p_value < 0.01


def test_pairs_find_what_separate_intervals_hide():
    random = np.random.default_rng(3)
    hard = random.exponential(1.0, (1, 100))
    first, second = measured(hard), measured(hard * 0.95)
    intervals = interval(first), interval(second)
    assert intervals[1].high > intervals[0].low
    difference = paired_difference(first, second)
    assert difference.low > 0 and difference.p_value < 0.01
    reverse = paired_difference(second, first)
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low)
    )
    same = paired_difference(first, first)
    assert same.value == same.low == same.high == 0.0 and same.p_value == 1.0


def test_chance_differences_are_significant_about_as_often_as_promised():
    random = np.random.default_rng(4)
    found = sum(
        paired_difference(
            measured(random.normal(size=(1, 60))), measured(random.normal(size=(1, 60))), resamples=400, seed=trial
        ).p_value
        < 0.05
        for trial in range(200)
    )
    assert 2 <= found <= 24


def test_only_common_seeds_and_equal_sentences_are_compared():
    values = np.arange(12.0).reshape(3, 4)
    first, second = measured(values), measured(values[:2] + 1).restrict([1])
    assert paired_difference(first, second).value == pytest.approx(-1.0)
    other = Measurements((0,), ("x",), np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="same sentences"):
        paired_difference(first, other)
    with pytest.raises(ValueError, match="No seed in common"):
        paired_difference(first.restrict([0]), second)
    with pytest.raises(ValueError, match="at least 1"):
        interval(first, resamples=0)


def test_holm():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
