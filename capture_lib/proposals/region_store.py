"""The region store: boxes, scores and features of every photo's proposals, made once.

Files: `features.npy` float16 (N, R, F), `boxes.npy` float32 (N, R, 4) xyxy as fractions of
width and height, `scores.npy` float32 (N, R), `counts.npy` int32 (N,) how many of the R are
valid (0 = yet to be described), `ids.txt`, `meta.json`.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.utils.data import DataLoader

from capture_lib import utils
from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.utils import InputError, pick_device

ARRAYS = ("features", "boxes", "scores", "counts")


@dataclass(frozen=True)
class RegionSettings:
    """Defaults of the cpu profile."""

    max_regions: int = 10  # paper's code: 36
    photo_size: int = 224  # side of the square a photo is fitted into, pixels
    batch: int = 32
    workers: int = 2


@dataclass(frozen=True)
class RegionStore:
    """A store, opened; features are memory-mapped, row i belongs to `ids[i]`."""

    features: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    ids: list[str]

    def rows(self, ids: list[str]) -> np.ndarray:
        """Return the row numbers of samples: (N,) int64."""
        places = {sample: row for row, sample in enumerate(self.ids)}
        return np.array([places[sample] for sample in ids], np.int64)


def open_store(folder: Path) -> RegionStore:
    """Open the store in a folder without reading its features."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    others = [np.load(folder / f"{name}.npy") for name in ARRAYS[1:]]
    ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
    return RegionStore(features, *others, ids)


def square(photo: np.ndarray, size: int) -> np.ndarray:
    """Fit a photo (H, W, 3) uint8 into the top left of a white (size, size, 3) square."""
    photo = fit(photo, size)
    padded = np.full((size, size, 3), 255, np.uint8)
    padded[: photo.shape[0], : photo.shape[1]] = photo
    return padded


def extent(photo: np.ndarray) -> np.ndarray:
    """Return the share of its square's width and height that a photo fills: (2,) float32."""
    return np.array(photo.shape[1::-1], np.float32) / max(photo.shape[:2])


def read_squares(paths: list[Path], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read photos as squares (B, S, S, 3) uint8, with their extents (B, 2)."""
    squares, extents = [], []
    for path in paths:
        photo = load_photo(path)
        squares.append(square(photo, size))
        extents.append(extent(photo))
    return np.stack(squares), np.stack(extents)


def photo_batches(
    paths: list[Path], settings: RegionSettings
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield batches of squares (B, 3, S, S) on the device, with their extents (B, 2)."""
    read = partial(read_squares, size=settings.photo_size)
    loader = DataLoader(paths, settings.batch, num_workers=settings.workers, collate_fn=read)
    try:
        for squares, extents in loader:
            yield to_tensor(squares).to(pick_device()), extents
    except InputError as error:  # a worker's comes with its traceback, the message last
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.split("InputError: ")[-1]) from None


