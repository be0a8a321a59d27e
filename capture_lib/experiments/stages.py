"""The line, stage by stage: each function gives what its stage made, and makes it and all before it where missing.

Any notebook can therefore be opened on its own. `python -m capture_lib.experiments.stages` makes the line beforehand, and with
`accelerate launch -m capture_lib.experiments.stages` many processes do: one trains the detector and the encoder, all describe the
regions and pretrain.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.experiments import composed as beyond
from capture_lib.experiments import synthesis_ablation as ablation
from capture_lib.experiments.run import RECORD, Origin, Run, default_catalog, open_run, say_once
from capture_lib.model import bert
from capture_lib.model import capture as model
from capture_lib.model.capture import Capture
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import detector
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import wccn as whitening
from capture_lib.retrieval.embedding import Choice, EmbeddedSet, Words
from capture_lib.training import batches, pretrain
from capture_lib.training import distributed as ranks
from capture_lib.training.batches import Pairs
from capture_lib.utils import InputError, display_path, is_main_process, pick_device, say, wait_for_everyone, write_json

MIN_FOREGROUNDS = 20  # fewer cannot train a proposal network
MINING = beyond.ComposedSettings(weight=0.65)  # of the pairs that vectors are whitened by
MIN_PAIRS = 32  # fewer cannot train CAPTURE


def composites(run: Run) -> Path:
    """The folder with foregrounds and composites (notebook 02).

    A catalog that gives fewer than 20 foregrounds borrows those of the smallest rendered world, and says so.
    """
    settings = run.profile.synthesis
    if not run.catalog.photos:
        raise InputError(f"{run.catalog.folder}: none of its photos is on disk; run `capture download` first")

    def make(folder: Path) -> None:
        report = synthesis.cut_foregrounds(run.catalog, settings, folder)
        if report["kept"] < MIN_FOREGROUNDS:
            other = lender()
            print(f"{run.catalog.name}: {report['kept']} usable foregrounds in {report['tried']} photos are too few; "
                  f"composites are made of the products of {other.name} instead")
            report = synthesis.cut_foregrounds(other, settings, folder)
        synthesis.make_composites(settings, folder, run.seed)
        write_json(folder / "report.json", report)

    table = photographed(run)
    sources = table[table["split"].isin(["train", "gallery"])][["sample_id", "split", "image", "products"]]
    return run.stage(synthesis, settings, [], sources, make)


def lender() -> Catalog:
    """The world that lends its foregrounds."""
    from capture_lib.profiles import get

    return read_catalog(default_catalog(get("smoke")))


def ablated(run: Run) -> dict[str, dict]:
    """What each choice of the synthesis does to the detector, as from `ablation.table` (notebook 02).

    Empty where no photo of val has true boxes.
    """
    settings, source = AblationInputs(run.profile.ablation, run.profile.detector), composites(run)
    table, truth = ablation.evaluated(run.catalog, settings.ablation, run.seed)
    if table.empty:
        return {}

    def make(folder: Path) -> None:
        paths = [run.catalog.photos[sample] for sample in table["sample_id"]]
        hits = ablation.hits(settings.ablation, source / "foregrounds.npy", run.profile.synthesis, settings.detector,
                             paths, truth, run.seed)
        write_json(folder / "hits.json", {"hits": hits, "totals": [len(boxes) for boxes in truth]})

    folder = run.stage(ablation, settings, [source], table[["sample_id", "image", "boxes"]], make)
    kept = json.loads((folder / "hits.json").read_text(encoding="utf-8"))
    return ablation.table(kept["hits"], kept["totals"], run.seed)


@dataclass(frozen=True)
class AblationInputs:
    """The settings that the ablation depends on, beside those of the composites."""

    ablation: ablation.AblationSettings
    detector: detector.DetectorSettings


def trained_detector(run: Run) -> tuple[detector.Detector, Path]:
    """The region proposal network and its folder (notebook 03)."""
    settings, source = run.profile.detector, composites(run)

    def make(folder: Path) -> None:
        history = detector.train(settings, source, folder, run.seed)
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    folder = run.stage(detector, settings, [source], None, make)
    return detector.load(settings, folder), folder


def trained_encoder(run: Run) -> tuple[torch.nn.Module, Path]:
    """The region encoder and its folder (notebook 03)."""
    settings, source = run.profile.encoder, composites(run)
    network, network_folder = trained_detector(run)

    def make(folder: Path) -> None:
        if settings.kind == "crops":
            history = encoder.train(settings, source, folder, run.seed)
            (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    folder = run.stage(encoder, settings, [source, network_folder], None, make)
    return encoder.load(settings, folder, network), folder


def region_store(run: Run) -> tuple[RegionStore, Path]:
    """The region store of every photo on disk, and its folder (notebook 03); photos that were added are added to it."""
    settings = run.profile.regions
    network, network_folder = trained_detector(run)
    describer, describer_folder = trained_encoder(run)

    make = partial(regions.extract, run.catalog, settings, network, describer)
    folder = run.stage(regions, settings, [network_folder, describer_folder],
                       photographed(run)[["sample_id", "image"]], make, extend=make, together=True)
    return regions.open_store(folder), folder


def photographed(run: Run) -> pd.DataFrame:
    """The rows of the catalog whose photos are on disk."""
    table = run.catalog.table
    return table[table["sample_id"].isin(run.catalog.photos)]


def samples(run: Run, split: str) -> pd.DataFrame:
    """The rows of a split whose photos are on disk."""
    table = photographed(run)
    return table[table["split"] == split]


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
    enough = len(train) >= MIN_PAIRS
    worded = train if any(train["caption"]) else photographed(run)
    start = run.profile.pretrain.bert

    def make(folder: Path) -> None:
        if is_main_process():
            batches.make_tokenizer(bert.with_vocabulary(run.profile.batches, start), worded["caption"], folder)
        wait_for_everyone()
        if not enough:
            return
        pairs = batches.make_pairs(train, store, batches.load_tokenizer(folder), run.profile.batches)
        pairs = by_recipe(pairs, train, run.profile.pretrain, run.seed)
        fresh = pretrain.build_model(run.profile.capture, pairs, run.seed, tasks, start)
        settings = pretrain.PretrainSettings(**{**run.profile.pretrain.__dict__, "tasks": tasks})
        pretrain.train(fresh, pairs, run.profile.batches, settings, folder, run.seed)

    trained_by = pretrain.of_result(run.profile.pretrain)
    settings = PretrainInputs(run.profile.batches, run.profile.capture, trained_by, enough)
    folder = run.stage(pretrain, settings, [store_folder], worded[["sample_id", "split", "image", "caption"]], make,
                       together=True)
    trained = Capture.from_pretrained(folder) if (folder / "model.safetensors").is_file() else None
    if trained:
        trained.to(pick_device()).eval()
    return Pretrained(trained, batches.load_tokenizer(folder), tasks, folder)


def by_recipe(pairs: Pairs, table: pd.DataFrame, settings: pretrain.PretrainSettings, seed: int) -> Pairs:
    """The pairs of a table's rows as the recipe trains on them; without captions there is nothing to compose."""
    if settings.recipe == pretrain.PAPER or not any(table["caption"]):
        return pairs
    return beyond.composed(pairs, list(table["caption"]), settings.composed or beyond.ComposedSettings(), seed)


