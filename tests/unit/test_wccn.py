"""WCCN on mined pairs: equal variance in all directions, products nearer, nothing else changed."""

import numpy as np

from capture_lib.retrieval import wccn
from capture_lib.retrieval.embedding import EmbeddedSet, unit
from capture_lib.retrieval.wccn import WccnSettings


def test_mapped_differences_are_alike_in_every_direction():
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6))
    root = wccn.inverse_root(apart, 0.0)
    np.testing.assert_allclose((apart @ root).T @ (apart @ root) / len(apart), np.eye(6), atol=1e-6)
    np.testing.assert_allclose(root, root.T, atol=1e-8)


def test_mined_pairs_bring_products_together_and_pairs_at_random_do_not():
    rng = np.random.default_rng(1)
    product = np.repeat(np.arange(20), 20)
    centres = np.concatenate([rng.normal(0, 0.3, (20, 8)), np.zeros((20, 8))], 1)  # the other half is noise
    vectors = centres[product] + rng.normal(size=(400, 16)) * np.repeat([0.05, 1.0], 8)
    mined = np.stack([rng.choice(np.flatnonzero(product == own), 3) for own in product])
    random = rng.integers(400, size=mined.shape)

    def right(vectors: np.ndarray) -> float:
        """How often the nearest other photo shows the same product."""
        cosines = unit(vectors) @ unit(vectors).T - 2 * np.eye(400)
        return (product[cosines.argmax(1)] == product).mean()

    figures = {name: right(unit(vectors) @ wccn.learn_maps({"a": vectors}, nearest, WccnSettings())["a"])
               for name, nearest in {"mined": mined, "random": random}.items()}
    assert figures["mined"] > 0.9 > right(vectors) + 0.2
    assert figures["random"] < figures["mined"] - 0.2


def test_mapped_samples_have_other_vectors_and_nothing_else_changes():
    rng = np.random.default_rng(2)
    vectors = {"regions": rng.random((5, 4)), "words": rng.random((5, 3))}
    samples = EmbeddedSet(["a"], [["x"]], ["c"], np.zeros(5, int), np.zeros(5, int),
                          {"words": vectors["words"][:1]}, vectors)
    after = wccn.apply_maps(samples, {"words": 2 * np.eye(3)})
    np.testing.assert_allclose(after.instance["words"], unit(vectors["words"]), atol=1e-6)
    np.testing.assert_allclose(after.image["words"], unit(vectors["words"][:1]), atol=1e-6)
    assert after.instance["regions"] is vectors["regions"] and after.ids == samples.ids
    maps = {"words": np.diag([3.0, 1, 1]), "regions": np.eye(4)}
    assert wccn.apply_maps(samples, maps, ("regions",)).instance["words"] is vectors["words"]
