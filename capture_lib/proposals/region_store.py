"""The region store: boxes, scores and features of every photo's proposals, made once."""
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from capture_lib import utils
from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.proposals.open_vocabulary import OpenVocabulary

Proposer = Detector | OpenVocabulary
MAX_PROPOSALS = 100  # of a photo at one of several sides, before they are merged


@dataclass(frozen=True)
class RegionSettings:
    """Defaults of the cpu profile."""
    max_regions: int = 10  # paper's code: 36
    photo_size: int = 224  # side of the square, pixels
    batch: int = 32
    workers: int = 2


@dataclass(frozen=True)
class RegionStore:
    """A store of N photos, R regions at most, F numbers each; zeros where there are fewer."""
    features: ndarray  # (N, R, F) float16
    boxes: ndarray  # (N, R, 4) float32 xyxy, fractions
    scores: ndarray  # (N, R) float32 objectness, best first
    counts: ndarray  # (N,) int32, of the R
    ids: list  # of row i, the sample

    def rows(self, ids: list) -> ndarray:
        """Return the row numbers of samples: (N,) int64."""
        places = {sample: row for row, sample in enumerate(self.ids)}
        return np.array([places[sample] for sample in ids], np.int64)

    def proposals(self, row: int, device: torch.device) -> tuple:
        """Return a photo's boxes (n, 4) and scores (n,) as tensors."""
        count = self.counts[row]
        return tuple(torch.tensor(array[row, :count], device=device) for array in (self.boxes, self.scores))


def open_store(folder: Path, mode: str = "r") -> RegionStore:
    """Open the store in a folder, memory-mapped; "r+" to write to it."""
    names = ("features", "boxes", "scores", "counts")
    arrays = [np.load(folder / f"{name}.npy", mmap_mode=mode) for name in names]
    ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
    return RegionStore(*arrays, ids)


def square(photo: ndarray, size: int) -> tuple:
    """Fit a photo (H, W, 3) into a white square; return it, and which share of its sides (2,)."""
    padded = np.full((size, size, 3), 255, np.uint8)
    fitted = fit(photo, size)
    padded[: len(fitted), : fitted.shape[1]] = fitted
    return padded, np.array(photo.shape[1::-1], np.float32) / max(photo.shape[:2])


def read_squares(paths: list, size: int) -> list:
    """Read photos as squares (B, S, S, 3) uint8, with their extents (B, 2)."""
    squares = [square(load_photo(path), size) for path in paths]
    return [np.stack(part) for part in zip(*squares, strict=True)]


def photo_batches(paths: list, settings: RegionSettings) -> Iterator:
    """Yield batches of squares (B, 3, S, S) on the device, with their extents (B, 2)."""
    read = partial(read_squares, size=settings.photo_size)
    for squares, extents in load_batches(paths, read, settings.batch, settings.workers):
        yield to_tensor(squares).to(utils.pick_device()), extents


def load_batches(items: list, read: Callable, batch: int, workers: int) -> Iterator:
    """Yield what `read` makes of batches of items, in so many processes."""
    try:
        yield from DataLoader(items, batch, num_workers=workers, collate_fn=read)
    except utils.InputError as error:  # a worker's ends with it
        raise utils.InputError(str(error).strip().rpartition("InputError: ")[2]) from None


def describe(photos: Tensor, extents: ndarray, detector: Proposer, encoder: nn.Module, count: int,
             proposals: list | None = None, single: bool = False) -> Iterator:
    """Yield boxes (n, 4) as fractions, scores (n,) and features (n, F) of each square; `proposals` may be known.

    `single`: each shows one product, which is large, so the first of the detector's sides will do.
    """
    if proposals is None:
        sizes = detector.settings.search_sizes
        proposals = locate(photos, extents, detector, count, sizes[:1] if single else sizes)
    sides = torch.as_tensor(np.tile(extents, 2) * photos.shape[-1], device=photos.device)
    boxes = [box * side for (box, _), side in zip(proposals, sides, strict=True)]
    features = encode(photos, boxes, encoder)
    for (box, score), feature in zip(proposals, features, strict=True):
        yield box.cpu().numpy(), score.cpu().numpy(), feature


@torch.inference_mode()
def locate(photos: Tensor, extents: ndarray, detector: Proposer, count: int, sides: tuple) -> list:
    """Propose the `count` best boxes (n, 4) as fractions of the photos, with scores (n,), of squares.

    Ours searches at each of `sides` pixels, for it knows products of some pixels alone, and merges what it finds.
    """
    if isinstance(detector, OpenVocabulary):
        shapes = np.rint(extents * photos.shape[-1]).astype(int).clip(1)
        return [detector.propose(photo[:, :height, :width], count)
                for photo, (width, height) in zip(photos, shapes, strict=True)]
    from torchvision.ops import nms
    depth = count if len(sides) == 1 else MAX_PROPOSALS
    found = [search(photos, detector, side, depth) for side in sides]
    limits = torch.as_tensor(np.tile(extents, 2), device=photos.device)  # (B, 4) of the photos
    proposals = []
    for *searched, limit in zip(*found, limits, strict=True):
        box, score = map(torch.cat, zip(*searched, strict=True))
        box = torch.minimum(box, limit)
        inside = (box[:, 2:] > box[:, :2]).all(1)
        box, score = box[inside], score[inside]
        if len(sides) > 1:  # a product that was found at several counts once
            best = nms(box, score, detector.settings.merge_nms)[:count]
            box, score = box[best], score[best]
        if len(box):
            proposals.append((box / limit, score))
        else:  # the whole photo
            proposals.append((box.new_tensor([[0, 0, 1, 1]]), score.new_zeros(1)))
    return proposals


