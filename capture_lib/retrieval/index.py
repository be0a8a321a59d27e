"""An index over vectors: filled once, searched many times, changed by adding and removing items. faiss does the work.

Items have ids, whole numbers from 0. Vectors are (n, width) float32 and are compared by their inner product: for
vectors of length 1, the cosine.
"""

from abc import ABC, abstractmethod

import faiss
import numpy as np

from capture_lib.utils import InputError

Found = tuple[np.ndarray, np.ndarray]  # scores float32 and ids int64, (n, depth) each, best first


class Index(ABC):
    """What the kinds of index share: the checks on what comes in, and that a search gives all that it can.

    After a change, a search gives what an index of the items that are left gives.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.held: set[int] = set()

    def __len__(self) -> int:
        return len(self.held)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Adds vectors (n, width) under new ids (n,); where one of them cannot be added, none is.

        Raises:
            InputError: an id is there already or given twice, or the vectors have another width or hold NaN.
        """
        ids, vectors = whole(ids), self.usable(vectors)
        if len(ids) != len(vectors):
            raise InputError(f"index: {len(ids):,} ids for {len(vectors):,} vectors; give one id a vector")
        for number in ids:
            if number in self.held:
                raise InputError(f"index: id {number} is there already; remove it first, or take another id")
        if len(ids):
            self._insert(ids, vectors)
        self.held.update(ids.tolist())

    def remove(self, ids: np.ndarray) -> None:
        """Removes the items of ids (n,); where one of them is unknown, none is.

        Raises:
            InputError: an id is not there, or given twice.
        """
        ids = whole(ids)
        for number in ids:
            if number not in self.held:
                raise InputError(f"index: there is no id {number} to remove")
        if len(ids):
            self._drop(ids)
        self.held.difference_update(ids.tolist())

    def search(self, queries: np.ndarray, depth: int) -> Found:
        """The best items for queries (n, width): `depth` of them each, or all where there are fewer.

        Raises:
            InputError: the queries have another width or hold NaN.
        """
        queries, most = self.usable(queries), min(depth, len(self))
        if not most or not len(queries):
            return np.zeros((len(queries), most), np.float32), np.zeros((len(queries), most), np.int64)
        scores, ids = self._find(queries, most)
        lacking = (ids < 0).any(1)  # an approximate search may find too few
        if lacking.any():
            scores[lacking], ids[lacking] = self._scan(queries[lacking], most)
        return scores, ids

    def usable(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors in the form that faiss takes."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise InputError(f"index: vectors of shape {vectors.shape} where (n, {self.width}) are needed")
        finite = np.isfinite(vectors)
        if not finite.all():
            raise InputError(f"index: row {int(np.argmin(finite.all(1)))} of the vectors holds NaN or infinity")
        return vectors

    @abstractmethod
    def _insert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Adds at least one item; all was checked."""

    @abstractmethod
    def _drop(self, ids: np.ndarray) -> None:
        """Removes at least one item; all was checked."""

    @abstractmethod
    def _find(self, queries: np.ndarray, depth: int) -> Found:
        """Searches for no more than there are; the id is -1 where nothing was found."""

    def _scan(self, queries: np.ndarray, depth: int) -> Found:
        """Searches among all items."""
        return self._find(queries, depth)


class Exact(Index):
    """Every item is compared: on all GPUs where faiss sees one, each with a copy of the vectors."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.flat, self.ids = faiss.IndexFlatIP(width), np.zeros(0, np.int64)  # the id of each row
        self.copy: faiss.Index | None = None  # on the GPUs, from the first search after a removal

    def _insert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self.flat.add(vectors)
        self.ids = np.concatenate([self.ids, ids])
        if self.copy:
            self.copy.add(vectors)

    def _drop(self, ids: np.ndarray) -> None:
        leave = np.isin(self.ids, ids)
        self.flat.remove_ids(np.flatnonzero(leave))  # the rows that follow move up
        self.ids, self.copy = self.ids[~leave], None  # no index on a GPU can remove

    def _find(self, queries: np.ndarray, depth: int) -> Found:
        if faiss.get_num_gpus() and not self.copy:
            self.copy = faiss.index_cpu_to_all_gpus(self.flat)
        scores, rows = (self.copy or self.flat).search(queries, depth)
        return scores, self.ids[rows]


class Cells(Index):
    """IVF: vectors lie in cells around k-means centres, and the cells nearest to a query are searched.

    The first `add` places the centres for good, so it should hold most of the items.
    """

    probes = 32  # cells that a query looks into (nprobe)

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.cells: faiss.IndexIVFFlat | None = None

    def _insert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self.cells = self.cells or self._train(vectors)
        self.cells.add_with_ids(vectors, ids)

    def _train(self, vectors: np.ndarray) -> faiss.IndexIVFFlat:
        """An empty index with 4 √n cells, or fewer: 39 vectors a cell are what faiss asks for."""
        count = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 39))
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, count, faiss.METRIC_INNER_PRODUCT)
        cells.cp.max_points_per_centroid = 64  # of 256: a quarter of the time
        cells.train(vectors)
        return cells

    def _drop(self, ids: np.ndarray) -> None:
        self.cells.remove_ids(ids)

    def _find(self, queries: np.ndarray, depth: int) -> Found:
        return self.cells.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=self.probes))

    def _scan(self, queries: np.ndarray, depth: int) -> Found:
        return self.cells.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=self.cells.nlist))