@dataclass(frozen=True)
class PretrainInputs:
    """The settings that a pretrained model depends on."""

    batches: batches.BatchSettings
    capture: model.CaptureSettings
    pretrain: pretrain.PretrainSettings
    enough: bool  # False where the pairs are too few to train on


def pairs_of(run: Run, table: pd.DataFrame, store: RegionStore, trained: Pretrained) -> Pairs:
    """The pairs of some samples of the catalog."""
    return batches.make_pairs(table, store, trained.tokenizer, run.profile.batches)


def embedded(run: Run) -> dict[str, EmbeddedSet]:
    """Val, test and gallery as vectors (notebook 05); a split that has no samples is left out."""
    store, _ = region_store(run)
    trained = pretrained(run)
    words = caption_words(run)
    sides = {}
    for name in ("val", "test", "gallery"):
        table = samples(run, name)
        if len(table):
            sides[name] = retrieval.embed_samples(table, pairs_of(run, table, store, trained), trained.model, words,
                                               run.profile.instances, single=name == "gallery")
    maps = maps_of(run, trained, words)
    return {name: whitening.mapped(side, maps) for name, side in sides.items()}


def maps_of(run: Run, trained: Pretrained, words: Words | None) -> dict[str, np.ndarray]:
    """The maps (D, D) by which vectors are whitened, by block (notebook 08).

    Empty where the profile has plain vectors, or where too few pairs can be mined.
    """
    found = mined(run, trained) if words and run.profile.retrieval.matched else None
    if found is None:
        return {}
    table = samples(run, "train").iloc[found.parts]
    pairs = pairs_of(run, table, found.store, trained)
    parts = retrieval.embed_samples(table, pairs, trained.model, words, run.profile.instances, single=True)
    return whitening.learned(parts.instance, found.near, whitening.WhiteningSettings())


