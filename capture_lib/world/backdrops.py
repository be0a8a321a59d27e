"""What surrounds the products in the rendered world's photos: grounds, and props that are no products."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog.photos import load_photo
from capture_lib.world.drawing import paint_over
from capture_lib.world.textures import TABLES, TEXTURES, UNDER, WALLS, blend, colour_of, grid, hsv, leaf

GROUNDS_EACH = 5  # pictures of each busy ground in a split; a photo takes a crop, a mirroring and a tint of one
PROPS = 40


# ---- grounds
@lru_cache(maxsize=len(TEXTURES) * GROUNDS_EACH)
def _drawn(kind: int, number: int, size: int, seed: int, split: str) -> np.ndarray:
    """One of a split's busy grounds, uint8, 1.5 times the photo's side."""
    rng = np.random.default_rng([seed, 301, kind, number, *split.encode()])
    return (TEXTURES[kind].draw(int(size * 1.5), rng).clip(0, 1) * 255).astype(np.uint8)


@lru_cache(maxsize=128)
def _scene(file: Path, size: int) -> np.ndarray:
    """The middle of a photo of the user's, uint8; shorter side 1.5 `size`, longer side at most 2.25."""
    photo = load_photo(file)
    shorter = min(photo.shape[:2])
    top, left = (max(0, side - int(1.5 * shorter)) // 2 for side in photo.shape[:2])
    photo = photo[top:photo.shape[0] - top, left:photo.shape[1] - left]
    scale = 1.5 * size / shorter
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def busy_ground(size: int, seed: int, rng: np.random.Generator, split: str, scenes: tuple[Path, ...],
                horizon: float | None) -> np.ndarray:
    """A crop of one of `scenes`; without scenes marble, cloth, leaves, ..., drawn for this split alone.

    A drawn ground may be a wall and a table; its edge lies above the row `horizon`. None: seen from above.
    (size, size, 3) float32 RGB, about 0..1.
    """
    if scenes:
        return _focused(_crop(_scene(scenes[int(rng.integers(len(scenes)))], size), size, size, rng), rng)
    if horizon is None:
        return _crop(_any(UNDER, size, seed, split, rng), size, size, rng)
    if rng.random() < 0.4:
        return _crop(_any(range(len(TEXTURES)), size, seed, split, rng), size, size, rng)
    edge = int(min(rng.uniform(0.35, 0.75) * size, horizon))
    wall = _focused(_crop(_any(WALLS, size, seed, split, rng), size, edge, rng), rng)
    table = _crop(_any(TABLES, size, seed, split, rng), size, size - edge, rng)
    return _wall_and_table(wall, table)


def _any(kinds: Sequence[int], size: int, seed: int, split: str, rng: np.random.Generator) -> np.ndarray:
    kind = kinds[int(rng.integers(len(kinds)))]
    return _drawn(kind, int(rng.integers(GROUNDS_EACH)), size, seed, split)


def _crop(picture: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Some part of a picture, often mirrored, a little tinted: (height, width, 3) float32, about 0..1."""
    high, wide = picture.shape[:2]
    side = int(rng.uniform(0.62, 1.0) * min(high, wide))
    deep = max(2, int(side * height / width))
    x, y = int(rng.integers(0, wide - side + 1)), int(rng.integers(0, high - deep + 1))
    crop = cv2.resize(picture[y:y + deep, x:x + side], (width, height), interpolation=cv2.INTER_AREA)
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.ascontiguousarray(crop) * (rng.uniform(0.90, 1.08, 3) / 255).astype(np.float32)


def _focused(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture, or often enough blurred: the camera is focused on the products."""
    return cv2.GaussianBlur(picture, (0, 0), 0.018 * picture.shape[1]) if rng.random() < 0.4 else picture


def _wall_and_table(wall: np.ndarray, table: np.ndarray) -> np.ndarray:
    """One above the other, darker where they meet."""
    picture, edge = np.concatenate([wall, table]), len(wall)
    away = (np.arange(len(picture), dtype=np.float32) - edge) / len(picture)
    picture *= (1 - 0.22 * np.exp(-np.abs(away) * 14))[:, None, None]
    return picture


def plain_ground(size: int, rng: np.random.Generator, horizon: float | None) -> np.ndarray:
    """White, a soft gradient, or a wall and a table that meet above the row `horizon` (None: seen from above).

    (size, size, 3) float32 RGB in 0..1.
    """
    kind, (y, _) = rng.random(), grid(size)
    if kind < 0.4:
        return np.full((size, size, 3), rng.uniform(0.96, 1.0), np.float32)
    wall, table = colour_of(rng, (0.0, 0.28), (0.84, 1.0)), colour_of(rng, (0.0, 0.25), (0.8, 1.0))
    if kind < 0.7 or horizon is None:
        return blend(wall, table, y)
    sharpness = float(rng.choice([8.0, 40.0]))
    edge = min(rng.uniform(0.45, 0.75), horizon / size)
    return blend(wall * (1 - 0.1 * y[..., None]), table, (y - edge) * sharpness + 0.5)


# ---- props
@lru_cache(maxsize=2 * PROPS)
def prop(number: int, above: bool, size: int, seed: int) -> np.ndarray:
    """A sphere, a stone, a sprig, a blossom, a cube or a wrapped gift: (size/2, size/2, 4) uint8 RGBA, premultiplied.

    The first four may be seen from `above`.
    """
    rng = np.random.default_rng([seed, 302, number])
    canvas = np.zeros((size // 2, size // 2, 4), np.float32)
    kinds = PROP_KINDS[:4] if above else PROP_KINDS
    kinds[number % len(kinds)](canvas, colour_of(rng, (0.05, 0.55), (0.55, 1.0)), rng)
    return (canvas * 255).round().astype(np.uint8)


def _sphere(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator, flatness: float = 1.0) -> None:
    n = len(canvas)
    y, x = (np.mgrid[0:n, 0:n].astype(np.float32) - (n - 1) / 2) / (n / 2 - 1)
    y = (y - (1 - flatness)) / flatness
    r = np.sqrt(x * x + y * y)
    facing = 0.7 * np.sqrt(np.clip(1 - r * r, 0, 1)) - 0.4 * x - 0.5 * y
    glint = 0.3 * np.exp(-((x + 0.35) ** 2 + (y + 0.45) ** 2) / 0.03)
    rgb = colour * (0.45 + 0.68 * np.clip(facing, 0, 1))[..., None] + glint[..., None]
    paint_over(canvas, rgb.clip(0, 1), np.clip((1 - r) * n / 2 * flatness + 0.5, 0, 1))


def _stone(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    _sphere(canvas, colour, rng, rng.uniform(0.5, 0.7))


def _cube(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    faces = (((0.05, 0.28), (0.55, 0.40), (0.55, 0.97), (0.05, 0.80)),
             ((0.55, 0.40), (0.95, 0.24), (0.95, 0.76), (0.55, 0.97)),
             ((0.05, 0.28), (0.45, 0.14), (0.95, 0.24), (0.55, 0.40)))
    for face, light in zip(faces, (0.95, 0.72, 1.1), strict=True):
        _fill(canvas, np.int32(np.array(face) * len(canvas) * 8), (colour * light).clip(0, 1))


def _gift(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """A wrapped box with a ribbon and a bow."""
    ribbon = colour_of(rng, (0.2, 0.8), (0.6, 0.95))
    box, band = (0.10, 0.40, 0.90, 0.97), (0.44, 0.40, 0.56, 0.97)
    shapes = ((_rectangle(box), colour), (_rectangle(band), ribbon),
              (_rectangle((0.06, 0.28, 0.94, 0.44)), colour * 0.88),
              (_rectangle((0.43, 0.28, 0.57, 0.44)), ribbon * 0.9),
              (((0.50, 0.29), (0.20, 0.06), (0.14, 0.20), (0.22, 0.28)), ribbon),
              (((0.50, 0.29), (0.80, 0.06), (0.86, 0.20), (0.78, 0.28)), ribbon * 0.92))
    for corners, shade in shapes:
        _fill(canvas, np.int32(np.array(corners) * len(canvas) * 8), shade.clip(0, 1))


def _rectangle(box: tuple[float, float, float, float]) -> tuple[tuple[float, float], ...]:
    x1, y1, x2, y2 = box
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


def _flower(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """A blossom of two rings of petals."""
    n, petals = len(canvas), int(rng.integers(5, 9))
    for ring, long in ((0, 0.46), (1, 0.30)):
        for turn in (np.arange(petals) + ring / 2) * 2 * np.pi / petals:
            shade = np.clip(colour * rng.uniform(0.88, 1.0) + 0.08 * ring, 0, 1)
            _fill(canvas, leaf(n / 2, n / 2, n * long, turn, 0.6), shade)
    _fill(canvas, np.int32([[n * (4 + 0.5 * np.cos(t)), n * (4 + 0.5 * np.sin(t))] for t in np.linspace(0, 6, 14)]),
          np.float32([0.93, 0.75, 0.3]))


def _sprig(canvas: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    n, hue = len(canvas), rng.uniform(70, 160)
    stem = np.linspace([0.15, 0.97], [rng.uniform(0.5, 0.8), 0.25], 8) * n
    for i, (x, y) in enumerate(np.repeat(stem, 2, axis=0)):
        angle = -0.9 + (0.8 if i % 2 else -0.8) + rng.uniform(-0.2, 0.2)
        green = hsv(hue, rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75))
        _fill(canvas, leaf(x, y, n * rng.uniform(0.22, 0.32), angle, 0.42), green)


def _fill(canvas: np.ndarray, corners: np.ndarray, colour: np.ndarray) -> None:
    """Paints a polygon (corners in eighths of a pixel) over an RGBA canvas."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 3)
    paint_over(canvas, np.broadcast_to(colour, (*mask.shape, 3)), mask.astype(np.float32) / 255)


PROP_KINDS = (_sphere, _stone, _sprig, _flower, _cube, _gift)


# ---- what products stand or lie on
def add_stand(picture: np.ndarray, span: tuple[float, float], foot: float, rng: np.random.Generator) -> None:
    """Draws a podium or a tray, in place, whose top holds feet on the row `foot` between the columns `span`."""
    size, colour = len(picture), colour_of(rng, (0.0, 0.35), (0.75, 1.0))
    half = (span[1] - span[0]) / 2 * rng.uniform(1.15, 1.4) + 0.03 * size
    middle, deep = (span[0] + span[1]) / 2, half * rng.uniform(0.2, 0.3)
    thick = size * (rng.uniform(0.015, 0.035) if rng.random() < 0.4 else rng.uniform(0.08, 0.3))
    across = np.clip((np.arange(size, dtype=np.float32) - middle) / half, -1, 1)
    light = 0.92 - 0.22 * across - 0.12 * across ** 2
    top = (_ring if rng.random() < 0.7 else _block)(middle, foot - 0.25 * deep, half, deep)
    shadow = np.zeros((size, size), np.float32)
    cv2.fillConvexPoly(shadow, cv2.convexHull(np.int32(np.r_[top, top] + [0.06 * size, thick])), 0.4, cv2.LINE_AA)
    picture *= (1 - cv2.GaussianBlur(shadow, (0, 0), 0.025 * size))[..., None]
    side = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(side, cv2.convexHull(np.int32(np.r_[top, top + [0, thick]])), 255, cv2.LINE_AA)
    _cover(picture, side, np.broadcast_to((colour * light[:, None]).clip(0, 1), picture.shape))
    face = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(face, np.int32(top), 255, cv2.LINE_AA)
    _cover(picture, face, np.broadcast_to(np.clip(colour * 1.06, 0, 1), picture.shape))


def _ring(x: float, y: float, half: float, deep: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 65)[:-1]
    return np.c_[x + half * np.cos(t), y + deep * np.sin(t)]


def _block(x: float, y: float, half: float, deep: float) -> np.ndarray:
    back = 0.92 * half
    return np.array([[x - back, y - deep], [x + back, y - deep], [x + half, y + deep], [x - half, y + deep]])


def add_box(picture: np.ndarray, box: tuple[float, float, float, float], rng: np.random.Generator) -> None:
    """Draws an open gift box seen from above, in place, around `box` (xyxy in pixels), lined with paper or satin."""
    size, colour = len(picture), colour_of(rng, (0.1, 0.7), (0.35, 0.95))
    lining = colour_of(rng, (0.0, 0.2), (0.85, 1.0)) if rng.random() < 0.7 else colour * 0.55
    x1, y1, x2, y2 = box
    shadow = np.zeros((size, size), np.float32)
    margin, wall = 0.05 * size, 0.025 * size
    outer = (x1 - margin, y1 - margin, x2 + margin, y2 + margin)
    cv2.rectangle(shadow, _pixel(outer[0] + wall, outer[1] + wall), _pixel(outer[2] + wall, outer[3] + wall), 0.5, -1)
    picture *= (1 - cv2.GaussianBlur(shadow, (0, 0), 0.03 * size))[..., None]
    cv2.rectangle(picture, _pixel(*outer[:2]), _pixel(*outer[2:]), colour.tolist(), -1)
    inner = (_pixel(outer[0] + wall, outer[1] + wall), _pixel(outer[2] - wall, outer[3] - wall))
    cv2.rectangle(picture, *inner, (lining * 0.72).tolist(), -1)  # the wall's shadow at the upper and left side
    floor = (_pixel(outer[0] + 1.6 * wall, outer[1] + 1.8 * wall), inner[1])
    cv2.rectangle(picture, *floor, lining.tolist(), -1)


def _pixel(x: float, y: float) -> tuple[int, int]:
    return int(round(x)), int(round(y))


def _cover(picture: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> None:
    """Paints colours (h, w, 3) over a picture where a mask is 255, in place."""
    alpha = (mask.astype(np.float32) / 255)[..., None]
    picture *= 1 - alpha
    picture += alpha * colours
