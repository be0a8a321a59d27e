"""Intervals, paired differences, p values and Holm's method: against plain loops, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_1samp

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


def test_noise_between_trainings_widens_the_interval_and_raises_p():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    b = [base + rng.normal(0, 0.05, 200) for _ in range(3)]
    quiet, loud = ([base + 0.03 + rng.normal(0, 0.05, 200) + luck * size for luck in (-1, 0, 1)] for size in (0.0, 0.1))
    narrow, wide = statistics.paired_difference(quiet, b), statistics.paired_difference(loud, b)
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])
    p = statistics.p_values([(quiet, b, False), (loud, b, False), ([loud[2]], [b[0]], False)])
    assert p[0] < 0.01 < 0.3 < p[1] and p[2] < 0.01  # one lucky training alone looks like a finding


def test_training_noise_that_both_sides_share_cancels_where_they_are_drawn_together():
    rng = np.random.default_rng(0)
    base = rng.random(100)
    b = [base + luck for luck in (-0.2, 0.0, 0.2)]
    a = [side + 0.05 + rng.normal(0, 0.01, 100) for side in b]
    apart, joined = (statistics.paired_difference(a, b, together=together) for together in (False, True))
    assert apart["low"] < 0 < 0.04 < joined["low"] and joined["high"] < 0.06
    assert apart["value"] == pytest.approx(joined["value"])
    with pytest.raises(ValueError, match="pair up"):
        statistics.paired_difference(a, b[:2], together=True)
    with pytest.raises(ValueError, match="pair up"):
        statistics.paired_difference(a, [side[:50] for side in b])


@pytest.mark.parametrize("training_noise", [0.0, 0.03])
def test_methods_that_are_alike_are_told_apart_in_5_cases_of_100_at_most(training_noise):
    rng = np.random.default_rng(1)
    pairs = [(noisy(rng, 3, training_noise), noisy(rng, 3, training_noise), False) for _ in range(400)]
    assert np.mean(statistics.p_values(pairs, flips=1000) < 0.05) <= 0.07
    alone = [(a[0], b[0], False) for a, b, _ in pairs]
    found = np.mean(statistics.p_values(alone, flips=1000) < 0.05)
    assert found <= 0.08 if training_noise == 0 else found > 0.5  # one training: noise looks like a difference


def test_intervals_of_three_trainings_cover_about_as_often_as_they_say():
    """Where training noise outweighs all else the docstring says 89 in 100."""
    rng = np.random.default_rng(2)
    found = [statistics.paired_difference(noisy(rng, 3, 0.05), noisy(rng, 3, 0.05), resamples=400) for _ in range(300)]
    assert 0.84 <= np.mean([interval["low"] <= 0 <= interval["high"] for interval in found]) <= 0.94


def test_p_values_equal_all_flips_of_few_queries():
    differences = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.0, 0.02, 0.11])
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    base = np.full(8, 0.5)
    found = statistics.p_values([(base + differences, base, False), (base, base + differences, False),
                                (base, base, False), (base[:1] + 0.4, base[:1], False)], flips=20_000)
    assert found[:2] == pytest.approx(expected, abs=0.005)
    assert found[2] == found[3] == 1  # no difference; one query, which could as well have the other sign


def test_p_values_are_never_0_and_those_of_a_t_test_where_it_is_right():
    rng = np.random.default_rng(3)
    base, gains = rng.random(300), rng.normal([0.01, 0.02, 0.04], 0.2, (300, 3)).T
    found = statistics.p_values([(base + gain, base, False) for gain in gains] + [(base + 0.5, base, False)])
    assert found[:3] == pytest.approx(ttest_1samp(gains, 0, axis=1).pvalue, abs=0.015)
    assert found[3] == 1 / (statistics.FLIPS + 1)
    assert list(statistics.p_values([])) == []


def test_noise_known_from_many_models_lets_three_trainings_tell_apart_what_differs_and_no_more():
    rng = np.random.default_rng(6)
    models = [noisy(rng, 3, 0.02) for _ in range(30)]
    known = statistics.pooled_noise([np.array([model]) for model in models])
    assert known == (pytest.approx(0.02 ** 2, rel=0.4), 60)
    gain = [[training + 0.08 for training in model] for model in models]
    alone = statistics.p_values([(better, model, False) for better, model in zip(gain, models[::-1], strict=True)])
    pairs = [(better, model, False) for better, model in zip(gain, models[::-1], strict=True)]
    assert (statistics.p_values(pairs, [known] * 30) < 0.01).mean() > 0.8 > 0.7 > (alone < 0.01).mean()
    alike = [(model, other, False) for model, other in itertools.pairwise(models)]
    assert (statistics.p_values(alike, [known] * len(alike)) < 0.05).mean() <= 0.1


def test_known_noise_is_never_less_than_a_method_s_own_nor_added_to_one_training():
    quiet, loud = np.zeros((3, 50)), np.zeros((3, 50)) + np.array([[-0.1], [0.0], [0.1]])
    one = np.zeros((1, 50))
    error = statistics.noise_of_difference
    assert error(quiet, one, (0.0004, 60)) == (pytest.approx(0.02 / np.sqrt(3)), 60)
    assert error(quiet, quiet, (0.0004, 60)) == (pytest.approx(0.02 * np.sqrt(2 / 3)), 60)
    assert error(loud, one, (0.0004, 60))[0] == pytest.approx(0.1 / np.sqrt(3))
    assert error(loud, quiet, None) == (pytest.approx(0.1 / np.sqrt(3)), pytest.approx(2))
    assert error(one, one, (0.0004, 60)) == error(quiet, quiet, None) == (0.0, 1.0)
    assert statistics.pooled_noise([one[None]]) is None
    representations = np.stack([loud, quiet])  # of the same trainings: one model, two degrees of freedom
    assert statistics.pooled_noise([representations, one[None]]) == (pytest.approx(0.005), 2)


def test_holm_equals_its_definition():
    rng = np.random.default_rng(4)
    for p in (rng.random(20) ** 4, np.array([0.01, 0.04, 0.03, 0.01]), np.array([0.2]), np.array([])):
        found = statistics.holm(p)
        for i, value in enumerate(p):  # rejected at a level where Holm's steps reach it
            before = [(len(p) - place) * other for place, other in enumerate(sorted(p)) if other <= value]
            assert found[i] == pytest.approx(min(1, max(before)))
        assert (found >= p).all()
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
