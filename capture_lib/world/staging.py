"""Photos of the rendered world: products in a pose on a ground, shadows, props, promotion, light and noise."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from capture_lib.world import backdrops, layouts, promotion
from capture_lib.world.drawing import cut_out
from capture_lib.world.layouts import Layout, Pose, StagingSettings
from capture_lib.world.packaging import real_height
from capture_lib.world.wording import Product

TRIES = 12  # arrangements of a group that are tried before the plainest one is taken
CELLS = 56  # side of the small picture in which a try is judged

Pictures = list[np.ndarray]  # a cut-out in several sizes, largest first


def photo(products: list[Product], size: int, seed: int, rng: np.random.Generator, split: str = "train",
          scenes: tuple[Path, ...] = (), settings: StagingSettings | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Takes a photo of products: one stands or lies alone, several as a group.

    No drawn ground of one `split` is used in another. `scenes` (photo files, of this split alone) take the place of
    the drawn busy grounds.

    Returns:
        photo: (size, size, 3) uint8 RGB.
        pieces: (size, size) uint8, n where the n-th product (from 1) is visible, 0 elsewhere.

    Raises:
        InputError: a scene does not decode.
    """
    s, group = settings or StagingSettings(), int(len(products) > 1)
    pictures = [_pictures(product, int(size * 1.5), seed) for product in products]
    layout = _layout(products, pictures, size, s, rng)
    picture = _ground(layout, size, seed, rng, split, scenes, s)
    pieces = np.zeros((size, size), np.uint8)
    if rng.random() < s.frame:
        promotion.add_frame(picture, rng)
    props = int(rng.integers(1, 4)) if rng.random() < s.props[group] else 0
    for _ in range(props):
        _add_prop(picture, pieces, layout.above, False, seed, rng)
    _add_products(picture, pieces, pictures, layout, s, rng)
    if props and rng.random() < 0.5:
        _add_prop(picture, pieces, layout.above, True, seed, rng)
    _promote(picture, pieces, products[0].brand, group, seed, rng, s)
    return _light(picture, s, rng), pieces


def plain(products: list[Product], size: int, seed: int, rng: np.random.Generator,
          settings: StagingSettings | None = None) -> bool:
    """Whether `photo` of the same arguments has a plain ground: its first choices, made again."""
    s = settings or StagingSettings()
    _layout(products, [_pictures(product, int(size * 1.5), seed) for product in products], size, s, rng)
    return _plain(s, rng)


# ---- arrangement and ground
def _layout(products: list[Product], pictures: list[Pictures], size: int, s: StagingSettings,
            rng: np.random.Generator) -> Layout:
    """An arrangement in which every product can be seen."""
    aspects = [p[0].shape[1] / p[0].shape[0] for p in pictures]
    if len(products) == 1:
        return layouts.single(aspects[0], size, s, rng)
    heights = [real_height(product) for product in products]
    for _ in range(TRIES):
        layout = layouts.group(heights, aspects, size, s, rng)
        if _least_visible(pictures, layout, size) >= s.least_visible:
            return layout
    return layouts.spread(aspects, size, s, rng)


def _least_visible(pictures: list[Pictures], layout: Layout, size: int) -> float:
    """Share that the most hidden product shows of itself, judged in a small picture."""
    scale, grid, full = CELLS / size, np.zeros((CELLS, CELLS), np.uint8), np.ones(len(pictures) + 1)
    for n in _back_to_front(layout):
        layer, (x, y) = _placed([pictures[n][-1]], layout.poses[n], CELLS, scale)
        grid[y:y + layer.shape[0], x:x + layer.shape[1]][layer[..., 3] > 0.5] = n + 1
        alpha, pose = pictures[n][-1][..., 3], layout.poses[n]
        full[n + 1] = max(1.0, float((alpha > 127).mean()) * pose.height * pose.width * scale ** 2)
    return float((np.bincount(grid.ravel(), minlength=len(full)) / full)[1:].min())


def _back_to_front(layout: Layout) -> list[int]:
    return sorted(range(len(layout.poses)), key=lambda n: layout.poses[n].foot)


