"""Every kind of index against plain NumPy: filled at once or by and by, shrunk, asked for more than it has."""

import faiss
import numpy as np
import pytest

from capture_lib.retrieval import index
from capture_lib.retrieval.embedding import RetrievalSettings, unit
from capture_lib.retrieval.index import Cells, Exact, Graph, Index
from capture_lib.utils import InputError

KINDS = tuple(index.KINDS)


def drawn(count: int, seed: int = 0, width: int = 8) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def thorough(kind: str, width: int = 8) -> Index:
    """An empty index that looks everywhere."""
    made = index.make(kind, width)
    made.probes = made.breadth = 10_000
    return made


def by_hand(items: dict[int, np.ndarray], queries: np.ndarray, depth: int) -> list[list[int]]:
    """Ids of the best items, one query and one item after the other."""
    return [sorted(items, key=lambda number: -float(items[number] @ query))[:depth] for query in queries]


def check(made: Index, items: dict[int, np.ndarray], queries: np.ndarray, depth: int) -> None:
    scores, ids = made.search(queries, depth)
    assert len(made) == len(items) and scores.shape == ids.shape == (len(queries), min(depth, len(items)))
    assert ids.tolist() == by_hand(items, queries, depth)
    assert scores == pytest.approx(np.array([[items[number] @ query for number in row]
                                             for row, query in zip(ids, queries, strict=True)]).reshape(ids.shape),
                                   abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 10, 1000])
