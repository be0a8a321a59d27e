"""`make bench`: speed as a ratio against a plain peer, both in the same run; written to reports/bench.json."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import torch
from capture_lib.bench_pretraining import fastest, pretraining

from capture_lib import profiles, world
from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import read_catalog
from capture_lib.experiments import run as runs
from capture_lib.experiments.stages import Pretrained
from capture_lib.model.capture import Capture
from capture_lib.proposals import foregrounds
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.region_encoder import CropEncoder
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import metrics
from capture_lib.retrieval.embedding import EmbeddedSet, RetrievalSettings
from capture_lib.retrieval.search import ASKED, Searcher
from capture_lib.training import batches
from capture_lib.training.pretrain import TASKS
from capture_lib.utils import REPORTS, pick_device, write_json

QUERIES, GALLERY, LABELS = 9_220, 40_033, 458  # the sizes of Product1M


def evaluation(asked: int = QUERIES, held: int = GALLERY) -> dict:
    """Both definitions at the size of Product1M, against plain loops over lists that compute one of them."""
    rng = np.random.default_rng(0)
    gallery = [f"label {i}" for i in rng.integers(LABELS, size=held)]
    queries = [[f"label {i}" for i in rng.integers(LABELS, size=rng.integers(1, 6))] for _ in range(asked)]
    rankings = [rng.choice(held, 100, replace=False) for _ in range(asked)]
    ours = fastest(lambda: metrics.per_query(rankings, queries, gallery))
    few = asked // 10
    peer = fastest(lambda: plain_evaluation(rankings[:few], queries[:few], gallery), 1) * 10
    return {"seconds": ours, "peer_seconds": peer, "ratio": peer / ours, "peer": "plain loops (a tenth timed)"}


def plain_evaluation(rankings: list[np.ndarray], queries: list[list[str]], gallery: list[str]) -> list[float]:
    """AP, precision and recall at 10, 50 and 100 in the released form, one query after the other."""
    items: dict[str, list[int]] = {}
    for row, label in enumerate(gallery):
        items.setdefault(label, []).append(row)
    figures = []
    for ranking, labels in zip(rankings, queries, strict=True):
        positives = [row for label in labels for row in items.get(label, [])]
        for n in metrics.CUTOFFS:
            k, hits, precisions = min(n, len(positives), len(ranking)), 0, []
            for place in range(k):
                if ranking[place] in positives:
                    hits += 1
                    precisions.append(hits / (place + 1))
            figures += [np.mean(precisions) if precisions else 0.0, hits / max(k, 1)]
            found = [sum(gallery[row] == label for row in ranking[:n]) for label in set(labels)]
            figures.append(np.mean(found))
    return figures


def search(asked: int = 1_000, held: int = GALLERY) -> dict:
    """faiss at the size of Product1M, filling the index included, against one matrix product."""
    rng = np.random.default_rng(0)
    gallery = retrieval.unit(rng.normal(size=(held, 512)).astype(np.float32))
    queries = retrieval.unit(rng.normal(size=(asked, 512)).astype(np.float32))
    ours = fastest(lambda: retrieval.search(gallery, queries, 100))
    peer = fastest(lambda: queries @ gallery.T)
    return {"seconds": ours, "peer_seconds": peer, "ratio": peer / ours, "peer": "the matrix product alone",
            "queries": len(queries)}


def synthesis(count: int = 40) -> dict:
    """Foregrounds a second on one core, against GrabCut at full size from the same starts; the IoU of the masks."""
    cv2.setNumThreads(1)
    settings = world.WorldSettings("bench", 20, 4, 4, count, 4, 4, size=640)
    with TemporaryDirectory() as folder:
        world.build(settings, Path(folder) / "world", workers=1)
        photos = [load_photo(file) for file in sorted(Path(folder).rglob("gallery-*.jpg"))]
    started = time.perf_counter()
    cuts = [foregrounds.cut_out(fit(photo, foregrounds.SIDE)) for photo in photos]
    ours = time.perf_counter() - started
    found = [(photo, cut) for photo, cut in zip(photos, cuts, strict=True) if cut.starts]
    started = time.perf_counter()
    large = [full_grabcut(photo, enlarged(cut.starts[0].mask)) for photo, cut in found]
    peer = (time.perf_counter() - started) * len(photos) / len(found)
    overlap = np.array([foregrounds.iou(enlarged(cut.mask), full) for (_, cut), full in zip(found, large, strict=True)])
    kept = [not foregrounds.faults(cut, single=True) for _, cut in found]
    return {"photos_per_s": len(photos) / ours, "peer_photos_per_s": len(photos) / peer, "ratio": peer / ours,
            "mean_iou": float(overlap.mean()), "mean_iou_of_kept": float(overlap[kept].mean()),
            "peer": "GrabCut alone, 3 iterations at 640 pixels, from the same starts"}


def enlarged(mask: np.ndarray, size: int = 640) -> np.ndarray:
    """A mask (H, W) uint8 in {0, 1} at another size, its edge smooth."""
    return (cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)


def full_grabcut(photo: np.ndarray, start: np.ndarray) -> np.ndarray:
    """GrabCut on the whole of a photo, with the marks that `foregrounds.grabcut` makes of a start."""
    return foregrounds.run_grabcut(photo, foregrounds.marks_of(start, max(photo.shape) / foregrounds.SIDE), 3)


def extraction() -> dict:
    """Photos a second from files to regions at the sizes of the cpu profile, and which part takes most of the time.

    The networks are untrained: that costs the same.
    """
    profile, catalog = profiles.get("cpu"), read_catalog(runs.default_catalog(profiles.get("smoke")))
    device, files = pick_device(), list(catalog.photos.values())[:profile.regions.batch]
    detector = Detector(profile.detector).to(device, memory_format=torch.channels_last).eval()
    encoder = CropEncoder(profile.encoder).to(device, memory_format=torch.channels_last).eval()
    squares, shares = regions.stack([regions.Squares(files, profile.regions.photo_size)[i] for i in range(len(files))])
    photos = to_tensor(squares).to(device)
    found = regions.locate(photos, shares, detector, profile.regions.max_regions, detector.settings.search_size)
    boxes = [box * photos.shape[-1] for box, _ in found]
    parts = {
        "reading": fastest(lambda: [regions.Squares(files, profile.regions.photo_size)[i] for i in range(len(files))]),
        "proposals": fastest(lambda: regions.locate(photos, shares, detector, profile.regions.max_regions,
                                                    detector.settings.search_size)),
        "features": fastest(lambda: regions.encode(photos, boxes, encoder)),
    }
    return {"photos_per_s": len(files) / sum(parts.values()), "bottleneck": max(parts, key=parts.get), **parts}


def rendering(train: int = 400) -> dict:
    """Photos of the rendered world a second, one core, drawing of the products included."""
    settings = world.WorldSettings("bench", 20, 4, train, train // 2, train // 10, train // 10)
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        world.build(settings, Path(folder) / "world", workers=1)
        return {"photos_per_s_per_core": train * 1.7 / (time.perf_counter() - started)}


def query(gallery: int = GALLERY) -> dict:
    """Milliseconds from a photo and its caption to hits in a gallery of that many products, everything being loaded.

    Sizes of the cpu profile. The networks are untrained and the gallery's vectors random: that costs the same. Reading,
    proposing and describing, embedding and searching add up to the whole, nearly; the index is filled once, beforehand.
    """
    with TemporaryDirectory() as folder:
        searcher = untrained_searcher(Path(folder), gallery)
    run, detector = searcher.run, searcher.detector
    file, caption = next(iter(run.catalog.photos.values())), run.catalog.table["caption"].iloc[0]
    photo = load_photo(file)
    square = to_tensor(regions.square(photo, run.profile.regions.photo_size)[0][None]).to(pick_device())
    shares, most = regions.filled(photo)[None], run.profile.regions.max_regions
    table = pd.DataFrame([{"sample_id": "query", "caption": caption, "labels": []}], dtype=object)
    pairs = batches.make_pairs(table, searcher.describe(photo), searcher.trained.tokenizer, run.profile.batches)
    started = time.perf_counter()
    held = searcher.index("product")
    filled = time.perf_counter() - started

    def embed() -> EmbeddedSet:
        return retrieval.embed_samples(table, pairs, searcher.trained.model, None, run.profile.retrieval, False, ASKED)

    asked = retrieval.read(embed().instance, "product")
    parts = {"read": fastest(lambda: load_photo(file), 10),
             "propose": fastest(lambda: regions.locate(square, shares, detector, most, detector.settings.search_size), 10),
             "propose and describe": fastest(lambda: searcher.describe(photo), 10),
             "embed": fastest(embed, 10),
             "search": fastest(lambda: held.search(asked, 10), 10)}
    return {"ms": fastest(lambda: searcher.ask(file, caption), 10) * 1000, "gallery": gallery, "instances": len(asked),
            "fill_ms": filled * 1000, "parts_ms": {name: value * 1000 for name, value in parts.items()}}


def untrained_searcher(folder: Path, gallery: int) -> Searcher:
    """A searcher of the cpu profile in the smallest world, with random vectors for a gallery."""
    catalog, rng = read_catalog(runs.default_catalog(profiles.get("smoke"))), np.random.default_rng(0)
    profile = replace(profiles.get("cpu"), retrieval=RetrievalSettings(min_score=0.0))
    tokenizer = batches.make_tokenizer(profile.batches, catalog.table["caption"], folder)
    torch.manual_seed(0)  # the same number of instances every time
    detector = Detector(profile.detector).to(pick_device(), memory_format=torch.channels_last).eval()
    encoder = CropEncoder(profile.encoder).to(pick_device(), memory_format=torch.channels_last).eval()
    run = runs.Run(profile, catalog, REPORTS, 0)
    width = 4 * profile.encoder.channels
    model = Capture(replace(profile.capture, vocabulary=tokenizer.get_vocab_size(), region_features=width))
    trained = Pretrained(model.to(pick_device()).eval(), tokenizer, TASKS, folder)
    blocks = {name: rng.random((gallery, profile.capture.output), np.float32)
              for name in ("text_pooled", "region_pooled")}
    rows = np.arange(gallery)
    ids = [list(catalog.photos)[row % len(catalog.photos)] for row in rows]
    side = EmbeddedSet(ids, [[]] * gallery, [""] * gallery, rows, np.zeros_like(rows), {}, blocks)
    return Searcher(run, detector, encoder, trained, None, side,
                    {"capture/instance": {"reading": "product", "merge": "score", "val": 1.0}})


BENCHMARKS = {"render": rendering, "synthesis": synthesis, "regions": extraction, "pretraining": pretraining,
              "search": search, "evaluation": evaluation, "query": query}


def main() -> None:
    """Runs every benchmark, prints a line for each figure and writes reports/bench.json."""
    results = {}
    for name, work in BENCHMARKS.items():
        results[name] = work()
        print("\n".join(lines(name, results[name])), flush=True)
    write_json(REPORTS / "bench.json", {"hardware": runs.hardware(), "commit": runs.commit(), **results})


def lines(name: str, found: object) -> list[str]:
    """The figures of a benchmark, each with its name, as in bench.json, in front."""
    if isinstance(found, dict):
        return [line for key, value in found.items() for line in lines(f"{name}.{key}", value)]
    return [f"{name:45} {found:.4g}" if isinstance(found, float) else f"{name:45} {found}"]


if __name__ == "__main__":
    main()
