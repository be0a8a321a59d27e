"""The stages of a run: each function returns what its stage made, and makes it and all before it."""

import argparse
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

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
from capture_lib.proposals.open_vocabulary import OpenVocabulary
from capture_lib.proposals.pretrained import kind_of
from capture_lib.retrieval import embedding
from capture_lib.retrieval.embedding import Words, carry_text, letters
from capture_lib.training import batches, pretrain

MIN_FOREGROUNDS = 20  # fewer cannot train a detector
MIN_PAIRS = 32  # fewer cannot train CAPTURE


def samples(run: Run, *splits: str) -> pd.DataFrame:
    """Return the rows of some splits, or of all, whose photos are on disk."""
    table = run.catalog.on_disk
    return table[table["split"].isin(splits)] if splits else table


def train_samples(run: Run) -> pd.DataFrame:
    """Return the rows whose pairs are learned from: those of train or, in a catalog without it, of the gallery."""
    train = samples(run, "train")
    return train if len(train) else samples(run, "gallery")


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
        synthesis.remove_parts(folder)
        utils.write_json(folder / "report.json", report)

    read = samples(run, "train", "gallery")[["sample_id", "split", "image", "products"]]
    return run.stage(synthesis, settings, [], read, make)


def trained_detector(run: Run) -> tuple[detection.Detector, Path]:
    """Return the region proposal network and its folder (notebook 03)."""
    folder = detector_folder(run)
    return detection.load(own_detector(run), folder), folder


def detector_folder(run: Run) -> Path:
    """Return the folder of the region proposal network."""
    settings = own_detector(run)
    source = composites(run)

    def make(folder: Path) -> None:
        utils.write_json(folder / "history.json", detection.train(settings, source, folder, run.seed))

    return run.stage(detection, settings, [source], None, make)


def own_detector(run: Run) -> detection.DetectorSettings:
    """Return the settings of the region proposal network, also where an open-vocabulary detector is named."""
    settings = run.profile.detector
    return replace(settings, pretrained="") if is_open(run) else settings


def is_open(run: Run) -> bool:
    """Return whether an open-vocabulary detector, which is not trained, gives the proposals."""
    name = run.profile.detector.pretrained
    return bool(name) and kind_of(name) == "transformers"


def proposer(run: Run) -> storing.Proposer:
    """Return what gives the proposals."""
    return OpenVocabulary(run.profile.detector) if is_open(run) else trained_detector(run)[0]


def trained_encoder(run: Run) -> tuple[nn.Module, Path]:
    """Return the region encoder and its folder (notebook 03)."""
    folder = encoder_folder(run)
    return encoding.load(run.profile.encoder, folder), folder


def encoder_folder(run: Run) -> Path:
    """Return the folder of the region encoder."""
    settings = run.profile.encoder
    source = composites(run)
    read = samples(run, "train", "gallery")[["sample_id", "split", "caption"]] if settings.captions else None
    words = caption_words(run) if settings.captions else None
    plain = encoder_folder(run.taught(captions="")) if words else None

    def make(folder: Path) -> None:
        texts = foreground_texts(run, source, words) if words else None
        utils.write_json(folder / "history.json", encoding.train(settings, source, folder, run.seed, texts, plain))

    silent = replace(settings, caption_weight=0.0, caption_spread=0.0)
    upstream = [source, run.place("words"), plain] if words else [source]
    return run.stage(encoding, settings if settings.captions else silent, upstream, read, make)


def foreground_texts(run: Run, folder: Path, words: Words) -> np.ndarray:
    """Return the n-gram vector of the caption of each foreground's photo, zero for none."""
    captions = samples(run, *run.profile.encoder.captions.split(", ")).set_index("sample_id")["caption"]
    ids = (folder / "ids.txt").read_text(encoding="utf-8").split()
    return words.vectors(list(captions.reindex(ids, fill_value="")))


def captions_speak(run: Run) -> bool:
    """Return whether the captions of train, and of each side of a search, carry text."""
    captions = list(filter(None, train_samples(run)["caption"]))
    return len(captions) >= MIN_PAIRS and carry_text(captions) and sides_speak(run)


def sides_speak(run: Run) -> bool:
    """Return whether some caption of each side of a search has text."""
    compared = [samples(run, split)["caption"] for split in ("val", "test", "gallery")]
    return all(any(len(letters(text)) > 1 for text in texts) for texts in compared if len(texts))


def caption_words(run: Run) -> Words | None:
    """Return n-gram vectors fitted on train; None where captions carry no text."""
    if not captions_speak(run):
        return None
    settings = run.profile.retrieval
    train = train_samples(run)[["sample_id", "split", "caption"]]

    def make(folder: Path) -> None:
        Words(list(filter(None, train["caption"])), settings, run.seed).save(folder)

    return Words.load(run.stage(embedding, settings, [], train, make, name="words"))


def region_store(run: Run) -> tuple[storing.RegionStore, Path]:
    """Return the region store of all photos on disk, and its folder (notebook 03)."""
    settings = run.profile.regions
    detector = [] if is_open(run) else [detector_folder(run)]
    upstream = [*detector, encoder_folder(run)]
    located = None
    if run.profile.encoder.captions:  # the same boxes as without captions
        located, located_folder = region_store(run.taught(captions=""))
        upstream.append(located_folder)

    def make(folder: Path) -> None:
        storing.extract(run.catalog, settings, proposer(run), trained_encoder(run)[0], folder, located)

    read = samples(run)[["sample_id", "split", "image", "products"]]
    made_for = {"regions": settings, "detector": run.profile.detector} if is_open(run) else settings
    folder = run.stage(storing, made_for, upstream, read, make, together=True)
    return storing.open_store(folder), folder


@dataclass(frozen=True)
class Pretrained:
    """CAPTURE with its tokenizer and its pretext tasks; both are loaded when they are asked for."""

    folder: Path
    tasks: tuple[str, ...]
    enough: bool  # pairs to train a model

    @cached_property
    def model(self) -> Capture | None:
        """Return the model in evaluation mode; None where there are not enough pairs."""
        return Capture.from_pretrained(self.folder).to(utils.pick_device()).eval() if self.enough else None

    @cached_property
    def tokenizer(self) -> "batches.BertWordPieceTokenizer":
        """Return the tokenizer."""
        return batches.load_tokenizer(self.folder)


def pretrained(run: Run) -> Pretrained:
    """Return CAPTURE, pretrained on the train split (notebook 04)."""
    store, store_folder = region_store(run)
    train = train_samples(run)
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
    return Pretrained(folder, tasks, enough)


UNTIL = {"composites": composites, "detector": detector_folder, "region_encoder": encoder_folder,
         "region_store": region_store, "pretrain": pretrained}


def main(arguments: list[str] | None = None) -> int:
    """Make the stages of a run, in one process or in those of `accelerate launch -m`; return the exit code."""
    parser = argparse.ArgumentParser("capture_lib.experiments.stages", description="Make the stages of a run.")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, full, gpu or product1m")
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
