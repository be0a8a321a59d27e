"""The region store: boxes, scores and features of every photo's proposals, made once and memory-mapped.

Files of a store: `features.npy` float16 (N, R, F), `boxes.npy` float32 (N, R, 4) xyxy as fractions of width and
height, `scores.npy` float32 (N, R), `counts.npy` int32 (N,) how many of the R are real, `ids.txt`, `meta.json`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.proposals.detector import Detector, to_tensor
from capture_lib.utils import (
    InputError,
    is_main_process,
    pick_device,
    process_count,
    process_index,
    progress,
    wait_for_everyone,
    write_atomically,
)

LEFT = "rows_left.npy"  # of an unfinished store: the rows to describe, batch after batch
DONE = "batches_done-{}.txt"  # the batches of them that a process has described


@dataclass(frozen=True)
class RegionSettings:
    """Defaults of the cpu profile."""

    max_regions: int = 10  # paper's code: 36
    photo_size: int = 224  # side of the square a photo is fitted into, pixels
    batch: int = 32
    workers: int = 2


@dataclass(frozen=True)
class RegionStore:
    """A store, opened; arrays are memory-mapped, row i belongs to `ids[i]`."""

    features: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    ids: list[str]

    def rows(self, ids: list[str]) -> np.ndarray:
        """Row numbers of the given samples (N,) int64."""
        places = {sample: row for row, sample in enumerate(self.ids)}
        return np.array([places[sample] for sample in ids], np.int64)


def open_store(folder: Path) -> RegionStore:
    """Opens the store in a folder without reading its features."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "features" else None)
              for name in ("features", "boxes", "scores", "counts")}
    return RegionStore(**arrays, ids=(folder / "ids.txt").read_text(encoding="utf-8").splitlines())


def square(photo: np.ndarray, size: int) -> np.ndarray:
    """Fits a photo (H, W, 3) uint8 into the top left of a white (size, size, 3) square, aspect kept."""
    fitted = fit(photo, size)
    height, width = fitted.shape[:2]
    return cv2.copyMakeBorder(fitted, 0, size - height, 0, size - width, cv2.BORDER_CONSTANT, value=(255, 255, 255))


class Squares(Dataset):
    """Photos as squares, with the share of the square that each fills (width, height)."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        photo = load_photo(self.paths[index])
        return square(photo, self.size), filled(photo)


def filled(photo: np.ndarray) -> np.ndarray:
    """The share of width and height of its square that a photo fills: (2,) float32."""
    return np.array(photo.shape[1::-1], np.float32) / max(photo.shape[:2])


def stack(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Collates squares: (B, S, S, 3) uint8 and (B, 2) float32."""
    squares, shares = zip(*samples, strict=True)
    return np.stack(squares), np.stack(shares)


