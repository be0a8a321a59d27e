"""Beyond the paper: CAPTURE beside plain vectors, matched, smoothed and merged by ours; and with each part left out.

Matched is what `whitening` by mined pairs makes of vectors; the rest is `retrieval`'s. Notebook 08 shows it.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge

from capture_lib.catalog.table import HELD_OUT, SEEN, UNSEEN
from capture_lib.experiments import comparison, stages, variants
from capture_lib.experiments import composed as beyond
from capture_lib.experiments.comparison import Job
from capture_lib.experiments.composed import ComposedPairs
from capture_lib.experiments.run import Run
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store as regions
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import statistics as intervals
from capture_lib.retrieval import wccn as whitening
from capture_lib.retrieval.embedding import (
    BLENDS,
    METHODS,
    OF_CAPTURE,
    PAPER,
    YIELDING,
    EmbeddedSet,
    Method,
    Vectors,
    Words,
    unit,
)
from capture_lib.retrieval.wccn import WhiteningSettings
from capture_lib.training import batches, pretrain
from capture_lib.utils import pick_device, process_map

TITLES = ("mAP@10", "mAR@10")
BEFORE = "plain"  # vectors as they are
MATCHED = "matched"  # after whitening by mined pairs
ALL = "whitened by all differences"  # the control: pairs drawn at random
PLAIN = {name: METHODS[name] for name in ("late-fusion", "image-only", "text-only")}  # what needs no model
OF_MODEL = {"product": Method("instance", PAPER), "chosen": Method("instance", OF_CAPTURE),
            "blend": Method("instance", BLENDS)}
KNOWN = (*PLAIN, f"{variants.BY_PAPER}, product", f"{variants.BY_PAPER}, chosen")  # the rivals: what 05 and 06 have
WHOLE = METHODS["beyond/instance"]
OURS, NO_CAPTURE = f"{variants.BY_PAPER}, beyond", "beyond without CAPTURE"
PARTS = {  # ours, and ours with one part left out: whether vectors are matched, and how they are searched
    "beyond": (MATCHED, WHOLE),
    "beyond without matching": (BEFORE, WHOLE),
    "beyond without smoothing": (MATCHED, replace(WHOLE, augmented=False)),
    "beyond without yielding": (MATCHED, replace(WHOLE, merges=("score",))),
    "beyond without raw vectors": (MATCHED, replace(WHOLE, representations=OF_CAPTURE)),
}
Judged = list[tuple[Job | None, Path]]  # each model (None: without one) with the folder of its judgement


# ------------------------------------------------------------------------------------------------- vectors


def vectors_of_parts(run: Run, found: ComposedPairs, model: Capture | None, how: batches.BatchSettings) -> Vectors:
    """The mined photos as gallery items: the blocks of `retrieval.embed_side`, one row a photo."""
    table = stages.samples(run, "train").iloc[found.parts]
    return embedded(run, table, model, how, single=True).instance


def embedded(run: Run, table: pd.DataFrame, model: Capture | None, how: batches.BatchSettings, single: bool) -> EmbeddedSet:
    """Samples as vectors, of a model where there is one, beside region features and n-grams."""
    store, own = regions.open_store(comparison.store_folder(run, variants.PROPOSALS)), run.stages / "pretrain"
    pairs = batches.make_pairs(table, store, batches.load_tokenizer(own), how)
    return retrieval.embed_samples(table, pairs, model, stages.caption_words(run), run.profile.instances, single,
                                ("instance",))


# -------------------------------------------------------------------------------------------- judgements


@dataclass(frozen=True)
class EvaluationInputs:
    """What a judgement depends on, beside the model."""

    retrieval: retrieval.RetrievalSettings
    batches: batches.BatchSettings
    mining: beyond.ComposedSettings
    whitening: WhiteningSettings


def evaluated(run: Run, job: Job | None) -> Path:
    """The folder with the figures on test of a model, plain and matched, as val has chosen for either."""
    how = run.profile.batches if job is None else comparison.training_of(run, job).batches
    folder = run.stages / "region_store" if job is None else comparison.trained(run, job)
    settings = EvaluationInputs(run.profile.retrieval, how, stages.MINING, WhiteningSettings())

    def make(unfinished: Path) -> None:
        model = None if job is None else Capture.from_pretrained(folder).to(pick_device()).eval()
        found = stages.mined(run, stages.pretrained(run))
        plain = {split: embedded(run, stages.samples(run, split), model, how, split == "gallery")
                 for split in ("val", "test", "gallery")}
        maps = whitening.learned(vectors_of_parts(run, found, model, how), found.near, settings.whitening)
        sides = {BEFORE: plain, MATCHED: {split: whitening.mapped(side, maps) for split, side in plain.items()}}
        scores, chosen = {}, {}
        for kind, those in sides.items():
            own, options = comparison.evaluate_methods(those, methods_of(job, kind), run.profile.retrieval.depth)
            scores, chosen = scores | own, chosen | options
        comparison.keep(unfinished, scores, chosen)

    table = stages.photographed(run)[["sample_id", "split", "image", "caption", "labels"]]
    return run.stage(sys.modules[__name__], settings, [folder, run.stages / "pretrain"], table, make,
                     comparison.anew(make), name=f"recipes/{job.part if job else 'without-a-model'}")


def methods_of(job: Job | None, kind: str) -> dict[str, Method]:
    """The ways to search by vectors of a kind, plain or matched, of a model or (None) without one."""
    after = ", matched" if kind == MATCHED else ""
    if job is None:
        without = {NO_CAPTURE: replace(WHOLE, representations=METHODS["late-fusion"].representations)} if kind == MATCHED else {}
        return {f"{name}{after}": method for name, method in PLAIN.items()} | without
    model = job.name.removeprefix("beyond/")
    return ({f"{model}, {name}{after}": method for name, method in OF_MODEL.items()} |
            {f"{model}, {name}": method for name, (of, method) in PARTS.items() if of == kind})


def compared(run: Run) -> tuple[Judged, Judged]:
    """Models of short trainings with one seed, and what is judged in the end: no model, and CAPTURE with every seed.

    Both are empty where there is nothing to compare; interrupted, the next start goes on.
    """
    if not comparison.comparable(run) or not comparison.trainable(run) or stages.caption_words(run) is None:
        return [], []
    if stages.mined(run, stages.pretrained(run)) is None:
        return [], []
    settings, levels = run.profile.comparison, variants.beyond()
    tries = [Job(f"beyond/{name}", level, settings.epochs, 1.0, run.seed) for name, level in levels.items()]
    tries = tries[:settings.tries or None]
    finals = [Job(f"beyond/{variants.BY_PAPER}", levels[variants.BY_PAPER], run.profile.pretrain.epochs, 1.0,
                  run.seed + more) for more in range(settings.seeds)]
    jobs = [*tries, *finals]
    with process_map(settings.parallel_jobs if len(jobs) > 2 else 0) as map_over:  # processes take a while to start
        folders = comparison.judge_all(run, jobs, map_over, evaluated)
    evaluations = list(zip(jobs, folders, strict=True))
    return evaluations[:len(tries)], [(None, evaluated(run, None)), *evaluations[len(tries):]]


def tried(run: Run) -> dict[str, dict[str, float]]:
    """Figures on val of the late fusion, searched in other ways: standard mAP@10 and mAR@10, by what was changed."""
    found, how = stages.mined(run, stages.pretrained(run)), run.profile.batches
    sides = {split: embedded(run, stages.samples(run, split), None, how, split == "gallery")
             for split in ("val", "gallery")}
    parts, settings, rng = vectors_of_parts(run, found, None, how), WhiteningSettings(), np.random.default_rng(run.seed)
    maps, fusion = whitening.learned(parts, found.near, settings), METHODS["late-fusion"]
    augmented = replace(fusion, augmented=True)
    ways = {BEFORE: ({}, (), fusion), "smoothed alone": ({}, (), augmented),
            "yielding alone": ({}, (), replace(fusion, merges=(YIELDING,))), MATCHED: (maps, (), fusion),
            "words alone": (maps, ("words",), fusion), "regions alone": (maps, ("regions",), fusion),
            ALL: (whitening.learned(parts, rng.integers(len(found.parts), size=found.near.shape), settings), (),
                  fusion)}
    for more in ({"neighbours": 1}, {"neighbours": 10}, {"ridge": 0.02}, {"ridge": 0.5}):
        name = ", ".join(f"{key} {value:g}" for key, value in more.items())
        ways[name] = (whitening.learned(parts, found.near, replace(settings, **more)), (), fusion)
    ways |= {"matched, smoothed": (maps, (), augmented),
             "matched, smoothed, yielding": (maps, (), replace(augmented, merges=(YIELDING,)))}
    figures = {}
    for name, (own, only, method) in ways.items():
        after = {split: whitening.mapped(side, own, only) for split, side in sides.items()}
        figures[name] = on_val(after["val"], after["gallery"], method)
    matched = {split: whitening.mapped(side, maps) for split, side in sides.items()}
    for strength in (1.0, 4.0):
        asking = attending(matched["val"], stages.caption_words(run), maps, parts, strength)
        figures[f"late interaction, strength {strength:g}"] = on_val(asking, matched["gallery"], fusion)
    return figures


def on_val(val: EmbeddedSet, gallery: EmbeddedSet, method: Method) -> dict[str, float]:
    """Standard mAP@10 and mAR@10 of a method as val chooses it."""
    choice, _ = retrieval.choose(method, val, gallery)
    table = retrieval.score(retrieval.rank(val, gallery, method.level, choice), val, gallery)
    return {title: float(table["standard", title].mean()) for title in TITLES}


def attending(side: EmbeddedSet, words: Words, maps: dict[str, np.ndarray], parts: Vectors, strength: float) -> EmbeddedSet:
    """The matched side with words that follow the region: late interaction, which was tried and not kept.

    What a region lets expect of the words is learned from the parts by ridge regression; an n-gram of the caption
    counts exp(strength × its cosine with that) times as much.
    """
    of_parts = {name: unit(unit(parts[name]) @ maps[name]) for name in ("regions", "words")}
    expected = unit(Ridge().fit(of_parts["regions"], of_parts["words"]).predict(side.instance["regions"]))
    counts, ngrams = words.tfidf.transform(side.captions), words.svd.components_.T @ maps["words"]  # (n, T), (T, D)
    directions, rows = unit(ngrams), []
    for owner, wanted in zip(side.owners, expected, strict=True):
        row = counts[owner]  # without an n-gram where there is no caption
        weights = row.data * np.exp(strength * directions[row.indices] @ wanted)
        rows.append(weights @ ngrams[row.indices])
    return replace(side, instance=side.instance | {"words": unit(np.array(rows))})


def seconds_to_learn(run: Run) -> float:
    """Seconds that mining the pairs, learning the maps and smoothing the gallery take; embedding it is in any way."""
    trained = stages.pretrained(run)
    gallery = embedded(run, stages.samples(run, "gallery"), trained.model, run.profile.batches, single=True)
    started, found = time.perf_counter(), stages.mined(run, trained)
    parts = vectors_of_parts(run, found, trained.model, run.profile.batches)
    after = whitening.mapped(gallery, whitening.learned(parts, found.near, WhiteningSettings()))
    retrieval.smooth(retrieval.read(after.instance, WHOLE.representations[0]))
    return time.perf_counter() - started


def step_seconds(run: Run, steps: int) -> dict[str, np.ndarray]:
    """Seconds (steps,) that an optimiser step takes with either recipe, its batch and all; by turns, so that whatever
    else runs on the machine slows both. The first step of each is not counted."""
    trainings = {name: training(run, variants.beyond()[name]) for name in (variants.BY_PAPER, variants.COMPOSED)}
    seconds = {name: [] for name in trainings}
    for _ in range(steps + 1):
        for name, training_steps in trainings.items():
            started = time.perf_counter()
            next(training_steps)
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(own[1:]) for name, own in seconds.items()}


def cost(run: Run, finals: Judged, steps: int) -> dict[str, float]:
    """What ours adds to a training by the paper's recipe, as multiples, and what a step with composed queries takes.

    The model is that of the paper's recipe, so the optimiser steps are the same: mining, learning the maps and
    smoothing the gallery are what is added.
    """
    seconds = {name: float(np.median(own)) for name, own in step_seconds(run, steps).items()}
    job = next(job for job, _ in finals if job)
    count = len(json.loads((comparison.trained(run, job) / "history.json").read_text(encoding="utf-8")))
    training_s, more = seconds[variants.BY_PAPER] * count, seconds_to_learn(run)
    return {"steps_ratio": 1.0, "time_ratio": (training_s + more) / training_s, "learning_s": more,
            "training_s": training_s, "composed_step_ratio": seconds[variants.COMPOSED] / seconds[variants.BY_PAPER]}


def training(run: Run, variant: variants.Variant) -> Iterator[None]:
    """A training of the variant, step by step, which nobody keeps."""
    made = comparison.training_of(run, Job("", variant, run.profile.pretrain.epochs, 1.0, run.seed))
    table, own = stages.samples(run, "train"), run.stages / "pretrain"
    pairs = batches.make_pairs(table, regions.open_store(comparison.store_folder(run, variant.regions)),
                               batches.load_tokenizer(own), made.batches)
    pairs = stages.by_recipe(pairs, table, made.pretrain, made.seed)
    model = pretrain.build_model(made.capture, pairs, made.seed)
    device = pick_device()
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


def results(scores: dict[str, list], kinds: np.ndarray) -> dict:
    """Ours against every rival and with each part left out: paired, training noise included.

    Args:
        scores: by method, as from `comparison.read_scores`, one for each training.
        kinds: (Q,) what training showed of each test query's products.

    Returns:
        "rival", the best of `KNOWN`: the one with the highest mAP@10 on test, the hardest choice for us; "plain", the
        best of all that isn't matched, the blend among them, which is new too; "groups" and "groups_plain" of queries
        against these two; "gain" and "gain_unseen" over the rival; "to" each plain method; "parts", ours against
        itself without each part; "matching", what whitening alone does to each plain method.
    """
    figures = {title: {name: [one["standard", title].to_numpy() for one in tables] for name, tables in scores.items()}
               for title in TITLES}

    def against(other: str, ours: str = OURS, queries: np.ndarray | slice = slice(None)) -> dict[str, dict]:
        return {title: gain(of[ours], of[other], queries) for title, of in figures.items()}

    def by_group(other: str) -> dict[str, dict]:
        those = {"all": np.ones(len(kinds), bool)} | {kind: kinds == kind for kind in (SEEN, UNSEEN, HELD_OUT)}
        return {kind: against(other, queries=queries) | {"queries": int(queries.sum())}
                for kind, queries in those.items() if queries.any()}

    plain = [name for name in scores if f"{name}, {MATCHED}" in scores]
    rival, best = (max(those, key=lambda name: np.mean(figures["mAP@10"][name]))
                   for those in ([name for name in plain if name in KNOWN], plain))
    groups = by_group(rival)
    return {"ours": OURS, "rival": rival, "plain": best, "groups": groups, "groups_plain": by_group(best),
            "gain": groups["all"]["mAP@10"], "gain_unseen": groups.get(UNSEEN, {}).get("mAP@10"),
            "to": {name: against(name) for name in plain},
            "parts": {name: against(name) for name in (NO_CAPTURE, *(f"{variants.BY_PAPER}, {part}" for part in PARTS))
                      if name != OURS},
            "matching": {name: against(name, f"{name}, {MATCHED}") for name in plain}}
