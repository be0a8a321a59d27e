"""Beyond the paper: CAPTURE beside raw vectors, WCCN on mined pairs, an augmented gallery (notebook 08).

Ours has all three parts; each is left out once, and ours is compared with every method of the
notebooks before it.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from capture_lib.catalog.table import HELD_OUT, SEEN, UNSEEN
from capture_lib.experiments import comparison, evaluation, mining, stages
from capture_lib.experiments.comparison import Job
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import UNCHANGED
from capture_lib.model.capture import Capture
from capture_lib.retrieval import embedding, ranking, wccn
from capture_lib.retrieval.ranking import METHODS, Method
from capture_lib.retrieval.statistics import paired_difference
from capture_lib.retrieval.wccn import WccnSettings
from capture_lib.utils import pick_device

TITLES = ("mAP@10", "mAR@10")
LEVEL = ("instance",)  # of all methods here
WHOLE = METHODS["beyond/instance"]  # the blend, of an augmented gallery
RAW = {name: METHODS[name] for name in ("late-fusion", "image-only", "text-only")}  # without a model
OF_MODEL = {  # ways to search with CAPTURE
    "paper, product": METHODS["capture/instance"],
    "paper, chosen": METHODS["capture-chosen/instance"],
    "paper, blend": Method("instance", WHOLE.representations),
}
OURS, NO_CAPTURE, NO_WCCN = "paper, beyond", "beyond without CAPTURE", "paper, beyond without wccn"
PARTS = {  # ours, and ours with one part left out; all but one after WCCN
    OURS: WHOLE,
    "paper, beyond without augmentation": replace(WHOLE, augmented=False),
    "paper, beyond without raw vectors": replace(METHODS["capture-chosen/instance"], augmented=True),
}
KNOWN = (*RAW, "paper, product", "paper, chosen")  # the baselines: what notebooks 05 and 06 have


def embed_parts(run: Run, mined: mining.Mined, model: Capture | None) -> embedding.Vectors:
    """Return the vectors of the mined photos, a row a photo."""
    table = stages.samples(run, "train").iloc[mined.parts]
    pairs = evaluation.pairs_of(run, table, run.stages / "region_store")
    words = stages.caption_words(run)
    return embedding.embed_samples(table, pairs, model, words, run.profile.instances, True, LEVEL).instance


def evaluated(run: Run, job: Job | None) -> Path:
    """Return the folder with the figures of a model (None: of raw vectors), with and without WCCN."""
    store = run.stages / "region_store"
    source = comparison.trained(run, job) if job else store
    methods = OF_MODEL if job else RAW

    def make(folder: Path) -> None:
        model = Capture.from_pretrained(source).to(pick_device()).eval() if job else None
        mined = stages.mined_neighbours(run, stages.pretrained(run))
        maps = wccn.learn_maps(embed_parts(run, mined, model), mined.near, WccnSettings())
        plain = evaluation.embed_splits(run, store, model, stages.caption_words(run), levels=LEVEL)
        mapped = {split: wccn.apply_maps(vectors, maps) for split, vectors in plain.items()}
        before = dict(methods)
        after = {f"{name}, wccn": method for name, method in methods.items()}
        if job:
            before[NO_WCCN] = WHOLE
            after |= PARTS
        else:
            after[NO_CAPTURE] = replace(RAW["late-fusion"], augmented=True)
        depth = run.profile.retrieval.depth
        scores, chosen = evaluation.evaluate_methods(plain, before, depth)
        more_scores, more_chosen = evaluation.evaluate_methods(mapped, after, depth)
        evaluation.write_evaluation(folder, scores | more_scores, chosen | more_chosen)

    settings = {"retrieval": run.profile.retrieval, "instances": run.profile.instances,
                "batches": run.profile.batches, "wccn": WccnSettings()}
    read = stages.photographed(run)[evaluation.READ]
    return run.stage(sys.modules[__name__], settings, [source, run.stages / "pretrain"], read, make,
                     name=f"beyond/{job.title if job else 'untrained'}")


def evaluations(run: Run) -> list[Path]:
    """Return the folders of evaluations: of raw vectors, and of CAPTURE with every seed.

    None where there is nothing to compare; after an interruption the next start goes on.
    """
    if not comparable(run):
        return []
    seeds = range(run.seed, run.seed + run.profile.comparison.seeds)
    jobs = [Job("beyond/paper", UNCHANGED, run.profile.pretrain.epochs, 1.0, seed) for seed in seeds]
    return [evaluated(run, None), *comparison.evaluate_all(run, jobs, evaluated)]


def comparable(run: Run) -> bool:
    """Return whether there are labelled queries, a CAPTURE with captions, and mined pairs."""
    if not comparison.comparable(run) or not comparison.trainable(run) or stages.caption_words(run) is None:
        return False
    return stages.mined_neighbours(run, stages.pretrained(run)) is not None


def tried(run: Run) -> dict[str, dict[str, float]]:
    """Return mAP@10 and mAR@10 on val of the late fusion, searched in several ways."""
    mined = stages.mined_neighbours(run, stages.pretrained(run))
    sets = evaluation.embed_splits(run, run.stages / "region_store", None, stages.caption_words(run), levels=LEVEL)
    parts = embed_parts(run, mined, None)
    settings = WccnSettings()
    maps = wccn.learn_maps(parts, mined.near, settings)
    random = np.random.default_rng(run.seed).integers(len(mined.parts), size=mined.near.shape)
    # name: maps, the vectors they are applied to (none named: all), augmented
    ways = {"plain": ({}, (), False), "augmented alone": ({}, (), True), "wccn": (maps, (), False),
            "words alone": (maps, ("words",), False), "regions alone": (maps, ("regions",), False),
            "wccn on random pairs": (wccn.learn_maps(parts, random, settings), (), False),
            "wccn, augmented": (maps, (), True)}
    for changed in ({"neighbours": 1}, {"neighbours": 10}, {"ridge": 0.02}, {"ridge": 0.5}):
        name = ", ".join(f"{key} {value:g}" for key, value in changed.items())
        ways[name] = (wccn.learn_maps(parts, mined.near, replace(settings, **changed)), (), False)
    figures = {}
    for name, (used, only, augmented) in ways.items():
        method = replace(RAW["late-fusion"], augmented=augmented)
        queries = wccn.apply_maps(sets["val"], used, only)
        items = wccn.apply_maps(sets["gallery"], used, only)
        choice, _ = ranking.choose(method, queries, items)
        table = ranking.score(ranking.rank(queries, items, method.level, choice), queries, items)
        figures[name] = {title: float(table["standard", title].mean()) for title in TITLES}
    return figures


def cost(run: Run) -> dict[str, float]:
    """Return the seconds that mining the pairs and learning the maps take; no training step is added."""
    trained = stages.pretrained(run)
    started = time.perf_counter()
    mined = stages.mined_neighbours(run, trained)
    wccn.learn_maps(embed_parts(run, mined, trained.model), mined.near, WccnSettings())
    return {"learning_s": time.perf_counter() - started}


def results(scores: dict[str, list], kinds: np.ndarray) -> dict:
    """Compare ours with every baseline and with itself without each part, paired.

    Args:
        scores: by method, as from `evaluation.read_scores`, one for each training.
        kinds: (Q,) what training showed of each test query's products.

    Returns:
        "baseline", the best of `KNOWN` by mAP@10 on test, the hardest choice for us; "plain", the
        best without WCCN, the blend among them; "groups" and "groups_plain" of queries against
        these two; "gain", "gain_unseen" and "gain_held_out" over the baseline; "to" each plain
        method; "parts", ours against itself without each; "wccn", what it does to each method.
    """
    def gains(other: str, ours: str = OURS, queries: np.ndarray | slice = slice(None)) -> dict[str, dict]:
        found = {}
        for title in TITLES:
            a = [table["standard", title].to_numpy()[queries] for table in scores[ours]]
            b = [table["standard", title].to_numpy()[queries] for table in scores[other]]
            effect = paired_difference(a, b, together=len(a) == len(b))  # then of the same trainings
            found[title] = {"mean": effect["value"], "low": effect["low"], "high": effect["high"]}
        return found

    def by_group(other: str) -> dict[str, dict]:
        found = {"all": gains(other) | {"queries": len(kinds)}}
        for kind in (SEEN, UNSEEN, HELD_OUT):
            queries = kinds == kind
            if queries.any():
                found[kind] = gains(other, queries=queries) | {"queries": int(queries.sum())}
        return found

    def figure(name: str) -> float:
        return np.mean([table["standard", "mAP@10"].mean() for table in scores[name]])

    plain = [*RAW, *OF_MODEL]
    baseline = max(KNOWN, key=figure)
    best = max(plain, key=figure)
    groups = by_group(baseline)
    gain = {name: groups.get(kind, {}).get("mAP@10")
            for name, kind in {"gain": "all", "gain_unseen": UNSEEN, "gain_held_out": HELD_OUT}.items()}
    without = [NO_CAPTURE, NO_WCCN, *(name for name in PARTS if name != OURS)]
    return {"ours": OURS, "baseline": baseline, "plain": best, "groups": groups, "groups_plain": by_group(best),
            **gain, "to": {name: gains(name) for name in plain}, "parts": {name: gains(name) for name in without},
            "wccn": {name: gains(name, f"{name}, wccn") for name in plain}}