@torch.inference_mode()
def describe(photos: Tensor, shares: np.ndarray, detector: Detector, encoder: nn.Module, most: int
             ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Proposals of squares (B, 3, S, S): for each photo boxes (n, 4) as fractions, scores (n,), features (n, F)."""
    boxes, scores = zip(*locate(photos, shares, detector, most, detector.settings.search_size), strict=True)
    sides = torch.as_tensor(np.tile(shares, 2) * photos.shape[-1], device=photos.device)  # (B, 4) pixels of each photo
    features = encode(photos, [box * side for box, side in zip(boxes, sides, strict=True)], encoder)
    for box, score, feature in zip(boxes, scores, features, strict=True):
        yield box.cpu().numpy(), score.cpu().numpy(), feature


@torch.inference_mode()
def locate(photos: Tensor, shares: np.ndarray, detector: Detector, most: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Proposals of squares (B, 3, S, S), searched at a side of `size` pixels: boxes (n, 4) as fractions, scores (n,).

    The smallest product that is found has about a fifth of the detector's own side (`DetectorSettings.size`) in pixels:
    products that fill less of a photo need a larger `size`. Time grows with its square.
    """
    inputs = F.interpolate(photos, (size, size), mode="bilinear", antialias=True)
    with torch.autocast(photos.device.type, torch.bfloat16):
        proposals, scores = detector.propose(inputs.contiguous(memory_format=torch.channels_last), most)
    limits = torch.as_tensor(np.tile(shares, 2), device=photos.device)  # (B, 4): nothing lies in the white margin
    clipped = [clip(box / size, score, limit) for box, score, limit in zip(proposals, scores, limits, strict=True)]
    return [(box / limit, score) for (box, score), limit in zip(clipped, limits, strict=True)]


def clip(boxes: Tensor, scores: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) xyxy cut at `limit` (4,), without those that lie beyond it; the whole, scored 0, if none is left."""
    boxes = torch.minimum(boxes, limit)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if inside.any():
        return boxes[inside], scores[inside]
    return torch.cat([torch.zeros_like(limit[:2]), limit[2:]])[None], scores.new_zeros(1)


@torch.inference_mode()
def encode(photos: Tensor, boxes: list[Tensor], encoder: nn.Module) -> list[np.ndarray]:
    """Features of given boxes (xyxy pixels of the square) of a batch of squares: a list of B (n, F) float32.

    Each is scaled to a root mean square of 1: then a masked region's squared error starts at 1 whatever the encoder.
    """
    with torch.autocast(photos.device.type, torch.bfloat16):
        features = encoder.features(photos, boxes).float()
    features = (F.normalize(features) * features.shape[1] ** 0.5).cpu()
    return [part.numpy() for part in features.split([len(box) for box in boxes])]


def encode_boxes(paths: list[Path], boxes: list[np.ndarray], encoder: nn.Module, settings: RegionSettings
                 ) -> np.ndarray:
    """Features (n, F) of given boxes, a list of (k, 4) xyxy pixels of each photo: for evaluation with true boxes."""
    parts, place = [], 0
    for photos, shares in photo_batches(paths, settings):
        squares = []
        for path in paths[place:place + len(shares)]:
            height, width = load_photo(path).shape[:2]
            squares.append(boxes[place] * (settings.photo_size / max(height, width)))
            place += 1
        parts += encode(photos, [torch.as_tensor(box, dtype=torch.float32, device=photos.device) for box in squares],
                        encoder)
    return np.concatenate(parts)


def photo_batches(paths: list[Path], settings: RegionSettings) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Batches of squares on the device, (B, 3, S, S), with the share that each photo fills, (B, 2)."""
    loader = DataLoader(Squares(paths, settings.photo_size), settings.batch, num_workers=settings.workers,
                        collate_fn=stack)
    try:
        for squares, shares in loader:
            yield to_tensor(squares).to(pick_device()), shares
    except InputError as error:  # a worker's comes with its traceback, the message last
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None


def extract(catalog: Catalog, settings: RegionSettings, detector: Detector, encoder: nn.Module, folder: Path,
            old: Path | None = None, places: np.ndarray | None = None) -> None:
    """Writes the region store of all photos that are on disk; an interrupted run goes on where it stopped.

    Many processes share the batches and write to the same arrays: the folder must be on one machine. The bytes are
    those that one process writes, and another number of them may go on.

    Args:
        old: the folder of a store made with the same settings, detector and encoder, of which rows are copied.
        places: (N,) where each photo stands in the old store, -1 where it is to be described.
    """
    ids = list(catalog.photos)
    width = len(feature_probe(encoder, settings))
    places = np.full(len(ids), -1) if old is None else places
    if is_main_process():
        (folder / "ids.txt").write_text("".join(f"{sample}\n" for sample in ids), encoding="utf-8")
        begin(folder, places, old, settings.max_regions, width)
    wait_for_everyone()
    arrays, left = open_arrays(folder, "r+", len(ids), settings.max_regions, width), np.load(folder / LEFT)
    done = {number for file in folder.glob(DONE.format("*")) for number in noted(file)}
    todo = [number for number in range(-(-len(left) // settings.batch)) if number not in done]
    wait_for_everyone()  # all have looked before anyone notes a batch
    mine = {number: left[number * settings.batch:][:settings.batch] for number in todo[process_index()::process_count()]}
    photos = [catalog.photos[ids[row]] for rows in mine.values() for row in rows]
    stream = progress(photo_batches(photos, settings), "region batches", len(mine))
    for (number, rows), (squares, shares) in zip(mine.items(), stream, strict=True):
        found = describe(squares, shares, detector, encoder, settings.max_regions)
        for row, (boxes, scores, features) in zip(rows, found, strict=True):
            count = len(boxes)
            arrays["boxes"][row, :count], arrays["scores"][row, :count] = boxes, scores
            arrays["features"][row, :count], arrays["counts"][row] = features, count
        note(folder, arrays, number)
    wait_for_everyone()
    if is_main_process():
        meta = {"catalog": catalog.fingerprint(), "settings": asdict(settings), "feature_width": width}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for file in [*folder.glob(DONE.format("*")), folder / LEFT]:  # in this order: without the last, all begins anew
            file.unlink()
    wait_for_everyone()


def begin(folder: Path, places: np.ndarray, old: Path | None, most: int, width: int) -> None:
    """Makes the arrays of a store with the rows that the old one has; does nothing in a folder where that was done."""
    if (folder / LEFT).is_file():
        return
    try:
        arrays = open_arrays(folder, "w+", len(places), most, width)
        reserve(folder, arrays)
    except OSError as error:
        size = len(places) * most * width * 2 / 1e9
        raise InputError(f"{folder}: a region store of {len(places):,} photos needs {size:,.1f} GB and finds no room "
                         f"({error.strerror})") from None
    if old is not None:
        copy_rows(old, arrays, places)
    for array in arrays.values():
        array.flush()
    with write_atomically(folder / LEFT) as beside, beside.open("wb") as file:
        np.save(file, np.flatnonzero(places < 0))


def reserve(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Takes the room on disk at once: where a memory-mapped file finds none later, the process ends without a word."""
    if hasattr(os, "posix_fallocate"):  # not on a Mac
        for name in arrays:
            file = folder / f"{name}.npy"
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def open_arrays(folder: Path, mode: str, rows: int, most: int, width: int) -> dict[str, np.ndarray]:
    """The arrays of a store, memory-mapped."""
    shapes = {"features": (np.float16, (most, width)), "boxes": (np.float32, (most, 4)),
              "scores": (np.float32, (most,)), "counts": (np.int32, ())}
    return {name: open_memmap(folder / f"{name}.npy", mode, kind, (rows, *shape))
            for name, (kind, shape) in shapes.items()}


def copy_rows(old: Path, arrays: dict[str, np.ndarray], places: np.ndarray, block: int = 4096) -> None:
    """Copies rows `places` (N,) of an old store's arrays to new ones, block by block; none where the place is -1."""
    kept = np.flatnonzero(places >= 0)
    for name, array in arrays.items():
        source = np.load(old / f"{name}.npy", mmap_mode="r")
        for first in range(0, len(kept), block):
            rows = kept[first:first + block]
            array[rows] = source[places[rows]]


def note(folder: Path, arrays: dict[str, np.ndarray], batch: int) -> None:
    """Brings the arrays to disk, then notes that a batch of rows is done."""
    for array in arrays.values():
        array.flush()
    file = folder / DONE.format(process_index())
    numbers = [*noted(file), batch]
    with write_atomically(file) as beside:
        beside.write_text(" ".join(map(str, numbers)))


def noted(file: Path) -> list[int]:
    """The batches that a file notes; none where it is not there."""
    return [int(number) for number in file.read_text().split()] if file.is_file() else []


def feature_probe(encoder: nn.Module, settings: RegionSettings) -> np.ndarray:
    """The feature (F,) of a white photo: tells the width F."""
    white = torch.ones(1, 3, settings.photo_size, settings.photo_size, device=pick_device())
    box = torch.tensor([[0.0, 0.0, settings.photo_size, settings.photo_size]], device=pick_device())
    return encode(white, [box], encoder)[0][0]
