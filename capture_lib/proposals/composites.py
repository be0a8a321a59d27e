"""Paste foregrounds on scenes to make composites, so that boxes come for free.

No one draws a box. A foreground is cut from a photo of one product; a composite holds several on a
scene, drawn or a photo; the outline of what stays visible of each is its box. Everything lies in
memory-mapped arrays of fixed size, so that a training loop reads a batch at the cost of its bytes.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import HELD_OUT, Catalog
from capture_lib.proposals.foregrounds import Photo, extract_foreground
from capture_lib.utils import InputError, process_map, progress

SCENE_FILES = (".jpg", ".jpeg", ".png", ".webp")
MIN_VISIBLE = 0.4  # share of a foreground: with less of it in sight it has no box
MAX_TRIES = 6  # places that are tried for a foreground before it is left out
Layer = np.ndarray  # (S, S, 4) uint8 RGBA, a foreground as large as the composite


@dataclass(frozen=True)
class SynthesisSettings:
    """Defaults of the cpu profile."""

    photos: int = 2_000  # candidates that GrabCut is tried on
    foreground_size: int = 112  # longer side of a foreground, pixels; photos are cut at twice it
    composites: int = 6_000
    size: int = 128  # side of a composite, pixels
    max_products: int = 5
    scenes: str = ""  # a folder of photos for half of the composites; empty: drawn scenes alone
    tilt: float = 8.0  # standard deviation, degrees
    overlap: float = 0.6  # the most that those above may cover of a foreground
    blending: bool = True  # soft edges
    light: bool = True  # foregrounds as bright as the scene, all of it lit from one side
    shadow: bool = True
    distractors: bool = True  # things in the scene that are no product
    workers: int = 2  # processes; 0 = none beside this one


# ---- foregrounds
def candidates(catalog: Catalog, max_count: int) -> dict[str, bool]:
    """Return the ids of photos that may show one product; True where that is known, not by labels."""
    table = catalog.table
    # known: what the catalog calls single, and the gallery, single by definition
    single = table["products"] == "single"
    single &= table["split"].isin(["train", "gallery"])
    single &= table["combination"] != HELD_OUT  # brands held out of training
    # unknown: where the catalog says nothing, the mask decides
    unknown = table["products"].isna() & (table["split"] == "train")
    known = dict.fromkeys(table[single]["sample_id"], True)
    known |= dict.fromkeys(table[unknown]["sample_id"], False)
    present = [sample for sample in known if sample in catalog.photos]
    return {sample: known[sample] for sample in present[:max_count]}


def cut_foregrounds(catalog: Catalog, settings: SynthesisSettings, folder: Path) -> dict:
    """Write `foregrounds.npy` (N, S, S, 4) uint8 RGBA and `ids.txt`.

    Returns:
        a report: photos tried, foregrounds kept, and how many photos were rejected for each reason.
    """
    known = candidates(catalog, settings.photos)
    paths = [catalog.photos[sample] for sample in known]
    size = settings.foreground_size
    work = partial(extract_foreground, size=size)
    with process_map(settings.workers, chunk=16) as map_over:
        found = map_over(work, paths, known.values())
        results = list(progress(found, "foregrounds cut", len(paths)))
    # sort foregrounds from rejection reasons
    squares = []
    kept = []
    rejected = Counter()
    for sample, result in zip(known, results, strict=True):
        if isinstance(result, list):
            rejected.update(result)
        else:
            squares.append(result)
            kept.append(f"{sample}\n")
    foregrounds = np.array(squares, np.uint8)
    np.save(folder / "foregrounds.npy", foregrounds.reshape(-1, size, size, 4))
    (folder / "ids.txt").write_text("".join(kept), encoding="utf-8")
    return {"source": catalog.name, "tried": len(paths), "kept": len(kept), "rejected": dict(rejected)}


# ---- scenes
def scene_files(folder: str) -> list[Path]:
    """Return the photos of a folder of scenes by name; none where no folder is named.

    Raises:
        InputError: the folder has none.
    """
    if not folder:
        return []
    files = sorted(Path(folder).glob("*"))
    photos = [file for file in files if file.suffix.lower() in SCENE_FILES]
    if not photos:
        kinds = ", ".join(SCENE_FILES)
        raise InputError(f"{folder}: no photos ({kinds}) to paste on; name another folder")
    return photos


def crop_scene(file: Path, size: int, rng: Generator) -> Photo:
    """Return a square part of a photo of a scene (size, size, 3), mirrored half of the time."""
    photo = fit(load_photo(file), 2 * size)
    height, width = photo.shape[:2]
    share = rng.uniform(0.5, 1)
    side = max(1, round(share * min(height, width)))
    y = rng.integers(0, height - side + 1)
    x = rng.integers(0, width - side + 1)
    part = photo[y:y + side, x:x + side]
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
    return cv2.flip(part, 1) if rng.random() < 0.5 else part


def draw_scene(size: int, rng: Generator) -> Photo:
    """Draw a background (size, size, 3): a gradient with blotches, stripes, a table or none."""
    corners = rng.integers(30, 256, (2, 2, 3))  # their colours
    if rng.random() < 0.35:  # shop photos often have a plain background
        white = rng.integers(225, 256)
        corners = np.clip(white + rng.integers(-8, 9, (2, 2, 3)), 0, 255)
    corners = corners.astype(np.uint8)
    scene = cv2.resize(corners, (size, size)).astype(np.float32)
    kind = rng.integers(4)
    if kind == 1:  # blotches
        cells = int(rng.integers(3, 24))
        strength = rng.uniform(5, 40)
        channels = 3 if rng.random() < 0.5 else 1
        noise = rng.normal(0, strength, (cells, cells, channels))
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        scene += noise.reshape(size, size, channels)
    elif kind == 2:  # stripes
        angle = rng.uniform(0, np.pi)
        period = rng.uniform(4, 40)
        y, x = np.mgrid[:size, :size]
        along = x * np.cos(angle) + y * np.sin(angle)
        amplitude = rng.uniform(5, 40)
        wave = amplitude * np.sin(along * 6.283 / period)
        scene += wave[..., None]
    elif kind == 3:  # the edge of a table
        edge = int(rng.uniform(0.3, 0.8) * size)
        colour = rng.integers(60, 240, 3)
        scene[edge:] = 0.5 * scene[edge:] + 0.5 * colour
    return np.clip(scene, 0, 255).astype(np.uint8)


def draw_distractors(scene: Photo, rng: Generator) -> None:
    """Draw a few flat shapes that are no products, in place: props, price badges, frames."""
    size = len(scene)
    for _ in range(rng.integers(0, 4)):
        colour = rng.integers(0, 256, 3).tolist()
        place = rng.uniform((0, 0, 0.03), (1, 1, 0.12)) * size
        x, y, r = place.astype(int).tolist()
        if rng.random() < 0.5:
            cv2.circle(scene, (x, y), r, colour, -1, cv2.LINE_AA)
        else:
            width = int(r * rng.uniform(1, 5))
            far = (x + width, y + r)
            cv2.rectangle(scene, (x, y), far, colour, -1)


# ---- composites
def compose(foregrounds: np.ndarray, owners: np.ndarray, settings: SynthesisSettings,
            rng: Generator, scenes: tuple[Path, ...] = ()) -> tuple:
    """Paste the foregrounds (N, s, s, 4) that `owners` (K,) name on a scene.

    Returns:
        photo (S, S, 3) uint8; boxes (K, 4) float32 xyxy pixels, tight round what is visible of each,
        zeros below 40% or without a place; visible (K,) float32, the share that no other covers.
    """
    size = settings.size
    count = len(owners)
    # the scene: drawn, or half of the time a photo where there are some
    if scenes and rng.random() < 0.5:
        photo = crop_scene(scenes[rng.integers(len(scenes))], size, rng)
    else:
        photo = draw_scene(size, rng)
    streams = rng.spawn(count + 1)  # so that a switch moves nothing else
    if settings.distractors:
        draw_distractors(photo, streams[-1])
    # rough height and places of the foregrounds, close together or apart, and the light
    span = rng.uniform(0.35, 0.9) if count == 1 else rng.uniform(0.3, 0.6)
    spread = rng.uniform(0.6, 1)
    order = rng.permutation(count)
    slots = 0.5 + spread * ((order + 0.5) / count - 0.5)
    light = rng.uniform(-1, 1)  # from the left (1) or from the right (-1)
    # paste one above the other
    topmost = np.full((size, size), -1, np.int8)  # the uppermost foreground of each pixel
    areas = np.ones(count)
    for k, owner in enumerate(owners):
        layer = place(foregrounds[owner], slots[k], span, topmost, areas, settings, rng)
        if layer is None:
            continue
        photo = paste(photo, layer, light, settings, streams[k])
        solid = layer[..., 3] > 127
        areas[k] = max(solid.sum(), 1)
        topmost[solid] = k
    if settings.light:
        fall = np.linspace(1, -1, size, dtype=np.float32)[:, None]
        photo = photo * (1 + 0.15 * light * fall)
    # read the boxes off what is still visible
    visible = np.bincount(topmost[topmost >= 0], minlength=count) / areas
    boxes = np.zeros((count, 4), np.float32)
    for k in np.flatnonzero(visible >= MIN_VISIBLE):
        seen = topmost == k
        x, y, w, h = cv2.boundingRect(seen.astype(np.uint8))
        boxes[k] = (x, y, x + w, y + h)
    photo = np.clip(photo, 0, 255).astype(np.uint8)
    return photo, boxes, visible.astype(np.float32)


def place(foreground: np.ndarray, slot: float, span: float, topmost: np.ndarray,
          areas: np.ndarray, settings: SynthesisSettings, rng: Generator) -> Layer | None:
    """Scale and tilt a foreground where it hides no other too much; None without a place.

    Args:
        slot, span: its rough place across the photo, and its rough height, as fractions.
        topmost, areas: (S, S) the uppermost foreground of each pixel, -1 for none; (K,) their pixels.
    """
    size = settings.size
    count = len(areas)
    taken = topmost >= 0
    seen = np.bincount(topmost[taken], minlength=count)
    allowed = np.maximum(settings.overlap * areas - (areas - seen), 0)  # pixels still to hide
    for _ in range(MAX_TRIES):
        shift = rng.uniform(-0.2, 0.2) / count
        x = (slot + shift) * size
        y = rng.uniform(0.3, 0.75) * size
        height = size * span * rng.uniform(0.7, 1.3)
        angle = rng.normal(0, settings.tilt)
        layer = warp(foreground, height, angle, size, (x, y))
        solid = layer[..., 3] > 127
        hidden = np.bincount(topmost[solid & taken], minlength=count)
        if not (hidden > allowed)[seen > 0].any():
            return layer
    return None


def warp(foreground: np.ndarray, height: float, angle: float, size: int, centre: tuple) -> Layer:
    """Return a foreground scaled to `height` pixels and tilted by `angle` degrees."""
    ys, xs = np.nonzero(foreground[..., 3])
    h = ys.max() + 1
    w = xs.max() + 1
    middle = (w / 2, h / 2)
    matrix = cv2.getRotationMatrix2D(middle, angle, height / max(h, w))
    matrix[:, 2] += np.array(centre) - middle
    return cv2.warpAffine(foreground, matrix, (size, size))


def paste(photo: np.ndarray, layer: Layer, light: float, settings: SynthesisSettings,
          rng: Generator) -> np.ndarray:
    """Return the photo (S, S, 3) with a layer on it; light comes from the left (1) or right (-1)."""
    alpha = layer[..., 3:].astype(np.float32) / 255
    colours = layer[..., :3].astype(np.float32)
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
    softness = rng.uniform(0.3, 0.8)
    if settings.shadow and rng.random() < 0.7:  # on the side away from the light
        unit = len(photo) / 128
        shift = np.eye(2, 3, dtype=np.float32)
        shift[0, 2] = 6 * unit * light
        shift[1, 2] = rng.uniform(0, 5) * unit
        shadow = cv2.warpAffine(alpha, shift, alpha.shape[1::-1])
        shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.5, 4) * unit)
        darkness = np.float32(rng.uniform(0.2, 0.5))
        photo = photo * (1 - darkness * shadow[..., None])
    if settings.light:  # brightness nearer to that of the scene
        mean = (colours * alpha).sum() / (3 * max(alpha.sum(), 1))
        ratio = (photo.mean() + 60) / (mean + 60)
        gain = ratio ** 0.2 * gain
        colours = colours * gain.astype(np.float32)
    if settings.blending:
        alpha = cv2.GaussianBlur(alpha, (0, 0), softness)[..., None]
    colours = np.clip(colours, 0, 255)
    return photo * (1 - alpha) + colours * alpha


# ---- files
def sample_owners(number: int, foregrounds: int, max_products: int, seed: int) -> np.ndarray:
    """Return which foregrounds composite `number` holds: 1, 2 … `max_products` of them in turn.

    They are sampled without replacement, epoch after epoch, so each is used about equally often.
    """
    # so many were sampled for the composites before this one
    rounds, last = divmod(number, max_products)
    count = last + 1
    start = rounds * sum(range(max_products + 1)) + sum(range(count))
    owners = []
    for position in range(start, start + count):
        epoch, index = divmod(position, foregrounds)
        owners.append(epoch_order(foregrounds, epoch, seed)[index])
    return np.array(owners)


@lru_cache(maxsize=4)
def epoch_order(foregrounds: int, epoch: int, seed: int) -> np.ndarray:
    """Return the order in which an epoch samples the foregrounds: (foregrounds,) int64."""
    return default_rng([seed, 7, epoch]).permutation(foregrounds)


def make_composite(number: int, file: Path, scenes: tuple[Path, ...],
                   settings: SynthesisSettings, seed: int) -> tuple:
    """Return the owners, photo, boxes and visible shares of a composite, from its own stream."""
    foregrounds = np.load(file, mmap_mode="r")
    owners = sample_owners(number, len(foregrounds), settings.max_products, seed)
    rng = default_rng([seed, number])
    return owners, *compose(foregrounds, owners, settings, rng, scenes)


def make_composites(settings: SynthesisSettings, folder: Path, seed: int) -> None:
    """Write the composites of `foregrounds.npy` in a folder, whatever the number of workers.

    `composites.npy` (M, S, S, 3) uint8, `boxes.npy` (M, K, 4) float32 xyxy pixels (zeros where there
    is no box), `owners.npy` (M, K) int32 (-1 for none) and `visible.npy` (M, K) float32.
    """
    count = settings.composites
    file = folder / "composites.npy"
    shape = (count, settings.size, settings.size, 3)
    photos = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    boxes = np.zeros((count, settings.max_products, 4), np.float32)
    owners = np.full(boxes.shape[:2], -1, np.int32)
    visible = np.zeros(boxes.shape[:2], np.float32)
    file = folder / "foregrounds.npy"
    scenes = tuple(scene_files(settings.scenes))
    work = partial(make_composite, file=file, scenes=scenes, settings=settings, seed=seed)
    with process_map(settings.workers, chunk=50) as map_over:
        made = progress(map_over(work, range(count)), "composites", count)
        for number, (owner, photo, box, share) in enumerate(made):
            filled = (number, slice(len(owner)))
            photos[number] = photo
            boxes[filled] = box
            owners[filled] = owner
            visible[filled] = share
    np.save(folder / "boxes.npy", boxes)
    np.save(folder / "owners.npy", owners)
    np.save(folder / "visible.npy", visible)
