"""The whole line on drawn photos: what it lacks, what it gives again, and what it keeps when its catalog grows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import TINY, grow_catalog, make_catalog, random_store

from capture_lib.catalog.table import read_catalog, write_catalog
from capture_lib.experiments import comparison, evaluation, stages
from capture_lib.experiments.run import Run
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.training.batches import SPECIAL
from capture_lib.training.pretrain import TASKS, PretrainSettings
from capture_lib.utils import InputError

SIZES = {"train": 40, "gallery": 16, "val": 8, "test": 8}


def embed(run: Run) -> dict:
    """The vectors of val, test and gallery."""
    return evaluation.embed(run, stages.pretrained(run).model, stages.caption_words(run))


def line(folder: Path, seed: int = 0, **sizes: object) -> tuple[Run, dict, dict]:
    """The line from photos to chosen representations on a drawn catalog."""
    catalog = read_catalog(folder) if folder.exists() else make_catalog(folder, **sizes)
    run = Run(TINY, catalog, folder / "report", seed)
    return run, embed(run), comparison.choices(run)


def vectors(sets: dict) -> dict[str, np.ndarray]:
    """All vectors of all sets, by name."""
    found = {}
    for split, own in sets.items():
        for level in ("image", "instance"):
            for name, array in own.vectors(level).items():
                found[f"{split} {level} {name}"] = array
    return found


def test_the_whole_line_on_sixteen_photos_says_what_it_lacks(tmp_path: Path, monkeypatch, capsys):
    lender = Run(TINY, make_catalog(tmp_path / "lender", 24, 0, 0, 0), tmp_path, 0)
    monkeypatch.setattr(stages, "open_run", lambda profile: lender)
    make_catalog(tmp_path / "small").photos["test-1"].unlink()  # and one of them is not on disk
    run, sets, chosen = line(tmp_path / "small")
    told = capsys.readouterr().out
    assert "8 usable foregrounds in 8 photos are too few; composites are made of the products of lender instead" in told
    assert {split: len(own.ids) for split, own in sets.items()} == {"val": 4, "test": 3, "gallery": 4}
    assert stages.pretrained(run).model is None  # 4 pairs cannot train it
    assert set(chosen) == {"image-only"} and set(chosen["image-only"]["tried"]) == {"regions"}
    assert chosen["image-only"]["representation"] == "regions"
    report = json.loads((run.stages / "composites" / "report.json").read_text())
    assert (report["source"], report["tried"]) == ("lender", 24)


def test_the_whole_line_with_the_same_seed_gives_the_same_figures(tmp_path: Path, capsys):
    run, sets, chosen = line(tmp_path / "one", **SIZES)
    _, other, same = line(tmp_path / "other", **SIZES)
    assert {"capture/instance", "capture/image", "image-only", "text-only", "late-fusion"} <= set(chosen)
    assert chosen == same
    first, second = vectors(sets), vectors(other)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    again = vectors(line(tmp_path / "one")[1])
    assert capsys.readouterr().out == ""  # everything was found, nothing made
    assert all(np.array_equal(first[name], again[name]) for name in first)
    photo = run.catalog.photos["train-0"]
    photo.write_bytes(photo.read_bytes() + b"\0")  # composites were made of it: nothing may be used again
    line(tmp_path / "one")
    said = capsys.readouterr().out
    assert "composites: made anew, because catalog changed" in said
    for name in ("detector", "region_encoder", "region_store", "pretrain"):
        assert re.search(f"^{name}: made anew, because .*upstream.* changed", said, re.MULTILINE)


def test_the_embeddings_of_capture_are_made_once_and_are_those_of_embed(tmp_path: Path, monkeypatch):
    run, sets, chosen = line(tmp_path / "one", **SIZES)
    found = vectors(evaluation.embedded(run))
    expected = vectors(sets)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)
    for name in ("embed_samples", "Words.__init__"):  # neither embedded nor fitted again
        monkeypatch.setattr(f"capture_lib.retrieval.embedding.{name}", lambda *call: None)
    monkeypatch.setattr(evaluation, "embed_samples", None)
    again = vectors(evaluation.embedded(run))
    assert all(np.array_equal(found[name], again[name]) for name in found) and comparison.choices(run) == chosen
    captions = list(stages.samples(run, "test")["caption"])
    assert np.array_equal(stages.caption_words(run).vectors(captions), found["test image words"])


def test_n_grams_of_another_width_displace_none(tmp_path: Path):
    run, _, _ = line(tmp_path / "shop", train=40, gallery=4, val=2, test=2)
    narrow = replace(run.profile.retrieval, text_dimensions=4)
    narrow = replace(run, profile=replace(run.profile, retrieval=narrow))
    record = (run.place("words") / "stage.json").stat().st_mtime_ns
    widths = [stages.caption_words(one).vectors(["精华液"]).shape[1] for one in (run, narrow, run)]
    assert widths[0] == widths[2] > widths[1] == 4
    assert (run.place("words") / "stage.json").stat().st_mtime_ns == record


def test_new_queries_change_what_read_them_and_nothing_is_trained_anew(tmp_path: Path, capsys):
    run, _, chosen = line(tmp_path / "one", **SIZES)
    capsys.readouterr()
    assert comparison.choices(run) == chosen and capsys.readouterr().out == ""
    run = replace(run, catalog=grow_catalog(run.catalog, {"test": range(8, 12)}))
    comparison.choices(run)
    said = capsys.readouterr().out
    assert "region_store: made anew, because catalog changed" in said
    assert "comparison/untrained: made anew, because catalog, upstream.region_store changed" in said
    assert "detector" not in said and "region_encoder" not in said
    other = replace(run, profile=replace(TINY, instances=InstanceSettings(nms_iou=0.5)))
    comparison.choices(other)
    assert "because settings.instances.nms_iou (0.4 → 0.5) changed" in capsys.readouterr().out


def test_a_model_is_trained_once_the_catalog_has_enough_pairs(tmp_path: Path, monkeypatch, capsys):
    store = make_random_store(tmp_path, monkeypatch)
    run = Run(TINY, make_catalog(tmp_path / "one", 24, 4, 4, 4), tmp_path / "report", 0)
    store(run)
    assert stages.pretrained(run).model is None
    run = replace(run, catalog=grow_catalog(run.catalog, {"train": range(24, 34)}))
    store(run)
    assert stages.pretrained(run).model is not None
    assert "pretrain: made anew, because catalog, settings.enough (False → True) changed" in capsys.readouterr().out


def make_random_store(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a random region store in the place of a run's."""
    (folder / "random").mkdir()
    (folder / "random" / "stage.json").write_text("{}")

    def put(run: Run) -> None:
        store = replace(random_store(len(run.catalog.table)), ids=list(run.catalog.table["sample_id"]))
        monkeypatch.setattr(stages, "region_store", lambda run: (store, folder / "random"))

    return put


