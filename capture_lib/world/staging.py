"""Photos of the rendered world: products in a pose on a background, shadows, props, promotion, light and noise."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from capture_lib.world import backdrops, layouts, promotion
from capture_lib.world.drawing import draw_product
from capture_lib.world.layouts import STAGING, Layout, Pose, Shot, StagingSettings
from capture_lib.world.packaging import real_height
from capture_lib.world.products import Product

TRIES = 12  # arrangements of a group that are tried before the plainest one is taken
CELLS = 56  # side of the small picture in which a try is evaluated

Pictures = list[np.ndarray]  # a cut-out in several sizes, largest first
Corner = tuple[int, int]  # column and row of a layer's upper left corner in the photo


def take_photo(
    products: list[Product],
    size: int,
    seed: int,
    rng: np.random.Generator,
    split: str = "train",
    scenes: tuple[Path, ...] = (),
    settings: StagingSettings = STAGING,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a photo of products: one stands or lies alone, several as a group.

    Args:
        size: side of the photo, pixels.
        seed: of the world.
        split: no drawn background of one split is used in another.
        scenes: photo files, of this split alone, that take the place of the drawn busy backgrounds.

    Returns:
        photo: (size, size, 3) uint8 RGB.
        pieces: (size, size) uint8, n where the n-th product (from 1) is visible, 0 elsewhere.

    Raises:
        InputError: a scene does not decode.
    """
    shot = Shot(size, seed, rng, settings)
    group = int(len(products) > 1)
    pictures = [_pictures(product, int(size * 1.5), seed) for product in products]
    layout = _arrange(products, pictures, shot)
    canvas = Canvas(_background(layout, shot, split, scenes), np.zeros((size, size), np.uint8))

    if rng.random() < settings.frame:
        promotion.add_frame(canvas.picture, rng)
    props = int(rng.integers(1, 4)) if rng.random() < settings.props[group] else 0
    for _ in range(props):
        _add_prop(canvas, layout.above, False, shot)
    _add_products(canvas, pictures, layout, shot)
    if props and rng.random() < 0.5:
        _add_prop(canvas, layout.above, True, shot)
    _promote(canvas, products[0].brand, group, shot)
    return _expose(canvas.picture, shot), canvas.pieces


def is_plain(products: list[Product], size: int, seed: int, rng: np.random.Generator) -> bool:
    """Return True if `take_photo` of the same arguments has a plain background: make its first choices again."""
    shot = Shot(size, seed, rng)
    _arrange(products, [_pictures(product, int(size * 1.5), seed) for product in products], shot)
    return _choose_plain(shot)


@dataclass
class Canvas:
    """A photo in the making, both in place: picture (size, size, 3) float32, pieces (size, size) uint8."""

    picture: np.ndarray
    pieces: np.ndarray

    def paste(self, layer: np.ndarray, corner: Corner) -> None:
        """Lay a premultiplied RGBA layer over the picture."""
        under = _window(self.picture, layer, corner)
        under *= 1 - layer[..., 3:]
        under += layer[..., :3]

    def mark(self, cover: np.ndarray, corner: Corner, number: int) -> None:
        """Note that the product `number` is visible where `cover` is True, or none (0)."""
        _window(self.pieces, cover, corner)[cover] = number

    def hides(self, cover: np.ndarray, corner: Corner, max_share: float) -> bool:
        """Return True if a cover would hide more than a share of what is visible of any product."""
        visible = np.bincount(self.pieces.ravel())
        hidden = np.bincount(_window(self.pieces, cover, corner)[cover])
        return bool((hidden[1:] > max_share * visible[1:len(hidden)]).any())


def _window(picture: np.ndarray, layer: np.ndarray, corner: Corner) -> np.ndarray:
    """Return the part of a picture that lies under a layer (a view)."""
    x, y = corner
    return picture[y:y + layer.shape[0], x:x + layer.shape[1]]


