"""How sure a figure is: bootstrap intervals over queries, and over trainings where there are some."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000  # of the bootstrap
Scores = np.ndarray | Sequence[np.ndarray]  # of every query: (Q,), or one (Q,) a training


def bootstrap(values: np.ndarray, resamples: int, seed: int) -> list[dict]:
    """Return mean and 95% percentile interval over queries of each column of (Q, C)."""
    means = resampled_counts(len(values), resamples, seed) @ values / len(values)
    return list(map(interval, values.mean(0), means.T))


def interval(value: float, drawn: np.ndarray) -> dict:
    """Return a figure with the 95% percentile interval of its resamples (n,)."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def resampled_counts(queries: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each resample draws each query: (resamples, Q) float64."""
    if queries == 0:
        raise ValueError("no queries to average over")
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, queries))
    for row in counts:
        row[:] = np.bincount(rng.integers(queries, size=queries), minlength=queries)
    return counts


def paired_difference(a: Scores, b: Scores, resamples: int = RESAMPLES, seed: int = 0,
                      together: bool = False) -> dict:
    """Return the mean of a - b over queries and trainings with its 95% bootstrap interval;
    `together`: the i-th of both sides are of one training, whose noise cancels."""
    a = np.array(a, float, ndmin=2)  # (S, Q)
    b = np.array(b, float, ndmin=2)
    sides = [(a, 1), (b, -1)]
    if together or len(a) == len(b) == 1:  # one training drawn again changes nothing
        sides = [(a - b, 1)]
    rng = np.random.default_rng([seed, 1])
    counts = resampled_counts(a.shape[1], resamples, seed)
    drawn = np.zeros(resamples)
    for side, sign in sides:
        # S trainings drawn again show (S - 1) / S of their variance, so stretch it
        trainings = len(side)
        stretch = np.sqrt(trainings / max(trainings - 1, 1))
        centre = side.mean(0)
        stretched = centre + (side - centre) * stretch
        means = counts @ stretched.T / a.shape[1]  # (resamples, S)
        draws = rng.multinomial(trainings, np.full(trainings, 1 / trainings), resamples)
        drawn += sign * (means * draws).sum(1) / trainings
    return interval(a.mean() - b.mean(), drawn)
