"""Answering a query: what a photo without any product gives. Whole answers are asked for in test_cli."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn import draw
from PIL import Image

from capture_lib import cli, runs, search
from capture_lib.regions import RegionStore
from capture_lib.retrieval import RetrievalSettings


@pytest.fixture
def searcher(monkeypatch: pytest.MonkeyPatch) -> search.Searcher:
    """A searcher whose proposals are never sure; what it would search with is missing, for nothing is searched."""
    boxes = np.array([[[0.1, 0.1, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]]], np.float32)
    poor = RegionStore(np.ones((1, 2, 4), np.float16), boxes, np.array([[0.3, 0.2]]), np.array([2]), ["query"])
    monkeypatch.setattr(search.Searcher, "describe", lambda self, photo: poor)
    run = SimpleNamespace(profile=SimpleNamespace(retrieval=RetrievalSettings()))
    return search.Searcher(run, None, None, None, None, None, {})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(draw([1])[0]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_without_a_product_has_no_instance_and_no_hits(searcher, photo, tmp_path):
    answer = searcher.ask(photo, "a caption")
    assert answer.hits == [] and answer.boxes.shape == (0, 4) and answer.scores.shape == (0,)
    assert search.draw(answer, tmp_path / "answer.png").stat().st_size > 1_000


def test_the_gallery_is_read_once_for_many_queries(searcher, monkeypatch):
    read = []
    monkeypatch.setattr(search.retrieval, "read", lambda blocks, reading: read.append(reading) or np.ones((2, 4)))
    gallery = replace(searcher, gallery=SimpleNamespace(instance={}))
    for reading in ("joint", "product", "joint", "joint"):
        assert gallery.gallery_vectors(reading).shape == (2, 4)
    assert read == ["joint", "product"]


def test_the_command_says_that_there_is_no_product(searcher, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search.Searcher, "open", lambda run: searcher)
    monkeypatch.setattr(runs, "open_run", lambda *arguments, **named: searcher.run)
    monkeypatch.setattr(cli, "read_catalog", lambda folder: None)
    assert cli.main(["search", str(tmp_path), "--image", str(photo), "--out", str(tmp_path / "answer.png")]) == 0
    said = capsys.readouterr().out
    assert f"{photo}: no product was found" in said and "product 1" not in said and "compared" not in said
