"""Map vectors so that photos of one product come together, by pairs nobody labelled.

Within-class covariance normalisation (WCCN; Hatch, Kajarekar and Stolcke, 2006) divides by
what differs within a class. Here a class is a mined pair: two photos that are near by region
features and words together. Promises, light, pose count less afterwards; brand and kind more.
"""

from collections.abc import Collection
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
    apart = vectors[:, None] - vectors[nearest]  # (n, K, D)
    return apart.reshape(-1, vectors.shape[1])


def inverse_root(differences: np.ndarray, ridge: float) -> np.ndarray:
    """Return W^(-1/2) (D, D) for W = the mean of d dᵀ over differences (n, D), plus a ridge.

    Mapped by it, differences have equal variance in all directions, but for the ridge.
    """
    within = differences.T @ differences / len(differences)
    width = len(within)
    within = within + ridge * np.trace(within) / width * np.eye(width)
    # scale along the eigenvectors
    variances, directions = np.linalg.eigh(within)
    return directions / np.sqrt(np.maximum(variances, 1e-12)) @ directions.T


def learn_maps(vectors: Vectors, nearest: np.ndarray, settings: WccnSettings) -> Vectors:
    """Return a map (D, D) for each of the named vectors (n, D) of single products.

    Args:
        nearest: rows of each photo's neighbours (n, K), the nearest first.
    """
    maps = {}
    for name, part in vectors.items():
        apart = differences(part, nearest[:, :settings.neighbours])
        maps[name] = inverse_root(apart, settings.ridge)
    return maps


def apply_maps(samples: EmbeddedSet, maps: Vectors, only: Collection[str] = ()) -> EmbeddedSet:
    """Return the samples with the vectors of both levels mapped; `only` some, where named."""
    image, instance = dict(samples.image), dict(samples.instance)
    for vectors in (image, instance):
        for name in vectors.keys() & maps.keys():
            if not only or name in only:
                vectors[name] = unit(unit(vectors[name]) @ maps[name])
    return replace(samples, image=image, instance=instance)
