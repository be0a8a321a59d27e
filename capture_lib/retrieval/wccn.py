"""A linear map that makes photos of one product alike, from pairs that nobody labelled (notebook 08).

Within-class covariance normalisation (WCCN; Hatch, Kajarekar and Stolcke, Interspeech 2006) divides by what differs
between vectors of one class. Its classes are labels; here a pair is two photos that are near by region features and
words together. What differs within such a pair (the seller's promises, light, pose) counts less afterwards, what
doesn't differ (brand, line, kind) counts more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from capture_lib.retrieval.embedding import EmbeddedSet, Vectors, unit


@dataclass(frozen=True)
class WhiteningSettings:
    """As val has chosen; on val the figure hardly moves between 3 and 10 neighbours, and a ridge of 0.02 and 0.5."""

    neighbours: int = 3  # pairs that each photo makes
    ridge: float = 0.1  # share of the mean variance that is added to every direction


def differences(vectors: np.ndarray, near: np.ndarray) -> np.ndarray:
    """What differs within matched pairs: (n·K, D), from vectors (n, D), scaled to length 1, and neighbours (n, K)."""
    vectors = unit(vectors)
    return (vectors[:, None] - vectors[near]).reshape(-1, vectors.shape[1])


def inverse_root(differences: np.ndarray, ridge: float) -> np.ndarray:
    """W^(-1/2) as (D, D), symmetric: W is the mean of d dᵀ over differences (n, D), plus the ridge.

    Mapped by it, the differences have the same variance in every direction, but for the ridge.
    """
    within = differences.T @ differences / len(differences)
    variances, directions = np.linalg.eigh(within + ridge * np.trace(within) / len(within) * np.eye(len(within)))
    return directions / np.sqrt(np.maximum(variances, 1e-12)) @ directions.T


def learned(parts: Vectors, near: np.ndarray, settings: WhiteningSettings) -> dict[str, np.ndarray]:
    """The map (D, D) of each block of vectors (n, D) of photos of one product, by their neighbours (n, K or more)."""
    return {name: inverse_root(differences(vectors, near[:, :settings.neighbours]), settings.ridge)
            for name, vectors in parts.items()}


def mapped(side: EmbeddedSet, maps: Mapping[str, np.ndarray], only: Collection[str] = ()) -> EmbeddedSet:
    """The side with its vectors mapped, both forms; `only` some blocks, where named."""
    def of(vectors: Vectors) -> Vectors:
        return {name: unit(unit(vectors) @ maps[name]) if name in maps and (not only or name in only) else vectors
                for name, vectors in vectors.items()}

    return replace(side, image=of(side.image), instance=of(side.instance))
