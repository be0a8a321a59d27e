"""The stages of a run: each function returns what its stage made, and makes it and all before it."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from capture_lib import utils
from capture_lib.experiments.run import Run, open_run
from capture_lib.model.capture import Capture
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import detector as detection
from capture_lib.proposals import region_encoder as encoding
from capture_lib.proposals import region_store as storing
from capture_lib.retrieval.embedding import Words, carry_text, letters
from capture_lib.training import batches, pretrain

MIN_FOREGROUNDS = 20  # fewer cannot train a detector
MIN_PAIRS = 32  # fewer cannot train CAPTURE


def samples(run: Run, *splits: str) -> pd.DataFrame:
    """Return the rows of some splits, or of all, whose photos are on disk."""
    table = run.catalog.table
    table = table[table["sample_id"].isin(run.catalog.photos)]
    return table[table["split"].isin(splits)] if splits else table


def composites(run: Run) -> Path:
    """Return the folder with foregrounds and composites (notebook 02)."""
    settings = run.profile.synthesis
    if not run.catalog.photos:
        raise utils.InputError(f"{run.catalog.folder}: none of its photos is on disk; run `capture download` first")

    def make(folder: Path) -> None:
        report = synthesis.cut_foregrounds(run.catalog, settings, folder)
        if report["kept"] < MIN_FOREGROUNDS:  # borrow those of the smallest world
            lender = open_run("smoke").catalog
            print(f"{run.catalog.name}: {report['kept']} usable foregrounds in {report['tried']} photos are "
                  f"too few; composites are made of the products of {lender.name} instead")
            report = synthesis.cut_foregrounds(lender, settings, folder)
        synthesis.make_composites(settings, folder, run.seed)
        utils.write_json(folder / "report.json", report)

    read = samples(run, "train", "gallery")[["sample_id", "split", "image", "products"]]
    return run.stage(synthesis, settings, [], read, make)


def trained_detector(run: Run) -> tuple[detection.Detector, Path]:
    """Return the region proposal network and its folder (notebook 03)."""
    settings = run.profile.detector
    source = composites(run)

    def make(folder: Path) -> None:
        utils.write_json(folder / "history.json", detection.train(settings, source, folder, run.seed))

    folder = run.stage(detection, settings, [source], None, make)
    return detection.load(settings, folder), folder


def trained_encoder(run: Run) -> tuple[nn.Module, Path]:
    """Return the region encoder and its folder (notebook 03)."""
    settings = run.profile.encoder
    source = composites(run)
    read = samples(run, "train", "gallery")[["sample_id", "split", "caption"]] if settings.captions else None

    def make(folder: Path) -> None:
        texts = foreground_texts(run, source) if settings.captions else None
        utils.write_json(folder / "history.json", encoding.train(settings, source, folder, run.seed, texts))

    silent = replace(settings, caption_weight=0.0, caption_spread=0.0)
    folder = run.stage(encoding, settings if settings.captions else silent, [source], read, make)
    return encoding.load(settings, folder), folder


def foreground_texts(run: Run, folder: Path) -> np.ndarray | None:
    """Return the n-gram vector of the caption of each foreground's photo, zero for none; None without captions."""
    words = caption_words(run)
    if words is None:
        return None
    captions = samples(run, *run.profile.encoder.captions.split(", ")).set_index("sample_id")["caption"]
    ids = (folder / "ids.txt").read_text(encoding="utf-8").split()
    return words.vectors(list(captions.reindex(ids, fill_value="")))


def captions_speak(run: Run) -> bool:
    """Return whether the captions of train, and of each side of a search, carry text."""
    captions = list(filter(None, samples(run, "train")["caption"]))
    compared = [samples(run, split)["caption"] for split in ("val", "test", "gallery")]
    spoken = all(any(len(letters(text)) > 1 for text in texts) for texts in compared if len(texts))
    return len(captions) >= MIN_PAIRS and carry_text(captions) and spoken


