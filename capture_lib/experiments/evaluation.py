"""Evaluate methods: embed val, test and gallery, choose on val, rank test, keep every figure."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import UNCHANGED, Variant
from capture_lib.model.capture import Capture
from capture_lib.proposals.region_store import RegionStore, open_store
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import LEVELS, EmbeddedSet, Words, carry_text, embed_samples, letters
from capture_lib.retrieval.ranking import Method, Ranking
from capture_lib.training import batches
from capture_lib.utils import write_json

SPLITS = ("val", "test", "gallery")


def pairs_of(run: Run, table: pd.DataFrame, variant: Variant = UNCHANGED) -> batches.Pairs:
    """Return samples as pairs, with the settings of a variant."""
    store = open_store(run.stages / "region_store")
    limit = variant.max_regions or store.boxes.shape[1]
    store = RegionStore(store.features[:, :limit], store.boxes[:, :limit], store.scores[:, :limit],
                        np.minimum(store.counts, limit), store.ids)
    tokenizer = batches.load_tokenizer(run.stages / "pretrain")
    return batches.make_pairs(table, store, tokenizer, replace(run.profile.batches, **variant.batches))


def caption_words(run: Run) -> Words | None:
    """Return n-gram vectors fitted on train; None where the captions of train or of a side of a search say nothing."""
    captions = list(filter(None, stages.samples(run, "train")["caption"]))
    compared = [stages.samples(run, split)["caption"] for split in SPLITS]
    spoken = all(any(len(letters(text)) > 1 for text in texts) for texts in compared if len(texts))
    enough = len(captions) >= stages.MIN_PAIRS and carry_text(captions) and spoken
    return Words(captions, run.profile.retrieval, run.seed) if enough else None


def embed(run: Run, model: Capture | None, words: Words | None, variant: Variant = UNCHANGED,
          levels: Collection[str] = LEVELS) -> dict[str, EmbeddedSet]:
    """Return val, test and gallery, those that have samples, as vectors."""
    sets = {}
    for split in SPLITS:
        table = stages.samples(run, split)
        if len(table):
            pairs = pairs_of(run, table, variant)
            sets[split] = embed_samples(table, pairs, model, words, run.profile.instances, split == "gallery",
                                        levels)
    return sets


def evaluate(folder: Path, sets: dict[str, EmbeddedSet], methods: dict[str, Method], depth: int,
             rankings: dict[str, list[Ranking]]) -> None:
    """Choose each method's representation on val, rank test by it; write choices and figures.

    `rankings` of test, by name, are evaluated too. Queries without labels get no figures.
    """
    val, test = sets.get("val"), sets.get("test")
    labelled = val if val and any(val.labels) else None
    counts = {"queries": len(val.ids), "labelled": sum(map(bool, val.labels))} if val else {}
    chosen = {}
    for name, method in methods.items():
        best, tried = ranking.choose(method, labelled, sets["gallery"], depth)
        chosen[name] = {"representation": best, "val": max(tried.values(), default=None), "tried": tried} | counts
        if test:
            rankings[name] = ranking.rank(test, sets["gallery"], method.level, best, depth)
    write_json(folder / "chosen.json", chosen)
    if test and any(test.labels):
        scores = {name: ranking.score(own, test, sets["gallery"]) for name, own in rankings.items()}
        pd.concat(scores, names=["method"]).to_parquet(folder / "scores.parquet")


def read_chosen(folder: Path) -> dict[str, dict]:
    """Return by method the "representation" that val chose, its figure ("val"), and all that was "tried"."""
    return json.loads((folder / "chosen.json").read_text(encoding="utf-8"))


def scored(run: Run, split: str = "test") -> tuple[pd.DataFrame, dict]:
    """Return the queries that have figures, those with labels, in their order; and how many of all these are."""
    queries = stages.samples(run, split)
    labelled = queries[queries["labels"].map(len) > 0]
    return labelled, {"split": split, "count": len(queries), "labelled": len(labelled)}


def chance(queries: EmbeddedSet, gallery: EmbeddedSet, depth: int, seed: int) -> list[Ranking]:
    """Rank at random for each query: what a figure is without any knowledge."""
    rng = np.random.default_rng([seed, 4])
    return [Ranking(rng.permutation(len(gallery.ids))[:depth]) for _ in queries.ids]


def popularity(val: EmbeddedSet, gallery: EmbeddedSet, depth: int) -> Ranking:
    """Rank for any query: photos of the label that most val queries ask for, then of the next."""
    demand = Counter(label for labels in val.labels for label in set(labels))
    labels = [max(own, key=demand.__getitem__, default="") for own in gallery.labels]
    first, _ = pd.factorize(np.array(labels, object))  # of equal labels, by their first photo
    wanted = np.array([demand[label] for label in labels])
    return Ranking(np.lexsort((first, -wanted))[:depth])
