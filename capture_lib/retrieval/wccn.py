"""Map vectors so that photos of one product come together, by pairs nobody labelled.

Within-class covariance normalisation (WCCN; Hatch, Kajarekar and Stolcke, 2006) divides
by what differs between vectors of one class. Its classes are labels; here a pair is two
photos that are near by region features and words together. What differs within a pair
(promises, light, pose) counts less afterwards; brand, line and kind count more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from capture_lib.retrieval.embedding import EmbeddedSet, Vectors, unit


@dataclass(frozen=True)
class WccnSettings:
    """As val chose: 3 to 10 neighbours or a ridge of 0.02 to 0.5 hardly differ."""

    neighbours: int = 3  # pairs that each photo makes
    ridge: float = 0.1  # share of the mean variance added to every direction


def differences(vectors: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return what differs in mined pairs (n·K, D): vectors (n, D), neighbours (n, K)."""
    vectors = unit(vectors)
    pairs = vectors[:, None] - vectors[nearest]  # (n, K, D)
    return pairs.reshape(-1, vectors.shape[1])


def inverse_root(differences: np.ndarray, ridge: float) -> np.ndarray:
    """Return W^(-1/2) (D, D), symmetric; W is the mean of d dᵀ over (n, D), plus a ridge.

    It maps the differences to equal variance in all directions, but for the ridge.
    """
    within = differences.T @ differences / len(differences)
    width = len(within)
    within = within + ridge * np.trace(within) / width * np.eye(width)
    variances, directions = np.linalg.eigh(within)
    return directions / np.sqrt(np.maximum(variances, 1e-12)) @ directions.T


def learn_maps(
    vectors: Vectors, nearest: np.ndarray, settings: WccnSettings
) -> dict[str, np.ndarray]:
    """Learn a map (D, D) for each of the named vectors (n, D) of single products.

    Args:
        nearest: rows of each photo's neighbours (n, K or more).
    """
    maps = {}
    for name, part in vectors.items():
        pairs = differences(part, nearest[:, : settings.neighbours])
        maps[name] = inverse_root(pairs, settings.ridge)
    return maps


def apply_maps(
    samples: EmbeddedSet, maps: Mapping[str, np.ndarray], only: Collection[str] = ()
) -> EmbeddedSet:
    """Map the vectors of both levels; `only` some, where named."""

    def mapped(vectors: Vectors) -> Vectors:
        result = dict(vectors)
        for name in only or maps:
            if name in vectors and name in maps:
                result[name] = unit(unit(vectors[name]) @ maps[name])
        return result

    return replace(
        samples, image=mapped(samples.image), instance=mapped(samples.instance)
    )
