"""The whole line on drawn photos: what it lacks, what it gives again, and what it keeps when its catalog grows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import TINY, files_below, grow_catalog, make_catalog, random_store
from transformers import BertConfig, BertModel

from capture_lib.catalog.table import write_catalog
from capture_lib.experiments import run as runs
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.profiles import Profile
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval.embedding import Choice
from capture_lib.retrieval.search import Searcher, best_on_val
from capture_lib.training.batches import SPECIAL
from capture_lib.training.pretrain import TASKS, PretrainSettings
from capture_lib.utils import InputError


@pytest.fixture
def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small catalog in place of the rendered world that lends its foregrounds."""
    other = make_catalog(tmp_path / "lender", 24, 0, 0, 0)
    monkeypatch.setattr(stages, "lender", lambda: other)


def line(folder: Path, seed: int = 0, profile: Profile = TINY, **catalog) -> tuple[Run, dict, dict, dict]:
    """The line from photos to chosen readings on a drawn catalog."""
    found = runs.read_catalog(folder) if folder.exists() else make_catalog(folder, **catalog)
    run = Run(profile, found, folder / "report", seed)
    sides = stages.embedded(run)
    return run, sides, *stages.choices(run, sides)


def vectors(sides: dict) -> dict[str, np.ndarray]:
    """Every block of every side."""
    return {f"{name} {level} {block}": array for name, side in sides.items()
            for level, vectors in (("image", side.image), ("instance", side.instance)) for block, array in vectors.items()}


def test_the_whole_line_on_sixteen_photos_says_what_it_lacks(tmp_path, lender, capsys):
    make_catalog(tmp_path / "small").photos["test-1"].unlink()  # and one of them is not on disk
    run, sides, chosen, tried = line(tmp_path / "small")
    told = capsys.readouterr().out
    assert "8 usable foregrounds in 8 photos are too few; composites are made of the products of lender instead" in told
    assert {name: len(side.ids) for name, side in sides.items()} == {"val": 4, "test": 3, "gallery": 4}
    assert stages.pretrained(run).model is None  # 4 pairs cannot train it
    assert set(chosen) == set(tried) == {"image-only"} and len(tried["image-only"]) == len(retrieval.MERGES)
    assert json.loads((run.stages / "retrieval" / "choices.json").read_text())["image-only"]["reading"] == "regions"
    report = json.loads((run.stages / "synthesis" / "report.json").read_text())
    assert (report["source"], report["tried"]) == ("lender", 24)


def test_the_whole_line_with_the_same_seed_gives_the_same_figures(tmp_path, capsys):
    sizes = {"train": 40, "gallery": 16, "val": 8, "test": 8}
    (run, one, chosen, tried), (_, other, *same) = (line(tmp_path / name, **sizes) for name in ("one", "other"))
    assert {"capture/instance", "capture/image", "image-only", "text-only", "late-fusion"} <= set(chosen)
    assert [chosen, tried] == same
    first, second = vectors(one), vectors(other)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    again = vectors(line(tmp_path / "one")[1])
    assert capsys.readouterr().out == ""  # everything was found, nothing made
    assert all(np.array_equal(first[name], again[name]) for name in first)
    different = vectors(line(tmp_path / "one", seed=1)[1])
    assert not np.array_equal(first["test instance region_pooled"], different["test instance region_pooled"])
    capsys.readouterr()
    photo = run.catalog.photos["train-0"]
    photo.write_bytes(photo.read_bytes() + b"\0")  # composites were made of it: nothing may be used again
    line(tmp_path / "one")
    said = capsys.readouterr().out
    assert "synthesis: made anew, because catalog changed" in said
    for name in ("detector", "encoder", "regions", "pretrain"):
        assert f"{name}: made anew, because upstream" in said