def test_without_captions_regions_alone_are_predicted(tmp_path: Path):
    run, sets, chosen = line(tmp_path / "mute", train=40, gallery=8, val=4, test=4, captions=False)
    trained = stages.pretrained(run)
    assert trained.tasks == ("mrp",) and trained.model is not None
    assert "words" not in sets["test"].image and "text-only" not in chosen and "capture/instance" in chosen
    assert all(np.isfinite(array).all() for array in vectors(sets).values())


@pytest.mark.parametrize("caption", ["☂", "包邮 正品"])
def test_captions_that_say_nothing_leave_the_text_side_out_before_training(tmp_path: Path, monkeypatch, capsys,
                                                                            caption: str):
    catalog = make_catalog(tmp_path / "shop", train=40, gallery=8, val=4, test=4)
    catalog.table["caption"] = caption
    write_catalog(catalog.table, catalog.folder)
    run = Run(TINY, read_catalog(catalog.folder), tmp_path / "report", 0)
    make_random_store(tmp_path, monkeypatch)(run)
    said = []
    train = stages.pretrain.train
    monkeypatch.setattr(stages.pretrain, "train", lambda *call: said.append(capsys.readouterr().out) or train(*call))
    trained = stages.pretrained(run)
    assert trained.tasks == ("mrp",) and trained.model is not None
    assert said == ["shop: the captions of train carry no text; its photos alone are learned from\n"]
    assert stages.caption_words(run) is None


@pytest.mark.parametrize("split", ["gallery", "test"])
def test_words_are_compared_where_both_sides_have_some(tmp_path: Path, split: str):
    catalog = make_catalog(tmp_path / "shop", **SIZES)
    catalog.table.loc[catalog.table["split"] == split, "caption"] = "-"
    run = Run(TINY, catalog, tmp_path / "report", 0)
    assert stages.caption_words(run) is None


def test_captions_on_one_side_alone_are_compared_with_nothing(tmp_path: Path):
    catalog = make_catalog(tmp_path / "one", **SIZES)
    run = Run(TINY, catalog, tmp_path / "report", 0)
    assert stages.caption_words(run) is not None
    catalog.table.loc[catalog.table["split"] == "gallery", "caption"] = ""
    write_catalog(catalog.table, catalog.folder)
    assert stages.caption_words(replace(run, catalog=read_catalog(catalog.folder))) is None


def test_text_that_starts_from_bert_has_the_words_of_bert_and_matching_has_its_head(tmp_path: Path, monkeypatch):
    from transformers import BertConfig, BertModel

    words = [*SPECIAL, "a", "b", "c"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=32)).save_pretrained(tmp_path / "bert")
    settings = PretrainSettings(epochs=1, batch=16, bert=str(tmp_path / "bert"), tasks=(*TASKS, "itm"))
    run = Run(replace(TINY, pretrain=settings), make_catalog(tmp_path / "one", train=40), tmp_path / "report", 0)
    make_random_store(tmp_path, monkeypatch)(run)
    trained = stages.pretrained(run)
    assert trained.tokenizer.get_vocab_size() == trained.model.settings.vocabulary == len(words)
    assert trained.tasks == (*TASKS, "itm") and trained.model.settings.matching


def test_a_catalog_without_photos_is_named(tmp_path: Path):
    catalog = make_catalog(tmp_path / "bare")
    for photo in catalog.photos.values():
        photo.unlink()
    with pytest.raises(InputError, match="none of its photos is on disk; run `capture download` first"):
        stages.pretrained(Run(TINY, read_catalog(tmp_path / "bare"), tmp_path, 0))
