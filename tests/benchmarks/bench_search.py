"""`python -m capture_lib.bench_search`: recall against speed of each kind of index; reports/reference/search.json.

Exact search, IVF with several numbers of cells to look into and HNSW with several breadths, over as many vectors as
Product1M's gallery has and over a million. Speed is that of the threads that OMP_NUM_THREADS allows. Where a search
finds fewer than ten hits for a query, the time of the full search that follows (`index.Index`) counts too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

from capture_lib.experiments import run as runs
from capture_lib.retrieval import index
from capture_lib.retrieval.embedding import unit
from capture_lib.retrieval.index import Cells, Exact, Graph, Index
from capture_lib.utils import REPORTS, InputError, say, write_json

FILE = REPORTS / "reference" / "search.json"
DEPTH, BLOCK = 10, 50_000  # hits that are compared; vectors added between two lines of progress


@dataclass(frozen=True)
class Sizes:
    """What is measured: numbers of vectors, with their width, and how each index is searched."""

    galleries: tuple[tuple[int, int], ...] = ((40_033, 128), (40_033, 512), (1_000_000, 128))
    queries: int = 1_000
    alone: int = 200  # of them, asked one at a time
    probes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    breadths: tuple[int, ...] = (10, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Mixture:
    """How the vectors are made: like photos of products, for random directions are the worst case and tell nothing.

    Brands are random directions; a product lies near its brand, and its photos lie around it in some directions that
    all products share, mostly in the first of them. Some products have many photos, most have few. A query is a photo
    that the gallery doesn't have.
    """

    items_per_product: float = 40_033 / 458  # as in Product1M's gallery
    products_per_brand: float = 458 / 40
    product: float = 0.7  # distance of a product from its brand, whose length is 1
    photo: float = 0.9  # distance of a photo from its product, whose length is 1
    query: float = 1.17  # the same for a query: eight in ten of its first ten hits then show its own product
    directions: int = 32  # in which photos differ


def vectors(count: int, width: int, asked: int, made: Mixture, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A gallery (count, width) and queries (asked, width) float32 of length 1."""
    rng = np.random.default_rng(seed)
    products = max(1, round(count / made.items_per_product))
    brands = unit(rng.normal(size=(max(1, round(products / made.products_per_brand)), width)))
    own = unit(rng.normal(size=(products, width)))
    centres = unit(brands[rng.integers(len(brands), size=products)] + made.product * own)
    axes = np.linalg.qr(rng.normal(size=(width, min(made.directions, width))))[0].T  # (A, width)
    axes *= np.sqrt(1 / np.arange(1, len(axes) + 1) / np.sum(1 / np.arange(1, len(axes) + 1)))[:, None]
    share = 1 / np.arange(1, products + 1) ** 0.5  # a long tail
    share /= share.sum()

    def photos(number: int, distance: float) -> np.ndarray:
        moved = distance * rng.normal(size=(number, len(axes))).astype(np.float32)
        return unit(centres[rng.choice(products, number, p=share)] + moved @ axes.astype(np.float32))

    return photos(count, made.photo), photos(asked, made.query)


def seconds() -> float:
    """A clock. Without GPUs, the time that this thread has worked: what else the machine does is of no account."""
    return time.perf_counter() if faiss.get_num_gpus() else time.thread_time()


def fill(held: Index, gallery: np.ndarray, label: str) -> float:
    """Fills an index block by block and says so; seconds. IVF is filled at once: its first block places the cells."""
    started, block = seconds(), len(gallery) if isinstance(held, Cells) else BLOCK
    for first in range(0, len(gallery), block):
        part = gallery[first:first + block]
        held.add(np.arange(first, first + len(part)), part)
        say(f"{label}: {first + len(part):,} of {len(gallery):,} in {seconds() - started:.0f} s")
    return seconds() - started


def variants(held: Index, sizes: Sizes) -> Iterator[dict[str, int]]:
    """Sets how widely an index searches, one way after the other; each as it is recorded."""
    if isinstance(held, Cells):
        for probes in [probes for probes in sizes.probes if probes <= held.cells.nlist]:
            held.probes = probes
            yield {"nlist": held.cells.nlist, "nprobe": probes}
    elif isinstance(held, Graph):
        for breadth in sizes.breadths:
            held.breadth = breadth
            yield {"M": held.links, "efConstruction": held.care, "efSearch": breadth}
    else:
        yield {}


def measure(held: Index, queries: np.ndarray, alone: int, truth: np.ndarray) -> dict[str, float]:
    """Queries a second, all at once and one at a time, and the share of the `truth` (n, 10) that is found."""
    batch, found = timed(lambda: held.search(queries, DEPTH)[1])
    single, _ = timed(lambda: [held.search(query[None], DEPTH) for query in queries[:alone]])
    recall = np.mean([np.isin(ours, true).mean() for ours, true in zip(found, truth, strict=True)])
    return {"batch_queries_per_s": len(queries) / batch, "single_queries_per_s": min(alone, len(queries)) / single,
            "single_ms": 1000 * single / min(alone, len(queries)), "recall@10": float(recall)}


