"""The explorer: answers as the evaluation gives them, for any catalog; no text of a catalog becomes markup."""

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import drawn
import numpy as np
import pytest
from PIL import Image

from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments import comparison, evaluation, search, stages
from capture_lib.experiments.run import Run
from capture_lib.explorer.answers import OWN, State
from capture_lib.explorer.view import PIECES, Explorer, open_explorer
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import EmbeddedSet
from capture_lib.utils import InputError

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def explorer(smoke_run: Run) -> Explorer:
    return open_explorer(smoke_run)


@pytest.fixture(scope="module")
def sides(smoke_run: Run) -> dict[str, EmbeddedSet]:
    return evaluation.embed(smoke_run, stages.pretrained(smoke_run).model, stages.caption_words(smoke_run))


@pytest.mark.parametrize("name", ["capture-chosen/instance", "capture/image", "image-only", "text-only", "late-fusion"])
def test_hits_are_those_of_the_evaluation(explorer: Explorer, sides, name: str):
    level = ranking.METHODS[name].level
    ranked = ranking.rank(sides["test"], sides["gallery"], level, explorer.choices[name])
    for number in (0, 7, 39):
        state = explorer.settle(replace(State(), query=number, model=name.split("/")[0], level=level))
        found = explorer.ranking(state)
        np.testing.assert_allclose(found.scores, ranked[number].scores, atol=1e-4)
        ours, theirs = set(found.rows[:10]), set(ranked[number].rows[:10])
        assert len(ours & theirs) >= 9  # but for near ties: here a query is embedded alone


def test_a_box_has_its_own_hits(explorer: Explorer, sides):
    number = int(np.bincount(sides["test"].owners).argmax())  # the query with the most instances
    state = explorer.settle(replace(State(), query=number))
    boxes = len(explorer.embedded(state.query, explorer.caption(state)).regions)
    assert boxes == np.sum(sides["test"].owners == number) > 1
    lists = [explorer.ranking(replace(state, box=box)) for box in range(boxes)]
    merged = explorer.ranking(state)
    assert set(merged.rows[:10]) <= {row for one in lists for row in one.rows}
    assert all(len(one.rows) == len(set(one.rows)) for one in lists)


def test_no_box_lies_over_the_number_of_another(explorer: Explorer):
    """A number stands in the upper left corner of its box, which boxes that are drawn later leave free."""
    for query in range(12):
        boxes = explorer.boxed(explorer.settle(State(query=query)))["boxes"]
        for place, (_, x, y, _, _) in enumerate(boxes):
            assert not any(left <= x < left + width and top <= y < top + height
                           for _, left, top, width, height in boxes[place + 1:] if (left, top) != (x, y))


def test_of_many_boxes_those_that_bring_the_first_hits_can_be_chosen(explorer: Explorer, monkeypatch):
    monkeypatch.setattr(search, "SHOWN", 1)
    state = next(state for state in (explorer.settle(State(query=number)) for number in range(20))
                 if len(explorer.embedded(state.query, explorer.caption(state)).regions) > 1)
    first = explorer.ranking(state).instances[0]
    assert explorer.shown(state) == [first]
    drawn = explorer.show(state)["query"]
    assert re.findall(r'data-key="box-(\d+)"', drawn) == re.findall(r'data-key="number-(\d+)"', drawn) == [str(first)]
    assert explorer.settle(replace(state, box=int(first))).box == first
    assert explorer.settle(replace(state, box=int(first) + 1)).box is None


def test_a_state_that_cannot_be_gives_way(explorer: Explorer):
    state = explorer.settle(State(query=10**6, box=99, model="nonsense", item=10**6, level="instance"))
    assert (state.query, state.box, state.item, state.model) == (0, None, None, next(iter(explorer.methods)))
    assert explorer.settle(State(model="text-only")).level == "image"
    assert explorer.settle(State(query=OWN)).query == 0  # nobody has handed in a photo
    brand = sorted(explorer.shows["brand"][-1])[0]
    assert brand in explorer.shows["brand"][explorer.settle(State(brand=brand)).query]
    for patch in ({"query": "x"}, {"path": "/etc"}):
        with pytest.raises(InputError, match="cannot choose"):
            State().changed(patch)


def test_filters_let_through_what_they_say(explorer: Explorer):
    every = [set(labels) for labels in explorer.queries["labels"]]
    brand = explorer.filters["brand"].most_common(1)[0][0]
    passing = explorer.passing(State(brand=brand))
    assert len(passing) == explorer.filters["brand"][brand]
    assert passing == [n for n, of in enumerate(every) if any(label.startswith(brand) for label in of)]
    assert len(explorer.passing(State(brand="nobody's"))) == 0
    assert "no query has this brand" in explorer.show(explorer.settle(State(brand="nobody's")))["picker"]


