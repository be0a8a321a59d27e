"""Evaluate methods: embed val, test and gallery, choose on val, rank test, keep every figure."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from capture_lib.experiments import proposal_recall, stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.variants import UNCHANGED, Variant
from capture_lib.model.capture import Capture
from capture_lib.proposals.instances import instances_of, match
from capture_lib.proposals.region_store import RegionStore, open_store
from capture_lib.retrieval import embedding, foundation, ranking
from capture_lib.retrieval.embedding import LEVELS, EmbeddedSet, Words, embed_samples
from capture_lib.retrieval.metrics import per_box
from capture_lib.retrieval.ranking import Method, Ranking
from capture_lib.training import batches
from capture_lib.utils import write_json

SPLITS = ("val", "test", "gallery")


def pairs_of(run: Run, table: pd.DataFrame, variant: Variant = UNCHANGED) -> batches.Pairs:
    """Return samples as pairs, with the settings of a variant."""
    store = open_store(run.place("region_store"))
    limit = variant.max_regions or store.boxes.shape[1]
    store = RegionStore(store.features[:, :limit], store.boxes[:, :limit], store.scores[:, :limit],
                        np.minimum(store.counts, limit), store.ids)
    tokenizer = batches.load_tokenizer(run.place("pretrain"))
    return batches.make_pairs(table, store, tokenizer, replace(run.profile.batches, **variant.batches))


def embed(run: Run, model: Capture | None, words: Words | None, variant: Variant = UNCHANGED,
          levels: Collection[str] = LEVELS) -> dict[str, EmbeddedSet]:
    """Return val, test and gallery, those that have samples, as vectors; `embedded` has those of notebook 04's CAPTURE.
    """
    sets = {}
    for split in SPLITS:
        table = stages.samples(run, split)
        if len(table):
            pairs = pairs_of(run, table, variant)
            sets[split] = embed_samples(table, pairs, model, words, run.profile.instances, split == "gallery",
                                        levels)
    return sets


def embedded(run: Run) -> dict[str, EmbeddedSet]:
    """Return val, test and gallery as vectors of notebook 04's CAPTURE and of n-grams: embedded once, then found."""
    profile = run.profile
    trained = stages.pretrained(run)
    words = stages.caption_words(run)

    def make(folder: Path) -> None:
        for split, samples in embed(run, trained.model, words).items():
            embedding.save_set(samples, folder / split)

    settings = {"batches": profile.batches, "instances": profile.instances}
    upstream = [trained.folder, run.place("region_store"), *([run.place("words")] if words else [])]
    tables = {split: stages.samples(run, split) for split in SPLITS}
    read = pd.concat(tables.values())[["sample_id", "split", "image", "caption"]]
    folder = run.stage(embedding, settings, upstream, read, make, name="embeddings")
    sets = {split: embedding.load_set(table, folder / split) for split, table in tables.items() if len(table)}
    add_foundation(run, sets)
    return sets