def change(held: Index, new: np.ndarray) -> dict[str, float]:
    """Seconds to add a hundred items to a filled index, and to remove them."""
    ids = 10 ** 9 + np.arange(len(new))
    started = seconds()
    held.add(ids, new)
    added = seconds()
    held.remove(ids)
    return {"add_100_s": added - started, "remove_100_s": seconds() - added}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """The best of five timings in seconds, and what the work gave."""
    times = []
    for _ in range(5):
        started = seconds()
        given = work()
        times.append(seconds() - started)
    return min(times), given


def size_of(held: Index) -> int:
    """Bytes of the faiss index, as it would be stored."""
    inner = {Exact: "flat", Cells: "cells", Graph: "graph"}[type(held)]
    return int(faiss.serialize_index(getattr(held, inner)).nbytes)


def compare(sizes: Sizes, made: Mixture, file: Path) -> dict:
    """Measures every kind of index at every size; what is done is written to `file` after each kind."""
    result = {"hardware": runs.hardware(), "threads": faiss.omp_get_max_threads(),
              "clock": "wall" if faiss.get_num_gpus() else "processor time of the searching thread",
              "commit": runs.commit(), "faiss": faiss.__version__, "written": "", "sizes": asdict(sizes),
              "vectors": asdict(made), "rows": []}
    for count, width in sizes.galleries:
        gallery, queries = vectors(count, width, sizes.queries, made)
        truth = None
        for kind in index.KINDS:  # exact first: it gives the truth
            held = index.make(kind, width)
            built = fill(held, gallery, f"{kind}, {count:,} × {width}")
            truth = held.search(queries, DEPTH)[1] if truth is None else truth
            about = {"vectors": count, "width": width, "index": kind, "build_s": built, "bytes": size_of(held)}
            rows = []
            for setting in variants(held, sizes):
                rows.append(about | {"setting": setting} | measure(held, queries, sizes.alone, truth))
                say("  {setting}: recall {recall@10:.3f}, {single_ms:.2f} ms a query".format(**rows[-1]))
            changed = change(held, queries[:100])
            result["rows"] += [row | changed for row in rows]
            result["written"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json(file, result)
    return result


def table(file: Path = FILE) -> pd.DataFrame:
    """The curves as a table, a row for each way to search.

    Columns: vectors, width, index, setting (text such as "nprobe 16"; empty for exact), build_s, bytes,
    batch_queries_per_s, single_queries_per_s, single_ms, recall@10 (share of the exact first ten), add_100_s and
    remove_100_s (a hundred items put into the filled index, and taken out), and speedup: queries a second, one at a
    time, against exact search of the same vectors.

    Raises:
        InputError: there is no such file.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; python -m capture_lib.bench_search writes it")
    rows = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["rows"])
    rows["setting"] = [" ".join(map(str, list(setting.items())[-1])) if setting else "" for setting in rows["setting"]]
    exact = rows[rows["index"] == "exact"].set_index(["vectors", "width"])["single_queries_per_s"]
    peers = exact.loc[pd.MultiIndex.from_frame(rows[["vectors", "width"]])].to_numpy()
    return rows.assign(speedup=rows["single_queries_per_s"] / peers)


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes; returns 0, 2 for a wrong size, 130 where interrupted."""
    parser = argparse.ArgumentParser("capture_lib.bench_search", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", metavar="COUNTxWIDTH", help="default: 40033x128 40033x512 1000000x128")
    parser.add_argument("--out", type=Path, default=FILE, help="default: reports/reference/search.json")
    options = parser.parse_args(arguments)
    try:
        compare(Sizes(galleries=parsed(options.sizes)) if options.sizes else Sizes(), Mixture(), options.out)
    except InputError as error:
        print(f"capture_lib.bench_search: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"capture_lib.bench_search: interrupted; finished kinds of index are in {options.out}", file=sys.stderr)
        return 130
    print(table(options.out).drop(columns=["bytes", "batch_queries_per_s"]).round(3).to_string(index=False))
    return 0


def parsed(sizes: list[str]) -> tuple[tuple[int, int], ...]:
    """Sizes such as 40033x128."""
    found = []
    for size in sizes:
        count, _, width = size.partition("x")
        if not (count.isdecimal() and width.isdecimal() and int(count) >= DEPTH and int(width)):
            raise InputError(f"--sizes {size}: give COUNTxWIDTH with a count of {DEPTH} or more, such as 40033x128")
        found.append((int(count), int(width)))
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
