"""What surrounds the products in the rendered world's photos: backgrounds, and props that are no products."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator

from capture_lib.catalog.photos import load_photo
from capture_lib.world.drawing import paint_over
from capture_lib.world.layouts import Shot
from capture_lib.world.tables import read_table
from capture_lib.world.textures import TABLES, TEXTURES, UNDER, WALLS, blend, draw_colour, grid, hsv, leaf

PICTURES_EACH = 5  # of each texture in a split; a photo takes a crop, a mirroring and a tint of one
PROPS = 40
SHAPES = read_table("props")  # polygons of props: colour, brightness, corners
Box = tuple[float, float, float, float]


# ---- backgrounds; `horizon` is the row above which a wall may meet a table, None for photos from above
def plain_background(shot: Shot, horizon: float | None) -> ndarray:
    """Draw white, a soft gradient, or a wall and a table: (size, size, 3) float32 RGB in 0..1."""
    size, rng = shot.size, shot.rng
    kind = rng.random()
    if kind < 0.4:
        return np.full((size, size, 3), rng.uniform(0.96, 1.0), np.float32)
    y, _ = grid(size)
    wall = draw_colour(rng, (0.0, 0.28), (0.84, 1.0))
    table = draw_colour(rng, (0.0, 0.25), (0.8, 1.0))
    if kind < 0.7 or horizon is None:
        return blend(wall, table, y)
    sharpness = float(rng.choice([8.0, 40.0]))
    edge = min(rng.uniform(0.45, 0.75), horizon / size)
    return blend(wall * (1 - 0.1 * y[..., None]), table, (y - edge) * sharpness + 0.5)


def busy_background(shot: Shot, split: str, scenes: tuple[Path, ...], horizon: float | None) -> ndarray:
    """Cut from a scene or a split's textures, at times a wall above a table, (size, size, 3) float32 of about 0..1."""
    size, rng = shot.size, shot.rng
    if scenes:
        scene = _scene(scenes[int(rng.integers(len(scenes)))], size)
        return _focus(_crop(scene, size, size, rng), rng)
    if horizon is None:
        return _cut_texture(UNDER, split, shot, size)
    if rng.random() < 0.4:
        return _cut_texture(range(len(TEXTURES)), split, shot, size)
    edge = int(min(rng.uniform(0.35, 0.75) * size, horizon))
    wall = _focus(_cut_texture(WALLS, split, shot, edge), rng)
    table = _cut_texture(TABLES, split, shot, size - edge)
    picture = np.concatenate([wall, table])
    distance = np.abs(np.arange(size, dtype=np.float32) - edge) / size
    picture *= (1 - 0.22 * np.exp(-distance * 14))[:, None, None]  # darker where they meet
    return picture


