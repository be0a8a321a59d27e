"""CAPTURE by the paper's recipe and by ours (`beyond`): same pairs, features and optimiser steps (notebook 08)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from capture_lib import batches, comparison, intervals, pretrain, regions, stages, variants
from capture_lib.catalog import HELD_OUT, SEEN, UNSEEN
from capture_lib.comparison import Job
from capture_lib.runs import Run
from capture_lib.synthesis import mapping

TITLES = ("mAP@10", "mAR@10")
PLAIN = ("late-fusion", "image-only", "text-only")  # rivals without a model
Judged = list[tuple[Job, Path]]  # each job with the folder of its judgement


def compared(run: Run) -> tuple[Judged, Judged]:
    """What was tried, by short trainings with one seed, and the recipes in full length with every seed.

    Both are empty where there is nothing to compare; interrupted, the next start goes on.
    """
    if not comparison.comparable(run) or not comparison.trainable(run) or stages.caption_words(run) is None:
        return [], []
    settings, forms = run.profile.comparison, variants.beyond()
    tries = [Job(f"beyond/{name}", form, settings.epochs, 1.0, run.seed) for name, form in forms.items()]
    tries = tries[:settings.tries or None]
    finals = [Job(f"beyond/{name}", forms[name], run.profile.pretrain.epochs, 1.0, run.seed + more)
              for name in (variants.BY_PAPER, variants.OURS) for more in range(settings.seeds)]
    jobs = tries + finals
    with mapping(0 if comparison.are_there(run, jobs) else settings.at_once) as map_over:
        found = list(zip(jobs, comparison.judge_all(run, jobs, map_over), strict=True))
    return found[:len(tries)], found[len(tries):]


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


def steps_ratio(run: Run, finals: Judged) -> float:
    """Optimiser steps of our recipe's full trainings, as a multiple of the paper's."""
    steps = {job.name: len(json.loads((comparison.trained(run, job) / "history.json").read_text("utf-8")))
             for job, _ in finals}
    return steps[f"beyond/{variants.OURS}"] / steps[f"beyond/{variants.BY_PAPER}"]


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
    found = intervals.paired_difference([own[queries] for own in ours], [own[queries] for own in rival])
    return {"mean": found["value"], "low": found["low"], "high": found["high"]}


def results(scores: dict[str, list], chosen: dict[str, list[dict]], kinds: np.ndarray) -> dict:
    """Ours, read as is best on val, against every rival, paired over queries and with training noise.

    Args:
        scores, chosen: by method, as from `comparison.read_scores` and `read_chosen`, one for each training.
        kinds: (Q,) what training showed of each test query's products.

    Returns:
        the names of ours and of the best rival: the one with the highest mAP@10 on test, the hardest choice for us;
        "to" each rival, and "groups" of queries against the best one; "gain" and "gain_unseen" of these.
    """
    own = [name for name in scores if name.startswith(f"beyond/{variants.OURS}, ")]
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
            "to": {name: {title: gain(of[ours], of[name]) for title, of in figures.items()} for name in rivals}}
