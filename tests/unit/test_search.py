"""Answering a query: a photo without any product, a gallery that grows and shrinks. The line is asked in test_cli."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn import draw
from PIL import Image

from capture_lib import bench, cli
from capture_lib.experiments import run as runs
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import search
from capture_lib.retrieval.embedding import EmbeddedSet, RetrievalSettings
from capture_lib.retrieval.search import Item, Searcher
from capture_lib.utils import InputError


@pytest.fixture
def searcher(monkeypatch: pytest.MonkeyPatch) -> search.Searcher:
    """A searcher whose proposals are never sure; what it would search with is missing, for nothing is searched."""
    boxes = np.array([[[0.1, 0.1, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]]], np.float32)
    poor = RegionStore(np.ones((1, 2, 4), np.float16), boxes, np.array([[0.3, 0.2]]), np.array([2]), ["query"])
    monkeypatch.setattr(search.Searcher, "describe", lambda self, photo: poor)
    run = SimpleNamespace(profile=SimpleNamespace(retrieval=RetrievalSettings()), catalog=SimpleNamespace(photos={}))
    nothing = EmbeddedSet([], [], [], np.zeros(0, int), np.zeros(0, int), {}, {})
    return search.Searcher(run, None, None, None, None, nothing, {})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(draw([1])[0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_without_a_product_has_no_instance_and_no_hits(searcher, photo, tmp_path):
    answer = searcher.ask(photo, "a caption")
    assert answer.hits == [] and answer.boxes.shape == (0, 4) and answer.scores.shape == (0,)
    assert search.draw(answer, tmp_path / "answer.png").stat().st_size > 1_000


def test_the_command_says_that_there_is_no_product(searcher, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search.Searcher, "open", lambda run: searcher)
    monkeypatch.setattr(runs, "open_run", lambda *arguments, **named: searcher.run)
    monkeypatch.setattr(cli, "read_catalog", lambda folder: None)
    assert cli.main(["search", str(tmp_path), "--image", str(photo), "--out", str(tmp_path / "answer.png")]) == 0
    said = capsys.readouterr().out
    assert f"{photo}: no product was found" in said and "product 1" not in said and "compared" not in said


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """A searcher with untrained networks and a gallery of 30 items with random vectors."""
    return bench.untrained_searcher(tmp_path_factory.mktemp("searcher"), 30)


def live(opened: Searcher, index: str = "exact") -> Searcher:
    """The same, unused, with an index of a kind."""
    profile = replace(opened.run.profile, retrieval=replace(opened.run.profile.retrieval, index=index))
    return replace(opened, run=replace(opened.run, profile=profile), added=[])


def new_items(opened: Searcher, count: int) -> list[Item]:
    photos = list(opened.run.catalog.photos.items())[-count:]
    return [Item(f"new-{sample}", path, f"kind {i} 色", (f"label {i}",)) for i, (sample, path) in enumerate(photos)]


def first_hits(searcher: Searcher, items: list[Item]) -> list[search.Hit]:
    """The best hit for the surest product of each item's photo, with its caption."""
    return [searcher.ask(item.path, item.caption).hits[0][0] for item in items]


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_a_live_gallery_finds_what_was_added_and_not_what_was_removed(opened, kind):
    searcher, items = live(opened, kind), new_items(opened, 4)
    before = first_hits(searcher, items)
    assert not {hit.sample_id for hit in before} & {item.sample_id for item in items}
    searcher.add(items[:1])
    searcher.add(items[1:])
    for item, hit in zip(items, first_hits(searcher, items), strict=True):
        assert Item(hit.sample_id, hit.path, hit.caption, hit.labels) == item
        assert hit.score == pytest.approx(1, abs=1e-3)
    searcher.remove([item.sample_id for item in items])
    assert first_hits(searcher, items) == before
    searcher.add(items[2:3])  # an id may come back
    assert first_hits(searcher, items)[2].sample_id == items[2].sample_id and len(searcher.index("product")) == 31
    searcher.remove([item.sample_id for item in searcher.items.values()])
    assert searcher.ask(items[0].path, items[0].caption).hits[0] == []