def test_the_next_wrong_one_is_the_next_and_wrong(explorer: Explorer):
    state = explorer.settle(replace(State(), query=5))
    right = {}
    for number in range(len(explorer.queries)):
        first = explorer.ranking(explorer.settle(replace(state, query=number))).rows[0]
        asked = set(explorer.queries["labels"][number])
        right[number] = not asked.isdisjoint(explorer.searcher.items[first].labels)
    order = [*range(6, len(right)), *range(6)]
    wrong = next({"query": number, "box": None} for number in order if not right[number])
    assert explorer.next_wrong(state) == wrong


def true_labels(explorer: Explorer, number: int) -> list[set[str]]:
    """The labels of the true boxes that each box of a query meets at IoU 0.5 and better than all others."""
    row = explorer.queries.loc[number]
    height, width = explorer.query(number).photo.shape[:2]
    boxes = explorer.embedded(number, row["caption"]).boxes
    labels = [set() for _ in boxes]
    for (a, b, c, d), label in zip(row["boxes"], row["box_labels"], strict=True):
        overlaps = []
        for x1, y1, x2, y2 in boxes * [width, height, width, height]:
            shared = max(0, min(c, x2) - max(a, x1)) * max(0, min(d, y2) - max(b, y1))
            overlaps.append(shared / ((c - a) * (d - b) + (x2 - x1) * (y2 - y1) - shared))
        if max(overlaps) >= 0.5:
            labels[int(np.argmax(overlaps))].add(label)
    return labels


def test_the_hits_of_a_box_are_judged_by_its_own_product(explorer: Explorer):
    marks, wrong = set(), []
    for number in range(12):
        asked = set(explorer.queries["labels"][number])
        for box, own in enumerate(true_labels(explorer, number)):
            state = explorer.settle(State(query=number, box=box))
            assert explorer.own_labels(state) == own
            hits = explorer.hits(state)
            for card in hits:
                shown = set(card["labels"])
                expected = "right" if shown & own else "other" if shown & asked else "wrong"
                assert card["mark"] == expected
                marks.add(expected)
            if own and hits[0]["mark"] != "right":
                wrong.append((number, box))
    assert marks == {"right", "other", "wrong"}
    start = wrong[-1][0]  # from a chosen box the next box is sought that shows a product and has a wrong first hit
    earlier = next(((number, box) for number, box in wrong if number > 0), None)
    assert start > 0 and explorer.next_wrong(explorer.settle(State(query=0, box=0))) == dict(
        zip(("query", "box"), earlier, strict=True))


def test_signs_and_colours_are_explained(explorer: Explorer):
    boxes = [(number, box, own) for number in range(12) for box, own in enumerate(true_labels(explorer, number))]
    for seen in (True, False):
        number, box, own = next(found for found in boxes if bool(found[2]) is seen)
        shown = explorer.show(explorer.settle(State(query=number, box=box)))["answers"]
        legend = f"✓ this box's product, {'; '.join(sorted(own))} · ◐ another" if seen else "no product's true box"
        assert legend in shown
    merged = explorer.show(explorer.settle(State()))["answers"]
    assert "✓ a product of the photo, whichever box shows it" in merged and "card other" not in merged
    assert "CAPTURE beside raw vectors, " in merged


def test_a_hit_is_right_by_any_of_its_labels(explorer: Explorer, monkeypatch):
    for labels, mark in ((["gift", "a"], "right"), (["a", "gift"], "right"), (["gift"], "wrong"), ([], "unknown")):
        item = replace(explorer.searcher.items[0], labels=labels)
        monkeypatch.setitem(explorer.searcher.items, 0, item)
        assert explorer.card(0, labels=["b", "a"])["mark"] == mark
    assert explorer.card(0, labels=[])["mark"] == "unknown"  # nobody knows what the query shows


def test_without_words_nothing_is_compared_by_words(explorer: Explorer):
    state = explorer.settle(State(model="text-only", worded=False))
    assert len(explorer.ranking(state).rows) == 0
    assert "There are no words to compare" in explorer.show(state)["answers"]
    with_words, without = (explorer.ranking(explorer.settle(State(model="image-only", worded=worded)))
                           for worded in (True, False))
    np.testing.assert_array_equal(with_words.rows, without.rows)
    words = explorer.searcher.items[5].caption  # typed: the photo that has them is found
    typed = explorer.ranking(explorer.settle(State(model="text-only", caption=words)))
    assert typed.scores[0] == pytest.approx(1, abs=1e-5) and explorer.searcher.items[typed.rows[0]].caption == words


