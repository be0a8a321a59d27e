"""Whether methods differ: p values by sign flips, the noise of trainings, Holm's method."""

from collections.abc import Sequence

import numpy as np

from capture_lib.retrieval.statistics import Scores

FLIPS = 10_000  # of the signs of all differences, for a p value
CHUNK = 500  # flips at once
Noise = tuple[float, float]  # a variance, and the degrees of freedom it is known with


def p_values(compared: Sequence[tuple[Scores, Scores, bool]],
             known: Sequence[Noise | None] | None = None, flips: int = FLIPS) -> np.ndarray:
    """Return two-sided p values (C,) of comparisons (a, b, together) by a sign-flip test.

    Were both methods alike, each query's difference could as well have the other sign: p is
    the share of random signs, the observed ones among them, whose mean is as far from 0.
    Draws get the noise of trainings, where a side has several, by Student's t; `known`: that
    noise in each comparison, from `pooled_noise`; a side's own counts where it is larger.
    """
    rng = np.random.default_rng([0, 2])
    longest = max([np.shape(a)[-1] for a, _, _ in compared], default=0)
    columns = np.zeros((longest, len(compared)), np.float32)  # each sums to its mean
    noise = np.zeros((2, len(compared)))
    for number, (a, b, together) in enumerate(compared):
        a = np.array(a, float, ndmin=2)  # (S, Q)
        b = np.array(b, float, ndmin=2)
        columns[:a.shape[1], number] = (a.mean(0) - b.mean(0)) / a.shape[1]
        sides = [a - b] if together else [a, b]
        noise[:, number] = noise_of_difference(sides, known[number] if known else None)
    error, freedom = noise
    total = columns.sum(0)
    needed = np.abs(total) - 1e-6 * np.abs(columns).sum(0)  # less by rounding is as much

    # flip all signs, some thousand times
    reached = np.zeros(len(compared))
    for start in range(0, flips, CHUNK):
        count = min(CHUNK, flips - start)
        random = np.frombuffer(rng.bytes(count * -(-longest // 8)), np.uint8)
        bits = np.unpackbits(random.reshape(count, -1), axis=1)[:, :longest]
        drawn = 2 * (bits.astype(np.float32) @ columns) - total  # bits 0, 1 are signs -1, 1
        drawn = drawn + error * rng.standard_t(freedom, size=(count, len(compared)))
        reached += (np.abs(drawn) >= needed).sum(0)
    return (1 + reached) / (1 + flips)


def pooled_noise(models: Sequence[np.ndarray]) -> Noise | None:
    """Return the variance of a training's mean over queries, pooled over models (M, S, Q): M methods,
    S trainings; None where all have S = 1."""
    variance = freedom = 0
    for model in models:
        trainings = model.shape[1]
        if trainings > 1:
            variance += model.mean(2).var(1, ddof=1).mean() * (trainings - 1)
            freedom += trainings - 1
    return (float(variance) / freedom, freedom) if freedom else None


def noise_of_difference(sides: Sequence[np.ndarray], known: Noise | None) -> Noise:
    """Return the standard error, by trainings, of a difference of sides (S, Q), with Welch's degrees of freedom."""
    variance, freedom = known or (0.0, 0)
    error = spread = 0.0  # squared, and for Welch's formula
    for side in sides:
        if len(side) > 1:
            part = max(side.mean(1).var(ddof=1), variance) / len(side)
            error += part
            spread += part**2 / (len(side) - 1)
    return float(np.sqrt(error)), float(max(error**2 / spread, freedom)) if error else 1.0


def holm(p: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p values: below 5%, even one is wrong in 5 of 100 cases at most."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    # the smallest of m times m, the next times m - 1, …; none falls below the one before
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted[np.argsort(order)]
