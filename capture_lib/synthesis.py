"""Composites: foregrounds cut out by GrabCut and pasted on scenes, so that boxes come for free.

No one draws a box. A foreground is cut from a photo of one product; a composite holds several of them on a drawn
scene; the outline of what stays visible of each is its box. Everything lies in fixed-size arrays that are
memory-mapped, so that a training loop reads a random batch at the cost of its bytes.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog import HELD_OUT, Catalog
from capture_lib.photos import load_photo
from capture_lib.progress import progress


@dataclass(frozen=True)
class SynthesisSettings:
    """Defaults of the cpu profile."""

    photos: int = 2_000  # candidates that GrabCut is tried on
    foreground_size: int = 112  # longer side at which GrabCut works, pixels
    iterations: int = 3
    composites: int = 6_000
    size: int = 128  # side of a composite, pixels
    most_products: int = 5
    workers: int = 2


def workers(count: int) -> ProcessPoolExecutor:
    """Processes of one OpenCV thread each; spawned, because a fork of a process that runs torch may hang."""
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,))


# ------------------------------------------------------------------------------------------- foregrounds


def fit(photo: np.ndarray, size: int) -> np.ndarray:
    """Resizes (H, W, C) so that its longer side is `size` pixels."""
    scale = size / max(photo.shape[:2])
    shape = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return cv2.resize(photo, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def grabcut(photo: np.ndarray, iterations: int = 3) -> np.ndarray:
    """The foreground mask (H, W) uint8 in {0, 1} of a photo (H, W, 3) uint8 RGB of one product.

    GrabCut (Rother et al. 2004, OpenCV) from a start that shop photos share: the border is ground, the middle is
    probably product, and what differs in colour from the border is more likely product.
    """
    cv2.setRNGSeed(0)  # k-means and GrabCut start their colour clusters at random
    height, width = photo.shape[:2]
    marks = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    marks[likely_foreground(photo)] = cv2.GC_PR_FGD
    rim = max(2, round(0.02 * min(height, width)))
    for edge in (np.s_[:rim], np.s_[-rim:], np.s_[:, :rim], np.s_[:, -rim:]):
        marks[edge] = cv2.GC_BGD
    if not (marks == cv2.GC_PR_FGD).any():
        return np.zeros((height, width), np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(np.ascontiguousarray(photo[..., ::-1]), marks, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # one colour only: there is nothing to cut
        return np.zeros((height, width), np.uint8)
    return tidy(np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def likely_foreground(photo: np.ndarray) -> np.ndarray:
    """A first guess (H, W) bool: far in colour from the border's, and inside the central 90%."""
    height, width = photo.shape[:2]
    lab = cv2.cvtColor(cv2.GaussianBlur(photo, (3, 3), 0), cv2.COLOR_RGB2LAB).astype(np.float32)
    rim = max(2, round(0.04 * min(height, width)))
    border = np.concatenate([lab[:rim].reshape(-1, 3), lab[-rim:].reshape(-1, 3),
                             lab[:, :rim].reshape(-1, 3), lab[:, -rim:].reshape(-1, 3)])
    _, _, centres = cv2.kmeans(border, min(4, len(border)), None, (cv2.TERM_CRITERIA_MAX_ITER, 8, 0), 1,
                               cv2.KMEANS_PP_CENTERS)
    distance = np.min(np.linalg.norm(lab[:, :, None] - centres, axis=-1), axis=-1)  # (H, W)
    level, _ = cv2.threshold(np.clip(distance * 2, 0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    likely = distance * 2 > level
    y, x = round(0.05 * height), round(0.05 * width)
    inside = np.zeros_like(likely)
    inside[y:height - y, x:width - x] = True
    return likely & inside


def tidy(mask: np.ndarray) -> np.ndarray:
    """Removes specks (pieces under a tenth of the largest) and fills holes."""
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    least = 0.1 * max(map(cv2.contourArea, contours), default=0)
    pieces = [contour for contour in contours if cv2.contourArea(contour) >= least]
    return cv2.drawContours(np.zeros_like(mask), pieces, -1, 1, cv2.FILLED)


def main_piece(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest connected piece of a mask (H, W), and its share of the whole mask's area."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask, 0.0
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return (pieces == largest).astype(np.uint8), stats[largest, cv2.CC_STAT_AREA] / mask.sum()


def mask_faults(mask: np.ndarray, single: bool) -> list[str]:
    """Why the main piece of a mask is not one whole product: an empty list where it is.

    Of a photo known to show a single product, a clearly largest piece is taken: the rest are props and stickers.
    Of any other photo only a mask of one compact piece is taken, which is what tells one product from several.
    """
    height, width = mask.shape
    piece, share = main_piece(mask)
    if not share:
        return ["empty"]
    x, y, w, h = cv2.boundingRect(piece)
    contour = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
    solidity = cv2.contourArea(contour) / max(cv2.contourArea(cv2.convexHull(contour)), 1.0)
    tests = {
        "several pieces": share < (0.65 if single else 1.0),
        "too small or too large": not 0.04 < piece.mean() < 0.8,
        "touches the edge": x < 3 or y < 3 or x + w > width - 3 or y + h > height - 3,
        "not compact": solidity < (0.8 if single else 0.9),
    }
    return [fault for fault, found in tests.items() if found]


def cut(photo: tuple[Path, bool], settings: SynthesisSettings) -> np.ndarray | list[str]:
    """The foreground of a photo (path, known to be single) as a padded (S, S, 4) uint8 RGBA square, or its faults."""
    path, single = photo
    pixels = fit(load_photo(path), settings.foreground_size)
    mask = grabcut(pixels, settings.iterations)
    faults = mask_faults(mask, single)
    if faults:
        return faults
    mask, _ = main_piece(mask)
    x, y, w, h = cv2.boundingRect(mask)
    square = np.zeros((settings.foreground_size, settings.foreground_size, 4), np.uint8)
    square[:h, :w, :3] = pixels[y:y + h, x:x + w]
    square[:h, :w, 3] = 255 * mask[y:y + h, x:x + w]
    return square


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
    with workers(settings.workers) as pool:
        results = list(progress(pool.map(partial(cut, settings=settings), photos, chunksize=16),
                                "foregrounds cut", len(photos)))
    squares = [result for result in results if isinstance(result, np.ndarray)]
    empty = np.zeros((0, settings.foreground_size, settings.foreground_size, 4), np.uint8)
    np.save(folder / "foregrounds.npy", np.stack(squares) if squares else empty)
    kept = [sample for sample, result in zip(chosen, results, strict=True) if isinstance(result, np.ndarray)]
    (folder / "ids.txt").write_text("".join(f"{sample}\n" for sample in kept), encoding="utf-8")
    faults = Counter(fault for result in results if isinstance(result, list) for fault in result)
    return {"source": catalog.name, "tried": len(photos), "kept": len(kept), "faults": dict(faults)}


# -------------------------------------------------------------------------------------------- composites


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


def compose(foregrounds: np.ndarray, owners: np.ndarray, settings: SynthesisSettings, rng: np.random.Generator
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pastes the foregrounds named by `owners` on a scene.

    Returns:
        photo (size, size, 3) uint8; boxes (K, 4) float32 xyxy pixels of what is visible of each; visible (K,), the
        share of each foreground inside the frame that no other covers. Below 40% the box is [0, 0, 0, 0].
    """
    size = settings.size
    photo = draw_scene(size, rng)
    clutter(photo, rng)
    top = np.full((size, size), -1, np.int8)  # which foreground is uppermost at a pixel
    whole = np.zeros(len(owners))
    span = rng.uniform(0.35, 0.9) if len(owners) == 1 else rng.uniform(0.3, 0.6)
    slots = rng.permutation(len(owners))
    for k, owner in enumerate(owners):
        centre = ((slots[k] + rng.uniform(0.3, 0.7)) / len(owners) * size, rng.uniform(0.35, 0.7) * size)
        sheet = warp(foregrounds[owner], size * span * rng.uniform(0.7, 1.3), rng.normal(0, 8), size, centre)
        alpha = sheet[..., 3:].astype(np.float32) / 255
        light = rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3)
        paste = np.clip(sheet[..., :3] * light, 0, 255)
        if rng.random() < 0.5:
            shade(photo, alpha, rng)
        photo = (photo * (1 - alpha) + paste * alpha).astype(np.uint8)
        solid = alpha[..., 0] > 0.5
        whole[k] = max(solid.sum(), 1)
        top[solid] = k
    boxes = np.zeros((len(owners), 4), np.float32)
    visible = np.array([(top == k).sum() for k in range(len(owners))]) / whole
    for k in np.flatnonzero(visible >= 0.4):
        x, y, w, h = cv2.boundingRect((top == k).astype(np.uint8))
        boxes[k] = (x, y, x + w, y + h)
    return photo, boxes, visible.astype(np.float32)


def shade(photo: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Darkens the ground where a soft, shifted shadow of the foreground falls, in place."""
    shift = np.float32([[1, 0, rng.uniform(-6, 6)], [0, 1, rng.uniform(0, 5)]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, alpha.shape[1::-1]), (0, 0), rng.uniform(1.5, 4))
    photo[:] = photo * (1 - rng.uniform(0.2, 0.5) * shadow[..., None])


def compose_many(numbers: range, file: Path, settings: SynthesisSettings, seed: int) -> list:
    """Composites of the given numbers; each has its own random stream, so workers don't change the result.

    Foregrounds are dealt from shuffled decks, so that each one stands in about as many composites as any other.
    """
    foregrounds = np.load(file, mmap_mode="r")
    made = []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        owners = deal(number, len(foregrounds), settings.most_products, seed)
        made.append((owners, *compose(foregrounds, owners, settings, rng)))
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
    boxes = np.zeros((settings.composites, settings.most_products, 4), np.float32)
    owners = np.full(boxes.shape[:2], -1, np.int32)
    visible = np.zeros(boxes.shape[:2], np.float32)
    work = partial(compose_many, file=folder / "foregrounds.npy", settings=settings, seed=seed)
    parts = [range(first, min(first + 50, settings.composites)) for first in range(0, settings.composites, 50)]
    with workers(settings.workers) as pool:
        for numbers, part in zip(parts, progress(pool.map(work, parts), "composites, by 50", len(parts)), strict=True):
            for number, (owner, photo, box, seen) in zip(numbers, part, strict=True):
                photos[number] = photo
                boxes[number, :len(owner)], owners[number, :len(owner)], visible[number, :len(owner)] = box, owner, seen
    np.save(folder / "boxes.npy", boxes)
    np.save(folder / "owners.npy", owners)
    np.save(folder / "visible.npy", visible)
