"""The line, stage by stage: each function gives what its stage made, and makes it and all before it where missing.

Any notebook can therefore be opened on its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from capture_lib import batches, detector, encoder, losses, model, photos, pretrain, regions, retrieval, synthesis
from capture_lib.batches import Pairs
from capture_lib.catalog import Catalog, read_catalog
from capture_lib.faults import InputError
from capture_lib.model import Capture
from capture_lib.regions import RegionStore
from capture_lib.retrieval import Choice, Side, Words
from capture_lib.runs import Run, default_catalog, write_json

LEAST_FOREGROUNDS = 20  # fewer cannot train a proposal network
LEAST_PAIRS = 32  # fewer cannot train CAPTURE


def composites(run: Run) -> Path:
    """The folder with foregrounds and composites (notebook 02).

    A catalog that gives fewer than 20 foregrounds borrows those of the smallest rendered world, and says so.
    """
    settings = run.profile.synthesis
    if not run.catalog.photos:
        raise InputError(f"{run.catalog.folder}: none of its photos is on disk; run `capture download` first")

    def make(folder: Path) -> None:
        report = synthesis.cut_foregrounds(run.catalog, settings, folder)
        if report["kept"] < LEAST_FOREGROUNDS:
            other = lender()
            print(f"{run.catalog.name}: {report['kept']} usable foregrounds in {report['tried']} photos are too few; "
                  f"composites are made of the products of {other.name} instead")
            report = synthesis.cut_foregrounds(other, settings, folder)
        synthesis.make_composites(settings, folder, run.seed)
        write_json(folder / "report.json", report)

    return run.stage([synthesis, photos], settings, [], make)


def lender() -> Catalog:
    """The world that lends its foregrounds."""
    from capture_lib.profiles import get

    return read_catalog(default_catalog(get("smoke")))


def trained_detector(run: Run) -> tuple[detector.Detector, Path]:
    """The region proposal network and its folder (notebook 03)."""
    settings, source = run.profile.detector, composites(run)

    def make(folder: Path) -> None:
        history = detector.train(settings, source, folder, run.seed)
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    folder = run.stage([detector], settings, [source], make)
    return detector.load(settings, folder), folder


def trained_encoder(run: Run) -> tuple[torch.nn.Module, Path]:
    """The region encoder and its folder (notebook 03)."""
    settings, source = run.profile.encoder, composites(run)
    network, network_folder = trained_detector(run)

    def make(folder: Path) -> None:
        if settings.kind == "crops":
            history = encoder.train(settings, source, folder, run.seed)
            (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    folder = run.stage([encoder], settings, [source, network_folder], make)
    return encoder.load(settings, folder, network), folder


def region_store(run: Run) -> tuple[RegionStore, Path]:
    """The region store of every photo on disk, and its folder (notebook 03)."""
    settings = run.profile.regions
    network, network_folder = trained_detector(run)
    describer, describer_folder = trained_encoder(run)

    def make(folder: Path) -> None:
        regions.extract(run.catalog, settings, network, describer, folder)

    folder = run.stage([regions, photos], settings, [network_folder, describer_folder], make)
    return regions.open_store(folder), folder


def samples(run: Run, split: str) -> pd.DataFrame:
    """The rows of a split whose photos are on disk."""
    table = run.catalog.split(split)
    return table[table["sample_id"].isin(run.catalog.photos)]


@dataclass(frozen=True)
class Pretrained:
    """What notebook 04 hands on: the model (None where the catalog has too few pairs), its tokenizer, its tasks."""

    model: Capture | None
    tokenizer: batches.BertWordPieceTokenizer
    tasks: tuple[str, ...]
    folder: Path


def pretrained(run: Run) -> Pretrained:
    """CAPTURE, pretrained on the train split (notebook 04)."""
    store, store_folder = region_store(run)
    train = samples(run, "train")
    tasks = pretrain.possible_tasks(list(train["caption"]), run.profile.pretrain.tasks)

    def make(folder: Path) -> None:
        captions = train["caption"] if any(train["caption"]) else run.catalog.table["caption"]
        tokenizer = batches.make_tokenizer(run.profile.batches, captions, folder)
        if len(train) < LEAST_PAIRS:
            return
        pairs = batches.make_pairs(train, store, tokenizer, run.profile.batches)
        fresh = pretrain.build_model(run.profile.capture, pairs, run.seed)
        settings = pretrain.PretrainSettings(**{**run.profile.pretrain.__dict__, "tasks": tasks})
        pretrain.train(fresh, pairs, run.profile.batches, settings, folder, run.seed)

    settings = PretrainInputs(run.profile.batches, run.profile.capture, run.profile.pretrain)
    folder = run.stage([pretrain, model, losses, batches], settings, [store_folder], make)
    trained = Capture.load(folder) if (folder / "model.safetensors").is_file() else None
    if trained:
        trained.to(detector.pick_device()).eval()
    return Pretrained(trained, batches.load_tokenizer(folder), tasks, folder)


@dataclass(frozen=True)
class PretrainInputs:
    """The settings that a pretrained model depends on."""

    batches: batches.BatchSettings
    capture: model.CaptureSettings
    pretrain: pretrain.PretrainSettings


def pairs_of(run: Run, table: pd.DataFrame, store: RegionStore, trained: Pretrained) -> Pairs:
    """The pairs of some samples of the catalog."""
    return batches.make_pairs(table, store, trained.tokenizer, run.profile.batches)


def embedded(run: Run) -> dict[str, Side]:
    """Val, test and gallery as vectors (notebook 05); a split that has no samples is left out."""
    store, _ = region_store(run)
    trained = pretrained(run)
    words = caption_words(run)
    sides = {}
    for name in ("val", "test", "gallery"):
        table = samples(run, name)
        if len(table):
            captioned = words if any(table["caption"]) else None
            sides[name] = retrieval.embed_side(table, pairs_of(run, table, store, trained), trained.model, captioned,
                                               run.profile.retrieval, single=name == "gallery")
    return sides


def caption_words(run: Run) -> Words | None:
    """The character n-gram vectors, fitted on the training captions; None where there are too few."""
    captions = [caption for caption in samples(run, "train")["caption"] if caption]
    return Words(captions, run.profile.retrieval, run.seed) if len(captions) >= LEAST_PAIRS else None


def choices(run: Run, sides: dict[str, Side]) -> tuple[dict[str, Choice], dict[str, dict[str, float]]]:
    """What val chooses for each method, and the figures of everything that was tried; kept for `capture search`.

    Raises:
        InputError: the catalog has no gallery or no queries, so there is nothing to rank.
    """
    if "gallery" not in sides or not {"val", "test"} & set(sides):
        raise InputError(f"{run.catalog.folder}: ranking needs a gallery and val or test queries with photos")
    val = sides.get("val")
    labelled = val if val and any(val.labels) else None
    queries = sides.get("test") or sides["val"]
    found = {name: retrieval.choose(method, labelled, sides["gallery"], run.profile.retrieval.depth)
             for name, method in retrieval.possible_methods(queries).items()}
    chosen = {name: choice for name, (choice, _) in found.items()}
    write_json(run.stages / "choices.json", {
        name: {**choice.__dict__, "val": max(tried.values(), default=None)} for name, (choice, tried) in found.items()})
    return chosen, {name: tried for name, (_, tried) in found.items()}