def search(photos: Tensor, detector: Detector, side: int, count: int) -> list:
    """Propose boxes (n, 4) as fractions of the squares, with scores (n,), of squares resized to `side` pixels."""
    inputs = F.interpolate(photos, (side, side), mode="bilinear", antialias=True)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(photos.device.type, torch.bfloat16):
        boxes, scores = detector.propose(inputs, count)
    return [(box / side, score) for box, score in zip(boxes, scores, strict=True)]


@torch.inference_mode()
def encode(photos: Tensor, boxes: list, encoder: nn.Module) -> list:
    """Describe boxes, B times (n, 4) xyxy pixels of the squares: B times (n, F) float32."""
    with torch.autocast(photos.device.type, torch.bfloat16):
        features = encoder.features(photos, boxes).float()
    features = F.normalize(features) * features.shape[1] ** 0.5
    return [part.numpy() for part in features.cpu().split(list(map(len, boxes)))]


def encode_boxes(paths: list, boxes: list, encoder: nn.Module, settings: RegionSettings) -> ndarray:
    """Describe known boxes, (k, 4) xyxy pixels of each photo, for evaluation: (n, F)."""
    squares = []
    for path, box in zip(paths, boxes, strict=True):
        box = box * (settings.photo_size / max(load_photo(path).shape[:2]))
        squares.append(torch.as_tensor(box, dtype=torch.float32, device=utils.pick_device()))
    features = []
    for photos, _ in photo_batches(paths, settings):
        here = squares[len(features) : len(features) + len(photos)]
        features += encode(photos, here, encoder)
    return np.concatenate(features)


def extract(catalog: Catalog, settings: RegionSettings, detector: Proposer, encoder: nn.Module, folder: Path,
            located: RegionStore | None = None) -> None:
    """Describe all photos on disk, at the boxes of the store `located` where there is one.

    Goes on where a run, of one process or several, has stopped.
    """
    if utils.is_main_process() and not (folder / "ids.txt").is_file():
        # begin with zeros, which take their room on the disk, and end with the ids
        white = torch.ones(1, 3, 64, 64, device=utils.pick_device())
        width = encode(white, [white.new_tensor([[0, 0, 64, 64]])], encoder)[0].shape[1]
        shape = (len(catalog.photos), settings.max_regions)  # (N, R)
        np.save(folder / "features.npy", np.broadcast_to(np.float16(0), (*shape, width)))
        np.save(folder / "boxes.npy", np.broadcast_to(np.float32(0), (*shape, 4)))
        np.save(folder / "scores.npy", np.broadcast_to(np.float32(0), shape))
        np.save(folder / "counts.npy", np.broadcast_to(np.int32(0), shape[:1]))
        made_for = {"catalog": catalog.fingerprint(), "settings": asdict(settings)}
        utils.write_json(folder / "meta.json", made_for | {"feature_width": width})
        with utils.write_atomically(folder / "ids.txt") as beside:
            beside.write_text("\n".join(catalog.photos) + "\n", encoding="utf-8")
    utils.wait_for_everyone()
    store = open_store(folder, "r+")
    several = not located and len(detector.settings.search_sizes) > 1
    single = np.array([several and sample in catalog.singles for sample in store.ids])
    for rows in filter(len, (np.flatnonzero(single), np.flatnonzero(~single))):  # never both in one batch
        fill(store, rows, bool(single[rows[0]]), catalog, settings, detector, encoder, located)


def fill(store: RegionStore, rows: ndarray, single: bool, catalog: Catalog, settings: RegionSettings,
         detector: Proposer, encoder: nn.Module, located: RegionStore | None) -> None:
    """Describe the photos of some rows, but for those that are done."""
    # this process's shard of the batches
    batches = np.split(rows, range(settings.batch, len(rows), settings.batch))
    batches = batches[utils.process_index() :: utils.process_count()]
    batches = [rows for rows in batches if not store.counts[rows].all()]
    photos = [catalog.photos[store.ids[row]] for rows in batches for row in rows]
    places = located.rows(store.ids) if located else None
    stream = utils.progress(photo_batches(photos, settings), "region batches", len(batches))
    for rows, (squares, extents) in zip(batches, stream, strict=True):
        known = [located.proposals(places[row], squares.device) for row in rows] if located else None
        found = describe(squares, extents, detector, encoder, settings.max_regions, known, single)
        counts = []
        for row, (boxes, scores, features) in zip(rows, found, strict=True):
            counts.append(len(boxes))
            store.boxes[row, : len(boxes)] = boxes
            store.scores[row, : len(boxes)] = scores
            store.features[row, : len(boxes)] = features
        # on disk before the counts are, for these tell that the rows are done
        for array in (store.features, store.boxes, store.scores):
            array.flush()
        store.counts[rows] = counts