@lru_cache(maxsize=128)
def _scene(file: Path, size: int) -> ndarray:
    """Return the middle of a user's photo, uint8; shorter side 1.5 `size`, longer side at most 2.25."""
    photo = load_photo(file)
    shorter = min(photo.shape[:2])
    top, left = (max(0, side - int(1.5 * shorter)) // 2 for side in photo.shape[:2])
    photo = photo[top:photo.shape[0] - top, left:photo.shape[1] - left]
    scale = 1.5 * size / shorter
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _cut_texture(kinds: Sequence[int], split: str, shot: Shot, height: int) -> ndarray:
    """Cut a piece as wide as the photo from a texture of some kind: (height, size, 3) float32, about 0..1."""
    kind = kinds[int(shot.rng.integers(len(kinds)))]
    picture = texture(kind, int(shot.rng.integers(PICTURES_EACH)), shot.size, shot.seed, split)
    return _crop(picture, shot.size, height, shot.rng)


@lru_cache(maxsize=len(TEXTURES) * PICTURES_EACH)
def texture(kind: int, number: int, size: int, seed: int, split: str) -> ndarray:
    """Draw one of a split's textures, uint8, 1.5 times the photo's side."""
    rng = np.random.default_rng([seed, 301, kind, number, *split.encode()])
    return (TEXTURES[kind](int(size * 1.5), rng).clip(0, 1) * 255).astype(np.uint8)


def _crop(picture: ndarray, width: int, height: int, rng: Generator) -> ndarray:
    """Return some part of a picture, often mirrored, a little tinted: (height, width, 3) float32, about 0..1."""
    high, wide = picture.shape[:2]
    side = int(rng.uniform(0.62, 1.0) * min(high, wide))
    deep = max(2, int(side * height / width))
    x, y = int(rng.integers(0, wide - side + 1)), int(rng.integers(0, high - deep + 1))
    crop = cv2.resize(picture[y:y + deep, x:x + side], (width, height), interpolation=cv2.INTER_AREA)
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.ascontiguousarray(crop) * (rng.uniform(0.90, 1.08, 3) / 255).astype(np.float32)


def _focus(picture: ndarray, rng: Generator) -> ndarray:
    """Blur a picture often enough: the camera is focused on the products."""
    return cv2.GaussianBlur(picture, (0, 0), 0.018 * picture.shape[1]) if rng.random() < 0.4 else picture


# ---- props: each is drawn on a transparent RGBA canvas
@lru_cache(maxsize=2 * PROPS)
def prop(number: int, above: bool, size: int, seed: int) -> ndarray:
    """Draw a prop (the first four kinds may be seen from above): (size/2, size/2, 4) uint8 RGBA, premultiplied."""
    rng = np.random.default_rng([seed, 302, number])
    canvas = np.zeros((size // 2, size // 2, 4), np.float32)
    kinds = PROP_KINDS[:4] if above else PROP_KINDS
    kinds[number % len(kinds)](canvas, draw_colour(rng, (0.05, 0.55), (0.55, 1.0)), rng)
    return (canvas * 255).round().astype(np.uint8)


def _sphere(canvas: ndarray, colour: ndarray, rng: Generator, flat: bool = False) -> None:
    """A sphere, or a flat stone."""
    n, flatness = len(canvas), rng.uniform(0.5, 0.7) if flat else 1.0
    y, x = (np.mgrid[0:n, 0:n].astype(np.float32) - (n - 1) / 2) / (n / 2 - 1)
    y = (y - (1 - flatness)) / flatness
    r = np.sqrt(x * x + y * y)
    facing = 0.7 * np.sqrt(np.clip(1 - r * r, 0, 1)) - 0.4 * x - 0.5 * y
    glint = 0.3 * np.exp(-((x + 0.35) ** 2 + (y + 0.45) ** 2) / 0.03)
    rgb = colour * (0.45 + 0.68 * np.clip(facing, 0, 1))[..., None] + glint[..., None]
    paint_over(canvas, rgb.clip(0, 1), np.clip((1 - r) * n / 2 * flatness + 0.5, 0, 1))


def _sprig(canvas: ndarray, colour: ndarray, rng: Generator) -> None:
    n, hue = len(canvas), rng.uniform(70, 160)
    stem = np.linspace([0.15, 0.97], [rng.uniform(0.5, 0.8), 0.25], 8) * n
    for i, (x, y) in enumerate(np.repeat(stem, 2, axis=0)):
        angle = -0.9 + (0.8 if i % 2 else -0.8) + rng.uniform(-0.2, 0.2)
        green = hsv(hue, rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75))
        _fill(canvas, leaf(x, y, n * rng.uniform(0.22, 0.32), angle, 0.42), green)


def _blossom(canvas: ndarray, colour: ndarray, rng: Generator) -> None:
    """Two rings of petals around a yellow middle."""
    n, petals = len(canvas), int(rng.integers(5, 9))
    for ring, length in enumerate((0.46, 0.30)):
        for angle in (np.arange(petals) + ring / 2) * 2 * np.pi / petals:
            shade = np.clip(colour * rng.uniform(0.88, 1.0) + 0.08 * ring, 0, 1)
            _fill(canvas, leaf(n / 2, n / 2, n * length, angle, 0.6), shade)
    t = np.linspace(0, 6, 14)
    middle = n * np.c_[4 + 0.5 * np.cos(t), 4 + 0.5 * np.sin(t)]
    _fill(canvas, np.int32(middle), np.float32([0.93, 0.75, 0.3]))


def _box(canvas: ndarray, colour: ndarray, rng: Generator, name: str) -> None:
    """A cube, or a wrapped gift with a ribbon and a bow."""
    colours = {"face": colour, "ribbon": draw_colour(rng, (0.2, 0.8), (0.6, 0.95))}
    for key, light, corners in SHAPES[name]:
        _fill(canvas, np.int32(np.array(corners) * len(canvas) * 8), (colours[key] * light).clip(0, 1))


def _fill(canvas: ndarray, corners: ndarray, colour: ndarray) -> None:
    """Paint a polygon (corners in eighths of a pixel) over an RGBA canvas."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 3)
    paint_over(canvas, np.broadcast_to(colour, (*mask.shape, 3)), mask.astype(np.float32) / 255)


PROP_KINDS = (_sphere, partial(_sphere, flat=True), _sprig, _blossom, partial(_box, name="cube"),
              partial(_box, name="gift"))


# ---- what products stand or lie on
ROUND_TOP = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0, 2 * np.pi, 65)[:-1]])
SQUARE_TOP = np.array([[-0.92, -1], [0.92, -1], [1, 1], [-1, 1]])


def add_stand(picture: ndarray, span: tuple[float, float], foot: float, rng: Generator) -> None:
    """Draw a podium or a tray, in place, whose top holds feet on the row `foot` between the columns `span`."""
    size = len(picture)
    colour = draw_colour(rng, (0.0, 0.35), (0.75, 1.0))
    half = (span[1] - span[0]) / 2 * rng.uniform(1.15, 1.4) + 0.03 * size
    deep = half * rng.uniform(0.2, 0.3)
    thick = size * (rng.uniform(0.015, 0.035) if rng.random() < 0.4 else rng.uniform(0.08, 0.3))
    centre = np.array([(span[0] + span[1]) / 2, foot - 0.25 * deep])
    top = centre + (ROUND_TOP if rng.random() < 0.7 else SQUARE_TOP) * [half, deep]
    # its shadow, its side, lit from the left, and its top
    shadow = np.zeros((size, size), np.float32)
    cv2.fillConvexPoly(shadow, cv2.convexHull(np.int32(top + [0.06 * size, thick])), 0.4, cv2.LINE_AA)
    picture *= (1 - cv2.GaussianBlur(shadow, (0, 0), 0.025 * size))[..., None]
    across = np.clip((np.arange(size, dtype=np.float32) - centre[0]) / half, -1, 1)
    light = 0.92 - 0.22 * across - 0.12 * across ** 2
    side = cv2.convexHull(np.int32(np.r_[top, top + [0, thick]]))
    _cover(picture, side, (colour * light[:, None]).clip(0, 1))
    _cover(picture, np.int32(top), np.clip(colour * 1.06, 0, 1))


def _cover(picture: ndarray, corners: ndarray, colour: ndarray) -> None:
    """Paint a convex polygon over a picture, in place."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, corners, 255, cv2.LINE_AA)
    alpha = (mask.astype(np.float32) / 255)[..., None]
    picture *= 1 - alpha
    picture += alpha * colour


def add_box(picture: ndarray, box: Box, rng: Generator) -> None:
    """Draw an open gift box seen from above, in place, around `box` (xyxy in pixels), lined with paper or satin."""
    size = len(picture)
    colour = draw_colour(rng, (0.1, 0.7), (0.35, 0.95))
    lining = draw_colour(rng, (0.0, 0.2), (0.85, 1.0)) if rng.random() < 0.7 else colour * 0.55
    margin, wall = 0.05 * size, 0.025 * size
    x1, y1, x2, y2 = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    shadow = np.zeros((size, size), np.float32)
    _rectangle(shadow, (x1 + wall, y1 + wall, x2 + wall, y2 + wall), 0.5)
    picture *= (1 - cv2.GaussianBlur(shadow, (0, 0), 0.03 * size))[..., None]
    # the wall's shadow falls on the floor at the upper and left side
    _rectangle(picture, (x1, y1, x2, y2), colour.tolist())
    _rectangle(picture, (x1 + wall, y1 + wall, x2 - wall, y2 - wall), (lining * 0.72).tolist())
    _rectangle(picture, (x1 + 1.6 * wall, y1 + 1.8 * wall, x2 - wall, y2 - wall), lining.tolist())


def _rectangle(picture: ndarray, box: Box, colour: float | list[float]) -> None:
    x1, y1, x2, y2 = (int(round(value)) for value in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), colour, -1)