def mined(run: Run, trained: Pretrained) -> beyond.ComposedPairs | None:
    """The train photos of one product with their neighbours by both modalities; None where they are too few."""
    table, store = samples(run, "train"), region_store(run)[0]
    if not any(table["caption"]):
        return None
    found = beyond.composed(pairs_of(run, table, store, trained), list(table["caption"]), MINING, run.seed)
    return found if isinstance(found, beyond.ComposedPairs) else None


def caption_words(run: Run) -> Words | None:
    """The character n-gram vectors, fitted on the training captions; None where there are too few.

    None too where val, test or gallery has no captions at all: texts are then compared with nothing.
    """
    captions = [caption for caption in samples(run, "train")["caption"] if caption]
    sides = [samples(run, split)["caption"] for split in ("val", "test", "gallery")]
    if not all(any(side) for side in sides if len(side)):
        return None
    return Words(captions, run.profile.retrieval, run.seed) if len(captions) >= MIN_PAIRS else None


def choices(run: Run, sides: dict[str, EmbeddedSet]) -> tuple[dict[str, Choice], dict[str, dict[str, float]]]:
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
             for name, method in retrieval.possible_methods(queries, run.profile.retrieval.matched).items()}
    chosen = {name: choice for name, (choice, _) in found.items()}
    folder = run.stages / "retrieval"
    (folder / RECORD).unlink(missing_ok=True)  # until both files are there, the choices don't hold
    write_json(folder / "choices.json", {name: {**choice.__dict__, "val": max(tried.values(), default=None)}
                                         for name, (choice, tried) in found.items()})
    origin_of_choices(run).write(folder)
    return chosen, {name: tried for name, (_, tried) in found.items()}


def stored_choices(run: Run) -> dict[str, dict]:
    """What `choices` kept: reading, merge and figure on val ("val") by method; nothing where it no longer holds."""
    folder = run.stages / "retrieval"
    changed = origin_of_choices(run).differences(folder)
    if changed in ([], ["additions"]):
        return json.loads((folder / "choices.json").read_text(encoding="utf-8"))
    if folder.exists():
        say_once(f"{display_path(folder)}: not used, because {', '.join(changed)} changed; run notebook 05 again")
    return {}


@dataclass(frozen=True)
class ChoiceInputs:
    """The settings that the choices depend on."""

    retrieval: retrieval.RetrievalSettings
    instances: InstanceSettings


def origin_of_choices(run: Run) -> Origin:
    """What the choices rest on: the stored regions, the model, and what is searched."""
    searched = photographed(run)[["sample_id", "split", "image", "caption", "labels"]]
    settings = ChoiceInputs(run.profile.retrieval, run.profile.instances)
    return run.origin(retrieval, settings, [run.stages / "region_store", run.stages / "pretrain"], searched)


UNTIL = {"composites": composites, "detector": trained_detector, "region_encoder": trained_encoder, "region_store": region_store,
         "pretrain": pretrained}


def main(arguments: list[str] | None = None) -> int:
    """Makes the stages of a run, in one process or many; returns 0, or 2 with one line for a wrong input."""
    parser = argparse.ArgumentParser("capture_lib.experiments.stages", description="Makes the stages that the notebooks load.")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, gpu or product1m")
    parser.add_argument("--catalog", default="", help="a catalog folder; default: the profile's rendered world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", default="pretrain", choices=UNTIL, help="the last stage (default pretrain)")
    parser.add_argument("--tensorboard", metavar="FOLDER", default="", help="log the pretraining there")
    options = parser.parse_args(arguments)
    try:
        wait_for_everyone()
        if is_main_process():  # draws the world where it is not there
            open_run(options.profile, options.catalog)
        wait_for_everyone()
        run = open_run(options.profile, options.catalog, seed=options.seed)
        logged = replace(run.profile.pretrain, log=options.tensorboard)
        UNTIL[options.until](replace(run, profile=replace(run.profile, pretrain=logged)))
        say(f"{display_path(run.stages)}: made until {options.until}")
    except (InputError, FloatingPointError) as error:
        print(f"capture_lib.experiments.stages: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"capture_lib.experiments.stages: {str(interrupt) or 'interrupted; the same command goes on'}", file=sys.stderr)
        return 130
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
