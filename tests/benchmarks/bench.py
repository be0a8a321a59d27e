"""`make bench`: speed as a ratio against a plain peer, both in the same run; written to reports/bench.json."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from bench_pretraining import fastest, pretraining

from capture_lib import profiles, world
from capture_lib.catalog.photos import fit, load_photo
from capture_lib.experiments import run as runs
from capture_lib.experiments.search import Item, Searcher
from capture_lib.model.capture import Capture
from capture_lib.proposals import foregrounds
from capture_lib.proposals.detector import Detector
from capture_lib.proposals.region_encoder import CropEncoder
from capture_lib.retrieval import metrics, ranking
from capture_lib.retrieval.embedding import EmbeddedSet, represent, unit
from capture_lib.training import batches
from capture_lib.utils import REPORTS, origin, pick_device, write_json

QUERIES, GALLERY, LABELS = 9_220, 40_033, 458  # the sizes of Product1M


def evaluation() -> dict:
    """Both definitions at the size of Product1M, against plain loops over lists that compute one of them."""
    rng = np.random.default_rng(0)
    gallery = [f"label {i}" for i in rng.integers(LABELS, size=GALLERY)]
    queries = [[f"label {i}" for i in rng.integers(LABELS, size=rng.integers(1, 6))] for _ in range(QUERIES)]
    rankings = [rng.choice(GALLERY, 100, replace=False) for _ in range(QUERIES)]
    ours = fastest(lambda: metrics.per_query(rankings, queries, gallery))
    few = QUERIES // 10
    peer = fastest(lambda: plain_evaluation(rankings[:few], queries[:few], gallery), 1) * 10
    return {"seconds": ours, "peer_seconds": peer, "ratio": peer / ours, "peer": "plain loops (a tenth timed)"}


def plain_evaluation(rankings: list[np.ndarray], queries: list[list[str]], gallery: list[str]) -> list[float]:
    """Return AP, recall and precision in the released form, one query after the other."""
    items: dict[str, list[int]] = {}
    for row, label in enumerate(gallery):
        items.setdefault(label, []).append(row)
    figures = []
    for ranking_, labels in zip(rankings, queries, strict=True):
        positives = [row for label in labels for row in items.get(label, [])]
        for n in metrics.CUTOFFS:
            k = min(n, len(positives), len(ranking_))
            precisions = []
            for place in range(k):
                if ranking_[place] in positives:
                    precisions.append((len(precisions) + 1) / (place + 1))
            found = [sum(gallery[row] == label for row in ranking_[:n]) for label in set(labels)]
            figures += [np.mean(precisions) if precisions else 0.0, len(precisions) / max(k, 1), np.mean(found)]
    return figures


def search(queries: int = 1_000) -> dict:
    """faiss at the size of Product1M, filling the index included, against one matrix product."""
    rng = np.random.default_rng(0)
    gallery = unit(rng.normal(size=(GALLERY, 512)))
    asked = unit(rng.normal(size=(queries, 512)))
    ours = fastest(lambda: ranking.search_index(ranking.build_index(gallery), asked, 100))
    peer = fastest(lambda: asked @ gallery.T)
    return {"seconds": ours, "peer_seconds": peer, "ratio": peer / ours, "peer": "the matrix product alone",
            "queries": queries}


def synthesis(count: int = 40, size: int = 640) -> dict:
    """Foregrounds a second on one core, against GrabCut at full size from the same masks; the IoU of the two."""
    cv2.setNumThreads(1)
    settings = world.WorldSettings("bench", 20, 4, 4, count, 4, 4, size=size)
    with TemporaryDirectory() as folder:
        world.build(settings, Path(folder) / "world", workers=1)
        photos = [load_photo(file) for file in sorted(Path(folder).rglob("gallery-*.jpg"))]
    started = time.perf_counter()
    cuts = [foregrounds.cut_out(fit(photo, foregrounds.SIDE)) for photo in photos]
    ours = time.perf_counter() - started

    overlaps, seconds = [], []
    for photo, cut in zip(photos, cuts, strict=True):
        if cut.mask.any():
            initial = enlarged(cut.initial_mask, size)
            unit_side = size / foregrounds.SIDE
            labels = np.where(initial > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
            labels[cv2.erode(initial, foregrounds.disc(round(8 * unit_side))) > 0] = cv2.GC_FGD
            labels[cv2.dilate(initial, foregrounds.disc(round(6 * unit_side))) == 0] = cv2.GC_BGD
            started = time.perf_counter()
            full = foregrounds.run_grabcut(photo, labels, 3)
            seconds.append(time.perf_counter() - started)
            overlaps.append(foregrounds.iou(enlarged(cut.mask, size), full))
    peer = np.mean(seconds)
    return {"photos_per_s": len(photos) / ours, "peer_photos_per_s": 1 / peer, "ratio": peer * len(photos) / ours,
            "mean_iou": float(np.mean(overlaps)), "peer": f"GrabCut alone, 3 iterations at {size} pixels"}


def enlarged(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask (H, W) uint8 in {0, 1} at another size, its edge smooth."""
    return (cv2.resize(mask.astype(np.float32), (size, size)) > 0.5).astype(np.uint8)


