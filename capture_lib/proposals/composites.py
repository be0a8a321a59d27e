"""Paste foregrounds on drawn scenes: composites whose boxes are known, though nobody drew one."""
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from capture_lib.catalog.table import HELD_OUT, Catalog
from capture_lib.proposals.foregrounds import Photo, extract_foreground
from capture_lib.utils import process_map, progress, write_atomically

PART = 1_000  # photos, after which what was cut out of them is kept


@dataclass(frozen=True)
class SynthesisSettings:
    """Defaults of the cpu profile."""
    photos: int = 2_000  # tried by GrabCut
    foreground_size: int = 112  # longer side, pixels; cut at twice it
    composites: int = 6_000
    size: int = 128  # side of a composite, pixels
    max_products: int = 5
    tilt: float = 8.0  # standard deviation, degrees
    overlap: float = 0.6  # the most that may be hidden
    blending: bool = True  # soft edges
    light: bool = True  # as bright as the scene, lit from one side
    shadow: bool = True
    distractors: bool = True  # no products
    workers: int = 2  # processes beside this one


def candidates(catalog: Catalog, max_count: int) -> dict:
    """Return the ids of photos that may show one product; True where the catalog says so."""
    table = catalog.table[catalog.table["sample_id"].isin(catalog.photos)]
    single = table["sample_id"].isin(catalog.singles) & table["split"].isin(["train", "gallery"])
    single &= table["combination"] != HELD_OUT
    unknown = table["products"].isna() & (table["split"] == "train")
    known = dict.fromkeys(table[single]["sample_id"], True)
    known |= dict.fromkeys(table[unknown]["sample_id"], False)
    return dict(list(known.items())[:max_count])


def cut_foregrounds(catalog: Catalog, settings: SynthesisSettings, folder: Path) -> dict:
    """Write `foregrounds.npy` (N, S, S, 4) uint8 RGBA and `ids.txt`; return a report of counts.

    Goes on where a run has stopped: what was found in so many photos is kept until `remove_parts`.
    """
    known = candidates(catalog, settings.photos)
    samples = list(known)
    size = settings.foreground_size
    work = partial(extract_foreground, size=size)
    kept = [np.zeros((0, size, size, 4), np.uint8)]
    ids = []
    rejected = Counter()
    starts = range(0, len(samples), PART)
    with process_map(settings.workers, chunk=16) as map_over:
        for start in progress(starts, f"foregrounds cut, {PART:,} photos a time", len(starts)):
            part = samples[start:start + PART]
            file = folder / f"cut-{catalog.name}-{start:06d}.npz"
            if not file.is_file():
                paths = [catalog.photos[sample] for sample in part]
                found = list(map_over(work, paths, [known[sample] for sample in part]))
                reasons = ["; ".join(result) if isinstance(result, list) else "" for result in found]
                cut = [result for result in found if not isinstance(result, list)]
                with write_atomically(file) as beside:
                    np.savez(beside, foregrounds=np.array(cut, np.uint8).reshape(-1, size, size, 4), reasons=reasons)
            with np.load(file) as found:
                kept.append(found["foregrounds"])
                reasons = found["reasons"].tolist()
            ids += [sample for sample, reason in zip(part, reasons, strict=True) if not reason]
            rejected.update(word for reason in reasons if reason for word in reason.split("; "))
    np.save(folder / "foregrounds.npy", np.concatenate(kept))
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    return {"source": catalog.name, "tried": len(samples), "kept": len(ids), "rejected": rejected}


def remove_parts(folder: Path) -> None:
    """Remove what `cut_foregrounds` goes on from."""
    for file in folder.glob("cut-*.npz"):
        file.unlink()