def caption_words(run: Run) -> Words | None:
    """Return n-gram vectors fitted on train; None where captions carry no text."""
    captions = list(filter(None, samples(run, "train")["caption"]))
    return Words(captions, run.profile.retrieval, run.seed) if captions_speak(run) else None


def region_store(run: Run) -> tuple[storing.RegionStore, Path]:
    """Return the region store of all photos on disk, and its folder (notebook 03)."""
    settings = run.profile.regions
    network, network_folder = trained_detector(run)
    encoder, encoder_folder = trained_encoder(run)
    upstream = [network_folder, encoder_folder]
    located = None
    if run.profile.encoder.captions:  # the same boxes as without captions
        located, located_folder = region_store(run.taught(captions=""))
        upstream.append(located_folder)

    def make(folder: Path) -> None:
        storing.extract(run.catalog, settings, network, encoder, folder, located)

    read = samples(run)[["sample_id", "image"]]
    folder = run.stage(storing, settings, upstream, read, make, together=True)
    return storing.open_store(folder), folder


class Pretrained(NamedTuple):
    """CAPTURE with its tokenizer and its pretext tasks."""

    model: Capture | None  # where there are enough pairs
    tokenizer: "batches.BertWordPieceTokenizer"
    tasks: tuple[str, ...]
    folder: Path


def pretrained(run: Run) -> Pretrained:
    """Return CAPTURE, pretrained on the train split (notebook 04)."""
    store, store_folder = region_store(run)
    train = samples(run, "train")
    profile = run.profile
    tasks = profile.pretrain.tasks if carry_text(list(train["caption"])) else ("mrp",)
    enough = len(train) >= MIN_PAIRS

    def make(folder: Path) -> None:
        if any(train["caption"]) and tasks != profile.pretrain.tasks:
            utils.say(f"{run.catalog.name}: the captions of train carry no text; its photos alone are learned from")
        if utils.is_main_process():
            batches.make_tokenizer(train["caption"], folder, profile.pretrain.bert)
        utils.wait_for_everyone()
        if enough:
            pairs = batches.make_pairs(train, store, batches.load_tokenizer(folder), profile.batches)
            model = pretrain.build_model(profile.capture, pairs, run.seed, tasks, profile.pretrain.bert)
            pretrain.train(model, pairs, profile.batches, replace(profile.pretrain, tasks=tasks), folder, run.seed)

    settings = {"batches": profile.batches, "capture": profile.capture, "enough": enough,
                "pretrain": replace(profile.pretrain, tasks=tasks, keep_every=0)}
    read = train[["sample_id", "split", "image", "caption"]]
    folder = run.stage(pretrain, settings, [store_folder], read, make, together=True)
    model = Capture.from_pretrained(folder).to(utils.pick_device()).eval() if enough else None
    return Pretrained(model, batches.load_tokenizer(folder), tasks, folder)


UNTIL = {"composites": composites, "detector": trained_detector, "region_encoder": trained_encoder,
         "region_store": region_store, "pretrain": pretrained}


def main(arguments: list[str] | None = None) -> int:
    """Make the stages of a run, in one process or in those of `accelerate launch -m`; return the exit code."""
    parser = argparse.ArgumentParser("capture_lib.experiments.stages", description="Make the stages of a run.")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, gpu or product1m")
    parser.add_argument("--catalog", default="", help="a catalog folder; default: the profile's drawn world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", default="pretrain", choices=UNTIL, help="the last stage (default pretrain)")
    options = parser.parse_args(arguments)
    try:
        if utils.is_main_process():  # draws the world where it is not there
            open_run(options.profile, options.catalog)
        utils.wait_for_everyone()
        run = open_run(options.profile, options.catalog, seed=options.seed)
        UNTIL[options.until](run)
        utils.say(f"{run.stages}: made until {options.until}")
    except (Exception, KeyboardInterrupt) as error:
        line, code = utils.explain(error)
        print(f"{parser.prog}: {line}", file=sys.stderr)
        return code
    if utils.process_count() > 1:
        utils.accelerator().end_training()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