def query(repeats: int = 10) -> dict:
    """Milliseconds from a photo and its caption to hits in a gallery of Product1M's size, and their parts.

    Sizes of the cpu profile; the networks are untrained and the gallery random, which costs the same.
    """
    with TemporaryDirectory() as folder:
        searcher = untrained_searcher(Path(folder))
    catalog = runs.open_run("smoke").catalog
    file = next(iter(catalog.photos.values()))
    table = catalog.table[:1].assign(sample_id="query")
    photo = load_photo(file)
    store = searcher.describe(photo)
    asked = represent(searcher.embed(table, store, single=False).instance, "product")
    index = searcher.index("product")
    parts = {"read": lambda: load_photo(file), "describe": lambda: searcher.describe(photo),
             "embed": lambda: searcher.embed(table, store, single=False),
             "search": lambda: ranking.search_index(index, asked, 10)}
    times = {name: 1000 * fastest(work, repeats) for name, work in parts.items()}
    whole = fastest(lambda: searcher.search(file, table["caption"].iloc[0]), repeats)
    return {"ms": 1000 * whole, "parts_ms": times, "gallery": GALLERY, "instances": len(asked)}


def untrained_searcher(folder: Path) -> Searcher:
    """Return a searcher of the cpu profile in the smallest world, with random vectors for a gallery."""
    catalog = runs.open_run("smoke").catalog
    profile = profiles.get("cpu")
    tokenizer = batches.make_tokenizer(catalog.table["caption"], folder)
    torch.manual_seed(0)  # the same number of instances every time
    device = pick_device()
    detector = Detector(profile.detector).to(device, memory_format=torch.channels_last).eval()
    encoder = CropEncoder(profile.encoder).to(device, memory_format=torch.channels_last).eval()
    width = 4 * profile.encoder.channels
    settings = replace(profile.capture, vocabulary=tokenizer.get_vocab_size(), region_features=width)
    model = Capture(settings).to(device).eval()

    rng = np.random.default_rng(0)
    vectors = {name: rng.random((GALLERY, settings.output), np.float32) for name in ("text_pooled", "region_pooled")}
    rows = np.arange(GALLERY)
    names = [str(row) for row in rows]
    gallery = EmbeddedSet(names, [[]] * GALLERY, rows, 0 * rows, np.zeros((GALLERY, 4)), {}, vectors)
    items = {row: Item(str(row), Path()) for row in rows.tolist()}
    return Searcher(None, lambda: (detector, encoder), tokenizer, model, None, gallery, items, profile.regions,
                    replace(profile.instances, min_score=0.0), profile.batches,
                    {"capture/instance": {"representation": "product", "val": 1.0}})


def lines(name: str, figures: object) -> list[str]:
    """Return the figures of a benchmark, each with its name, as in bench.json, in front."""
    if isinstance(figures, dict):
        return [line for key, value in figures.items() for line in lines(f"{name}.{key}", value)]
    return [f"{name:45} {figures:.4g}" if isinstance(figures, float) else f"{name:45} {figures}"]


def main() -> None:
    """Run every benchmark, print a line for each figure and write reports/bench.json."""
    results = {}
    for work in (synthesis, search, evaluation, query, pretraining):
        results[work.__name__] = work()
        print("\n".join(lines(work.__name__, results[work.__name__])), flush=True)
    write_json(REPORTS / "bench.json", origin() | results)


if __name__ == "__main__":
    main()
