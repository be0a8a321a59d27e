"""`make bench`: speed as a ratio against a plain peer, both in the same run; written to reports/bench.json."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from capture_lib import metrics, profiles, retrieval, runs, synthesis, world
from capture_lib.batches import Pairs
from capture_lib.catalog import read_catalog
from capture_lib.losses import pretext_losses
from capture_lib.model import Capture
from capture_lib.paths import REPORTS
from capture_lib.photos import load_photo
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


def drawn_synthesis() -> dict:
    """GrabCut at the profile's size against GrabCut at full size, with the IoU of their masks; one core."""
    cv2.setNumThreads(1)
    catalog = read_catalog(runs.default_catalog(profiles.get("smoke")))
    chosen = catalog.split("gallery")["sample_id"][:40]
    photos = [cv2.resize(load_photo(catalog.photos[sample]), (640, 640)) for sample in chosen]
    size = synthesis.SynthesisSettings().foreground_size
    small: list[np.ndarray] = []
    large: list[np.ndarray] = []
    started = time.perf_counter()
    small += [synthesis.grabcut(synthesis.fit(photo, size)) for photo in photos]
    ours = time.perf_counter() - started
    large += [synthesis.grabcut(photo) for photo in photos[:10]]
    peer = (time.perf_counter() - started - ours) * len(photos) / 10
    grown = [cv2.resize(mask, (640, 640), interpolation=cv2.INTER_NEAREST) for mask in small[:10]]
    overlap = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(grown, large, strict=True)]
    return {"photos_per_s": len(photos) / ours, "peer_photos_per_s": len(photos) / peer, "ratio": peer / ours,
            "mean_iou": float(np.mean(overlap)), "peer": "the same GrabCut at 640 pixels"}


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


def random_pairs(count: int = 64, regions: int = 10, width: int = 256) -> Pairs:
    """Pairs of random tokens and regions in the store's format."""
    rng = np.random.default_rng(0)
    low = rng.random((count, regions, 2), np.float32) / 2
    store = RegionStore(rng.normal(size=(count, regions, width)).astype(np.float16),
                        np.concatenate([low, low + 0.5], -1), np.ones((count, regions), np.float32),
                        np.full(count, regions, np.int32), [str(i) for i in range(count)])
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "size": 2_000}
    return Pairs(rng.integers(5, 2_000, (count, 36)), np.arange(count), store, special)


def main() -> None:
    """Runs every benchmark, prints a line for each and writes reports/bench.json."""
    benchmarks = {"render": rendering, "synthesis": drawn_synthesis, "pretraining": pretraining, "search": search,
                  "evaluation": evaluation}
    results = {}
    for name, work in benchmarks.items():
        results[name] = work()
        print(f"{name:12}", "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key}: {value}"
                                      for key, value in results[name].items()), flush=True)
    runs.write_json(REPORTS / "bench.json", {"hardware": runs.hardware(), "commit": runs.commit(), **results})


if __name__ == "__main__":
    main()
