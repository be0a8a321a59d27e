"""Composites: foregrounds (`foregrounds`) pasted on scenes, so that boxes come for free.

No one draws a box. A foreground is cut from a photo of one product; a composite holds several of them on a scene, drawn
or a photo; the outline of what stays visible of each is its box. Everything lies in fixed-size arrays that are
memory-mapped, so that a training loop reads a random batch at the cost of its bytes.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.table import HELD_OUT, Catalog
from capture_lib.proposals.foregrounds import cut
from capture_lib.utils import InputError, process_map, progress

SCENE_FILES = (".jpg", ".jpeg", ".png", ".webp")
MIN_VISIBLE = 0.4  # share of a foreground: with less of it in sight it has no box
TRIES = 6  # places that are tried for a foreground before it is left out


@dataclass(frozen=True)
class SynthesisSettings:
    """Defaults of the cpu profile."""

    photos: int = 2_000  # candidates that GrabCut is tried on
    foreground_size: int = 112  # longer side of a foreground, pixels; photos are cut at twice that size
    iterations: int = 1  # of GrabCut
    composites: int = 6_000
    size: int = 128  # side of a composite, pixels
    max_products: int = 5
    scenes: str = ""  # a folder of photos on which half of the composites stand; empty: drawn scenes alone
    tilt: float = 8.0  # standard deviation, degrees
    overlap: float = 0.6  # the most that those above may cover of a foreground
    blending: bool = True  # soft edges
    light: bool = True  # foregrounds as bright as the scene, all of it lit from one side
    shadow: bool = True
    distractors: bool = True  # things in the scene that are no product
    workers: int = 2  # processes; 0 = none beside this one


# ------------------------------------------------------------------------------------------- foregrounds


def candidates(catalog: Catalog, most: int) -> dict[str, bool]:
    """Ids of photos that may show one product, the best sources first; True where that is known. No label is read.

    Known: training photos that the catalog calls single, and the gallery, which is single by definition. Unknown:
    training photos of which the catalog says nothing; there the mask decides. Photos of brands that are held out of
    training are left out.
    """
    table = catalog.table
    single = (table["products"] == "single") & table["split"].isin(["train", "gallery"])
    single &= table["combination"] != HELD_OUT
    unknown = table["products"].isna() & (table["split"] == "train")
    order = {**dict.fromkeys(table[single]["sample_id"], True), **dict.fromkeys(table[unknown]["sample_id"], False)}
    there = [(sample, known) for sample, known in order.items() if sample in catalog.photos]
    return dict(there[:most])


def cut_foregrounds(catalog: Catalog, settings: SynthesisSettings, folder: Path) -> dict:
    """Writes `foregrounds.npy` (N, S, S, 4) uint8 RGBA and `ids.txt`.

    Returns:
        a report: photos tried, foregrounds kept, and how many photos each fault threw out.
    """
    chosen = candidates(catalog, settings.photos)
    photos = [(catalog.photos[sample], known) for sample, known in chosen.items()]
    work = partial(cut, size=settings.foreground_size, iterations=settings.iterations)
    with process_map(settings.workers, 16) as map_over:
        results = list(progress(map_over(work, photos), "foregrounds cut", len(photos)))
    squares = [result for result in results if isinstance(result, np.ndarray)]
    empty = np.zeros((0, settings.foreground_size, settings.foreground_size, 4), np.uint8)
    np.save(folder / "foregrounds.npy", np.stack(squares) if squares else empty)
    kept = [sample for sample, result in zip(chosen, results, strict=True) if isinstance(result, np.ndarray)]
    (folder / "ids.txt").write_text("".join(f"{sample}\n" for sample in kept), encoding="utf-8")
    faults = Counter(fault for result in results if isinstance(result, list) for fault in result)
    return {"source": catalog.name, "tried": len(photos), "kept": len(kept), "faults": dict(faults)}


# -------------------------------------------------------------------------------------------- composites


def scene_files(folder: str) -> list[Path]:
    """The photos of a folder of scenes, in the order of their names; none where no folder is named.

    Raises:
        InputError: the folder has none.
    """
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SCENE_FILES) if folder else []
    if folder and not files:
        raise InputError(f"{folder}: no photos ({', '.join(SCENE_FILES)}) to paste on; name another folder of scenes")
    return files


@lru_cache(maxsize=128)
def photographed_scene(file: Path, side: int) -> np.ndarray:
    """A photo of a scene, its longer side `side` pixels: (H, W, 3) uint8."""
    return fit(load_photo(file), side)


def cropped_scene(file: Path, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square part of a photo of a scene, mirrored half of the time: (size, size, 3) uint8."""
    photo = photographed_scene(file, 2 * size)
    side = max(1, round(rng.uniform(0.5, 1) * min(photo.shape[:2])))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    part = cv2.resize(photo[y:y + side, x:x + side], (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(part[:, ::-1]) if rng.random() < 0.5 else part


def draw_scene(size: int, rng: np.random.Generator) -> np.ndarray:
    """A ground to paste on, (size, size, 3) uint8: a gradient, soft blotches, stripes or a table edge."""
    corners = rng.integers(30, 256, (2, 2, 3)).astype(np.uint8)
    if rng.random() < 0.35:  # shop photos are often plain
        corners = np.clip(rng.integers(225, 256) + rng.integers(-8, 9, (2, 2, 3)), 0, 255).astype(np.uint8)
    scene = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    kind = rng.integers(4)
    if kind == 1:
        cells = int(rng.integers(3, 24))
        noise = rng.normal(0, rng.uniform(5, 40), (cells, cells, 3 if rng.random() < 0.5 else 1))
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        scene += noise if noise.ndim == 3 else noise[..., None]
    elif kind == 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
        y, x = np.mgrid[:size, :size]
        scene += (rng.uniform(5, 40) * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 6.283 / period))[..., None]
    elif kind == 3:
        edge = int(rng.uniform(0.3, 0.8) * size)
        scene[edge:] = 0.5 * scene[edge:] + 0.5 * rng.integers(60, 240, 3)
    return np.clip(scene, 0, 255).astype(np.uint8)


def clutter(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a few flat shapes that are not products, in place: props, price badges, frames."""
    size = len(scene)
    for _ in range(rng.integers(0, 4)):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y, r = (int(v) for v in rng.uniform((0, 0, 0.03), (1, 1, 0.12)) * size)
        if rng.random() < 0.5:
            cv2.circle(scene, (x, y), r, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(scene, (x, y), (x + int(r * rng.uniform(1, 5)), y + r), colour, -1)


def warp(foreground: np.ndarray, height: float, angle: float, size: int, centre: tuple) -> np.ndarray:
    """A foreground (S, S, 4) scaled to `height` pixels and tilted by `angle` degrees, on a (size, size, 4) sheet."""
    ys, xs = np.nonzero(foreground[..., 3])
    h, w = ys.max() + 1, xs.max() + 1
    scale = height / max(h, w)
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, scale)
    matrix[:, 2] += np.array(centre) - (w / 2, h / 2)
    return cv2.warpAffine(foreground, matrix, (size, size), flags=cv2.INTER_LINEAR)


def compose(foregrounds: np.ndarray, owners: np.ndarray, settings: SynthesisSettings, rng: np.random.Generator,
            scenes: tuple[Path, ...] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pastes the foregrounds named by `owners` on a scene.

    Returns:
        photo (size, size, 3) uint8; boxes (K, 4) float32 xyxy pixels of what is visible of each; visible (K,), the
        share of each foreground inside the frame that no other covers. Below 40% the box is [0, 0, 0, 0], and so it
        is for a foreground that found no place.
    """
    size = settings.size
    from_photo = bool(scenes) and rng.random() < 0.5
    photo = cropped_scene(scenes[rng.integers(len(scenes))], size, rng) if from_photo else draw_scene(size, rng)
    aside = rng.spawn(len(owners) + 1)  # what a switch turns off must not move anything else
    if settings.distractors:
        clutter(photo, aside[-1])
    top = np.full((size, size), -1, np.int8)  # which foreground is uppermost at a pixel
    whole = np.ones(len(owners))
    span = rng.uniform(0.35, 0.9) if len(owners) == 1 else rng.uniform(0.3, 0.6)
    slots = 0.5 + rng.uniform(0.6, 1) * ((rng.permutation(len(owners)) + 0.5) / len(owners) - 0.5)  # close or apart
    from_left = rng.uniform(-1, 1)
    for k, owner in enumerate(owners):
        sheet = place(foregrounds[owner], slots[k], span, top, whole, settings, rng)
        if sheet is not None:
            photo = paste(photo, sheet, from_left, settings, aside[k])
            solid = sheet[..., 3] > 127
            whole[k] = max(solid.sum(), 1)
            top[solid] = k
    if settings.light:
        photo = photo * (1 + 0.15 * from_left * np.linspace(1, -1, size, dtype=np.float32)[:, None])
    boxes = np.zeros((len(owners), 4), np.float32)
    visible = np.bincount(top[top >= 0], minlength=len(owners)) / whole
    for k in np.flatnonzero(visible >= MIN_VISIBLE):
        x, y, w, h = cv2.boundingRect((top == k).astype(np.uint8))
        boxes[k] = (x, y, x + w, y + h)
    return np.clip(photo, 0, 255).astype(np.uint8), boxes, visible.astype(np.float32)


def place(foreground: np.ndarray, slot: float, span: float, top: np.ndarray, whole: np.ndarray,
          settings: SynthesisSettings, rng: np.random.Generator) -> np.ndarray | None:
    """A foreground scaled and tilted, (size, size, 4) uint8, where it hides no other too much; None without a place.

    Args:
        slot: roughly where it is across the photo, span: roughly its height, both as fractions of the size.
        top: (size, size), which foreground is uppermost at a pixel, -1 for none; whole: (K,) pixels that each has.
    """
    size = settings.size
    for _ in range(TRIES):
        centre = ((slot + rng.uniform(-0.2, 0.2) / len(whole)) * size, rng.uniform(0.3, 0.75) * size)
        sheet = warp(foreground, size * span * rng.uniform(0.7, 1.3), rng.normal(0, settings.tilt), size, centre)
        seen = np.bincount(top[top >= 0], minlength=len(whole))
        hidden = np.bincount(top[(sheet[..., 3] > 127) & (top >= 0)], minlength=len(whole))
        if not (hidden > np.maximum(settings.overlap * whole - (whole - seen), 0))[seen > 0].any():
            return sheet
    return None


def paste(photo: np.ndarray, sheet: np.ndarray, from_left: float, settings: SynthesisSettings,
          rng: np.random.Generator) -> np.ndarray:
    """The photo (S, S, 3) with a foreground's sheet (S, S, 4) on it; light comes from the left (1) or right (-1)."""
    alpha, colours = sheet[..., 3:].astype(np.float32) / 255, sheet[..., :3].astype(np.float32)
    gain, softness = rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3), rng.uniform(0.3, 0.8)
    if settings.shadow and rng.random() < 0.7:
        photo = shaded(photo, alpha, from_left, rng)
    if settings.light:
        ratio = (photo.mean() + 60) / ((colours * alpha).sum() / (3 * max(alpha.sum(), 1)) + 60)
        colours = colours * (ratio ** 0.2 * gain).astype(np.float32)
    if settings.blending:
        alpha = cv2.GaussianBlur(alpha, (0, 0), softness)[..., None]
    return photo * (1 - alpha) + np.clip(colours, 0, 255) * alpha


def shaded(photo: np.ndarray, alpha: np.ndarray, from_left: float, rng: np.random.Generator) -> np.ndarray:
    """The photo with a soft shadow of a foreground's alpha (S, S, 1), away from the light."""
    unit = len(photo) / 128
    shift = np.float32([[1, 0, 6 * unit * from_left], [0, 1, rng.uniform(0, 5) * unit]])
    shadow = cv2.warpAffine(alpha, shift, alpha.shape[1::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), rng.uniform(1.5, 4) * unit)
    return photo * (1 - np.float32(rng.uniform(0.2, 0.5)) * shadow[..., None])


def compose_many(numbers: range, file: Path, settings: SynthesisSettings, seed: int) -> list:
    """Composites of the given numbers; each has its own random stream, so workers don't change the result.

    Foregrounds are dealt from shuffled decks, so that each one stands in about as many composites as any other.
    """
    foregrounds, scenes = np.load(file, mmap_mode="r"), tuple(scene_files(settings.scenes))
    made = []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        owners = deal(number, len(foregrounds), settings.max_products, seed)
        made.append((owners, *compose(foregrounds, owners, settings, rng, scenes)))
    return made


def deal(number: int, foregrounds: int, most: int, seed: int) -> np.ndarray:
    """Which foregrounds composite `number` holds: 1 to `most` consecutive cards of an endless shuffled deck."""
    count = 1 + number % most
    start = number // most * (most * (most + 1) // 2) + count * (count - 1) // 2
    cards = np.arange(start, start + count)
    decks = {d: np.random.default_rng([seed, 7, d]).permutation(foregrounds) for d in set(cards // foregrounds)}
    return np.array([decks[c // foregrounds][c % foregrounds] for c in cards])


def make_composites(settings: SynthesisSettings, folder: Path, seed: int) -> None:
    """Writes `composites.npy` (M, S, S, 3) uint8, `boxes.npy` (M, K, 4) float32 xyxy pixels (zeros where there is no
    box), `owners.npy` (M, K) int32 (-1 where there is none) and `visible.npy` (M, K) float32."""
    shape = (settings.composites, settings.size, settings.size, 3)
    photos = np.lib.format.open_memmap(folder / "composites.npy", "w+", np.uint8, shape)
    boxes = np.zeros((settings.composites, settings.max_products, 4), np.float32)
    owners = np.full(boxes.shape[:2], -1, np.int32)
    visible = np.zeros(boxes.shape[:2], np.float32)
    work = partial(compose_many, file=folder / "foregrounds.npy", settings=settings, seed=seed)
    parts = [range(first, min(first + 50, settings.composites)) for first in range(0, settings.composites, 50)]
    with process_map(settings.workers) as map_over:
        for numbers, part in zip(parts, progress(map_over(work, parts), "composites, by 50", len(parts)), strict=True):
            for number, (owner, photo, box, seen) in zip(numbers, part, strict=True):
                photos[number] = photo
                boxes[number, :len(owner)], owners[number, :len(owner)], visible[number, :len(owner)] = box, owner, seen
    np.save(folder / "boxes.npy", boxes)
    np.save(folder / "owners.npy", owners)
    np.save(folder / "visible.npy", visible)
