"""Intervals and paired differences: against plain loops and simulation."""

import numpy as np
import pytest

from capture_lib.retrieval import statistics


def test_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    samples = rng.beta(0.5, 0.8, size=(400, 120))  # 400 test sets of 120 queries; scores pile up at 0 and 1
    intervals = statistics.bootstrap(samples.T, resamples=400, seed=0)
    covered = np.mean([found["low"] <= 0.5 / 1.3 <= found["high"] for found in intervals])
    assert 0.91 <= covered <= 0.98


def test_interval_equals_the_plain_bootstrap():
    values = np.random.default_rng(2).random(50)
    rng = np.random.default_rng(5)
    means = [values[rng.integers(50, size=50)].mean() for _ in range(300)]
    found = statistics.bootstrap(values[:, None], resamples=300, seed=5)[0]
    assert found["low"] == pytest.approx(np.percentile(means, 2.5))
    assert found["high"] == pytest.approx(np.percentile(means, 97.5))


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    easiness = rng.random(300)
    a, b = easiness + 0.02, easiness + rng.normal(0, 0.01, 300)
    found = statistics.paired_difference(a, b)
    assert found["value"] == pytest.approx(np.mean(a - b))
    assert 0.015 < found["low"] < found["value"] < found["high"] < 0.025
    unpaired = statistics.paired_difference(a, rng.permutation(b))
    assert unpaired["high"] - unpaired["low"] > 10 * (found["high"] - found["low"])
    same = statistics.paired_difference(a, a)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}


def noisy(rng, trainings, training_noise, noise=0.05, queries=150):
    """The same method trained several times: (S, Q)."""
    return [rng.normal(rng.normal(0, training_noise), noise, queries) for _ in range(trainings)]


def test_one_training_a_side_gives_the_plain_bootstrap_of_differences():
    rng = np.random.default_rng(3)
    a, b = rng.random(80), rng.random(80)
    expected = statistics.bootstrap((a - b)[:, None], resamples=300, seed=4)[0]
    for found in (statistics.paired_difference(a, b, 300, 4), statistics.paired_difference([a], [b], 300, 4),
                  statistics.paired_difference([a], [b], 300, 4, together=True)):
        assert found == pytest.approx(expected, abs=1e-12)


def test_bootstrap_over_trainings_and_queries_equals_plain_loops():
    rng = np.random.default_rng(5)
    a, b = rng.random((3, 40)), rng.random((1, 40))
    stretched = a.mean(0) + (a - a.mean(0)) * np.sqrt(3 / 2)
    means = []
    for _ in range(20_000):
        drawn, queries = rng.integers(3, size=3), rng.integers(40, size=40)
        means.append(np.mean([stretched[training][queries].mean() for training in drawn]) - b[0][queries].mean())
    found = statistics.paired_difference(list(a), b[0], resamples=20_000)
    assert found["value"] == pytest.approx(np.mean(a) - np.mean(b))
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.005)


def test_noise_between_trainings_widens_the_interval():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    b = [base + rng.normal(0, 0.05, 200) for _ in range(3)]
    quiet, loud = ([base + 0.03 + rng.normal(0, 0.05, 200) + luck * size for luck in (-1, 0, 1)] for size in (0.0, 0.1))
    narrow, wide = statistics.paired_difference(quiet, b), statistics.paired_difference(loud, b)
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])


def test_training_noise_that_both_sides_share_cancels_where_they_are_drawn_together():
    rng = np.random.default_rng(0)
    base = rng.random(100)
    b = [base + luck for luck in (-0.2, 0.0, 0.2)]
    a = [side + 0.05 + rng.normal(0, 0.01, 100) for side in b]
    apart, joined = (statistics.paired_difference(a, b, together=together) for together in (False, True))
    assert apart["low"] < 0 < 0.04 < joined["low"] and joined["high"] < 0.06
    assert apart["value"] == pytest.approx(joined["value"])
    with pytest.raises(ValueError):
        statistics.paired_difference(a, b[:2], together=True)
    with pytest.raises(ValueError):
        statistics.paired_difference(a, [side[:50] for side in b])


def test_intervals_of_three_trainings_cover_about_as_often_as_they_say():
    """Where training noise outweighs all else: about 89 in 100."""
    rng = np.random.default_rng(2)
    found = [statistics.paired_difference(noisy(rng, 3, 0.05), noisy(rng, 3, 0.05), resamples=400) for _ in range(300)]
    assert 0.84 <= np.mean([interval["low"] <= 0 <= interval["high"] for interval in found]) <= 0.94