def draw_scene(size: int, rng: Generator) -> Photo:
    """Draw a background (size, size, 3): a gradient with blotches, stripes, a table or none."""
    corners = rng.integers(30, 256, (2, 2, 3))
    if rng.random() < 0.35:  # plain, as in shop photos
        white = rng.integers(225, 256)
        corners = np.minimum(white + rng.integers(-8, 9, (2, 2, 3)), 255)
    scene = np.float32(cv2.resize(np.uint8(corners), (size, size)))
    kind = rng.integers(4)
    if kind == 1:  # blotches
        cells = rng.integers(3, 24)
        strength = rng.uniform(5, 40)
        channels = 3 if rng.random() < 0.5 else 1
        noise = rng.normal(0, strength, (cells, cells, channels))
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        scene += np.atleast_3d(noise)
    elif kind == 2:  # stripes
        angle = rng.uniform(0, np.pi)
        period = rng.uniform(4, 40)
        y, x, _ = np.mgrid[:size, :size, :1]
        along = x * np.cos(angle) + y * np.sin(angle)
        scene += rng.uniform(5, 40) * np.sin(along * 6.283 / period)
    elif kind == 3:  # the edge of a table
        edge = int(rng.uniform(0.3, 0.8) * size)
        scene[edge:] = 0.5 * (scene[edge:] + rng.integers(60, 240, 3))
    return np.uint8(scene.clip(0, 255))


def draw_distractors(scene: Photo, rng: Generator) -> None:
    """Draw a few flat shapes that are no products, in place: props, price badges, frames."""
    for _ in range(rng.integers(0, 4)):
        colour = rng.integers(0, 256, 3).tolist()
        place = rng.uniform((0, 0, 0.03), (1, 1, 0.12)) * len(scene)
        x, y, r = place.astype(int).tolist()
        if rng.random() < 0.5:
            cv2.circle(scene, (x, y), r, colour, -1, cv2.LINE_AA)
        else:
            width = int(r * rng.uniform(1, 5))
            cv2.rectangle(scene, (x, y, width + 1, r + 1), colour, -1)


def compose(file: Path, owners: np.ndarray, number: int, settings: SynthesisSettings,
            seed: int) -> tuple:
    """Paste foregrounds `owners` (K,) of a file; return photo, boxes (K, 4), visible shares (K,)."""
    foregrounds = np.load(file, mmap_mode="r")  # (N, s, s, 4)
    size = settings.size
    count = len(owners)
    rng = default_rng([seed, number])
    photo = draw_scene(size, rng)
    streams = rng.spawn(count + 1)  # so that a switch moves nothing else
    if settings.distractors:
        draw_distractors(photo, streams[-1])
    span = rng.uniform(0.35, 0.9) if count == 1 else rng.uniform(0.3, 0.6)
    spread = rng.uniform(0.6, 1)  # close together or apart
    order = (rng.permutation(count) + 0.5) / count
    slots = 0.5 + spread * (order - 0.5)  # from left to right
    light = rng.uniform(-1, 1)  # from the left if positive
    topmost = np.zeros((size, size), np.uint8)  # what lies on top, from 1
    areas = np.ones(count)
    seen = np.zeros(count, int)  # pixels in sight
    for k, owner in enumerate(owners):
        allowed = np.maximum(settings.overlap * areas - (areas - seen), 0)
        for _ in range(6):  # until it hides no other too much
            x = (slots[k] + rng.uniform(-0.2, 0.2) / count) * size
            y = rng.uniform(0.3, 0.75) * size
            height = size * span * rng.uniform(0.7, 1.3)
            angle = rng.normal(0, settings.tilt)
            layer = warp(foregrounds[owner], height, angle, size, (x, y))
            solid = layer[..., 3] > 127
            hidden = np.bincount(topmost[solid], minlength=count + 1)[1:]
            if (hidden <= allowed).all():
                photo = paste(photo, layer, light, settings, streams[k])
                topmost[solid] = k + 1
                seen -= hidden
                seen[k] = solid.sum()
                areas[k] = max(seen[k], 1)
                break
    if settings.light:
        photo = photo * (1 + 0.15 * light * np.linspace([1], [-1], size, dtype=np.float32))
    visible = seen / areas  # with less than 0.4 of it in sight, a foreground has no box
    boxes = np.zeros((count, 4), np.float32)
    for k in np.flatnonzero(visible >= 0.4):
        x, y, w, h = cv2.boundingRect(np.uint8(topmost == k + 1))
        boxes[k] = (x, y, x + w, y + h)
    return np.uint8(photo.clip(0, 255)), boxes, visible