# ---- arrangement and background
def _arrange(products: list[Product], pictures: list[Pictures], shot: Shot) -> Layout:
    """Find an arrangement in which every product can be seen."""
    aspects = [of_product[0].shape[1] / of_product[0].shape[0] for of_product in pictures]
    if len(products) == 1:
        return layouts.single(aspects[0], shot)
    heights = [real_height(product) for product in products]
    for _ in range(TRIES):
        layout = layouts.group(heights, aspects, shot)
        if _visible_share(pictures, layout, shot.size) >= shot.settings.min_visible:
            return layout
    return layouts.spread(aspects, shot)


def _visible_share(pictures: list[Pictures], layout: Layout, size: int) -> float:
    """Return the share that the most hidden product shows of itself, estimated in a small picture."""
    scale = CELLS / size
    grid = np.zeros((CELLS, CELLS), np.uint8)
    full = np.ones(len(pictures) + 1)
    for n in _back_to_front(layout):
        smallest = pictures[n][-1]
        pose = layout.poses[n]
        layer, corner = _place([smallest], pose, CELLS, scale)
        _window(grid, layer, corner)[layer[..., 3] > 0.5] = n + 1
        covered = float((smallest[..., 3] > 127).mean())
        full[n + 1] = max(1.0, covered * pose.height * pose.width * scale ** 2)
    return float((np.bincount(grid.ravel(), minlength=len(full)) / full)[1:].min())


def _back_to_front(layout: Layout) -> list[int]:
    return sorted(range(len(layout.poses)), key=lambda n: layout.poses[n].foot)


def _choose_plain(shot: Shot) -> bool:
    """Make the first choice after the arrangement."""
    return bool(shot.rng.random() < shot.settings.plain)


def _background(layout: Layout, shot: Shot, split: str, scenes: tuple[Path, ...]) -> np.ndarray:
    """Return the picture before any product is in it: nobody stands above the edge of a table."""
    horizon = None if layout.above else min(pose.foot for pose in layout.poses) - 0.04 * shot.size
    if _choose_plain(shot):
        picture = backdrops.plain_background(shot, horizon)
    else:
        picture = backdrops.busy_background(shot, split, scenes, horizon)
    boxes = np.array([pose.box() for pose in layout.poses])
    if layout.stand:
        foot = max(pose.foot for pose in layout.poses)
        backdrops.add_stand(picture, (boxes[:, 0].min(), boxes[:, 2].max()), foot, shot.rng)
    if layout.name == "box":
        backdrops.add_box(picture, (*boxes[:, :2].min(0), *boxes[:, 2:].max(0)), shot.rng)
    return picture


# ---- products
def _add_products(canvas: Canvas, pictures: list[Pictures], layout: Layout, shot: Shot) -> None:
    """Paste the products from back to front, each with its shadow."""
    rng = shot.rng
    strength = rng.uniform(0.3, 0.7)
    glossy = rng.random() < shot.settings.reflection
    cast = rng.random() < shot.settings.cast
    kind = "above" if layout.above else "cast" if cast else "soft"
    slant = float(rng.uniform(0.25, 0.75))
    for n in _back_to_front(layout):
        pose = layout.poses[n]
        layer, corner = _place(pictures[n], pose, shot.size)
        _add_shadow(canvas, layer[..., 3], corner, pose, kind, slant, strength)
        if glossy and not layout.above and abs(pose.tilt) < 6:
            _add_reflection(canvas, layer, corner, int(pose.foot))
        canvas.paste(layer, corner)
        canvas.mark(layer[..., 3] > 0.5, corner, n + 1)


