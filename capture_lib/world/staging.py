"""Photos of the rendered world: products in a pose on a ground, shadows, props, stickers, light and noise."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from capture_lib.world import backdrops
from capture_lib.world.drawing import cut_out
from capture_lib.world.packaging import real_height
from capture_lib.world.wording import Product


@dataclass(frozen=True)
class StagingSettings:
    """How photos are taken: shares of photos, and heights as fractions of the photo's side."""

    single_height: tuple[float, float] = (0.45, 0.85)  # longest side of a product that stands alone
    multi_height: tuple[float, float] = (0.30, 0.60)   # height of a product in a group
    plain: float = 0.5          # share of photos on a plain ground
    strong_tilt: float = 0.15   # share of products tilted by up to 35 degrees; the others by about 4
    reflection: float = 0.2     # share of photos on a glossy table
    props: tuple[float, float] = (0.20, 0.45)    # share with 1 to 3 props: single products, groups
    sticker: tuple[float, float] = (0.20, 0.30)  # share with a sticker: single products, groups
    banner: tuple[float, float] = (0.05, 0.10)   # share with a banner: single products, groups
    blur: float = 0.12
    least_visible: float = 0.5  # what overlapping products leave of a product's box, as far as it can be had


@dataclass(frozen=True)
class Pose:
    """Where a cut-out stands, in pixels: middle of its foot, height and width; tilt in degrees, shear."""

    x: float
    foot: float
    height: float
    width: float
    tilt: float = 0.0
    shear: float = 0.0

    def box(self) -> tuple[float, float, float, float]:
        """The box that holds it, xyxy in pixels."""
        t = np.deg2rad(abs(self.tilt))
        w = self.width * np.cos(t) + self.height * (np.sin(t) + abs(self.shear))
        h = self.height * np.cos(t) + self.width * np.sin(t)
        middle = self.foot - self.height / 2
        return self.x - w / 2, middle - h / 2, self.x + w / 2, middle + h / 2


