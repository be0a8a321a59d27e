"""Answering a query with untrained networks: hits against cosines written out, a photo without any product."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import TINY, draw, make_catalog
from PIL import Image

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import comparison, search
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import Hit, Item, Searcher, answer, best_run, judge, labels_of_boxes
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store
from capture_lib.proposals.detector import Detector
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.proposals.region_encoder import CropEncoder
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import Words, represent
from capture_lib.training import batches

CHOICES = {name: {"representation": representation, "val": val}
           for name, representation, val in (("capture/instance", "product", 0.4),
                                             ("capture-chosen/instance", "joint", 0.6),
                                             ("capture-chosen/image", "joint", 0.9),
                                             ("late-fusion", "0.5 regions + 0.5 words", None))}


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """Untrained networks, and a gallery of 6 drawn photos, described and embedded as a query is."""
    folder = tmp_path_factory.mktemp("searcher")
    catalog = make_catalog(folder / "shop", train=2, gallery=6, val=2, test=2)
    torch.manual_seed(0)  # the same number of instances every time
    detector, encoder = Detector(TINY.detector).eval(), CropEncoder(TINY.encoder).eval()
    width = 4 * TINY.encoder.channels
    table = catalog.split("gallery")
    tokenizer = batches.make_tokenizer(table["caption"], folder)
    model = Capture(replace(TINY.capture, vocabulary=tokenizer.get_vocab_size(), region_features=width)).eval()
    words = Words(list(table["caption"]) * 2, TINY.retrieval, 0)
    items = {row: Item(sample.sample_id, catalog.photos[sample.sample_id], sample.caption, sample.labels)
             for row, sample in enumerate(table.itertuples())}
    made = Searcher(None, lambda: (detector, encoder), tokenizer, model, words, None, items, TINY.regions,
                    InstanceSettings(min_score=0.0), TINY.batches, CHOICES)
    stores = [made.describe(load_photo(item.path), item.sample_id) for item in items.values()]
    boxes, scores, features = (np.concatenate([getattr(store, name) for store in stores])
                               for name in ("boxes", "scores", "features"))
    store = region_store.RegionStore(features, boxes, scores, np.full(6, boxes.shape[1]), list(table["sample_id"]))
    made.gallery = made.embed(table, store, single=True)
    made.store = store
    return made


def hits_by_hand(searcher: Searcher, photo: np.ndarray, caption: str, representation: str) -> list[list[tuple]]:
    """Ids and cosines of the whole gallery for each instance, best first."""
    table = pd.DataFrame([{"sample_id": "query", "caption": caption, "labels": []}], dtype=object)
    query = searcher.embed(table, searcher.describe(photo), single=False)
    cosines = represent(query.instance, representation) @ represent(searcher.gallery.instance, representation).T
    ids = np.array(searcher.gallery.ids)
    return [list(zip(ids[np.argsort(-row)], -np.sort(-row), strict=True)) for row in cosines]


@pytest.mark.parametrize("caption", ["kind1 色 lot1", ""])
def test_hits_are_the_nearest_by_what_val_chose_or_by_photo_alone(searcher: Searcher, caption: str):
    item = searcher.items[1]
    answer = searcher.search(item.path, caption, depth=4)
    expected = ("capture-chosen/instance", "joint") if caption else ("image-only", "regions")
    assert (answer.method, answer.representation) == expected
    by_hand = hits_by_hand(searcher, answer.photo, caption, answer.representation)
    assert len(answer.hits) == len(by_hand) == len(answer.boxes) == len(answer.scores) > 0
    for hits, wanted in zip(answer.hits, by_hand, strict=True):
        assert [hit.sample_id for hit in hits] == [sample for sample, _ in wanted[:4]]
        assert [hit.score for hit in hits] == pytest.approx([cosine for _, cosine in wanted[:4]], abs=1e-5)
    found = answer.hits[0][0]
    own = next(item for item in searcher.items.values() if item.sample_id == found.sample_id)
    assert found == Hit(own.sample_id, own.path, own.caption, own.labels, found.score)
    assert len(searcher.search(item.path, caption, depth=50).hits[0]) == 6  # all there are


def test_of_many_instances_those_that_bring_the_first_hits_are_shown(searcher: Searcher,
                                                                     monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "SHOWN", 2)
    every = replace(searcher, instances=InstanceSettings(min_score=0.0, min_odds=0.0, nms_iou=0.95))
    found = every.search(searcher.items[1].path, "kind1", 6)
    by_hand = hits_by_hand(every, found.photo, "kind1", found.representation)
    pairs = [(score, number, sample) for number, hits in enumerate(by_hand) for sample, score in hits]
    brought, first = [], set()
    for _, number, sample in sorted(pairs, key=lambda pair: -pair[0]):
        if sample not in first and number not in brought:
            brought.append(number)
        first.add(sample)
    assert len(by_hand) > len(brought[:2]) == len(found.hits) == len(found.boxes) == len(found.scores)
    for number, hits in zip(brought, found.hits, strict=False):
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in by_hand[number]], abs=1e-5)


def test_a_gallery_photo_finds_itself(searcher: Searcher):
    for item in searcher.items.values():
        first = searcher.search(item.path, item.caption, depth=1).hits[0][0]
        assert first.sample_id == item.sample_id and first.score == pytest.approx(1, abs=1e-3)


def test_a_photo_that_the_store_describes_needs_no_network(searcher: Searcher):
    item = searcher.items[3]
    found = replace(searcher, networks=None).search(item.path, item.caption, 6, known=item.sample_id)
    described = searcher.search(item.path, item.caption, 6)
    np.testing.assert_array_equal(found.boxes, described.boxes)
    for hits, own in zip(found.hits, described.hits, strict=True):
        assert [hit.sample_id for hit in hits] == [hit.sample_id for hit in own]


def test_where_val_has_chosen_nothing_capture_answers_beside_raw_vectors(searcher: Searcher):
    answer = replace(searcher, choices={}).search(searcher.items[0].path, "kind0", depth=2)
    assert answer.method == "capture-beside-raw/instance"
    assert answer.how.startswith("CAPTURE beside raw vectors, 0.3 contrastive beside 0.45 region features")
    assert replace(searcher, choices={}, model=None).best("instance", "kind0") == "image-only"


def test_the_best_on_val_answers_and_another_method_says_that_it_is_better(searcher: Searcher):
    fusion = {"late-fusion": {"representation": "0.5 regions + 0.5 words", "val": 0.7}}
    searched = replace(searcher, choices=CHOICES | fusion, taught=True)
    assert searched.search(searcher.items[0].path, "kind0", depth=2).method == "late-fusion"
    answer = searched.search(searcher.items[0].path, "kind0", 2, "capture-chosen/instance")
    assert answer.how == ("CAPTURE, H_IMG and H_TXT; captions taught the region encoder (ours, not the paper's)\n"
                          "On val, late fusion of image and text answers better.")
    assert searched.search(searcher.items[0].path, "", depth=2).method == "image-only"  # the other needs words
    assert "better" not in searcher.how("capture-chosen/instance", "kind0")  # of a whole photo: not compared


def test_every_method_has_words(searcher: Searcher):
    for name, method in ranking.METHODS.items():
        for representation in method.representations:
            choices = {name: {"representation": representation, "val": None}}
            words = replace(searcher, choices=choices).how(name)
            assert "_" not in words.replace("H_IMG", "").replace("H_TXT", "") and " + " not in words, words


def test_capture_can_be_asked_without_the_caption(searcher: Searcher):
    answer = searcher.search(searcher.items[1].path, "", 4, "capture-chosen/instance")
    by_hand = hits_by_hand(searcher, answer.photo, "", "joint")
    assert [hit.sample_id for hit in answer.hits[0]] == [sample for sample, _ in by_hand[0][:4]]


def test_a_cold_run_answers_by_the_best_on_val_on_regions_that_captions_taught(tmp_path: Path):
    """The profile is the smallest, nothing was made before; the query is a photo of the catalog, so hits are marked."""
    catalog = make_catalog(tmp_path / "shop", train=40, gallery=8, val=4, test=4)
    image = catalog.photos["test-1"]
    run = Run(replace(TINY, instances=InstanceSettings(min_score=0.0)), catalog, tmp_path / "out", 0)
    found = answer(run, image, "kind1 色 lot1", depth=3)
    on_val = {name: row["val"] for name, row in comparison.choices(best_run(run)).items()
              if ranking.METHODS[name].level == "instance"}
    assert on_val[found.method] == max(on_val.values()) > 0 and "captions taught the region encoder" in found.how
    assert found.hits and {hit.mark for hits in found.hits for hit in hits} <= {"right", "other", "wrong"}
    (tmp_path / "test-1.png").write_bytes(image.read_bytes())  # elsewhere: nothing is known of it
    elsewhere = answer(run, tmp_path / "test-1.png", "kind1 色 lot1", depth=3)
    assert {hit.mark for hits in elsewhere.hits for hit in hits} == {"unknown"}


def test_without_captions_the_plain_run_answers(tmp_path: Path):
    for train, captions in ((40, False), (4, True)):  # too few captions teach nothing either
        run = Run(TINY, make_catalog(tmp_path / f"shop-{train}", train=train, captions=captions), tmp_path / "out", 0)
        assert best_run(run) is run


def test_a_box_is_judged_by_the_true_boxes_that_it_finds():
    """Pixels of the upright photo against fractions; a label of several products counts each."""
    photo = np.zeros((100, 200, 3), np.uint8)
    sample = {"boxes": [[0, 0, 100, 100], [100, 0, 200, 100], [0, 0, 110, 100]], "box_labels": ["a", "b#;#c", "d"]}
    boxes = np.array([[0.0, 0, 0.5, 1], [0.2, 0.4, 0.3, 0.5], [0.52, 0, 1, 1]])
    assert labels_of_boxes(sample, photo, boxes) == [{"a", "d"}, set(), {"b", "c"}]
    assert labels_of_boxes({"boxes": [], "box_labels": []}, photo, boxes) == [None] * 3


@pytest.mark.parametrize("labels, asked, own, mark", [
    (["a"], ["a", "b"], {"a"}, "right"), (["gift", "a"], ["a", "b"], {"a"}, "right"),
    (["b"], ["a", "b"], {"a"}, "other"), (["a"], ["a", "b"], set(), "other"), (["c"], ["a", "b"], {"a"}, "wrong"),
    (["a"], ["a"], None, "right"), (["c"], ["a"], None, "wrong"),
    ([], ["a"], {"a"}, "unknown"), (["a"], [], None, "unknown")])
def test_a_hit_is_of_three_kinds_or_unknown(labels, asked, own, mark):
    assert judge(labels, asked, own) == mark


def test_the_index_is_built_once(searcher: Searcher):
    assert searcher.index("joint") is searcher.index("joint")


def test_a_photo_without_a_product_has_no_instance_and_no_hits(searcher: Searcher, tmp_path: Path):
    Image.fromarray(draw([1])[0]).save(tmp_path / "photo.png")
    blind = replace(searcher, instances=InstanceSettings(min_score=1.1))
    answer = blind.search(tmp_path / "photo.png", "a caption")
    assert answer.hits == [] and answer.boxes.shape == (0, 4) and answer.scores.shape == (0,)
