"""`make bench`: speed as a ratio against a plain peer, both in the same run; written to reports/bench.json."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from capture_lib import foregrounds, metrics, profiles, regions, retrieval, runs, world
from capture_lib.batches import Pairs
from capture_lib.catalog import read_catalog
from capture_lib.detector import Detector, pick_device, to_tensor
from capture_lib.encoder import CropEncoder
from capture_lib.losses import pretext_losses
from capture_lib.model import Capture
from capture_lib.paths import REPORTS
from capture_lib.photos import fit, load_photo
from capture_lib.pretrain import PretrainSettings, step
from capture_lib.regions import RegionStore

QUERIES, GALLERY, LABELS = 9_220, 40_033, 458  # the sizes of Product1M


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of a few timings, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def evaluation() -> dict:
    """Both definitions at the size of Product1M, against plain loops over lists that compute one of them."""
    rng = np.random.default_rng(0)
    gallery = [f"label {i}" for i in rng.integers(LABELS, size=GALLERY)]
    queries = [[f"label {i}" for i in rng.integers(LABELS, size=rng.integers(1, 6))] for _ in range(QUERIES)]
    rankings = [rng.choice(GALLERY, 100, replace=False) for _ in range(QUERIES)]
    ours = seconds(lambda: metrics.per_query(rankings, queries, gallery))
    few = QUERIES // 10
    peer = seconds(lambda: plain_evaluation(rankings[:few], queries[:few], gallery), 1) * 10
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


def search() -> dict:
    """faiss at the size of Product1M against one matrix product and a partial sort of its rows."""
    rng = np.random.default_rng(0)
    gallery = retrieval.unit(rng.normal(size=(GALLERY, 512)).astype(np.float32))
    queries = retrieval.unit(rng.normal(size=(1_000, 512)).astype(np.float32))
    ours = seconds(lambda: retrieval.search(gallery, queries, 100))
    peer = seconds(lambda: queries @ gallery.T)
    return {"seconds": ours, "peer_seconds": peer, "ratio": peer / ours, "peer": "the matrix product alone",
            "queries": len(queries)}


def cutting() -> dict:
    """Foregrounds a second on one core, against GrabCut at full size from the same starts; the IoU of the masks."""
    cv2.setNumThreads(1)
    settings = world.WorldSettings("bench", 20, 4, 4, 40, 4, 4, size=640)
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
    found = regions.locate(photos, shares, detector, profile.regions.most, detector.settings.view)
    boxes = [box * photos.shape[-1] for box, _ in found]
    parts = {
        "reading": seconds(lambda: [regions.Squares(files, profile.regions.photo_size)[i] for i in range(len(files))]),
        "proposals": seconds(lambda: regions.locate(photos, shares, detector, profile.regions.most,
                                                    detector.settings.view)),
        "features": seconds(lambda: regions.encode(photos, boxes, encoder)),
    }
    return {"photos_per_s": len(files) / sum(parts.values()), "bottleneck": max(parts, key=parts.get), **parts}


def rendering() -> dict:
    """Photos of the rendered world a second, one core, drawing of the products included."""
    settings = world.WorldSettings("bench", 20, 4, 400, 200, 40, 40)
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        world.build(settings, Path(folder) / "world", workers=1)
        return {"photos_per_s_per_core": 680 / (time.perf_counter() - started)}


def pretraining() -> dict:
    """Training steps of the cpu profile's model on random pairs, against the same model eager in float32."""
    pairs, profile = random_pairs(), profiles.get("cpu")
    sizes = {**profile.capture.__dict__, "vocabulary": 2_000, "region_features": 256}
    settings, batch = PretrainSettings(), 64
    generator = torch.Generator().manual_seed(0)
    masked = pairs.masked_batch(np.arange(batch), profile.batches, generator)
    rates = {}
    for name in ("ours", "peer"):
        torch.manual_seed(0)
        model = Capture(type(profile.capture)(**sizes)).train()
        optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
        work = step if name == "ours" else float32_step
        rates[name] = batch / seconds(lambda m=model, o=optimiser, w=work: w(m, masked, o, settings), 10)
    return {"device": "cpu", "samples_per_s": rates["ours"], "peer_samples_per_s": rates["peer"],
            "ratio": rates["ours"] / rates["peer"], "peer": "the same model and step, eager float32"}


def float32_step(model: Capture, batch: dict, optimiser: torch.optim.Optimizer, settings: PretrainSettings) -> None:
    """A training step without mixed precision."""
    inputs = ("input_ids", "text_mask", "region_features", "region_locations", "region_mask")
    out = model(**{name: batch[name] for name in inputs})
    optimiser.zero_grad()
    sum(pretext_losses(model, batch, out, settings.temperature).values()).backward()
    optimiser.step()


def random_pairs(count: int = 64, most: int = 10, width: int = 256) -> Pairs:
    """Pairs of random tokens and regions in the store's format."""
    rng = np.random.default_rng(0)
    low = rng.random((count, most, 2), np.float32) / 2
    store = RegionStore(rng.normal(size=(count, most, width)).astype(np.float16),
                        np.concatenate([low, low + 0.5], -1), np.ones((count, most), np.float32),
                        np.full(count, most, np.int32), [str(i) for i in range(count)])
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "size": 2_000}
    return Pairs(rng.integers(5, 2_000, (count, 36)), np.arange(count), store, special)


def main() -> None:
    """Runs every benchmark, prints a line for each and writes reports/bench.json."""
    benchmarks = {"render": rendering, "foregrounds": cutting, "regions": extraction, "pretraining": pretraining,
                  "search": search, "evaluation": evaluation}
    results = {}
    for name, work in benchmarks.items():
        results[name] = work()
        print(f"{name:12}", "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key}: {value}"
                                      for key, value in results[name].items()), flush=True)
    runs.write_json(REPORTS / "bench.json", {"hardware": runs.hardware(), "commit": runs.commit(), **results})


if __name__ == "__main__":
    main()
