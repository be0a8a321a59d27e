"""Photos of the rendered world: products in a pose on a background, shadows, props, promotion, light and noise."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator

from capture_lib.world import backdrops, promotion
from capture_lib.world.drawing import draw_product
from capture_lib.world.layouts import STAGING, Layout, Pose, Shot
from capture_lib.world.packaging import FORMS
from capture_lib.world.products import Product

CELLS = 56  # side of the small picture in which a try is evaluated

Pictures = list[ndarray]  # a cut-out in several sizes, largest first
Corner = tuple[int, int]  # column and row of a layer's upper left corner in the photo


@dataclass
class Photo:
    """A photo, while it is made and when it is done."""

    picture: ndarray  # (size, size, 3) RGB, float32 of about 0..1 at first, uint8 in the end
    pieces: ndarray  # (size, size) uint8: n where the n-th product (from 1) is visible, 0 elsewhere
    plain: bool  # the background

    def paste(self, layer: ndarray, corner: Corner, number: int = 0) -> None:
        """Lay a premultiplied RGBA layer over the picture: the product `number`, or what is none (0)."""
        under = _window(self.picture, layer, corner)
        under *= 1 - layer[..., 3:]
        under += layer[..., :3]
        _window(self.pieces, layer, corner)[layer[..., 3] > 0.5] = number

    def hides(self, layer: ndarray, corner: Corner, max_share: float) -> bool:
        """Return True if a layer would hide more than a share of what is visible of any product."""
        visible = np.bincount(self.pieces.ravel())
        hidden = np.bincount(_window(self.pieces, layer, corner)[layer[..., 3] > 0.5])
        return bool((hidden[1:] > max_share * visible[1:len(hidden)]).any())


def take_photo(products: list[Product], size: int, seed: int, rng: Generator, split: str = "train",
               scenes: tuple[Path, ...] = (), settings: SimpleNamespace = STAGING) -> Photo:
    """Take a photo, `size` pixels wide and high, of products: one stands or lies alone, several as a group.

    Drawn backgrounds belong to one `split` each; `scenes` (photo files, of this split alone) replace the busy ones.
    InputError if a scene does not decode. `seed` is the world's.
    """
    shot = Shot(size, seed, rng, settings)
    group = int(len(products) > 1)
    pictures = [_pictures(product, int(size * 1.5), seed) for product in products]
    layout = _arrange(products, pictures, shot)
    # the background; nobody stands above the edge of its table
    horizon = None if layout.above else min(pose.foot for pose in layout.poses) - 0.04 * size
    plain = bool(rng.random() < settings.plain)
    if plain:
        picture = backdrops.plain_background(shot, horizon)
    else:
        picture = backdrops.busy_background(shot, split, scenes, horizon)
    boxes = np.array([pose.box() for pose in layout.poses])
    if layout.stand:
        foot = max(pose.foot for pose in layout.poses)
        backdrops.add_stand(picture, (boxes[:, 0].min(), boxes[:, 2].max()), foot, rng)
    if layout.name == "box":
        backdrops.add_box(picture, (*boxes[:, :2].min(0), *boxes[:, 2:].max(0)), rng)
    # products and props on it, and what the shop lays over them
    photo = Photo(picture, np.zeros((size, size), np.uint8), plain)
    if rng.random() < settings.frame:
        promotion.add_frame(picture, rng)
    props = int(rng.integers(1, 4)) if rng.random() < settings.props[group] else 0
    for _ in range(props):
        _add_prop(photo, layout.above, False, shot)
    _add_products(photo, pictures, layout, shot)
    if props and rng.random() < 0.5:
        _add_prop(photo, layout.above, True, shot)
    _promote(photo, products[0].brand, group, shot)
    # exposure, warm or cold light, a gradient, blur and sensor noise
    y, x = np.mgrid[0:8, 0:8].astype(np.float32) / 7 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.18) * (x * np.cos(angle) + y * np.sin(angle))
    field -= rng.uniform(0, 0.2) * (x * x + y * y)
    warmth = float(np.clip(rng.normal(0, 0.03), -0.08, 0.08))
    gain = rng.uniform(0.88, 1.12) * rng.uniform(0.98, 1.02, 3) * (1 + warmth * np.array([1.0, 0.2, -1.0]))
    picture = picture * cv2.resize(field.astype(np.float32), (size, size))[..., None] * gain.astype(np.float32)
    if rng.random() < settings.blur:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.0) * size / 224)
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0, 0.012))
    photo.picture = ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)
    return photo


def _window(picture: ndarray, layer: ndarray, corner: Corner) -> ndarray:
    """Return the part of a picture that lies under a layer (a view)."""
    x, y = corner
    return picture[y:y + layer.shape[0], x:x + layer.shape[1]]


# ---- arrangement
def _arrange(products: list[Product], pictures: list[Pictures], shot: Shot) -> Layout:
    """Find an arrangement in which every product can be seen."""
    aspects = [of_product[0].shape[1] / of_product[0].shape[0] for of_product in pictures]
    if len(products) == 1:
        return shot.single(aspects[0])
    heights = [FORMS[product.silhouette]["height"] * product.variant.scale for product in products]
    scale = CELLS / shot.size
    for _ in range(12):  # tries; then the plainest arrangement is taken
        layout = shot.group(heights, aspects)
        # the share that the most hidden product shows of itself, estimated in a small picture
        grid, full = np.zeros((CELLS, CELLS), np.uint8), np.ones(len(pictures) + 1)
        for n in layout.back_to_front():
            smallest, pose = pictures[n][-1], layout.poses[n]
            layer, corner = _place([smallest], pose, CELLS, scale)
            _window(grid, layer, corner)[layer[..., 3] > 0.5] = n + 1
            covered = float((smallest[..., 3] > 127).mean())
            full[n + 1] = max(1.0, covered * pose.height * pose.width * scale ** 2)
        visible = np.bincount(grid.ravel(), minlength=len(full)) / full
        if visible[1:].min() >= shot.settings.min_visible:
            return layout
    return shot.spread(aspects)


# ---- products
def _add_products(photo: Photo, pictures: list[Pictures], layout: Layout, shot: Shot) -> None:
    """Paste the products from back to front, each with its shadow."""
    rng = shot.rng
    strength = rng.uniform(0.3, 0.7)
    glossy, cast = rng.random() < shot.settings.reflection, rng.random() < shot.settings.cast
    kind = "above" if layout.above else "cast" if cast else "soft"
    slant = float(rng.uniform(0.25, 0.75))
    for n in layout.back_to_front():
        pose = layout.poses[n]
        layer, corner = _place(pictures[n], pose, shot.size)
        _add_shadow(photo, layer[..., 3], corner, pose, kind, slant, strength)
        if glossy and not layout.above and abs(pose.tilt) < 6:
            # a mirror image below the foot, fading out
            x, foot = corner[0], int(pose.foot)
            rows = layer[:max(0, foot - corner[1])][::-1][:max(0, shot.size - foot)]
            if len(rows) >= 2:
                fade = 0.28 * np.linspace(1, 0, len(rows), dtype=np.float32)[:, None, None] ** 2
                photo.paste(rows * fade, (x, foot))
        photo.paste(layer, corner, n + 1)


@lru_cache(maxsize=1024)
def _pictures(product: Product, longest: int, seed: int) -> Pictures:
    """Return the product's cut-out at full, half, quarter and eighth size: uint8 RGBA, premultiplied."""
    full = (draw_product(product, longest, seed) * 255).round().astype(np.uint8)
    h, w = full.shape[:2]
    sizes = [(max(2, w // factor), max(2, h // factor)) for factor in (2, 4, 8)]
    return [full, *(cv2.resize(full, size, interpolation=cv2.INTER_AREA) for size in sizes)]


def _place(pictures: Pictures, pose: Pose, size: int, scale: float = 1.0) -> tuple[ndarray, Corner]:
    """Warp a cut-out to its pose (times `scale`) and cut it to the photo: (h, w, 4) float32 RGBA, and its corner."""
    picture = next((p for p in reversed(pictures) if len(p) >= pose.height * scale), pictures[0])
    h, w = picture.shape[:2]
    # from pixels of the cut-out to pixels of the photo
    angle, zoom = np.deg2rad(pose.tilt), scale * pose.height / h
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    x, y = np.float32([pose.x, pose.foot - pose.height / 2]) * scale
    centred = np.float32([[1, 0, -(w - 1) / 2], [0, 1, -(h - 1) / 2], [0, 0, 1]])
    shrunk = np.float32([[1, 0, 0], [0, 1, 0], [pose.shrink[0] / w, pose.shrink[1] / h, 1]])
    sheared = np.float32([[1, pose.shear, 0], [0, 1, 0], [0, 0, 1]])
    matrix = np.float32([[cos, -sin, x], [sin, cos, y], [0, 0, 1]]) @ sheared @ shrunk @ centred
    corners = cv2.perspectiveTransform(np.float32([[[-1, -1], [w, -1], [w, h], [-1, h]]]), matrix)[0]
    x, y = np.clip(np.floor(corners.min(0)), 0, size - 1).astype(int).tolist()
    right, foot = np.clip(np.ceil(corners.max(0)) + 1, (x + 1, y + 1), size).astype(int).tolist()
    shift = np.float32([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    warped = cv2.warpPerspective(picture, shift @ matrix, (right - x, foot - y), flags=cv2.INTER_LINEAR)
    return warped.astype(np.float32) / 255, (x, y)


def _add_shadow(photo: Photo, alpha: ndarray, corner: Corner, pose: Pose, kind: str, slant: float,
                strength: float) -> None:
    """Darken the background along the table ("cast"), to the lower right ("soft"), or all round ("above")."""
    size, foot = len(photo.picture), pose.foot
    half = (size // 2, size // 2)  # shadows are soft: half the photo's size will do
    reach = max(pose.height, pose.width) / 2
    matrix, blur = {
        "cast": ([[1, -slant, slant * foot], [0, 0.22, 0.78 * foot - 1]], 0.05 * reach),
        "soft": ([[1, -0.10, 0.10 * foot + 0.12 * reach], [0, 0.97, 0.03 * foot + 0.06 * reach]], 0.06 * reach),
        "above": ([[1, 0, 0.03 * reach], [0, 1, 0.05 * reach]], 0.035 * reach),
    }[kind]
    move = np.float32(matrix) @ np.float32([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]]) * 0.5
    dark = 0.55 * cv2.GaussianBlur(cv2.warpAffine(alpha, move, half), (0, 0), max(0.8, blur))
    if kind != "above" and abs(pose.tilt) < 10:
        line = np.zeros(half, np.float32)  # under an upright foot
        axes = (max(1, int(pose.width * 0.24)), max(1, int(pose.width * 0.04)))
        cv2.ellipse(line, (int(pose.x / 2), int((foot - 1) / 2)), axes, 0, 0, 360, 1.0, -1)
        dark += 0.75 * cv2.GaussianBlur(line, (0, 0), max(0.8, pose.width * 0.02))
    photo.picture *= (1 - strength * cv2.resize(dark.clip(0, 1), (size, size)))[..., None]


# ---- props and promotion: what covers a product makes it invisible
def _add_prop(photo: Photo, above: bool, front: bool, shot: Shot) -> None:
    """Add a prop near a side of the photo, unless it hides more than a tenth of a product."""
    size, rng = shot.size, shot.rng
    height = rng.uniform(0.12, 0.22 if front else 0.36) * size
    x = (rng.uniform(-0.02, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1.02)) * size
    foot = rng.uniform(*((0.2, 1.05) if above else (0.9, 1.02) if front else (0.78, 0.9))) * size
    pose = Pose(x, foot, height, height, float(rng.uniform(-180, 180) if above else rng.uniform(-8, 8)))
    prop = backdrops.prop(int(rng.integers(backdrops.PROPS)), above, size, shot.seed)
    layer, corner = _place([prop], pose, size)
    if not photo.hides(layer, corner, 0.1):
        _add_shadow(photo, layer[..., 3], corner, pose, "above" if above else "soft", 0.0, 0.5)
        photo.paste(layer, corner)


def _promote(photo: Photo, brand: int, group: int, shot: Shot) -> None:
    """Add a sticker, a banner, selling points, the brand's sign or none of them; and a watermark at times."""
    rng, s = shot.rng, shot.settings
    chance = rng.random()
    sticker, banner, points, logo = np.cumsum([s.sticker[group], s.banner[group], s.points[group], s.logo])
    if chance < sticker:
        _add_sticker(photo, promotion.sticker(int(rng.integers(promotion.STICKERS)), shot.size, shot.seed), rng)
    elif chance < banner:  # along the lower edge
        strip = promotion.banner(shot.size, rng).astype(np.float32) / 255
        corner = (0, shot.size - len(strip))
        if not photo.hides(strip, corner, 0.2):
            photo.paste(strip, corner)
    elif chance < points:
        _add_sticker(photo, promotion.selling_points(int(rng.integers(promotion.POINTS)), shot.size, shot.seed), rng)
    elif chance < logo:
        _add_sticker(photo, promotion.logo(brand, shot.size, shot.seed), rng)
    if rng.random() < s.watermark:
        # a shop's name, light or dark and so thin that all is seen through it
        alpha = promotion.watermark(int(rng.integers(promotion.WATERMARKS)), shot.size)
        alpha = alpha * np.float32(rng.uniform(0.12, 0.28))
        photo.picture *= 1 - alpha
        photo.picture += alpha * np.float32(rng.random() < 0.6)


def _add_sticker(photo: Photo, sticker: ndarray, rng: Generator) -> None:
    """Lay a sticker (RGBA) in a corner where it hides at most a fifth of any product, if there is one."""
    size, (h, w) = len(photo.picture), sticker.shape[:2]
    alpha = sticker[..., 3:].astype(np.float32) / 255
    layer = np.dstack([sticker[..., :3] / np.float32(255) * alpha, alpha])
    for place in rng.permutation(4):
        dx, dy = (int(share * size) for share in rng.uniform(0.01, 0.06, 2))
        corner = (dx if place % 2 else size - w - dx, dy if place < 2 else size - h - dy)
        if not photo.hides(layer, corner, 0.2):
            photo.paste(layer, corner)
            return
