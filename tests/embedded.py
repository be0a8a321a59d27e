"""Random vectors of queries and of a gallery, for the tests."""

import numpy as np

from capture_lib.retrieval.embedding import OUTPUTS, EmbeddedSet

NAMES = (*OUTPUTS, "regions", "words")
FOUNDATION = ("foundation_image", "foundation_text")


def random_set(labels: list[list[str]], instances: int = 1, seed: int = 0, width: int = 6) -> EmbeddedSet:
    """Samples with random vectors; sample i has 1 + i % `instances` instances."""
    rng = np.random.default_rng(seed)
    counts = 1 + np.arange(len(labels)) % instances
    owners = np.repeat(np.arange(len(labels)), counts)
    image = {name: rng.normal(size=(len(labels), width)).astype(np.float32) for name in NAMES}
    instance = {name: rng.normal(size=(len(owners), width)).astype(np.float32) for name in (*NAMES, "region_token")}
    for vectors, count in ((image, len(labels)), (instance, len(owners))):
        vectors |= {name: rng.normal(size=(count, width)).astype(np.float32) for name in FOUNDATION}
    ids = [f"{seed}-{i}" for i in range(len(labels))]
    regions = np.concatenate([np.arange(count) for count in counts])
    boxes = np.tile(np.float32([0, 0, 1, 1]), (len(owners), 1))
    return EmbeddedSet(ids, labels, owners, regions, boxes, image, instance)


def gallery_set(count: int = 40, seed: int = 9) -> EmbeddedSet:
    """A gallery of 8 labels."""
    return random_set([[f"label {i % 8}"] for i in range(count)], seed=seed)


def query_set(count: int = 7, seed: int = 1) -> EmbeddedSet:
    """Queries of two labels each and up to 4 instances."""
    labels = [[f"label {i % 8}", f"label {(i + 3) % 8}"] for i in range(count)]
    return random_set(labels, instances=4, seed=seed)