def _plain(s: StagingSettings, rng: np.random.Generator) -> bool:
    """The first choice after the arrangement."""
    return bool(rng.random() < s.plain)


def _ground(layout: Layout, size: int, seed: int, rng: np.random.Generator, split: str, scenes: tuple[Path, ...],
            s: StagingSettings) -> np.ndarray:
    """The picture before any product is in it: nobody stands above the edge of a table."""
    horizon = None if layout.above else min(pose.foot for pose in layout.poses) - 0.04 * size
    if _plain(s, rng):
        picture = backdrops.plain_ground(size, rng, horizon)
    else:
        picture = backdrops.busy_ground(size, seed, rng, split, scenes, horizon)
    boxes = np.array([pose.box() for pose in layout.poses])
    if layout.stand:
        foot = max(pose.foot for pose in layout.poses)
        backdrops.add_stand(picture, (boxes[:, 0].min(), boxes[:, 2].max()), foot, rng)
    if layout.name == "box":
        backdrops.add_box(picture, (*boxes[:, :2].min(0), *boxes[:, 2:].max(0)), rng)
    return picture


# ---- products
def _add_products(picture: np.ndarray, pieces: np.ndarray, pictures: list[Pictures], layout: Layout,
                  s: StagingSettings, rng: np.random.Generator) -> None:
    """Pastes the products from back to front and notes in `pieces` where each is visible."""
    size, strength = len(picture), rng.uniform(0.3, 0.7)
    glossy, cast = rng.random() < s.reflection, rng.random() < s.cast
    kind = "above" if layout.above else "cast" if cast else "soft"
    slant = float(rng.uniform(0.25, 0.75))
    for n in _back_to_front(layout):
        pose = layout.poses[n]
        layer, corner = _placed(pictures[n], pose, size)
        _shadow(picture, layer[..., 3], corner, pose, kind, slant, strength)
        if glossy and not layout.above and abs(pose.tilt) < 6:
            _reflect(picture, layer, corner, int(pose.foot))
        _paste(_window(picture, layer, corner), layer)
        _window(pieces, layer, corner)[layer[..., 3] > 0.5] = n + 1