def test_the_whole_line_keeps_what_was_computed_when_the_catalog_grows(tmp_path, monkeypatch, capsys):
    late = make_catalog(tmp_path / "one", 40, 16, 8, 8).photos["val-3"]
    late.rename(tmp_path / "late.png")
    run, _, chosen, _ = line(tmp_path / "one")
    (tmp_path / "late.png").rename(late)
    stages_of = {path.name: files_below(path) for path in run.stages.iterdir()}
    old, described, real = regions.open_store(run.stages / "regions"), [], regions.describe
    kept = np.array(old.features)
    monkeypatch.setattr(regions, "describe", lambda photos, *rest: (described.append(len(photos)),
                                                                    real(photos, *rest))[1])
    grown = grow_catalog(run.catalog, {"train": range(40, 44), "test": range(8, 9), "gallery": range(16, 20)})
    later = replace(run, catalog=grown)
    capsys.readouterr()
    searcher = Searcher.open(later)
    said = capsys.readouterr().out
    assert said.count("made before 8 of the 64") == said.count("made before 4 of the 44") == 1
    assert "regions: 71 of 81 rows are kept, the others made" in said and "anew, because" not in said
    assert sum(described) == 10 and len(searcher.gallery.ids) == 20
    new = regions.open_store(run.stages / "regions")
    assert new.ids == list(grown.table["sample_id"]) and np.array_equal(new.features[new.rows(old.ids)], kept)
    assert new.counts.min() > 0 and new.features.any((1, 2)).all()
    for name in ("synthesis", "detector", "encoder", "pretrain"):
        assert files_below(run.stages / name) == stages_of[name]
    assert searcher.choices.keys() == chosen.keys()  # chosen before the catalog grew, of the same model
    described.clear()
    photo = grown.photos["test-3"]  # nothing was trained on it
    photo.write_bytes(photo.read_bytes() + b"\0")
    line(tmp_path / "one")
    assert sum(described) == 1 and "regions: 80 of 81 rows are kept" in capsys.readouterr().out


def test_stale_choices_are_not_used(tmp_path, capsys):
    def stored(**changes: object) -> dict:
        return stages.stored_choices(replace(run, catalog=runs.read_catalog(tmp_path / "one"), **changes))

    run, sides, chosen, _ = line(tmp_path / "one", train=40, gallery=16, val=8, test=8)
    assert {name: found["reading"] for name, found in stored().items()} == {
        name: choice.representation for name, choice in chosen.items()}
    capsys.readouterr()
    assert stored(profile=replace(TINY, instances=InstanceSettings(nms_iou=0.5))) == {}
    assert "retrieval: not used, because settings changed; run notebook 05 again" in capsys.readouterr().out
    record = run.stages / "pretrain" / "stage.json"
    text = record.read_text()
    record.write_text(text.replace('"seed": 0', '"seed": 5'))
    assert stored() == {}
    record.write_text(text)
    assert stored()
    table = run.catalog.table.copy()
    table.at[60, "labels"] = ["another label"]
    write_catalog(table, run.catalog.folder)
    assert stored() == {}
    assert best_on_val(stored(), {"capture/instance"}) == ("image-only", Choice("regions"))
    stages.choices(replace(run, catalog=runs.read_catalog(tmp_path / "one")), sides)
    assert stored()


def test_a_model_is_trained_once_the_catalog_has_enough_pairs(tmp_path, capsys):
    run, *_ = line(tmp_path / "one", train=24, gallery=4, val=4, test=4)
    assert stages.pretrained(run).model is None
    later = replace(run, catalog=grow_catalog(run.catalog, {"train": range(24, 34)}))
    assert stages.pretrained(later).model is not None
    assert "pretrain: made anew, because settings changed" in capsys.readouterr().out


def test_the_whole_line_without_captions_predicts_regions_alone(tmp_path):
    run, sides, chosen, _ = line(tmp_path / "mute", train=40, gallery=8, val=4, test=4, captions=False)
    trained = stages.pretrained(run)
    assert trained.tasks == ("mrp",) and trained.model is not None
    assert "words" not in sides["test"].image and "text-only" not in chosen and "capture/instance" in chosen
    assert all(np.isfinite(array).all() for array in vectors(sides).values())


def test_text_that_starts_from_bert_has_the_words_of_bert_and_matching_has_its_head(tmp_path, monkeypatch):
    made = make_catalog(tmp_path / "one", train=40)
    store = replace(random_store(len(made.table)), ids=list(made.table["sample_id"]))
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "stage.json").write_text("{}")
    monkeypatch.setattr(stages, "region_store", lambda run: (store, tmp_path / "regions"))
    words = [*SPECIAL, "a", "b", "c"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=32)).save_pretrained(tmp_path / "bert")
    asked = PretrainSettings(epochs=1, batch=16, bert=str(tmp_path / "bert"), tasks=(*TASKS, "itm"))
    trained = stages.pretrained(Run(replace(TINY, pretrain=asked), made, tmp_path / "report", 0))
    assert trained.tokenizer.get_vocab_size() == trained.model.settings.vocabulary == len(words)
    assert trained.tasks == (*TASKS, "itm") and trained.model.settings.matching


def test_a_catalog_without_photos_is_named(tmp_path):
    made = make_catalog(tmp_path / "bare")
    for photo in made.photos.values():
        photo.unlink()
    with pytest.raises(InputError, match="none of its photos is on disk; run `capture download` first"):
        stages.embedded(Run(TINY, runs.read_catalog(tmp_path / "bare"), tmp_path, 0))
