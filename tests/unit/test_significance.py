"""P values, the noise of trainings and Holm's method: against enumeration, a t test and simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from capture_lib.experiments import significance


def noisy(rng, trainings, training_noise, noise=0.05, queries=150):
    """The same method trained several times: (S, Q)."""
    return [rng.normal(rng.normal(0, training_noise), noise, queries) for _ in range(trainings)]


def test_noise_between_trainings_raises_p():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    b = [base + rng.normal(0, 0.05, 200) for _ in range(3)]
    quiet, loud = ([base + 0.03 + rng.normal(0, 0.05, 200) + luck * size for luck in (-1, 0, 1)] for size in (0.0, 0.1))
    p = significance.p_values([(quiet, b, False), (loud, b, False), ([loud[2]], [b[0]], False)])
    assert p[0] < 0.01 < 0.3 < p[1] and p[2] < 0.01  # one lucky training alone looks like a finding


@pytest.mark.parametrize("training_noise", [0.0, 0.03])
def test_methods_that_are_alike_are_told_apart_in_5_cases_of_100_at_most(training_noise):
    rng = np.random.default_rng(1)
    pairs = [(noisy(rng, 3, training_noise), noisy(rng, 3, training_noise), False) for _ in range(400)]
    assert np.mean(significance.p_values(pairs, flips=1000) < 0.05) <= 0.07
    alone = [(a[0], b[0], False) for a, b, _ in pairs]
    found = np.mean(significance.p_values(alone, flips=1000) < 0.05)
    assert found <= 0.08 if training_noise == 0 else found > 0.5  # one training: noise looks like a difference


def test_p_values_equal_all_flips_of_few_queries():
    differences = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.0, 0.02, 0.11])
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    base = np.full(8, 0.5)
    found = significance.p_values([(base + differences, base, False), (base, base + differences, False),
                                (base, base, False), (base[:1] + 0.4, base[:1], False)], flips=20_000)
    assert found[:2] == pytest.approx(expected, abs=0.005)
    assert found[2] == found[3] == 1  # no difference; one query, which could as well have the other sign


def test_p_values_are_never_0_and_those_of_a_t_test_where_it_is_right():
    rng = np.random.default_rng(3)
    base, gains = rng.random(300), rng.normal([0.01, 0.02, 0.04], 0.2, (300, 3)).T
    found = significance.p_values([(base + gain, base, False) for gain in gains] + [(base + 0.5, base, False)])
    assert found[:3] == pytest.approx(ttest_1samp(gains, 0, axis=1).pvalue, abs=0.015)
    assert found[3] == 1 / (significance.FLIPS + 1)
    assert list(significance.p_values([])) == []


def test_noise_known_from_many_models_lets_three_trainings_tell_apart_what_differs_and_no_more():
    rng = np.random.default_rng(6)
    models = [noisy(rng, 3, 0.02) for _ in range(30)]
    known = significance.pooled_noise([np.array([model]) for model in models])
    assert known == (pytest.approx(0.02 ** 2, rel=0.4), 60)
    gain = [[training + 0.08 for training in model] for model in models]
    alone = significance.p_values([(better, model, False) for better, model in zip(gain, models[::-1], strict=True)])
    pairs = [(better, model, False) for better, model in zip(gain, models[::-1], strict=True)]
    assert (significance.p_values(pairs, [known] * 30) < 0.01).mean() > 0.8 > 0.7 > (alone < 0.01).mean()
    alike = [(model, other, False) for model, other in itertools.pairwise(models)]
    assert (significance.p_values(alike, [known] * len(alike)) < 0.05).mean() <= 0.1


def test_known_noise_is_never_less_than_a_method_s_own_nor_added_to_one_training():
    quiet, loud = np.zeros((3, 50)), np.zeros((3, 50)) + np.array([[-0.1], [0.0], [0.1]])
    one = np.zeros((1, 50))
    error = significance.noise_of_difference
    assert error([quiet, one], (0.0004, 60)) == (pytest.approx(0.02 / np.sqrt(3)), 60)
    assert error([quiet, quiet], (0.0004, 60)) == (pytest.approx(0.02 * np.sqrt(2 / 3)), 60)
    assert error([loud, one], (0.0004, 60))[0] == pytest.approx(0.1 / np.sqrt(3))
    assert error([loud, quiet], None) == (pytest.approx(0.1 / np.sqrt(3)), pytest.approx(2))
    assert error([one, one], (0.0004, 60)) == error([quiet, quiet], None) == (0.0, 1.0)
    assert significance.pooled_noise([one[None]]) is None
    representations = np.stack([loud, quiet])  # of the same trainings: one model, two degrees of freedom
    assert significance.pooled_noise([representations, one[None]]) == (pytest.approx(0.005), 2)


def test_holm_equals_its_definition():
    rng = np.random.default_rng(4)
    for p in (rng.random(20) ** 4, np.array([0.01, 0.04, 0.03, 0.01]), np.array([0.2]), np.array([])):
        found = significance.holm(p)
        for i, value in enumerate(p):  # rejected at a level where Holm's steps reach it
            before = [(len(p) - place) * other for place, other in enumerate(sorted(p)) if other <= value]
            assert found[i] == pytest.approx(min(1, max(before)))
        assert (found >= p).all()
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