def photo(products: list[Product], size: int, seed: int, rng: np.random.Generator,
          settings: StagingSettings | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Takes a photo of products: one stands alone, several as a group.

    Returns:
        photo: (size, size, 3) uint8 RGB.
        pieces: (size, size) uint8, n where the n-th product (from 1) is visible, 0 elsewhere.
    """
    s, group = settings or StagingSettings(), int(len(products) > 1)
    plain = rng.random() < s.plain
    picture = backdrops.plain_ground(size, rng) if plain else backdrops.busy_ground(size, seed, rng)
    pieces = np.zeros((size, size), np.uint8)
    props = int(rng.integers(1, 4)) if rng.random() < s.props[group] else 0
    for _ in range(props):
        _add_prop(picture, pieces, False, seed, rng)
    _add_products(picture, pieces, products, seed, rng, s)
    if props and rng.random() < 0.5:
        _add_prop(picture, pieces, True, seed, rng)
    chance = rng.random()
    if chance < s.sticker[group]:
        _add_sticker(picture, pieces, seed, rng)
    elif chance < s.sticker[group] + s.banner[group]:
        _add_banner(picture, pieces, rng)
    return _light(picture, s, rng), pieces


def _add_products(picture: np.ndarray, pieces: np.ndarray, products: list[Product], seed: int,
                  rng: np.random.Generator, s: StagingSettings) -> None:
    """Pastes the products from back to front and notes in `pieces` where each is visible."""
    size = len(picture)
    pictures = [_pictures(product, int(size * 1.5), seed) for product in products]
    aspects = [p[0].shape[1] / p[0].shape[0] for p in pictures]
    poses = _poses(products, aspects, size, s, rng)
    strength, glossy = rng.uniform(0.25, 0.7), rng.random() < s.reflection
    for n in _back_to_front(poses):
        layer = _placed(pictures[n], poses[n], size)
        _shadow(picture, layer[..., 3], poses[n], strength)
        if glossy and abs(poses[n].tilt) < 6:
            _reflect(picture, layer, poses[n].foot)
        _paste(picture, layer)
        pieces[layer[..., 3] > 0.5] = n + 1


# ---- poses
def _poses(products: list[Product], aspects: list[float], size: int, s: StagingSettings,
           rng: np.random.Generator) -> list[Pose]:
    """Poses in which every product can be seen: the best of a few tries."""
    if len(products) == 1:
        return [_single_pose(aspects[0], size, s, rng)]
    best, best_share = [], -1.0
    for _ in range(12):
        poses = _group_poses(products, aspects, size, s, rng)
        share = _least_visible(poses, size)
        if share > best_share:
            best, best_share = poses, share
        if share >= s.least_visible:
            break
    return best


def _tilt(s: StagingSettings, rng: np.random.Generator) -> float:
    return float(rng.uniform(-35, 35) if rng.random() < s.strong_tilt else rng.normal(0, 3.5))


def _single_pose(aspect: float, size: int, s: StagingSettings, rng: np.random.Generator) -> Pose:
    """One product somewhere near the middle, all of it inside the photo."""
    height = rng.uniform(*s.single_height) * size / max(1.0, aspect)
    tilt, shear = _tilt(s, rng), float(rng.normal(0, 0.03))
    x1, y1, x2, y2 = Pose(0, 0, height, height * aspect, tilt, shear).box()
    fit = min(1.0, 0.97 * size / (x2 - x1), 0.97 * size / (y2 - y1))
    free_x, free_y = (size - (x2 - x1) * fit) / 2, (size - (y2 - y1) * fit) / 2
    x = size / 2 + free_x * float(np.clip(rng.normal(0, 0.35), -1, 1))
    middle = size / 2 + free_y * float(np.clip(rng.normal(0.2, 0.4), -1, 1))
    return Pose(x, middle + height * fit / 2, height * fit, height * fit * aspect, tilt, shear)


def _group_poses(products: list[Product], aspects: list[float], size: int, s: StagingSettings,
                 rng: np.random.Generator) -> list[Pose]:
    """Products side by side in one row or two, in the order of `products`; real proportions within limits."""
    low, high = s.multi_height[0] * size, s.multi_height[1] * size
    unit = rng.uniform(0.75, 1.0) * high / max(real_height(p) for p in products)
    wanted = [unit * real_height(p) * rng.uniform(0.9, 1.1) for p in products]
    heights = [float(np.clip(h, low / max(1.0, a), high)) for h, a in zip(wanted, aspects, strict=True)]
    order = rng.permutation(len(products))
    one_row = len(products) <= 3 or (len(products) == 4 and rng.random() < 0.5)
    rows = [(order, rng.uniform(0.72, 0.92))] if one_row else [
        (order[::2], rng.uniform(0.52, 0.64)), (order[1::2], rng.uniform(0.86, 0.95))]
    poses: dict[int, Pose] = {}
    for row, foot in rows:
        poses |= _row_poses(row, heights, aspects, foot * size, size, s, rng)
    return [poses[i] for i in range(len(products))]


def _row_poses(row: np.ndarray, heights: list[float], aspects: list[float], foot: float, size: int,
               s: StagingSettings, rng: np.random.Generator) -> dict[int, Pose]:
    """One row: neighbours overlap by up to a fifth of their width or keep a small distance."""
    overlap = rng.uniform(-0.12, 0.22) if len(row) > 1 else 0.0
    widths = np.array([heights[i] * aspects[i] for i in row])
    fit = min(1.0, 0.94 * size / (widths.sum() * (1 - overlap)))
    widths, steps = widths * fit, widths * fit * (1 - overlap)
    free = max(0.0, 0.94 * size - steps.sum())
    left = 0.03 * size + free * float(np.clip(rng.normal(0.5, 0.18), 0, 1))
    poses = {}
    for n, i in enumerate(row):
        height, x = heights[i] * fit, left + steps[:n].sum() + widths[n] / 2
        y = max(min(foot + rng.uniform(-0.05, 0.04) * size, 0.985 * size), height + 2)
        tilt = _tilt(s, rng) * (0.6 if len(row) > 2 else 1.0)
        poses[int(i)] = Pose(float(x), float(y), height, float(widths[n]), tilt, float(rng.normal(0, 0.02)))
    return poses


def _back_to_front(poses: list[Pose]) -> list[int]:
    return sorted(range(len(poses)), key=lambda n: poses[n].foot)


def _least_visible(poses: list[Pose], size: int, cells: int = 56) -> float:
    """Share of its box that the most hidden product shows, counted on a coarse grid of boxes."""
    grid, full = np.full((cells, cells), -1, np.int16), {}
    for n in _back_to_front(poses):
        x1, y1, x2, y2 = (int(round(v * cells / size)) for v in poses[n].box())
        full[n] = max(1, (x2 - x1) * (y2 - y1))
        grid[max(y1, 0):max(y2, 0), max(x1, 0):max(x2, 0)] = n
    return min(float((grid == n).sum()) / count for n, count in full.items())


# ---- pasting
@lru_cache(maxsize=1024)
def _pictures(product: Product, longest: int, seed: int) -> list[np.ndarray]:
    """The product's cut-out at full, half and quarter size: uint8 RGBA, premultiplied."""
    picture = (cut_out(product, longest, seed) * 255).round().astype(np.uint8)
    h, w = picture.shape[:2]
    return [picture, *(cv2.resize(picture, (w // f, h // f), interpolation=cv2.INTER_AREA) for f in (2, 4))]


def _placed(pictures: list[np.ndarray], pose: Pose, size: int) -> np.ndarray:
    """A cut-out warped to its pose: (size, size, 4) float32 RGBA in 0..1, premultiplied."""
    picture = next((p for p in reversed(pictures) if len(p) >= pose.height), pictures[0])
    h, w = picture.shape[:2]
    t, scale = np.deg2rad(pose.tilt), pose.height / h
    rotation = np.float32([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    matrix = rotation @ np.float32([[1, pose.shear], [0, 1]]) * scale
    middle = np.float32([pose.x, pose.foot - pose.height / 2])
    shift = middle - matrix @ np.float32([(w - 1) / 2, (h - 1) / 2])
    warped = cv2.warpAffine(picture, np.c_[matrix, shift], (size, size), flags=cv2.INTER_LINEAR)
    return warped.astype(np.float32) / 255


def _paste(picture: np.ndarray, layer: np.ndarray) -> None:
    """Lays a premultiplied RGBA layer over the picture, in place."""
    picture *= 1 - layer[..., 3:]
    picture += layer[..., :3]


def _shadow(picture: np.ndarray, alpha: np.ndarray, pose: Pose, strength: float) -> None:
    """Darkens the ground: a soft shadow to the lower right, and a dark line under an upright foot."""
    size, half = len(picture), len(picture) // 2
    small, reach = cv2.resize(alpha, (half, half), interpolation=cv2.INTER_AREA), pose.height / 2
    move = np.float32([[1, -0.10, 0.05 * pose.foot + 0.06 * reach], [0, 0.97, 0.015 * pose.foot + 0.03 * reach]])
    dark = 0.5 * cv2.GaussianBlur(cv2.warpAffine(small, move, (half, half)), (0, 0), max(1.0, 0.06 * reach))
    if abs(pose.tilt) < 10:
        foot = np.zeros((half, half), np.float32)
        axes = (max(1, int(pose.width * 0.24)), max(1, int(pose.width * 0.05)))
        cv2.ellipse(foot, (int(pose.x / 2), int((pose.foot - 1) / 2)), axes, 0, 0, 360, 1.0, -1)
        dark += 0.7 * cv2.GaussianBlur(foot, (0, 0), max(1.0, pose.width * 0.02))
    picture *= (1 - strength * cv2.resize(dark.clip(0, 1), (size, size)))[..., None]


def _reflect(picture: np.ndarray, layer: np.ndarray, foot: float) -> None:
    """A mirror image below the foot, fading out."""
    first = int(foot)
    depth = min(len(picture) - first, first)
    if depth < 2:
        return
    fade = 0.28 * np.linspace(1, 0, depth, dtype=np.float32)[:, None, None] ** 2
    _paste(picture[first:first + depth], layer[first - depth:first][::-1] * fade)


# ---- props and promotion: what covers a product makes it invisible
def _hides(pieces: np.ndarray, cover: np.ndarray, most: float) -> bool:
    """True if a cover would hide more than the share `most` of what is visible of any product."""
    seen, hidden = np.bincount(pieces.ravel()), np.bincount(pieces[cover])
    return bool((hidden[1:] > most * seen[1:len(hidden)]).any())


def _add_prop(picture: np.ndarray, pieces: np.ndarray, front: bool, seed: int, rng: np.random.Generator) -> None:
    """A prop near a side of the photo; one in front hides at most a tenth of a product."""
    size = len(picture)
    height = rng.uniform(0.12, 0.22 if front else 0.36) * size
    x = (rng.uniform(-0.02, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1.02)) * size
    foot = (rng.uniform(0.9, 1.02) if front else rng.uniform(0.6, 0.9)) * size
    pose = Pose(x, foot, height, height, float(rng.uniform(-8, 8)))
    layer = _placed([backdrops.prop(int(rng.integers(backdrops.PROPS)), size, seed)], pose, size)
    cover = layer[..., 3] > 0.5
    if not _hides(pieces, cover, 0.1):
        _shadow(picture, layer[..., 3], pose, 0.5)
        _paste(picture, layer)
        pieces[cover] = 0


def _add_sticker(picture: np.ndarray, pieces: np.ndarray, seed: int, rng: np.random.Generator) -> None:
    """A sticker in a corner where it hides at most a fifth of any product, if there is one."""
    size = len(picture)
    sticker = backdrops.sticker(int(rng.integers(backdrops.STICKERS)), size, seed)
    h, w = sticker.shape[:2]
    for corner in rng.permutation(4):
        dx, dy = (int(v * size) for v in rng.uniform(0.01, 0.06, 2))
        x, y = dx if corner % 2 else size - w - dx, dy if corner < 2 else size - h - dy
        cover = np.zeros((size, size), bool)
        cover[y:y + h, x:x + w] = sticker[..., 3] > 127
        if not _hides(pieces, cover, 0.2):
            alpha = sticker[..., 3:].astype(np.float32) / 255
            _paste(picture[y:y + h, x:x + w], np.dstack([sticker[..., :3] / np.float32(255) * alpha, alpha]))
            pieces[cover] = 0
            return


def _add_banner(picture: np.ndarray, pieces: np.ndarray, rng: np.random.Generator) -> None:
    """A strip of promotion along the lower edge, unless it hides more than a fifth of a product."""
    strip = backdrops.banner(len(picture), rng)
    cover = np.zeros(pieces.shape, bool)
    cover[-len(strip):] = True
    if not _hides(pieces, cover, 0.2):
        picture[cover] = strip.reshape(-1, 3) / np.float32(255)
        pieces[cover] = 0


def _light(picture: np.ndarray, s: StagingSettings, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour of the light, a gradient, blur and sensor noise; (size, size, 3) uint8."""
    size = len(picture)
    y, x = np.mgrid[0:8, 0:8].astype(np.float32) / 7 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.18) * (x * np.cos(angle) + y * np.sin(angle))
    field -= rng.uniform(0, 0.2) * (x * x + y * y)
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.96, 1.04, 3)
    picture = picture * cv2.resize(field.astype(np.float32), (size, size))[..., None] * gain.astype(np.float32)
    if rng.random() < s.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.0) * size / 224)
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0, 0.012))
    return ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)
