"""How sure a figure is: bootstrap intervals, paired differences over queries and trainings, p values, Holm's method.

Two things could have come out otherwise: which queries the test holds, and what chance did in training (first weights,
order of batches, masks). With one training only the first is in an interval or a p value: how far another training of
the same model would lie away is then not known, and nothing here can tell.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

RESAMPLES = 1000  # of the bootstrap
FLIPS = 10_000  # of the signs of all differences, for a p value
CHUNK = 500  # flips at once
Noise = tuple[float, float]  # how large, and with how many degrees of freedom it is known
Scores = np.ndarray | Sequence[np.ndarray]  # a figure of every query: (Q,), or one (Q,) for each of S trainings


def bootstrap(values: np.ndarray, resamples: int, seed: int) -> list[dict[str, float]]:
    """Mean and 95% percentile interval of each column of (Q, C); all columns see the same draws."""
    queries = len(values)
    if queries == 0:
        raise ValueError("no queries to average over")
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(queries, size=queries), minlength=queries) for _ in range(resamples))
    means = np.array([drawn @ values for drawn in draws]) / queries  # (resamples, C)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    columns = zip(values.mean(axis=0), low, high, strict=True)
    return [dict(zip(("value", "low", "high"), map(float, column), strict=True)) for column in columns]


def paired_difference(
    a: Scores, b: Scores, resamples: int = RESAMPLES, seed: int = 0, together: bool = False
) -> dict[str, float]:
    """Mean of a - b over the same queries and all trainings, with its 95% interval, as `{"value", "low", "high"}`.

    A hard query is hard for both methods: pairing takes that out, so the interval is narrower than the two
    methods' own intervals suggest.

    The interval is a bootstrap over queries and, where a side has several trainings, over them too: trainings are
    drawn again on each side, then queries for both sides jointly. S trainings drawn again show (S - 1) / S of their
    variance, so each one's distance from the mean of its side is first stretched by sqrt(S / (S - 1)).

    With 3 trainings this is coarse: there are ten ways to draw them, and where training noise outweighs all else, an
    interval called 95% held the truth 89 times in 100 (with 2 trainings 81, with 5 trainings 92; simulated). A side
    with one training (or none, such as raw features) is the same in every draw: its training noise is NOT in it.

    Args:
        a, b: (Q,) a figure of every query, or a list of S such arrays, one a training.
        together: the i-th array of both sides comes from one and the same training (one model read in two ways), so
            pairs are drawn: what both gain or lose by a training cancels.
    """
    a, b = sides(a, b, together)
    rng = np.random.default_rng([seed, 1])
    queries = a.shape[1]
    means = drawn_counts(queries, resamples, seed) @ np.concatenate([stretched(a), stretched(b)]).T / queries
    means[:, :len(a)] *= drawn_trainings(len(a), resamples, rng)
    means[:, len(a):] *= drawn_trainings(len(b), resamples, rng)
    drawn = means[:, :len(a)].sum(1) - means[:, len(a):].sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float((a.mean(0) - b.mean(0)).mean()), "low": float(low), "high": float(high)}


def sides(a: Scores, b: Scores, together: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as (S, Q) and (T, Q) float64; `together` leaves the differences and a row of zeros."""
    a, b = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if a.shape[1] != b.shape[1] or together and len(a) != len(b):
        raise ValueError(f"trainings and queries don't pair up: {a.shape} and {b.shape}")
    if a.shape[1] == 0:
        raise ValueError("no queries to average over")
    alike = together or len(a) == len(b) == 1  # drawing the one training of a side again changes nothing
    return (a - b, np.zeros((1, a.shape[1]))) if alike else (a, b)


@lru_cache(maxsize=2)  # of 50 comparisons, most are over the same queries
def drawn_counts(queries: int, resamples: int, seed: int) -> np.ndarray:
    """How often each query is drawn in each resample: (resamples, Q) float64."""
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(queries, size=queries), minlength=queries) for _ in range(resamples))
    return np.array(list(draws), dtype=float)


def stretched(scores: np.ndarray) -> np.ndarray:
    """Scores (S, Q) with each training's distance from their mean sqrt(S / (S - 1)) times as large."""
    trainings, centre = len(scores), scores.mean(0)
    return centre + (scores - centre) * np.sqrt(trainings / max(trainings - 1, 1))