def test_a_reading_that_is_first_asked_for_later_knows_of_every_change(opened):
    early, late, items = live(opened), live(opened), new_items(opened, 3)
    early.index("joint")
    for searcher in (early, late):
        searcher.add(items)
        searcher.remove([items[1].sample_id, searcher.gallery.ids[4]])
    queries = retrieval.read(opened.gallery.instance, "joint")[:6]
    (scores, numbers), (same, as_well) = (searcher.index("joint").search(queries, 40) for searcher in (early, late))
    assert numbers.tolist() == as_well.tolist() and np.array_equal(scores, same) and numbers.shape == (6, 31)
    assert {4, 31}.isdisjoint(numbers.ravel()) and {30, 32} <= set(numbers.ravel())


def test_the_index_is_filled_once_for_many_queries(opened, monkeypatch):
    searcher, items, filled = live(opened), new_items(opened, 2), []
    real = search.index.make
    monkeypatch.setattr(search.index, "make", lambda kind, width: filled.append(kind) or real(kind, width))
    first_hits(searcher, items)
    searcher.add(items)
    first_hits(searcher, items)
    assert filled == ["exact"]


def test_a_wrong_change_is_refused_and_changes_nothing(opened, tmp_path):
    searcher, (item, other) = live(opened), new_items(opened, 2)
    searcher.add([item])
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    there = searcher.gallery.ids[0]
    wrong = [
        (lambda: searcher.add([other, item]), f"{item.sample_id}: in the gallery already"),
        (lambda: searcher.add([other, other]), f"{other.sample_id}: in the gallery already"),
        (lambda: searcher.add([other, Item("bad", tmp_path / "broken.jpg")]), "broken.jpg: the photo does not decode"),
        (lambda: searcher.remove([there, "nobody"]), "nobody: the gallery has no such id"),
        (lambda: searcher.remove([there, there]), f"{there}: given twice"),
    ]
    for work, part in wrong:
        with pytest.raises(InputError) as error:
            work()
        assert part in str(error.value) and "\n" not in str(error.value)
    assert len(searcher.items) == len(searcher.index("product")) == 31


def test_the_picture_has_a_row_for_each_product(opened, tmp_path):
    searcher, items = live(opened), new_items(opened, 1)
    answer = searcher.ask(items[0].path, items[0].caption, most=3)
    assert len(answer.hits) == len(answer.boxes) > 1 and all(len(hits) == 3 for hits in answer.hits)
    one = search.draw(replace(answer, boxes=answer.boxes[:1], hits=answer.hits[:1]), tmp_path / "one.png")
    tall = [Image.open(file).size[1] for file in (one, search.draw(answer, tmp_path / "all.png"))]
    assert tall[1] > 0.9 * len(answer.hits) * tall[0] / 1.1


def test_the_command_prints_the_hits_of_each_product_and_saves_a_picture(opened, tmp_path, monkeypatch, capsys):
    searcher, (item, *_) = live(opened), new_items(opened, 3)
    searcher.add([item])
    monkeypatch.setattr(search.Searcher, "open", lambda run: searcher)
    monkeypatch.setattr(runs, "open_run", lambda *arguments, **named: searcher.run)
    assert cli.main(["search", str(searcher.run.catalog.folder), "--image", str(item.path), "--caption", item.caption,
                     "--out", str(tmp_path / "made" / "answer.jpg")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "compared by capture/instance, reading product" and said[-1].startswith("picture: ")
    first = said.index(next(line for line in said if line.startswith("product 1 (objectness")))
    assert said[first + 1] == f"  1.000  {item.sample_id}  label 0  {item.caption}"
    assert Image.open(tmp_path / "made" / "answer.jpg").format == "JPEG"