def warp(foreground: np.ndarray, height: float, angle: float, size: int, centre: tuple) -> np.ndarray:
    """Return (S, S, 4): a foreground scaled to `height` pixels and tilted by `angle` degrees."""
    h, w = np.argwhere(foreground[..., 3]).max(axis=0) + 1
    middle = (w / 2, h / 2)
    matrix = cv2.getRotationMatrix2D(middle, angle, height / max(h, w))
    matrix[:, 2] += np.subtract(centre, middle)
    return cv2.warpAffine(foreground, matrix, (size, size))


def paste(photo: Photo, layer: np.ndarray, light: float, settings: SynthesisSettings,
          rng: Generator) -> Photo:
    """Return the photo (S, S, 3) with a layer on it; light comes from the left (1) or right (-1)."""
    alpha = np.float32(layer[..., 3:]) / 255
    colours = np.float32(layer[..., :3])
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
    softness = rng.uniform(0.3, 0.8)
    if settings.shadow and rng.random() < 0.7:
        unit = len(photo) / 128
        shift = np.float32([[1, 0, 6 * unit * light], [0, 1, rng.uniform(0, 5) * unit]])
        shadow = cv2.warpAffine(alpha, shift, layer.shape[:2])
        shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.5, 4) * unit)
        photo = photo * (1 - rng.uniform(0.2, 0.5) * shadow[..., None])
    if settings.light:  # nearer to the scene's
        mean = (colours * alpha).sum() / (3 * max(alpha.sum(), 1))
        ratio = (photo.mean() + 60) / (mean + 60)
        colours = colours * np.float32(ratio ** 0.2 * gain)
    if settings.blending:
        alpha = cv2.GaussianBlur(alpha, (0, 0), softness)[..., None]
    return photo * (1 - alpha) + colours.clip(0, 255) * alpha


def sample_owners(composites: int, foregrounds: int, max_products: int, seed: int) -> list:
    """Sample 1, 2 … `max_products` foregrounds (K,) for one composite after the other."""
    ends = np.cumsum(1 + np.arange(composites) % max_products)
    orders = []  # each is used about equally often
    for epoch in range(ends[-1] // foregrounds + 1):
        rng = default_rng([seed, 7, epoch])
        orders.append(rng.permutation(foregrounds))
    return np.split(np.concatenate(orders), ends)[:composites]


def make_composites(settings: SynthesisSettings, folder: Path, seed: int) -> None:
    """Write `composites.npy` (M, S, S, 3), and `boxes`, `owners` and `visible` of up to K in each."""
    file = folder / "foregrounds.npy"
    count = settings.composites
    sampled = sample_owners(count, len(np.load(file, mmap_mode="r")), settings.max_products, seed)
    size = settings.size
    # zeros take their room on the disk, which a hole in a file does not: to fill one on a full disk kills the process
    np.save(folder / "composites.npy", np.broadcast_to(np.uint8(0), (count, size, size, 3)))
    photos = np.load(folder / "composites.npy", mmap_mode="r+")
    shape = (count, settings.max_products)
    boxes = np.zeros((*shape, 4), np.float32)  # xyxy pixels; zeros for none
    owners = np.full(shape, -1, np.int32)  # rows; -1 for none
    visible = np.zeros(shape, np.float32)  # shares
    work = partial(compose, file, settings=settings, seed=seed)
    with process_map(settings.workers, chunk=50) as map_over:
        made = progress(map_over(work, sampled, range(count)), "composites", count)
        for number, (photo, box, share) in enumerate(made):
            filled = (number, slice(len(box)))
            photos[number] = photo
            boxes[filled] = box
            owners[filled] = sampled[number]
            visible[filled] = share
    np.save(folder / "boxes.npy", boxes)
    np.save(folder / "owners.npy", owners)
    np.save(folder / "visible.npy", visible)