@lru_cache(maxsize=1024)
def _pictures(product: Product, longest: int, seed: int) -> Pictures:
    """Return the product's cut-out at full, half, quarter and eighth size: uint8 RGBA, premultiplied."""
    full = (draw_product(product, longest, seed) * 255).round().astype(np.uint8)
    h, w = full.shape[:2]
    pictures = [full]
    for factor in (2, 4, 8):
        size = (max(2, w // factor), max(2, h // factor))
        pictures.append(cv2.resize(full, size, interpolation=cv2.INTER_AREA))
    return pictures


def _place(pictures: Pictures, pose: Pose, size: int, scale: float = 1.0) -> tuple[np.ndarray, Corner]:
    """Warp a cut-out to its pose (times `scale`) and cut it to the photo.

    Returns:
        layer: (h, w, 4) float32 RGBA in 0..1, premultiplied.
        corner: column and row of its upper left corner in the photo.
    """
    picture = next((p for p in reversed(pictures) if len(p) >= pose.height * scale), pictures[0])
    h, w = picture.shape[:2]
    matrix = _matrix(pose, h, w, scale)
    corners = cv2.perspectiveTransform(np.float32([[[-1, -1], [w, -1], [w, h], [-1, h]]]), matrix)[0]
    x, y = np.clip(np.floor(corners.min(0)), 0, size - 1).astype(int).tolist()
    right, foot = np.clip(np.ceil(corners.max(0)) + 1, (x + 1, y + 1), size).astype(int).tolist()
    shift = np.float32([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    warped = cv2.warpPerspective(picture, shift @ matrix, (right - x, foot - y), flags=cv2.INTER_LINEAR)
    return warped.astype(np.float32) / 255, (x, y)


def _matrix(pose: Pose, h: int, w: int, scale: float) -> np.ndarray:
    """Return the map from pixels of a cut-out (h, w) to pixels of the photo, (3, 3) float32."""
    angle = np.deg2rad(pose.tilt)
    zoom = scale * pose.height / h
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    x, y = np.float32([pose.x, pose.foot - pose.height / 2]) * scale
    centred = np.float32([[1, 0, -(w - 1) / 2], [0, 1, -(h - 1) / 2], [0, 0, 1]])
    shrunk = np.float32([[1, 0, 0], [0, 1, 0], [pose.shrink[0] / w, pose.shrink[1] / h, 1]])
    sheared = np.float32([[1, pose.shear, 0], [0, 1, 0], [0, 0, 1]])
    turned = np.float32([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
    return turned @ sheared @ shrunk @ centred


# ---- shadows and reflections
def _add_shadow(canvas: Canvas, alpha: np.ndarray, corner: Corner, pose: Pose, kind: str, slant: float,
                strength: float) -> None:
    """Darken the background along the table ("cast"), softly to the lower right ("soft"), or all round ("above").

    And draw a dark line under an upright foot. All at half the photo's size.
    """
    size, foot = len(canvas.picture), pose.foot
    half = (size // 2, size // 2)
    reach = max(pose.height, pose.width) / 2
    matrix, blur = {
        "cast": ([[1, -slant, slant * foot], [0, 0.22, 0.78 * foot - 1]], 0.05 * reach),
        "soft": ([[1, -0.10, 0.10 * foot + 0.12 * reach], [0, 0.97, 0.03 * foot + 0.06 * reach]], 0.06 * reach),
        "above": ([[1, 0, 0.03 * reach], [0, 1, 0.05 * reach]], 0.035 * reach),
    }[kind]
    move = np.float32(matrix) @ np.float32([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]]) * 0.5
    dark = 0.55 * cv2.GaussianBlur(cv2.warpAffine(alpha, move, half), (0, 0), max(0.8, blur))
    if kind != "above" and abs(pose.tilt) < 10:
        line = np.zeros(half, np.float32)
        axes = (max(1, int(pose.width * 0.24)), max(1, int(pose.width * 0.04)))
        cv2.ellipse(line, (int(pose.x / 2), int((foot - 1) / 2)), axes, 0, 0, 360, 1.0, -1)
        dark += 0.75 * cv2.GaussianBlur(line, (0, 0), max(0.8, pose.width * 0.02))
    canvas.picture *= (1 - strength * cv2.resize(dark.clip(0, 1), (size, size)))[..., None]


def _add_reflection(canvas: Canvas, layer: np.ndarray, corner: Corner, foot: int) -> None:
    """Paste a mirror image below the foot, fading out."""
    x, y = corner
    rows = layer[:max(0, foot - y)][::-1][:max(0, len(canvas.picture) - foot)]
    if len(rows) >= 2:
        fade = 0.28 * np.linspace(1, 0, len(rows), dtype=np.float32)[:, None, None] ** 2
        canvas.paste(rows * fade, (x, foot))


# ---- props and promotion: what covers a product makes it invisible
def _add_prop(canvas: Canvas, above: bool, front: bool, shot: Shot) -> None:
    """Add a prop near a side of the photo, unless it hides more than a tenth of a product."""
    size, rng = shot.size, shot.rng
    height = rng.uniform(0.12, 0.22 if front else 0.36) * size
    x = (rng.uniform(-0.02, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1.02)) * size
    feet = (0.2, 1.05) if above else (0.9, 1.02) if front else (0.78, 0.9)
    foot = rng.uniform(*feet) * size
    tilt = float(rng.uniform(-180, 180) if above else rng.uniform(-8, 8))
    pose = Pose(x, foot, height, height, tilt)
    prop = backdrops.prop(int(rng.integers(backdrops.PROPS)), above, size, shot.seed)
    layer, corner = _place([prop], pose, size)
    cover = layer[..., 3] > 0.5
    if not canvas.hides(cover, corner, 0.1):
        _add_shadow(canvas, layer[..., 3], corner, pose, "above" if above else "soft", 0.0, 0.5)
        canvas.paste(layer, corner)
        canvas.mark(cover, corner, 0)


def _promote(canvas: Canvas, brand: int, group: int, shot: Shot) -> None:
    """Add a sticker, a banner, selling points or the brand's sign, or none of them; a watermark."""
    rng, settings = shot.rng, shot.settings
    chance = rng.random()
    shares = [settings.sticker[group], settings.banner[group], settings.points[group], settings.logo]
    sticker, banner, points, logo = np.cumsum(shares)
    if chance < sticker:
        number = int(rng.integers(promotion.STICKERS))
        _add_sticker(canvas, promotion.sticker(number, shot.size, shot.seed), rng)
    elif chance < banner:
        _add_banner(canvas, rng)
    elif chance < points:
        number = int(rng.integers(promotion.POINTS))
        _add_sticker(canvas, promotion.selling_points(number, shot.size, shot.seed), rng)
    elif chance < logo:
        _add_sticker(canvas, promotion.logo(brand, shot.size, shot.seed), rng)
    if rng.random() < settings.watermark:
        promotion.add_watermark(canvas.picture, rng)


def _add_sticker(canvas: Canvas, sticker: np.ndarray, rng: np.random.Generator) -> None:
    """Lay a sticker (RGBA) in a corner where it hides at most a fifth of any product, if there is one."""
    size = len(canvas.picture)
    h, w = sticker.shape[:2]
    alpha = sticker[..., 3:].astype(np.float32) / 255
    layer = np.dstack([sticker[..., :3] / np.float32(255) * alpha, alpha])
    cover = sticker[..., 3] > 127
    for place in rng.permutation(4):
        dx, dy = (int(share * size) for share in rng.uniform(0.01, 0.06, 2))
        corner = (dx if place % 2 else size - w - dx, dy if place < 2 else size - h - dy)
        if not canvas.hides(cover, corner, 0.2):
            canvas.paste(layer, corner)
            canvas.mark(cover, corner, 0)
            return


def _add_banner(canvas: Canvas, rng: np.random.Generator) -> None:
    """Lay a strip of promotion along the lower edge, unless it hides more than a fifth of a product."""
    strip = promotion.banner(len(canvas.picture), rng)
    cover = np.ones(strip.shape[:2], bool)
    corner = (0, len(canvas.picture) - len(strip))
    if not canvas.hides(cover, corner, 0.2):
        _window(canvas.picture, cover, corner)[:] = strip / np.float32(255)
        canvas.mark(cover, corner, 0)


# ---- light
def _expose(picture: np.ndarray, shot: Shot) -> np.ndarray:
    """Apply exposure, warm or cold light, a gradient, blur and sensor noise; return (size, size, 3) uint8."""
    size, rng = shot.size, shot.rng
    y, x = np.mgrid[0:8, 0:8].astype(np.float32) / 7 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.18) * (x * np.cos(angle) + y * np.sin(angle))
    field -= rng.uniform(0, 0.2) * (x * x + y * y)
    warmth = float(np.clip(rng.normal(0, 0.03), -0.08, 0.08))
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.98, 1.02, 3) * (1 + warmth * np.array([1.0, 0.2, -1.0]))
    picture = picture * cv2.resize(field.astype(np.float32), (size, size))[..., None] * gain.astype(np.float32)
    if rng.random() < shot.settings.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.0) * size / 224)
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0, 0.012))
    return ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)
