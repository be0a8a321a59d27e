"""Beyond the paper: CAPTURE and plain vectors, read as they are and after `whitening` by mined pairs (notebook 08)."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib import (
    batches,
    beyond,
    comparison,
    intervals,
    pretrain,
    regions,
    retrieval,
    stages,
    variants,
    whitening,
)
from capture_lib.beyond import ComposedPairs
from capture_lib.catalog import HELD_OUT, SEEN, UNSEEN
from capture_lib.comparison import Job
from capture_lib.model import Capture
from capture_lib.retrieval import BLENDS, METHODS, OF_CAPTURE, PAPER, Blocks, Method, Side
from capture_lib.runs import Run
from capture_lib.whitening import WhiteningSettings

TITLES = ("mAP@10", "mAR@10")
BEFORE = "plain"  # vectors as they are
MATCHED = "matched"  # after whitening by mined pairs
ALL = "whitened by all differences"  # the control: pairs drawn at random
PLAIN = {name: METHODS[name] for name in ("late-fusion", "image-only", "text-only")}  # what needs no model
OF_MODEL = {"product": Method("instance", PAPER), "chosen": Method("instance", OF_CAPTURE),
            "blend": Method("instance", BLENDS)}
Judged = list[tuple[Job | None, Path]]  # each model (None: without one) with the folder of its judgement


# ------------------------------------------------------------------------------------------------- vectors


def vectors_of_parts(run: Run, found: ComposedPairs, model: Capture | None, how: batches.BatchSettings) -> Blocks:
    """The mined photos as gallery items: the blocks of `retrieval.embed_side`, one row a photo."""
    table = stages.samples(run, "train").iloc[found.parts]
    return embedded(run, table, model, how, single=True).instance


def embedded(run: Run, table: pd.DataFrame, model: Capture | None, how: batches.BatchSettings, single: bool) -> Side:
    """Samples as vectors, of a model where there is one, beside region features and n-grams."""
    store, own = regions.open_store(comparison.store_folder(run, variants.PROPOSALS)), run.stages / "pretrain"
    pairs = batches.make_pairs(table, store, batches.load_tokenizer(own), how)
    return retrieval.embed_side(table, pairs, model, stages.caption_words(run), run.profile.retrieval, single,
                                ("instance",))


# -------------------------------------------------------------------------------------------- judgements


@dataclass(frozen=True)
class Judging:
    """What a judgement depends on, beside the model."""

    retrieval: retrieval.RetrievalSettings
    batches: batches.BatchSettings
    mining: beyond.ComposedSettings
    whitening: WhiteningSettings


def judged(run: Run, job: Job | None) -> Path:
    """The folder with the figures on test of a model, plain and matched, as val has chosen for either."""
    how = run.profile.batches if job is None else comparison.training_of(run, job).batches
    folder = run.stages / "regions" if job is None else comparison.trained(run, job)
    settings = Judging(run.profile.retrieval, how, stages.MINING, WhiteningSettings())

    def make(unfinished: Path) -> None:
        model = None if job is None else Capture.from_pretrained(folder).to(stages.detector.pick_device()).eval()
        found = stages.mined(run, stages.pretrained(run))
        sides = {split: embedded(run, stages.samples(run, split), model, how, split == "gallery")
                 for split in ("val", "test", "gallery")}
        maps = whitening.learned(vectors_of_parts(run, found, model, how), found.near, settings.whitening)
        after = {split: whitening.mapped(side, maps) for split, side in sides.items()}
        methods = PLAIN if job is None else OF_MODEL
        scores, chosen = {}, {}
        for kind, those in ((BEFORE, sides), (MATCHED, after)):
            own, options = comparison.judgement(those, methods, run.profile.retrieval.depth)
            scores |= {named(job, kind, name): table for name, table in own.items()}
            chosen |= {named(job, kind, name): table for name, table in options.items()}
        comparison.keep(unfinished, scores, chosen)

    table = stages.photographed(run)[["sample_id", "split", "image", "caption", "labels"]]
    return run.stage(sys.modules[__name__], settings, [folder, run.stages / "pretrain"], table, make,
                     comparison.anew(make), name=f"recipes/{job.part if job else 'without-a-model'}")


def named(job: Job | None, kind: str, method: str) -> str:
    """The name of a method: what it reads, of which model, and whether it is matched."""
    model = f"{job.name.removeprefix('beyond/')}, " if job else ""
    return f"{model}{method}{', matched' if kind == MATCHED else ''}"


def compared(run: Run) -> tuple[Judged, Judged]:
    """Models of short trainings with one seed, and what is judged in the end: no model, and CAPTURE with every seed.

    Both are empty where there is nothing to compare; interrupted, the next start goes on.
    """
    if not comparison.comparable(run) or not comparison.trainable(run) or stages.caption_words(run) is None:
        return [], []
    if stages.mined(run, stages.pretrained(run)) is None:
        return [], []
    settings, forms = run.profile.comparison, variants.beyond()
    tries = [Job(f"beyond/{name}", form, settings.epochs, 1.0, run.seed) for name, form in forms.items()]
    tries = tries[:settings.tries or None]
    finals = [None, *(Job(f"beyond/{variants.BY_PAPER}", forms[variants.BY_PAPER], run.profile.pretrain.epochs, 1.0,
                          run.seed + more) for more in range(settings.seeds))]
    return [(job, judged(run, job)) for job in tries], [(job, judged(run, job)) for job in finals]


def tried(run: Run) -> dict[str, dict[str, float]]:
    """Figures on val of the late fusion, mapped in other ways: standard mAP@10 and mAR@10, by what was changed."""
    found, how = stages.mined(run, stages.pretrained(run)), run.profile.batches
    sides = {split: embedded(run, stages.samples(run, split), None, how, split == "gallery")
             for split in ("val", "gallery")}
    parts, settings, rng = vectors_of_parts(run, found, None, how), WhiteningSettings(), np.random.default_rng(run.seed)
    maps = whitening.learned(parts, found.near, settings)
    ways = {BEFORE: ({}, ()), MATCHED: (maps, ()), "words alone": (maps, ("words",)),
            "regions alone": (maps, ("regions",)),
            ALL: (whitening.learned(parts, rng.integers(len(found.parts), size=found.near.shape), settings), ())}
    for more in ({"neighbours": 1}, {"neighbours": 10}, {"ridge": 0.02}, {"ridge": 0.5}):
        name = ", ".join(f"{key} {value:g}" for key, value in more.items())
        ways[name] = (whitening.learned(parts, found.near, replace(settings, **more)), ())
    figures = {}
    for name, (own, only) in ways.items():
        after = {split: whitening.mapped(side, own, only) for split, side in sides.items()}
        choice, _ = retrieval.choose(METHODS["late-fusion"], after["val"], after["gallery"])
        ranked = retrieval.rank(after["val"], after["gallery"], "instance", choice)
        table = retrieval.score(ranked, after["val"], after["gallery"])
        figures[name] = {title: float(table["standard", title].mean()) for title in TITLES}
    return figures


def seconds_to_learn(run: Run) -> float:
    """Seconds that mining the pairs and learning the maps take, vectors of the photos given."""
    started, found = time.perf_counter(), stages.mined(run, stages.pretrained(run))
    whitening.learned(vectors_of_parts(run, found, None, run.profile.batches), found.near, WhiteningSettings())
    return time.perf_counter() - started


def step_seconds(run: Run, steps: int) -> dict[str, np.ndarray]:
    """Seconds (steps,) that an optimiser step takes with either recipe, its batch and all; by turns, so that whatever
    else runs on the machine slows both. The first step of each is not counted."""
    trainings = {name: training(run, variants.beyond()[name]) for name in (variants.BY_PAPER, variants.OURS)}
    seconds = {name: [] for name in trainings}
    for _ in range(steps + 1):
        for name, training_steps in trainings.items():
            started = time.perf_counter()
            next(training_steps)
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(own[1:]) for name, own in seconds.items()}


def cost(run: Run, finals: Judged, steps: int) -> dict[str, float]:
    """What matching adds to the paper's recipe, as multiples, and what a step of either recipe takes.

    Nothing is trained: the models are those of the paper's recipe, so the optimiser steps are the same.
    """
    seconds = {name: float(np.median(own)) for name, own in step_seconds(run, steps).items()}
    job = next(job for job, _ in finals if job)
    count = len(json.loads((comparison.trained(run, job) / "history.json").read_text(encoding="utf-8")))
    training_s, more = seconds[variants.BY_PAPER] * count, seconds_to_learn(run)
    return {"steps_ratio": 1.0, "time_ratio": (training_s + more) / training_s, "learning_s": more,
            "training_s": training_s, "composed_step_ratio": seconds[variants.OURS] / seconds[variants.BY_PAPER]}


def training(run: Run, variant: variants.Variant) -> Iterator[None]:
    """A training of the variant, step by step, which nobody keeps."""
    made = comparison.training_of(run, Job("", variant, run.profile.pretrain.epochs, 1.0, run.seed))
    table, own = stages.samples(run, "train"), run.stages / "pretrain"
    pairs = batches.make_pairs(table, regions.open_store(comparison.store_folder(run, variant.regions)),
                               batches.load_tokenizer(own), made.batches)
    pairs = stages.by_recipe(pairs, table, made.pretrain, made.seed)
    model = pretrain.build_model(made.capture, pairs, made.seed)
    device = stages.detector.pick_device()
    pretrain.make_ready(model, device)
    optimiser = pretrain.make_optimiser(model, made.pretrain)
    drawn = pretrain.drawn_batches(pairs, made.batches, made.pretrain, made.seed)
    for batch in batches.masked_on(device, drawn):
        yield pretrain.step(model, batch, optimiser, made.pretrain)


def gain(ours: list[np.ndarray], rival: list[np.ndarray], queries: np.ndarray | slice = slice(None)
         ) -> dict[str, float]:
    """How much better ours is on some of the queries, as `intervals.paired_difference`, with "mean" for "value"."""
    found = intervals.paired_difference([own[queries] for own in ours], [own[queries] for own in rival],
                                        together=len(ours) == len(rival))  # then both read the same trainings
    return {"mean": found["value"], "low": found["low"], "high": found["high"]}


def results(scores: dict[str, list], chosen: dict[str, list[dict]], kinds: np.ndarray) -> dict:
    """Ours, the matched reading that is best on val, against every plain one: paired, training noise included.

    Args:
        scores, chosen: by method, as from `comparison.read_scores` and `read_chosen`, one for each training.
        kinds: (Q,) what training showed of each test query's products.

    Returns:
        the names of ours and of the best rival: the one with the highest mAP@10 on test, the hardest choice for us;
        "to" each rival, and "groups" of queries against the best one; "gain" and "gain_unseen" of these; "matching",
        what whitening alone does to each plain method.
    """
    own = [name for name in scores if name.endswith(f", {MATCHED}")]
    ours = max(own, key=lambda name: np.mean([one["val"] for one in chosen[name]]))
    figures = {title: {name: [one["standard", title].to_numpy() for one in tables] for name, tables in scores.items()}
               for title in TITLES}
    rivals = [name for name in scores if name not in own]
    best = max(rivals, key=lambda name: np.mean(figures["mAP@10"][name]))
    groups = {}
    for kind in ("all", SEEN, UNSEEN, HELD_OUT):
        queries = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        if queries.any():
            groups[kind] = {title: gain(of[ours], of[best], queries) for title, of in figures.items()}
            groups[kind]["queries"] = int(queries.sum())
    return {"ours": ours, "rival": best, "groups": groups, "gain": groups["all"]["mAP@10"],
            "gain_unseen": groups.get(UNSEEN, {}).get("mAP@10"),
            "to": {name: {title: gain(of[ours], of[name]) for title, of in figures.items()} for name in rivals},
            "matching": {name: {title: gain(of[f"{name}, {MATCHED}"], of[name]) for title, of in figures.items()}
                         for name in rivals}}
