"""Evaluate methods: embed val, test and gallery, choose on val, rank test, keep every figure."""

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import UNCHANGED, Variant
from capture_lib.model.capture import Capture
from capture_lib.proposals import region_store as storing
from capture_lib.proposals.instances import InstanceSettings
from capture_lib.retrieval import embedding, ranking
from capture_lib.retrieval.ranking import Method, Ranking, first_labels
from capture_lib.training import batches
from capture_lib.utils import write_json

READ = ["sample_id", "split", "image", "caption", "labels"]  # columns that an evaluation reads


def pairs_of(run: Run, table: pd.DataFrame, folder: Path, variant: Variant = UNCHANGED) -> batches.Pairs:
    """Return samples as pairs, with the regions of a store and the settings of a variant."""
    store = storing.open_store(folder)
    limit = variant.max_regions
    if limit:
        store = storing.RegionStore(store.features[:, :limit], store.boxes[:, :limit], store.scores[:, :limit],
                                    np.minimum(store.counts, limit), store.ids)
    tokenizer = batches.load_tokenizer(run.stages / "pretrain")
    return batches.make_pairs(table, store, tokenizer, replace(run.profile.batches, **variant.batches))


def embed_splits(run: Run, store: Path, model: Capture | None, words: embedding.Words | None,
                 variant: Variant = UNCHANGED, instances: InstanceSettings | None = None,
                 levels: Collection[str] = embedding.LEVELS) -> dict[str, embedding.EmbeddedSet]:
    """Return val, test and gallery as vectors, by a region store and settings of a variant."""
    sets = {}
    for split in ("val", "test", "gallery"):
        table = stages.samples(run, split)
        pairs = pairs_of(run, table, store, variant)
        sets[split] = embedding.embed_samples(table, pairs, model, words, instances or run.profile.instances,
                                              split == "gallery", levels)
    return sets


def evaluate_methods(sets: dict[str, embedding.EmbeddedSet], methods: dict[str, Method], depth: int
                     ) -> tuple[dict, dict]:
    """Choose each method's representation on val and rank test by it; return scores and choices."""
    scores = {}
    chosen = {}
    for name, method in methods.items():
        best, tried = ranking.choose(method, sets["val"], sets["gallery"], depth)
        ranked = ranking.rank(sets["test"], sets["gallery"], method.level, best, depth)
        scores[name] = ranking.score(ranked, sets["test"], sets["gallery"])
        chosen[name] = {"representation": best, "val": max(tried.values()), "tried": tried}
    return scores, chosen


def chance(queries: embedding.EmbeddedSet, gallery: embedding.EmbeddedSet, depth: int, seed: int) -> list[Ranking]:
    """Rank at random for each query: what a figure is without any knowledge."""
    rng = np.random.default_rng([seed, 4])
    return [Ranking(rng.permutation(len(gallery.ids))[:depth]) for _ in queries.ids]


def popularity(val: embedding.EmbeddedSet, gallery: embedding.EmbeddedSet, depth: int) -> Ranking:
    """Rank for any query: photos of the label that most val queries ask for, then of the next."""
    demand = Counter(label for labels in val.labels for label in set(labels))
    labels = first_labels(gallery)
    first, _ = pd.factorize(np.array(labels, object))  # of equal labels, by their first photo
    wanted = np.array([demand[label] for label in labels])
    return Ranking(np.lexsort((first, -wanted))[:depth])


def write_evaluation(folder: Path, scores: dict[str, pd.DataFrame], chosen: dict[str, dict]) -> None:
    """Write every figure of every query, and what val chose."""
    pd.concat(scores, names=["method"]).to_parquet(folder / "scores.parquet")
    write_json(folder / "chosen.json", chosen)


def read_scores(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the figures of an evaluation by method, as from `metrics.per_query`."""
    table = pd.read_parquet(folder / "scores.parquet")
    return {name: rows.droplevel("method") for name, rows in table.groupby("method", sort=False)}


def read_chosen(folder: Path) -> dict[str, dict]:
    """Return what val chose for each method, its figure there ("val"), and all that was tried."""
    return json.loads((folder / "chosen.json").read_text(encoding="utf-8"))


def by_method(folders: list[Path], read: Callable[[Path], dict]) -> dict[str, list]:
    """Return what `read` finds in the folders of evaluations, by method: a list over the seeds."""
    found: dict[str, list] = {}
    for folder in folders:
        for name, value in read(folder).items():
            found.setdefault(name, []).append(value)
    return found
