"""Search among a million vectors, exact and by inverted lists (IVF) of faiss: recall@10, queries a second, memory.

    python tests/benchmarks/bench_million.py [--count 1000000] [--out reports/million.json]

At a million it takes 2.5 GB of memory and some minutes on two cores. The committed record is
reports/reference/million.json; notebook 05 draws it.
"""

import argparse
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import faiss
import numpy as np

from capture_lib.retrieval.embedding import unit
from capture_lib.utils import REPORTS, origin, say, write_json

WIDTH = 256
PHOTOS = 87  # a product, as in Product1M's gallery: 40,033 of 458 products
PRODUCTS = 11  # a brand: 458 products of 40 brands
LINES = 3  # of a brand, whose products look alike
# Beside the region features of profile cpu, where captions taught their encoder, 1,600 photos of 80 products each: mean
# cosine within a product 0.68 (theirs: 0.65), within a brand 0.33 (0.28), elsewhere 0.01 (0.06), of the nearest 0.85
# (0.93), of the tenth 0.80 (0.84); of the first ten, 49% (49%) show the product; effective dimensions 19 (22).
SHARES = {"brand": 0.2, "line": 0.42, "product": 0.02, "photo": 0.5}  # of the squared length
TAIL = 0.75  # of the logarithm of how far photos lie from their product: some are odd, most are near
DECAY = 14.0  # directions over which the variance falls to 1/e
VECTORS = ("drawn: brands, lines, products, and 87 photos around each product; cosines and spectrum are about those of "
           "region features of profile cpu")
QUERIES = 1_000
ALONE = 50  # queries that are asked one by one
DEPTH = 10
FACTORIES = ("Flat", "IVF{lists},Flat", "IVF{lists},SQ8")
PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
TRAINING = 64  # vectors a list, from which k-means learns the lists


def draw_products(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the middles of products (P, D), those of a brand together, for `count` photos."""
    products = max(count // PHOTOS, 2)
    brand = np.arange(products) // PRODUCTS
    line = LINES * brand + rng.integers(LINES, size=products)
    middles = spread(products, rng) * SHARES["product"] ** 0.5
    middles += spread(brand[-1] + 1, rng)[brand] * SHARES["brand"] ** 0.5
    middles += spread(line.max() + 1, rng)[line] * SHARES["line"] ** 0.5
    return middles


def spread(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random vectors (n, D) float32, whose mean squared length is 1, most of it in few directions."""
    variances = np.exp(-np.arange(WIDTH) / DECAY)
    variances /= variances.sum()
    return rng.standard_normal((count, WIDTH), np.float32) * np.float32(variances ** 0.5)


def draw_photos(products: np.ndarray, shown: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return photos (n, D), rows of length 1, of the products `shown` (n,)."""
    photos = np.empty((len(shown), WIDTH), np.float32)
    for start in range(0, len(shown), 50_000):  # so that nothing else of this size is in memory
        part = slice(start, start + 50_000)
        distance = rng.lognormal(-TAIL ** 2, TAIL, len(shown[part])) * SHARES["photo"] ** 0.5  # mean square: the share
        photos[part] = unit(products[shown[part]] + spread(len(distance), rng) * np.float32(distance[:, None]))
    return photos


# ---- what is measured


def measure(count: int) -> dict:
    """Return what exact search and IVF find among `count` vectors, in which time and memory."""
    rng = np.random.default_rng(0)
    products = draw_products(count, rng)
    shown = np.arange(count) % len(products)
    gallery = draw_photos(products, shown, rng)
    asked = rng.integers(len(products), size=QUERIES)
    queries = draw_photos(products, asked, rng)

    # about four times the root of the count, as faiss advises
    lists = 2 ** round(np.log2(4 * count ** 0.5))
    learned = gallery[rng.permutation(count)[:TRAINING * lists]]
    nearest = None  # (Q, 10) by exact search, which comes first
    indexes, curve = {}, []
    for factory in FACTORIES:
        name = factory.format(lists=lists)
        index, indexes[name] = build(name, gallery, learned)
        for probes in PROBES if name != "Flat" else [None]:
            if probes:
                index.nprobe = probes
            found, times = timed_search(index, queries)
            nearest = found if nearest is None else nearest
            recall = np.mean([len(np.intersect1d(*pair)) for pair in zip(found, nearest, strict=True)]) / DEPTH
            right = (shown[found] == asked[:, None]).mean()
            curve.append({"index": name, "probes": probes, "recall@10": recall, "right@10": right, **times})
            say("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}"
                          for key, value in curve[-1].items()))
        del index  # before the next one is built
    return {"count": count, "width": WIDTH, "products": len(products), "vectors": VECTORS, "queries": QUERIES,
            "lists": lists, "threads": faiss.omp_get_max_threads(), "indexes": indexes, "curve": curve,
            "max_memory_bytes": 1024 * getrusage(RUSAGE_SELF).ru_maxrss}


def build(name: str, gallery: np.ndarray, learned: np.ndarray) -> tuple[faiss.Index, dict]:
    """Return an index by inner product of the gallery, and what it took."""
    index = faiss.index_factory(WIDTH, name, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    index.train(learned)
    trained = time.perf_counter()
    index.add(gallery)
    added = time.perf_counter()
    taken = len(gallery) * index.code_size
    if name != "Flat":
        taken += 8 * len(gallery) + 4 * WIDTH * index.nlist  # numbers of vectors, middles of lists
    return index, {"training_s": trained - started, "adding_s": added - trained, "bytes": taken}


def timed_search(index: faiss.Index, queries: np.ndarray) -> tuple[np.ndarray, dict]:
    """Return the hits (Q, 10) of queries, how many of them are answered a second, and how fast one that is alone."""
    together, alone = [], []
    for _ in range(3):
        started = time.perf_counter()
        _, found = index.search(queries, DEPTH)
        together.append(len(queries) / (time.perf_counter() - started))
    for query in queries[:ALONE]:
        started = time.perf_counter()
        index.search(query[None], DEPTH)
        alone.append(1000 * (time.perf_counter() - started))
    return found, {"queries_per_s": float(np.median(together)), "ms_alone": float(np.median(alone))}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a line for each setting, and write the record."""
    parser = argparse.ArgumentParser("bench_million.py", description="Search among a million vectors.")
    parser.add_argument("--count", type=int, default=1_000_000, help="of vectors (default a million)")
    parser.add_argument("--out", type=Path, default=REPORTS / "million.json", help="default: reports/million.json")
    options = parser.parse_args(arguments)
    write_json(options.out, origin() | measure(options.count))


if __name__ == "__main__":
    main()