@lru_cache(maxsize=1024)
def _pictures(product: Product, longest: int, seed: int) -> Pictures:
    """The product's cut-out at full, half, quarter and eighth size: uint8 RGBA, premultiplied."""
    picture = (cut_out(product, longest, seed) * 255).round().astype(np.uint8)
    h, w = picture.shape[:2]
    smaller = (cv2.resize(picture, (max(2, w // f), max(2, h // f)), interpolation=cv2.INTER_AREA) for f in (2, 4, 8))
    return [picture, *smaller]


def _placed(pictures: Pictures, pose: Pose, size: int, scale: float = 1.0) -> tuple[np.ndarray, tuple[int, int]]:
    """A cut-out warped to its pose (times `scale`): (h, w, 4) float32 RGBA in 0..1, premultiplied, cut to the photo.

    Also the column and the row of its upper left corner in the photo.
    """
    picture = next((p for p in reversed(pictures) if len(p) >= pose.height * scale), pictures[0])
    h, w = picture.shape[:2]
    matrix = _matrix(pose, h, w, scale)
    corners = cv2.perspectiveTransform(np.float32([[[-1, -1], [w, -1], [w, h], [-1, h]]]), matrix)[0]
    x, y = (int(v) for v in np.clip(np.floor(corners.min(0)), 0, size - 1))
    right, foot = (int(v) for v in np.clip(np.ceil(corners.max(0)) + 1, (x + 1, y + 1), size))
    shift = np.float32([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    warped = cv2.warpPerspective(picture, shift @ matrix, (right - x, foot - y), flags=cv2.INTER_LINEAR)
    return warped.astype(np.float32) / 255, (x, y)


def _matrix(pose: Pose, h: int, w: int, scale: float) -> np.ndarray:
    """From pixels of a cut-out (h, w) to pixels of the photo: shrunk, sheared, tilted, moved; (3, 3) float32."""
    t, s = np.deg2rad(pose.tilt), scale * pose.height / h
    middle = np.float32([pose.x, pose.foot - pose.height / 2]) * scale
    centred = np.float32([[1, 0, -(w - 1) / 2], [0, 1, -(h - 1) / 2], [0, 0, 1]])
    shrunk = np.float32([[1, 0, 0], [0, 1, 0], [pose.shrink[0] / w, pose.shrink[1] / h, 1]])
    cos, sin = s * np.cos(t), s * np.sin(t)
    turned = np.float32([[cos, -sin, middle[0]], [sin, cos, middle[1]], [0, 0, 1]])
    return turned @ np.float32([[1, pose.shear, 0], [0, 1, 0], [0, 0, 1]]) @ shrunk @ centred


def _window(picture: np.ndarray, layer: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """The part of a picture that lies under a layer (a view)."""
    return picture[corner[1]:corner[1] + layer.shape[0], corner[0]:corner[0] + layer.shape[1]]


def _paste(picture: np.ndarray, layer: np.ndarray) -> None:
    """Lays a premultiplied RGBA layer over the picture, in place."""
    picture *= 1 - layer[..., 3:]
    picture += layer[..., :3]


# ---- shadows and reflections
def _shadow(picture: np.ndarray, alpha: np.ndarray, corner: tuple[int, int], pose: Pose, kind: str, slant: float,
            strength: float) -> None:
    """Darkens the ground: along the table ("cast"), softly to the lower right ("soft"), or all round ("above").

    And a dark line under an upright foot.
    """
    size, half, foot = len(picture), len(picture) // 2, pose.foot
    reach = max(pose.height, pose.width) / 2
    matrix, blur = {
        "cast": ([[1, -slant, slant * foot], [0, 0.22, 0.78 * foot - 1]], 0.05 * reach),
        "soft": ([[1, -0.10, 0.10 * foot + 0.12 * reach], [0, 0.97, 0.03 * foot + 0.06 * reach]], 0.06 * reach),
        "above": ([[1, 0, 0.03 * reach], [0, 1, 0.05 * reach]], 0.035 * reach),
    }[kind]
    move = np.float32(matrix) @ np.float32([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]]) * 0.5
    dark = 0.55 * cv2.GaussianBlur(cv2.warpAffine(alpha, move, (half, half)), (0, 0), max(0.8, blur))
    if kind != "above" and abs(pose.tilt) < 10:
        line = np.zeros((half, half), np.float32)
        axes = (max(1, int(pose.width * 0.24)), max(1, int(pose.width * 0.04)))
        cv2.ellipse(line, (int(pose.x / 2), int((foot - 1) / 2)), axes, 0, 0, 360, 1.0, -1)
        dark += 0.75 * cv2.GaussianBlur(line, (0, 0), max(0.8, pose.width * 0.02))
    picture *= (1 - strength * cv2.resize(dark.clip(0, 1), (size, size)))[..., None]


def _reflect(picture: np.ndarray, layer: np.ndarray, corner: tuple[int, int], foot: int) -> None:
    """A mirror image below the foot, fading out."""
    rows = layer[:max(0, foot - corner[1])][::-1][:max(0, len(picture) - foot)]
    if len(rows) < 2:
        return
    fade = 0.28 * np.linspace(1, 0, len(rows), dtype=np.float32)[:, None, None] ** 2
    _paste(_window(picture, rows, (corner[0], foot)), rows * fade)


# ---- props and promotion: what covers a product makes it invisible
def _hides(pieces: np.ndarray, cover: np.ndarray, corner: tuple[int, int], most: float) -> bool:
    """True if a cover would hide more than the share `most` of what is visible of any product."""
    seen, hidden = np.bincount(pieces.ravel()), np.bincount(_window(pieces, cover, corner)[cover])
    return bool((hidden[1:] > most * seen[1:len(hidden)]).any())


def _add_prop(picture: np.ndarray, pieces: np.ndarray, above: bool, front: bool, seed: int,
              rng: np.random.Generator) -> None:
    """A prop near a side of the photo; one in front hides at most a tenth of a product."""
    size = len(picture)
    height = rng.uniform(0.12, 0.22 if front else 0.36) * size
    x = (rng.uniform(-0.02, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1.02)) * size
    foot = (rng.uniform(0.2, 1.05) if above else rng.uniform(0.9, 1.02) if front else rng.uniform(0.78, 0.9)) * size
    pose = Pose(x, foot, height, height, float(rng.uniform(-180, 180) if above else rng.uniform(-8, 8)))
    prop = backdrops.prop(int(rng.integers(backdrops.PROPS)), above, size, seed)
    layer, corner = _placed([prop], pose, size)
    cover = layer[..., 3] > 0.5
    if not _hides(pieces, cover, corner, 0.1):
        _shadow(picture, layer[..., 3], corner, pose, "above" if above else "soft", 0.0, 0.5)
        _paste(_window(picture, layer, corner), layer)
        _window(pieces, cover, corner)[cover] = 0


def _promote(picture: np.ndarray, pieces: np.ndarray, brand: int, group: int, seed: int, rng: np.random.Generator,
             s: StagingSettings) -> None:
    """A sticker, a banner, selling points or the brand's sign; a watermark."""
    size, chance = len(picture), rng.random()
    sticker, banner, points, logo = np.cumsum([s.sticker[group], s.banner[group], s.points[group], s.logo])
    if chance < sticker:
        _lay(picture, pieces, promotion.sticker(int(rng.integers(promotion.STICKERS)), size, seed), rng)
    elif chance < banner:
        _add_banner(picture, pieces, rng)
    elif chance < points:
        _lay(picture, pieces, promotion.selling_points(int(rng.integers(promotion.POINTS)), size, seed), rng)
    elif chance < logo:
        _lay(picture, pieces, promotion.logo(brand, size, seed), rng)
    if rng.random() < s.watermark:
        promotion.add_watermark(picture, rng)


def _lay(picture: np.ndarray, pieces: np.ndarray, sticker: np.ndarray, rng: np.random.Generator) -> None:
    """Lays a sticker (RGBA) in a corner where it hides at most a fifth of any product, if there is one."""
    size, (h, w) = len(picture), sticker.shape[:2]
    for place in rng.permutation(4):
        dx, dy = (int(v * size) for v in rng.uniform(0.01, 0.06, 2))
        corner = (dx if place % 2 else size - w - dx, dy if place < 2 else size - h - dy)
        cover = sticker[..., 3] > 127
        if not _hides(pieces, cover, corner, 0.2):
            alpha = sticker[..., 3:].astype(np.float32) / 255
            _paste(_window(picture, sticker, corner), np.dstack([sticker[..., :3] / np.float32(255) * alpha, alpha]))
            _window(pieces, cover, corner)[cover] = 0
            return


def _add_banner(picture: np.ndarray, pieces: np.ndarray, rng: np.random.Generator) -> None:
    """A strip of promotion along the lower edge, unless it hides more than a fifth of a product."""
    strip = promotion.banner(len(picture), rng)
    cover, corner = np.ones(strip.shape[:2], bool), (0, len(picture) - len(strip))
    if not _hides(pieces, cover, corner, 0.2):
        _window(picture, cover, corner)[:] = strip / np.float32(255)
        _window(pieces, cover, corner)[:] = 0


# ---- light
def _light(picture: np.ndarray, s: StagingSettings, rng: np.random.Generator) -> np.ndarray:
    """Exposure, warm or cold light, a gradient, blur and sensor noise; (size, size, 3) uint8."""
    size = len(picture)
    y, x = np.mgrid[0:8, 0:8].astype(np.float32) / 7 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.18) * (x * np.cos(angle) + y * np.sin(angle))
    field -= rng.uniform(0, 0.2) * (x * x + y * y)
    warmth = float(np.clip(rng.normal(0, 0.03), -0.08, 0.08))
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.98, 1.02, 3) * (1 + warmth * np.array([1.0, 0.2, -1.0]))
    picture = picture * cv2.resize(field.astype(np.float32), (size, size))[..., None] * gain.astype(np.float32)
    if rng.random() < s.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.0) * size / 224)
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0, 0.012))
    return ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)