def add_foundation(run: Run, sets: dict[str, EmbeddedSet]) -> None:
    """Add the vectors of the image-text model to embedded sets, where the profile names one."""
    if not run.profile.retrieval.embedder:
        return
    folder = foundation_folder(run)
    for split, samples in sets.items():
        images, texts = (np.load(folder / split / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
        foundation.add_vectors(samples, images, texts if stages.sides_speak(run) else None)


def foundation_folder(run: Run) -> Path:
    """Return the folder of the image-text model's vectors: of each instance, and of each caption.

    They are made once, for captions that teach our region encoder leave boxes as they are.
    """
    name = run.profile.retrieval.embedder
    margin = run.profile.encoder.margin
    store, store_folder = stages.region_store(run.taught(captions=""))

    def make(folder: Path) -> None:
        model = foundation.ImageText(name, margin)
        for split, table in stages.samples(run, *SPLITS).groupby("split"):
            rows = store.rows(list(table["sample_id"]))
            owners, regions = instances_of(store, rows, run.profile.instances, split == "gallery")
            photos = [run.catalog.photos[sample] for sample in table["sample_id"].iloc[owners]]
            crops = list(zip(photos, store.boxes[rows[owners], regions], strict=True))
            (folder / split).mkdir()
            np.save(folder / split / "images.npy", model.images(crops, run.profile.regions.workers))
            np.save(folder / split / "texts.npy", model.texts(list(table["caption"])))

    weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in Path(name).glob("*.safetensors")]
    settings = {"model": name, "weights": sorted(weights), "margin": margin, "instances": run.profile.instances}
    read = stages.samples(run, *SPLITS)[["sample_id", "split", "image", "caption"]]
    return run.stage(foundation, settings, [store_folder], read, make)


def evaluate(run: Run, folder: Path, sets: dict[str, EmbeddedSet], methods: dict[str, Method],
             rankings: dict[str, list[Ranking]]) -> None:
    """Choose each method's representation on val, rank test by it; write choices and figures.

    `rankings` of test, by name, are evaluated too. Queries without labels get no figures; where true boxes are known,
    there are those of every box as well.
    """
    val, test = sets.get("val"), sets.get("test")
    depth = run.profile.retrieval.depth
    labelled = val if val and any(val.labels) else None
    counts = {"queries": len(val.ids), "labelled": sum(map(bool, val.labels))} if val else {}
    chosen = {}
    lists = {}  # of each instance, by method
    for name, method in methods.items():
        best, tried = ranking.choose(method, labelled, sets["gallery"], depth)
        chosen[name] = {"representation": best, "val": max(tried.values(), default=None), "tried": tried} | counts
        if test:
            scores, rows = ranking.search(test, sets["gallery"], method.level, best, depth)
            rankings[name] = ranking.merge(test, method.level, scores, rows, depth)
            lists[name] = rows if method.level == "instance" else rows[test.owners]
    write_json(folder / "chosen.json", chosen)
    if test and any(test.labels):
        scores = {name: ranking.score(own, test, sets["gallery"]) for name, own in rankings.items()}
        pd.concat(scores, names=["method"]).to_parquet(folder / "scores.parquet")
    truth = true_boxes(run, "test", test) if test else None
    if truth is not None:
        for name in rankings.keys() - lists.keys():  # the same for every box of a photo
            lists[name] = [rankings[name][owner].rows for owner in test.owners]
        boxes = {}
        for name, own in lists.items():
            boxes[name] = per_box(own, truth["instance"], truth["label"], sets["gallery"].labels)
            boxes[name]["photo"] = truth["photo"]
        pd.concat(boxes, names=["method"]).to_parquet(folder / "boxes.parquet")


def true_boxes(run: Run, split: str, samples: EmbeddedSet) -> pd.DataFrame | None:
    """Return the true boxes of a split: photo (row of `samples`), label, and instance that found it, -1 for none.

    None where no photo of it has true boxes with labels.
    """
    table, truth = proposal_recall.boxed(run.catalog, (split,))
    photos = {name: row for row, name in enumerate(samples.ids)}
    rows = []
    for sample, boxes, labels in zip(table["sample_id"], truth, table["box_labels"], strict=True):
        own = np.flatnonzero(samples.owners == photos[sample])
        found = match(boxes, samples.boxes[own])
        found = np.append(own, -1)[found]  # -1 reads the last
        rows += [(photos[sample], label, instance) for label, instance in zip(labels, found, strict=True) if label]
    return pd.DataFrame(rows, columns=["photo", "label", "instance"]) if rows else None


def box_figures(tables: list[pd.DataFrame]) -> dict[str, dict]:
    """Return mAP@10, R@1 and the share found over the true boxes of all trainings, with 95% intervals over photos."""
    photos = (sum(tables) / len(tables)).groupby("photo")
    counts = photos.size().to_numpy()
    return {name: proposal_recall.proportion_interval(photos[name].sum().to_numpy(), counts, 0)
            for name in ("mAP@10", "R@1", "found")}


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
    # a copy lets go of the rest of a permutation, 2 GB of thousands of queries
    return [Ranking(rng.permutation(len(gallery.ids))[:depth].copy()) for _ in queries.ids]


def popularity(val: EmbeddedSet, gallery: EmbeddedSet, depth: int) -> Ranking:
    """Rank for any query: photos of the label that most val queries ask for, then of the next."""
    demand = Counter(label for labels in val.labels for label in set(labels))
    labels = [max(own, key=demand.__getitem__, default="") for own in gallery.labels]
    first, _ = pd.factorize(np.array(labels, object))  # of equal labels, by their first photo
    wanted = np.array([demand[label] for label in labels])
    return Ranking(np.lexsort((first, -wanted))[:depth])
