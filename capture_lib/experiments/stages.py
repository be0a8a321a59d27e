"""The stages of a run: each function returns what its stage made, and makes it and all before it.

So any notebook can be opened on its own. `python -m capture_lib.experiments.stages` makes all stages
beforehand; with `accelerate launch -m` before it, all processes describe regions and pretrain.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from capture_lib import profiles, utils
from capture_lib.catalog.table import Catalog, read_catalog
from capture_lib.experiments.run import Run, default_catalog, open_run, read_record, reason
from capture_lib.model.capture import Capture
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import detector as detection
from capture_lib.proposals import region_encoder as encoding
from capture_lib.proposals import region_store as storing
from capture_lib.retrieval import embedding, ranking
from capture_lib.training import batches, pretrain
from capture_lib.utils import InputError

MIN_FOREGROUNDS = 20  # fewer cannot train a detector
MIN_PAIRS = 32  # fewer cannot train CAPTURE
CHOICES = "choices.json"  # what val chose, for `capture search`


def photographed(run: Run) -> pd.DataFrame:
    """Return the rows of the catalog whose photos are on disk."""
    return run.catalog.table[run.catalog.table["sample_id"].isin(run.catalog.photos)]


def samples(run: Run, split: str) -> pd.DataFrame:
    """Return the rows of a split whose photos are on disk."""
    table = photographed(run)
    return table[table["split"] == split]


def composites(run: Run) -> Path:
    """Return the folder with foregrounds and composites (notebook 02).

    A catalog with too few usable foregrounds borrows those of the smallest world, and says so.
    """
    settings = run.profile.synthesis
    if not run.catalog.photos:
        raise InputError(f"{run.catalog.folder}: none of its photos is on disk; run `capture download` first")

    def make(folder: Path) -> None:
        report = synthesis.cut_foregrounds(run.catalog, settings, folder)
        if report["kept"] < MIN_FOREGROUNDS:
            other = lender()
            print(f"{run.catalog.name}: {report['kept']} usable foregrounds in {report['tried']} photos are "
                  f"too few; composites are made of the products of {other.name} instead")
            report = synthesis.cut_foregrounds(other, settings, folder)
        synthesis.make_composites(settings, folder, run.seed)
        utils.write_json(folder / "report.json", report)

    table = photographed(run)
    table = table[table["split"].isin(["train", "gallery"])]
    return run.stage(synthesis, settings, [], table[["sample_id", "split", "image", "products"]], make)


def lender() -> Catalog:
    """Return the world that lends its foregrounds."""
    return read_catalog(default_catalog(profiles.get("smoke")))


def trained_detector(run: Run) -> tuple[detection.Detector, Path]:
    """Return the region proposal network and its folder (notebook 03)."""
    settings = run.profile.detector
    source = composites(run)

    def make(folder: Path) -> None:
        utils.write_json(folder / "history.json", detection.train(settings, source, folder, run.seed))

    folder = run.stage(detection, settings, [source], None, make)
    return detection.load(settings, folder), folder


def trained_encoder(run: Run) -> tuple["torch.nn.Module", Path]:  # noqa: F821
    """Return the region encoder and its folder (notebook 03)."""
    settings = run.profile.encoder
    source = composites(run)

    def make(folder: Path) -> None:
        utils.write_json(folder / "history.json", encoding.train(settings, source, folder, run.seed))

    folder = run.stage(encoding, settings, [source], None, make)
    return encoding.load(settings, folder), folder


def region_store(run: Run) -> tuple[storing.RegionStore, Path]:
    """Return the region store of all photos on disk, and its folder (notebook 03); it can grow."""
    settings = run.profile.regions
    network, network_folder = trained_detector(run)
    encoder, encoder_folder = trained_encoder(run)
    make = partial(storing.extract, run.catalog, settings, network, encoder)
    read = photographed(run)[["sample_id", "image"]]
    folder = run.stage(storing, settings, [network_folder, encoder_folder], read, make, make, together=True)
    return storing.open_store(folder), folder


@dataclass(frozen=True)
class Pretrained:
    """CAPTURE (None where the catalog has too few pairs), its tokenizer and its pretext tasks."""

    model: Capture | None
    tokenizer: "batches.BertWordPieceTokenizer"
    tasks: tuple[str, ...]
    folder: Path


def pretrained(run: Run) -> Pretrained:
    """Return CAPTURE, pretrained on the train split (notebook 04)."""
    store, store_folder = region_store(run)
    train = samples(run, "train")
    profile = run.profile
    # without captions, only regions can be predicted
    tasks = profile.pretrain.tasks if any(train["caption"]) else ("mrp",)
    enough = len(train) >= MIN_PAIRS
    captioned = train if any(train["caption"]) else photographed(run)

    def make(folder: Path) -> None:
        if utils.is_main_process():
            batches.make_tokenizer(captioned["caption"], folder, profile.pretrain.bert)
        utils.wait_for_everyone()
        if enough:
            pairs = batches.make_pairs(train, store, batches.load_tokenizer(folder), profile.batches)
            model = pretrain.build_model(profile.capture, pairs, run.seed, tasks, profile.pretrain.bert)
            settings = replace(profile.pretrain, tasks=tasks)
            pretrain.train(model, pairs, profile.batches, settings, folder, run.seed)

    settings = {"batches": profile.batches, "capture": profile.capture, "enough": enough,
                "pretrain": replace(profile.pretrain, keep_every=0, log="")}
    read = captioned[["sample_id", "split", "image", "caption"]]
    folder = run.stage(pretrain, settings, [store_folder], read, make, together=True)
    model = None
    if enough:
        model = Capture.from_pretrained(folder).to(utils.pick_device()).eval()
    return Pretrained(model, batches.load_tokenizer(folder), tasks, folder)


def pairs_of(run: Run, table: pd.DataFrame, store: storing.RegionStore, trained: Pretrained) -> batches.Pairs:
    """Return some samples of the catalog as pairs of regions and captions."""
    return batches.make_pairs(table, store, trained.tokenizer, run.profile.batches)


def embedded(run: Run) -> dict[str, embedding.EmbeddedSet]:
    """Return val, test and gallery, those that have samples, as vectors (notebook 05)."""
    trained, words, store = pretrained(run), caption_words(run), region_store(run)[0]
    sets = {}
    for split in ("val", "test", "gallery"):
        table = samples(run, split)
        if len(table):
            pairs = pairs_of(run, table, store, trained)
            sets[split] = embedding.embed_samples(table, pairs, trained.model, words, run.profile.instances,
                                                  single=split == "gallery")
    return sets


def caption_words(run: Run) -> embedding.Words | None:
    """Return the n-gram vectors, fitted on training captions; None where captions are missing.

    That is where train has too few, or one of val, test and gallery has none at all.
    """
    captions = [caption for caption in samples(run, "train")["caption"] if caption]
    compared = [samples(run, split)["caption"] for split in ("val", "test", "gallery")]
    if len(captions) < MIN_PAIRS or not all(any(texts) for texts in compared if len(texts)):
        return None
    return embedding.Words(captions, run.profile.retrieval, run.seed)


def choices(run: Run, sets: dict[str, embedding.EmbeddedSet]) -> tuple[dict, dict]:
    """Return the representation that val chose for each method, and the figures of all that was tried.

    They are kept for `capture search`.

    Raises:
        InputError: the catalog has no gallery or no queries, so there is nothing to rank.
    """
    if "gallery" not in sets or not {"val", "test"} & set(sets):
        raise InputError(f"{run.catalog.folder}: ranking needs a gallery and val or test queries with photos")
    settings = run.profile.retrieval
    val = sets.get("val")
    labelled = val if val and any(val.labels) else None
    chosen, tried, kept = {}, {}, {}
    for name, method in ranking.possible_methods(sets.get("test") or val).items():
        chosen[name], tried[name] = ranking.choose(method, labelled, sets["gallery"], settings.depth)
        kept[name] = {"representation": chosen[name], "val": max(tried[name].values(), default=None)}
    utils.write_json(run.stages / CHOICES, {"record": choices_record(run), "choices": kept})
    return chosen, tried


def stored_choices(run: Run) -> dict[str, dict]:
    """Return what `choices` kept by method: representation, figure on val ("val").

    Nothing where it no longer holds.
    """
    stored = read_record(run.stages / CHOICES)
    record = choices_record(run)
    if stored and stored["record"] != record:
        why = reason(stored["record"], record)
        utils.say(f"{utils.display_path(run.stages / CHOICES)}: not used, because {why}; run notebook 05 again")
        return {}
    return stored.get("choices", {})


def choices_record(run: Run) -> dict:
    """Return what choices rest on: the stored regions, the model, and what is searched."""
    settings = {"retrieval": run.profile.retrieval, "instances": run.profile.instances}
    searched = photographed(run)[["sample_id", "split", "image", "caption", "labels"]]
    upstream = [run.stages / "region_store", run.stages / "pretrain"]
    return run.stage_record(ranking, settings, upstream, searched)


UNTIL = {"composites": composites, "detector": trained_detector, "region_encoder": trained_encoder,
         "region_store": region_store, "pretrain": pretrained}


def main(arguments: list[str] | None = None) -> int:
    """Make the stages of a run, in one process or many; return the exit code."""
    parser = argparse.ArgumentParser("capture_lib.experiments.stages", description="Make the stages of a run.")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, gpu or product1m")
    parser.add_argument("--catalog", default="", help="a catalog folder; default: the profile's drawn world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", default="pretrain", choices=UNTIL, help="the last stage (default pretrain)")
    parser.add_argument("--tensorboard", metavar="FOLDER", default="", help="log the pretraining there")
    options = parser.parse_args(arguments)
    try:
        if utils.is_main_process():  # draws the world where it is not there
            open_run(options.profile, options.catalog)
        utils.wait_for_everyone()
        run = open_run(options.profile, options.catalog, seed=options.seed)
        logged = replace(run.profile.pretrain, log=options.tensorboard)
        UNTIL[options.until](replace(run, profile=replace(run.profile, pretrain=logged)))
        utils.say(f"{utils.display_path(run.stages)}: made until {options.until}")
    except (InputError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: {str(interrupt) or 'interrupted; the same command goes on'}", file=sys.stderr)
        return 130
    if utils.process_count() > 1:
        utils.accelerator().end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