class Graph(Index):
    """HNSW: a graph of near neighbours, followed towards a query.

    A graph cannot lose an item: one that is removed is passed through and not found, and its memory stays in use.
    """

    links = 16  # of an item to others (M)
    care = 64  # candidates kept while an item is linked (efConstruction)
    breadth = 128  # candidates kept while a query follows the graph (efSearch)

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.graph = faiss.IndexHNSWFlat(width, self.links, faiss.METRIC_INNER_PRODUCT)
        self.graph.hnsw.efConstruction = self.care
        self.ids, self.here = np.zeros(0, np.int64), np.zeros(0, bool)  # of each row: its id; False once removed

    def _insert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self.graph.add(vectors)
        self.ids = np.concatenate([self.ids, ids])
        self.here = np.concatenate([self.here, np.ones(len(ids), bool)])

    def _drop(self, ids: np.ndarray) -> None:
        self.here &= ~np.isin(self.ids, ids)

    def _find(self, queries: np.ndarray, depth: int) -> Found:
        limits = faiss.SearchParametersHNSW(efSearch=self.breadth, sel=self._selector())
        return self._named(*self.graph.search(queries, depth, params=limits))

    def _scan(self, queries: np.ndarray, depth: int) -> Found:
        stored = faiss.downcast_index(self.graph.storage)
        return self._named(*stored.search(queries, depth, params=faiss.SearchParameters(sel=self._selector())))

    def _selector(self) -> faiss.IDSelector | None:
        """What a search may find."""
        return None if self.here.all() else faiss.IDSelectorBitmap(np.packbits(self.here, bitorder="little"))

    def _named(self, scores: np.ndarray, rows: np.ndarray) -> Found:
        return scores, np.where(rows < 0, -1, self.ids[rows])


KINDS = {"exact": Exact, "ivf": Cells, "hnsw": Graph}


def make(kind: str, width: int) -> Index:
    """An empty index of a kind.

    Raises:
        InputError: there is no such kind.
    """
    return KINDS[known(kind)](width)


def known(kind: str) -> str:
    """The kind itself, once it is known to be one."""
    if kind not in KINDS:
        raise InputError(f"index {kind!r} is unknown; use one of {', '.join(KINDS)}")
    return kind


def whole(ids: np.ndarray) -> np.ndarray:
    """Ids (n,) int64, each once."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0)):
        raise InputError("index: ids must be a list of whole numbers, 0 or more")
    ids = ids.astype(np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise InputError(f"index: id {values[np.argmax(counts)]} is given twice")
    return ids