@torch.inference_mode()
def describe(
    photos: Tensor, extents: np.ndarray, detector: Detector, encoder: nn.Module, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield boxes (n, 4) as fractions, scores (n,) and features (n, F) of each square."""
    proposals = locate(photos, extents, detector, count, detector.settings.search_size)
    sides = np.tile(extents, 2) * photos.shape[-1]  # (B, 4) pixels of the square
    sides = torch.as_tensor(sides, device=photos.device)
    boxes = [box * side for (box, _), side in zip(proposals, sides, strict=True)]
    features = encode(photos, boxes, encoder)
    for (box, score), feature in zip(proposals, features, strict=True):
        yield box.cpu().numpy(), score.cpu().numpy(), feature


@torch.inference_mode()
def locate(
    photos: Tensor, extents: np.ndarray, detector: Detector, count: int, size: int
) -> list[tuple[Tensor, Tensor]]:
    """Propose boxes (n, 4) as fractions, with scores (n,), of squares searched at `size` pixels.

    The smallest product that is found has about a fifth of the detector's own side in pixels:
    products that fill less of a photo need a larger `size`. Time grows with its square.
    """
    inputs = F.interpolate(photos, (size, size), mode="bilinear", antialias=True)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(photos.device.type, torch.bfloat16):
        boxes, scores = detector.propose(inputs, count)

    # cut at the white margin, where nothing lies; then to fractions of the photo
    limits = torch.as_tensor(np.tile(extents, 2), device=photos.device)  # (B, 4)
    proposals = []
    for box, score, limit in zip(boxes, scores, limits, strict=True):
        box = torch.minimum(box / size, limit)
        inside = (box[:, 2:] > box[:, :2]).all(1)
        if inside.any():
            proposals.append((box[inside] / limit, score[inside]))
        else:  # the whole photo
            proposals.append((box.new_tensor([[0, 0, 1, 1]]), score.new_zeros(1)))
    return proposals


@torch.inference_mode()
def encode(photos: Tensor, boxes: list[Tensor], encoder: nn.Module) -> list[np.ndarray]:
    """Describe boxes, B times (n, 4) xyxy pixels of the squares: B times (n, F) float32.

    Their root mean square is 1: a masked region's squared error starts at 1 with any encoder.
    """
    with torch.autocast(photos.device.type, torch.bfloat16):
        features = encoder.features(photos, boxes).float()
    features = F.normalize(features) * features.shape[1] ** 0.5  # (sum of n, F)
    parts = features.cpu().split(list(map(len, boxes)))
    return [part.numpy() for part in parts]


def encode_boxes(
    paths: list[Path], boxes: list[np.ndarray], encoder: nn.Module, settings: RegionSettings
) -> np.ndarray:
    """Describe known boxes, (k, 4) xyxy pixels of each photo, for evaluation: (n, F)."""
    squares = []
    for path, box in zip(paths, boxes, strict=True):
        scale = settings.photo_size / max(load_photo(path).shape[:2])
        box = torch.as_tensor(box * scale, dtype=torch.float32)
        squares.append(box.to(pick_device()))
    features = []
    for photos, _ in photo_batches(paths, settings):
        done = len(features)  # photos
        features += encode(photos, squares[done : done + len(photos)], encoder)
    return np.concatenate(features)


def feature_probe(encoder: nn.Module, settings: RegionSettings) -> np.ndarray:
    """Return the feature (F,) of a white photo, which tells F."""
    size = settings.photo_size
    white = torch.ones(1, 3, size, size, device=pick_device())
    return encode(white, [white.new_tensor([[0, 0, size, size]])], encoder)[0][0]


def extract(catalog: Catalog, settings: RegionSettings, detector: Detector, encoder: nn.Module,
            folder: Path, old: Path | None = None, places: np.ndarray | None = None) -> None:
    """Write the region store of all photos on disk; go on where an interrupted run stopped.

    Several processes share the batches and write the same bytes as one; their folder is on one
    machine. A store of the same settings and networks, `old`, may grow: its row `places` (N,) is
    copied for each photo, -1 where there is none.
    """
    ids = list(catalog.photos)
    width = len(feature_probe(encoder, settings))
    shape = (len(ids), settings.max_regions, width)  # (N, R, F)
    if utils.is_main_process():
        begin(folder, ids, shape, old, places)
    utils.wait_for_everyone()

    # this process's shard of the batches that are left; all look before anyone writes
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ARRAYS}
    left = np.flatnonzero(arrays["counts"] == 0)  # rows
    utils.wait_for_everyone()
    firsts = range(0, len(left), settings.batch)[utils.process_index() :: utils.process_count()]
    batches = [left[first : first + settings.batch] for first in firsts]
    photos = [catalog.photos[ids[row]] for rows in batches for row in rows]
    stream = utils.progress(photo_batches(photos, settings), "region batches", len(batches))
    for rows, (squares, extents) in zip(batches, stream, strict=True):
        found = describe(squares, extents, detector, encoder, settings.max_regions)
        counts = []
        for row, (boxes, scores, features) in zip(rows, found, strict=True):
            count = len(boxes)
            arrays["boxes"][row, :count] = boxes
            arrays["scores"][row, :count] = scores
            arrays["features"][row, :count] = features
            counts.append(count)

        # on disk before the counts are, for these tell that the rows are done
        for name in ARRAYS[:-1]:
            arrays[name].flush()
        arrays["counts"][rows] = counts
        arrays["counts"].flush()
    utils.wait_for_everyone()
    if utils.is_main_process():
        meta = {"catalog": catalog.fingerprint(), "settings": asdict(settings)}
        meta["feature_width"] = width
        utils.write_json(folder / "meta.json", meta)
    utils.wait_for_everyone()


def begin(folder: Path, ids: list[str], shape: tuple[int, int, int], old: Path | None,
          places: np.ndarray | None) -> None:
    """Make the arrays, with the rows of the old store, then `ids.txt`; do nothing where it is."""
    text = "".join(f"{sample}\n" for sample in ids)
    listing = folder / "ids.txt"
    if listing.is_file() and listing.read_text(encoding="utf-8") == text:
        return
    shapes = (shape, (*shape[:2], 4), shape[:2], shape[:1])  # in the order of ARRAYS
    kinds = (np.float16, np.float32, np.float32, np.int32)
    try:
        for name, kind, size in zip(ARRAYS, kinds, shapes, strict=True):
            array = open_memmap(folder / f"{name}.npy", "w+", kind, size)
            reserve(folder / f"{name}.npy")
            if old is not None:
                copy_rows(old / f"{name}.npy", array, places)
    except OSError as error:
        size = f"{2 * np.prod(shape) / 1e9:,.1f} GB"
        fault = f"a region store of {len(ids):,} photos needs {size} and finds no room"
        raise InputError(f"{folder}: {fault} ({error.strerror})") from None
    with utils.write_atomically(listing) as beside:
        beside.write_text(text, encoding="utf-8")


def reserve(file: Path) -> None:
    """Take a file's room at once: where a mapped file finds none later, the process dies."""
    if hasattr(os, "posix_fallocate"):  # not on a Mac
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def copy_rows(old: Path, array: np.ndarray, places: np.ndarray) -> None:
    """Copy rows `places` (N,) of an old array, none where the place is -1."""
    source = np.load(old, mmap_mode="r")
    for row in np.flatnonzero(places >= 0):
        array[row] = source[places[row]]