def test_neighbours_are_the_nearest_others(explorer: Explorer):
    state = explorer.settle(replace(State(), item=3))
    vectors = explorer.searcher.vectors(explorer.representation(state), state.level)
    cosines = vectors @ vectors[3]
    cosines[3] = -2
    found = explorer.neighbours(3, state)
    np.testing.assert_allclose([score for _, score in found], -np.sort(-cosines)[:8], atol=1e-5)
    assert 3 not in [row for row, _ in found]


def test_a_photo_of_ones_own(explorer: Explorer):
    taken = BytesIO()
    Image.fromarray(drawn.draw([1, 2])[0]).save(taken, "PNG")
    explorer.take_photo(taken.getvalue(), "mine.png")
    state = explorer.settle(replace(State(), query=OWN, caption="words"))
    pieces = explorer.show(state)
    assert state.query == OWN and "mine.png" in pieces["query"] and "what it shows is not known" in pieces["query"]
    assert pieces["answers"].count('class="card unknown"') == 10
    others = {b"nothing": " text, JSON", b"": "n empty file", b"%PDF-1": " video, a PDF or an archive"}
    for content, kind in others.items():
        with pytest.raises(InputError, match=f"^bad.png: the photo does not decode: it is a{kind}.* as it was$"):
            explorer.take_photo(content, "bad.png")
    assert explorer.own.name == "own photo mine.png"


def test_text_from_a_catalog_stays_text(explorer: Explorer):
    queries = explorer.queries.assign(caption=HOSTILE, labels=[[f"{HOSTILE} 面霜"]] * len(explorer.queries))
    shown = Explorer(explorer.run, explorer.searcher, queries, explorer.choices)
    items = dict(shown.searcher.items)
    shown.searcher.items = {n: replace(item, caption=HOSTILE, labels=[HOSTILE]) for n, item in items.items()}
    try:
        state = shown.settle(State(model="image-only", item=1, map="kind", brand=""))
        drawn_pieces = "".join(shown.show(state, HOSTILE).values()) + shown.page(0, "image-only").data
    finally:
        shown.searcher.items = items
    assert "<script" not in drawn_pieces and drawn_pieces.count("&lt;script&gt;") > 20


def test_a_page_for_a_report_holds_all_that_a_click_would_show(explorer: Explorer):
    page = explorer.page(0, "capture-chosen/instance", count=6).data
    boxes = len(explorer.boxed(explorer.settle(State()))["boxes"])
    assert page.count('<li class="card') == 6 + 5 * boxes and explorer.queries["sample_id"][0] in page
    assert "<button" not in page and "data-set" not in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_piece_is_drawn_for_every_method(explorer: Explorer):
    for name in explorer.choices:
        pieces = explorer.show(explorer.settle(State(model=name.split("/")[0], level=ranking.METHODS[name].level)))
        assert set(pieces) == set(PIECES) and pieces["answers"].count('<li class="card') == 10


def test_a_catalog_of_photos_alone_can_be_explored(tmp_path: Path):
    """No captions, no labels, no gallery: image against image, and nothing is called right."""
    catalog = drawn.make_catalog(tmp_path / "bare", train=5, gallery=0, val=0, test=0, captions=False)
    catalog.table["labels"] = [[] for _ in range(len(catalog.table))]
    write_catalog(catalog.table, catalog.folder)
    shown = open_explorer(Run(drawn.TINY, read_catalog(catalog.folder), tmp_path / "out", 0))
    assert list(shown.methods) == ["image-only"] and len(shown.queries) == 5
    pieces = shown.show(shown.settle(State()))
    assert pieces["answers"].count('class="card unknown"') == 4  # it does not find itself
    assert "?: no labels to judge by" in pieces["answers"]
    assert 'data-do="wrong" data-key="wrong" disabled' in pieces["controls"]


def test_nothing_is_called_chosen_where_val_chose_nothing(smoke_run: Run, monkeypatch):
    unjudged = {name: found | {"val": None} for name, found in comparison.choices(smoke_run).items()}
    assert "capture-chosen/instance" in unjudged
    monkeypatch.setattr(comparison, "choices", lambda run: unjudged)
    shown = open_explorer(smoke_run)
    assert "capture-chosen" not in shown.methods and next(iter(shown.methods)) == "capture-beside-raw"