def test_a_filled_index_gives_the_best_under_their_ids(kind, depth):
    vectors, ids = drawn(300), np.random.default_rng(1).permutation(900)[:300]
    made = thorough(kind)
    made.add(ids, vectors)
    check(made, dict(zip(ids.tolist(), vectors, strict=True)), drawn(20, 2), depth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_an_index_that_changes_is_what_an_index_of_the_rest_is(kind, seed):
    """Adds and removes at random, down to nothing and up again; ids come back with other vectors."""
    rng, made, items, queries = np.random.default_rng(seed), thorough(kind), {}, drawn(5, 99)
    for step in range(12):
        free = [number for number in range(60) if number not in items]
        new = rng.choice(free, min(len(free), int(rng.integers(1, 30))), replace=False)
        vectors = drawn(len(new), 100 * seed + step)
        made.add(new, vectors)
        items |= dict(zip(new.tolist(), vectors, strict=True))
        check(made, items, queries, 7)
        gone = rng.choice(list(items), len(items) if step == 6 else int(rng.integers(len(items))), replace=False)
        made.remove(gone)
        for number in gone:
            del items[number]
        check(made, items, queries, 7)
        anew = thorough(kind)
        anew.add(np.array(sorted(items), np.int64), np.array([items[i] for i in sorted(items)]).reshape(-1, 8))
        assert anew.search(queries, 7)[1].tolist() == made.search(queries, 7)[1].tolist()


def test_cells_that_lose_items_give_the_others_in_the_same_order():
    """At the usual number of cells to look into, where an index trained anew would have other cells."""
    vectors, queries, made = drawn(3000), drawn(40, 1), Cells(8)
    made.add(np.arange(3000), vectors)
    made.probes = 4
    before = made.search(queries, 40)[1]
    gone = np.random.default_rng(2).permutation(3000)[:600]
    made.remove(gone)
    kept = [row[~np.isin(row, gone)][:20].tolist() for row in before]
    assert made.cells.nlist > 4 * made.probes and made.search(queries, 20)[1].tolist() == kept


@pytest.mark.parametrize("kind", KINDS)
def test_an_approximate_search_finds_nearly_all_and_its_scores_are_true(kind):
    vectors, queries, made = drawn(4000, width=16), drawn(100, 1, 16), index.make(kind, 16)
    made.add(np.arange(4000), vectors)
    scores, ids = made.search(queries, 10)
    true = np.argsort(-(queries @ vectors.T), 1)[:, :10]
    assert np.mean([np.isin(found, best).mean() for found, best in zip(ids, true, strict=True)]) > 0.8
    assert scores == pytest.approx(np.einsum("qw,qdw->qd", queries, vectors[ids]), abs=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_query_that_finds_too_few_is_asked_of_all(kind):
    vectors, made = drawn(2000), index.make(kind, 8)
    made.probes = made.breadth = 1
    made.add(np.arange(2000), vectors)
    made.remove(np.arange(1500))
    scores, ids = made.search(drawn(9, 1), 450)  # no cell holds so many, no query keeps so many
    assert ids.min() >= 1500 and all(len(set(row)) == 450 for row in ids)
    scores, ids = made.search(drawn(9, 1), 3000)
    assert ids.shape == (9, 500) and (np.sort(ids, 1) == np.arange(1500, 2000)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_gives_nothing(kind):
    made = index.make(kind, 8)
    for _ in range(2):
        scores, ids = made.search(drawn(3), 10)
        assert scores.shape == ids.shape == (3, 0) and len(made) == 0
        made.add(np.zeros(0, np.int64), np.zeros((0, 8)))
        made.remove(np.zeros(0, np.int64))
    made.add([4], drawn(1))
    assert made.search(np.zeros((0, 8)), 10)[1].shape == (0, 1)
    assert made.search(drawn(1), 10)[1].tolist() == [[4]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_one_line_and_changes_nothing(kind):
    made, broken = thorough(kind), drawn(3, 5)
    made.add(np.arange(100), drawn(100))
    made.remove([7])
    broken[1, 3] = np.nan
    wrong = [
        (lambda: made.add([200, 5], drawn(2)), "id 5 is there already; remove it first"),
        (lambda: made.add([200, 201, 200], drawn(3)), "id 200 is given twice"),
        (lambda: made.add([200], drawn(2)), "1 ids for 2 vectors"),
        (lambda: made.add([-1], drawn(1)), "whole numbers, 0 or more"),
        (lambda: made.add([0.5], drawn(1)), "whole numbers, 0 or more"),
        (lambda: made.add([200], drawn(1, width=9)), r"vectors of shape (1, 9) where (n, 8) are needed"),
        (lambda: made.add([200], drawn(1)[0]), r"vectors of shape (8,)"),
        (lambda: made.add([200, 201, 202], broken), "row 1 of the vectors holds NaN"),
        (lambda: made.remove([3, 300]), "no id 300 to remove"),
        (lambda: made.remove([7]), "no id 7 to remove"),
        (lambda: made.remove([3, 3]), "id 3 is given twice"),
        (lambda: made.search(broken, 3), "row 1 of the vectors holds NaN"),
        (lambda: made.search(drawn(3, width=7), 3), r"vectors of shape (3, 7)"),
    ]
    for work, part in wrong:
        with pytest.raises(InputError) as error:
            work()
        assert part in str(error.value) and "\n" not in str(error.value)
    items = {number: vector for number, vector in enumerate(drawn(100)) if number != 7}
    check(made, items, drawn(4, 3), 10)


def test_an_unknown_kind_is_refused():
    for work in (lambda: index.make("lsh", 8), lambda: RetrievalSettings(index="lsh")):
        with pytest.raises(InputError, match="index 'lsh' is unknown; use one of exact, ivf, hnsw"):
            work()
    assert [type(index.make(RetrievalSettings(index=kind).index, 8)) for kind in KINDS] == [Exact, Cells, Graph]


def test_the_copy_on_gpus_follows_every_change(monkeypatch: pytest.MonkeyPatch):
    """With a copy on the CPU for one on the GPUs, which cannot remove either."""
    copies = []

    def copy(flat: faiss.Index) -> faiss.Index:
        copies.append(faiss.clone_index(flat))
        return copies[-1]

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copy)
    made, items, queries = Exact(8), dict(enumerate(drawn(50))), drawn(4, 1)
    made.add(np.arange(50), drawn(50))
    check(made, items, queries, 10)
    made.add([70], queries[:1])
    check(made, items | {70: queries[0]}, queries, 10)
    assert len(copies) == 1 and copies[0].ntotal == 51  # what is added goes to the copy too
    made.remove([3, 70])
    items.pop(3)
    check(made, items, queries, 10)
    check(made, items, queries, 60)
    assert len(copies) == 2