def drawn_trainings(trainings: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The weight of each training in each resample: (resamples, S), rows sum to 1."""
    return rng.multinomial(trainings, np.full(trainings, 1 / trainings), size=resamples) / trainings


def p_values(compared: Sequence[tuple[Scores, Scores, bool]], known: Sequence[Noise | None] | None = None,
             flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided p values (C,) of comparisons (a, b, together), arguments as those of `paired_difference`.

    A sign-flip test over queries: were both methods alike, each query's difference (of the means over trainings) could
    as well have the other sign. So all signs are drawn anew, `flips` times, and p is the share of draws whose mean is
    at least as far from 0 as the one found, which is counted as a draw. Its smallest value is therefore
    1 / (flips + 1), never 0. It assumes no distribution, unlike a t test, and holds for three queries too.

    Flipping signs knows nothing of training noise. Where a side has several trainings, each draw gets some: Student's
    t times the standard error of the trainings' means. Three trainings alone tell little of their noise (Welch: 4
    degrees of freedom at most for 3 against 3), too little for a p value that is to pass among many. So a ledger may
    say what noise is `known` from the trainings of all its methods: that is taken, or a method's own where it is
    larger. It is assumed that the noise of one method is much like that of another. With one training a side, p tells
    whether these two trained models differ, not whether the two methods do.

    Args:
        known: for each comparison the noise of one training's mean (or of the difference of both, where they are
            drawn together) as from `pooled_noise`, or None.
    """
    rng = np.random.default_rng([seed, 2])
    paired = [sides(*comparison) for comparison in compared]
    columns = flippable([(a.mean(0) - b.mean(0)) / a.shape[1] for a, b in paired])  # (Q, C), each sums to its mean
    noise = [noise_of_difference(a, b, pooled)
             for (a, b), pooled in zip(paired, known or [None] * len(paired), strict=True)]
    error, freedom = np.array(noise).reshape(-1, 2).T
    total = columns.sum(0)
    needed = np.abs(total) - 1e-6 * np.abs(columns).sum(0)  # a mean that differs by rounding is the same
    reached = np.zeros(len(paired))
    for first in range(0, flips, CHUNK):
        many = min(CHUNK, flips - first)
        bits = np.unpackbits(np.frombuffer(rng.bytes(many * -(-len(columns) // 8)), np.uint8).reshape(many, -1), 1)
        drawn = 2 * (bits[:, :len(columns)].astype(np.float32) @ columns) - total  # signs: 0 or 1 becomes -1 or 1
        drawn = drawn + error * rng.standard_t(freedom, size=(many, len(paired)))
        reached += (np.abs(drawn) >= needed).sum(0)
    return (1 + reached) / (1 + flips)


def flippable(differences: list[np.ndarray]) -> np.ndarray:
    """Differences as the columns of one float32 array; a shorter one ends in zeros, whose sign does not matter."""
    longest = max(map(len, differences), default=0)
    columns = [np.pad(column, (0, longest - len(column))) for column in differences]
    return np.array(columns, np.float32).reshape(len(differences), longest).T


def pooled_noise(models: Sequence[np.ndarray]) -> Noise | None:
    """The variance of a training's mean over queries, pooled over models, and its degrees of freedom.

    Args:
        models: (M, S, Q) each: M readings of S trainings, whose variances are averaged; models with one training are
            left out. None where none has more.
    """
    several = [model.mean(2) for model in models if model.shape[1] > 1]  # (M, S)
    freedom = sum(means.shape[1] - 1 for means in several)
    if not several:
        return None
    return sum(float(means.var(1, ddof=1).mean()) * (means.shape[1] - 1) for means in several) / freedom, freedom


def noise_of_difference(a: np.ndarray, b: np.ndarray, known: Noise | None) -> Noise:
    """Standard error of mean(a) - mean(b) that comes from trainings, (S, Q) and (T, Q), and its degrees of freedom.

    A side with one training adds nothing: (0, 1) where no side has several.
    """
    least, freedom = known or (0.0, 0)
    parts = [(max(side.mean(1).var(ddof=1), least) / len(side), len(side) - 1) for side in (a, b) if len(side) > 1]
    error = sum(part for part, _ in parts)
    if error == 0:
        return 0.0, 1.0
    welch = error ** 2 / sum(part ** 2 / free for part, free in parts)
    return float(np.sqrt(error)), float(max(welch, freedom))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values: of all claims found at 5%, the chance that even one is wrong stays below 5%.

    The smallest of m p values is multiplied by m, the next by m - 1, and so on; none falls below the one before it in
    that order, nor exceeds 1.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
