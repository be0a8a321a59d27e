"""Photos of the rendered world: grounds, props, products in a pose, shadows, stickers, light and noise."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from capture_lib import drawing
from capture_lib.drawing import Surface, font
from capture_lib.wording import Product

GROUNDS = ("marble", "cloth", "leaves", "bokeh", "wood", "shelf", "rays", "water", "tiles")
GROUNDS_EACH = 8        # different pictures of each ground; a photo takes a crop, a flip and a tint of one
PROPS, STICKERS = 40, 48
STICKER_TEXTS = ("正品", "包邮", "买一送一", "新品", "热卖", "官方授权", "限时特惠", "￥59.9", "立减20", "赠品", "假一赔十", "收藏有礼",
                 "第二件半价", "顺丰", "爆款", "7天无理由", "￥128", "双11", "NEW", "HOT", "满199减50", "送礼首选")
STICKER_COLOURS = ((226, 32, 44), (240, 92, 30), (250, 202, 44), (188, 24, 92), (30, 120, 90), (28, 30, 36), (120, 66, 190))


@dataclass(frozen=True)
class StagingSettings:
    """How photos are taken; shares are probabilities, heights are fractions of the photo's side."""
    single_height: tuple[float, float] = (0.45, 0.85)  # longest side of the product
    multi_height: tuple[float, float] = (0.30, 0.60)
    plain: float = 0.5         # grounds without texture
    strong_tilt: float = 0.15  # tilted up to 35 degrees, otherwise about 4
    props: float = 0.45
    sticker: float = 0.30
    banner: float = 0.08
    blur: float = 0.12
    least_visible: float = 0.5  # of a product's box, among overlapping products


@dataclass(frozen=True)
class Pose:
    """Where a product stands: middle of its foot and height in pixels, tilt in degrees, shear."""
    x: float
    foot: float
    height: float
    width: float
    tilt: float
    shear: float

    def box(self) -> tuple[float, float, float, float]:
        """About the box that it fills: xyxy in pixels."""
        t = np.deg2rad(abs(self.tilt))
        w = self.width * np.cos(t) + self.height * (np.sin(t) + abs(self.shear))
        h = self.height * np.cos(t) + self.width * np.sin(t)
        middle = self.foot - self.height / 2
        return self.x - w / 2, middle - h / 2, self.x + w / 2, middle + h / 2


# ---- grounds ----
def _noise(size: int, cells: int, rng: np.random.Generator, octaves: int = 4) -> np.ndarray:
    """Smooth noise, (size, size) float32 of mean 0 and deviation 1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        n = min(size, cells * 2 ** octave)
        total += cv2.resize(rng.standard_normal((n, n)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    return (total - total.mean()) / total.std()


def _colour(rng: np.random.Generator, low: float = 0.0, high: float = 0.4, value: tuple[float, float] = (0.75, 1.0)) -> np.ndarray:
    """A random colour (3,) float32 of a saturation between low and high."""
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(low, high), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _blend(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + (b - a) * np.clip(share, 0, 1)[..., None]


def _marble(n: int, rng: np.random.Generator) -> np.ndarray:
    veins = np.exp(-np.abs(_noise(n, 3, rng, 5)) * rng.uniform(5, 9)) * (0.5 + 0.5 * np.clip(_noise(n, 2, rng, 2), 0, 1))
    dark = rng.random() < 0.25
    stone = _colour(rng, 0, 0.1, (0.18, 0.3) if dark else (0.88, 0.97))
    vein = _colour(rng, 0, 0.3, (0.7, 0.9) if dark else (0.45, 0.7))
    return _blend(stone + 0.02 * _noise(n, 4, rng)[..., None], vein, 0.9 * veins)


def _cloth(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    angle, bend = rng.uniform(0, np.pi), _noise(n, 2, rng, 2) * 0.12
    along = (x * np.cos(angle) + y * np.sin(angle) + bend) * rng.uniform(3, 6)
    folds = 0.5 + 0.5 * np.sin(2 * np.pi * along + 2 * np.sin(2 * np.pi * along * 0.37 + rng.uniform(0, 6)))
    return _colour(rng, 0.05, 0.55, (0.6, 0.95)) * (0.72 + 0.33 * folds)[..., None] + 0.06 * (folds ** 6)[..., None]


def _leaf_points(x: float, y: float, length: float, angle: float, wide: float) -> np.ndarray:
    t = np.linspace(0, 1, 14)
    half = wide * length * np.sin(np.pi * t ** 0.8) * 0.5
    out = np.r_[np.c_[t * length, half], np.c_[t * length, -half][::-1]]
    turn = np.float32([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.int32(np.round((out @ turn + [x, y]) * 8))


def _leaves(n: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.ascontiguousarray(np.broadcast_to(_colour(rng, 0.2, 0.5, (0.25, 0.95)), (n, n, 3)) * 255).astype(np.uint8)
    for step in range(70):
        x, y, angle, length = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0, 2 * np.pi), n * rng.uniform(0.10, 0.32)
        hsv = np.float32([[[rng.uniform(75, 150), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.45) + 0.4 * step / 70]]])
        green = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255).astype(float)
        wide = rng.uniform(0.25, 0.5)
        cv2.fillPoly(picture, [_leaf_points(x + n * 0.012, y + n * 0.016, length, angle, wide)], (green * 0.45).tolist(), cv2.LINE_AA, 3)
        cv2.fillPoly(picture, [_leaf_points(x, y, length, angle, wide)], green.tolist(), cv2.LINE_AA, 3)
        tip = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(picture, (int(x), int(y)), tip, (green * 1.2).clip(0, 255).tolist(), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), n / 200).astype(np.float32) / 255


def _bokeh(n: int, rng: np.random.Generator) -> np.ndarray:
    y = np.linspace(0, 1, n, dtype=np.float32)[:, None] * np.ones((1, n), np.float32)
    value = (0.25, 0.5) if rng.random() < 0.4 else (0.7, 0.95)
    picture = np.ascontiguousarray(_blend(_colour(rng, 0.2, 0.6, value), _colour(rng, 0.2, 0.6, value), y))
    for _ in range(45):
        layer = picture.copy()
        centre, radius = (int(rng.uniform(0, n)), int(rng.uniform(0, n))), int(n * rng.uniform(0.02, 0.09))
        cv2.circle(layer, centre, radius, (_colour(rng, 0.0, 0.5, (0.85, 1.0))).tolist(), -1, cv2.LINE_AA)
        picture = cv2.addWeighted(picture, 0.65, layer, 0.35, 0)
    return cv2.GaussianBlur(picture, (0, 0), n / 90)


def _wood(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    plank = np.floor(y * rng.integers(3, 7))
    tone = rng.uniform(-0.12, 0.12, 16).astype(np.float32)[plank.astype(int)]
    grain = np.sin(60 * (y + 0.03 * _noise(n, 3, rng, 3)) + plank * 9) * 0.5 + cv2.resize(
        rng.standard_normal((n, 12)).astype(np.float32), (n, n)) * 0.5
    gap = np.exp(-((np.minimum(y * 5 % 1, 1 - y * 5 % 1)) / 0.02) ** 2) * 0.0
    brown = np.float32([0.80, 0.62, 0.44]) * rng.uniform(0.55, 1.1) + rng.uniform(-0.05, 0.1)
    return brown * (1 + tone + 0.06 * grain - gap)[..., None]


def _shelf(n: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.ascontiguousarray(np.broadcast_to(_colour(rng, 0.02, 0.25, (0.6, 0.9)), (n, n, 3)).astype(np.float32))
    boards = sorted(rng.uniform(0.15, 0.95, 3) * n)
    for board in boards:
        for _ in range(12):  # blurred goods of no known kind
            x, w, h = rng.uniform(0, n), n * rng.uniform(0.03, 0.09), n * rng.uniform(0.06, 0.22)
            cv2.rectangle(picture, (int(x), int(board - h)), (int(x + w), int(board)), _colour(rng, 0.1, 0.6, (0.4, 0.95)).tolist(), -1)
        cv2.rectangle(picture, (0, int(board)), (n, int(board + n * 0.03)), _colour(rng, 0.0, 0.3, (0.5, 0.95)).tolist(), -1)
    return cv2.GaussianBlur(picture, (0, 0), n / 55)


def _rays(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n - 0.5
    angle = np.arctan2(y - rng.uniform(-0.1, 0.3), x) * rng.integers(8, 18)
    edge = np.clip(np.sin(angle) * 12, -1, 1) * 0.5 + 0.5
    a = _colour(rng, 0.3, 0.85, (0.75, 1.0))
    return _blend(a, np.clip(a * 0.6 + 0.42, 0, 1), edge * rng.uniform(0.3, 0.9))


def _water(n: int, rng: np.random.Generator) -> np.ndarray:
    caustic = np.exp(-np.abs(_noise(n, 6, rng, 2)) * 4) + 0.6 * np.exp(-np.abs(_noise(n, 9, rng, 2)) * 5)
    base = _colour(rng, 0.15, 0.5, (0.7, 0.95))
    return _blend(base * (0.92 + 0.05 * _noise(n, 3, rng, 2)[..., None]), np.ones(3, np.float32), 0.5 * caustic)


def _tiles(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n * rng.uniform(3, 7)
    if rng.random() < 0.5:
        x, y = x + y, x - y
    check = ((np.floor(x) + np.floor(y)) % 2)
    grout = np.exp(-(np.minimum.reduce([x % 1, 1 - x % 1, y % 1, 1 - y % 1]) / 0.03) ** 2)
    a = _colour(rng, 0.02, 0.35, (0.7, 0.98))
    return _blend(_blend(a, a * rng.uniform(0.75, 0.97), check), a * 0.72, grout)


_DRAW_GROUND = {"marble": _marble, "cloth": _cloth, "leaves": _leaves, "bokeh": _bokeh, "wood": _wood, "shelf": _shelf,
                "rays": _rays, "water": _water, "tiles": _tiles}


@lru_cache(maxsize=len(GROUNDS) * GROUNDS_EACH)
def _ground_picture(kind: int, number: int, size: int, seed: int) -> np.ndarray:
    """One of the textured grounds, 1.5 times the photo's side, uint8."""
    rng = np.random.default_rng([seed, 301, kind, number])
    return (_DRAW_GROUND[GROUNDS[kind]](int(size * 1.5), rng).clip(0, 1) * 255).astype(np.uint8)


def _busy(size: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    picture = _ground_picture(int(rng.integers(len(GROUNDS))), int(rng.integers(GROUNDS_EACH)), size, seed)
    side = int(rng.uniform(0.62, 1.0) * len(picture))
    x, y = rng.integers(0, len(picture) - side + 1, 2)
    crop = cv2.resize(picture[y:y + side, x:x + side], (size, size), interpolation=cv2.INTER_AREA)
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return crop.astype(np.float32) * rng.uniform(0.88, 1.06, 3).astype(np.float32) / 255


def _plain(size: int, rng: np.random.Generator) -> np.ndarray:
    """White, a soft gradient, or a wall and a table."""
    kind = rng.random()
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None] * np.ones((1, size), np.float32)
    if kind < 0.35:
        return np.full((size, size, 3), rng.uniform(0.95, 1.0), np.float32)
    wall, table = _colour(rng, 0.0, 0.35, (0.8, 1.0)), _colour(rng, 0.0, 0.3, (0.75, 1.0))
    if kind < 0.7:
        return _blend(wall, table, y)
    horizon = rng.uniform(0.55, 0.78)
    return _blend(wall * (1 - 0.1 * y[..., None]), table, (y - horizon) * rng.choice([8.0, 40.0]) + 0.5)


# ---- cut-outs of props and stickers ----
@lru_cache(maxsize=PROPS)
def _prop(number: int, size: int, seed: int) -> np.ndarray:
    """A prop that is no product (sphere, cube, sprig or stone): RGBA as `drawing.cut_out` gives it."""
    rng = np.random.default_rng([seed, 302, number])
    n = size // 2
    canvas = np.zeros((n, n, 4), np.float32)
    surface = Surface(tuple(int(c * 255) for c in _colour(rng, 0.1, 0.7, (0.5, 1.0))), "matte")
    kind = number % 4
    if kind == 0:
        _sphere(canvas, surface, 1.0)
    elif kind == 1:
        _cube(canvas, surface)
    elif kind == 2:
        _sprig(canvas, rng)
    else:
        _sphere(canvas, surface, rng.uniform(0.5, 0.7))
    return canvas


def _sphere(canvas: np.ndarray, surface: Surface, flat: float) -> None:
    n = len(canvas)
    y, x = (np.mgrid[0:n, 0:n].astype(np.float32) - (n - 1) / 2) / (n / 2 - 1)
    y = (y - (1 - flat)) / flat
    r = np.sqrt(x * x + y * y)
    nz = np.sqrt(np.clip(1 - r * r, 0, 1))
    light = 0.35 + 0.75 * np.clip(0.7 * nz - 0.4 * x - 0.5 * y, 0, 1)
    glint = 0.35 * np.exp(-(((x + 0.35) ** 2 + (y + 0.45) ** 2) / 0.03))
    rgb = np.float32(surface.rgb) / 255 * light[..., None] + glint[..., None]
    drawing._over(canvas, rgb.clip(0, 1), np.clip((1 - r) * n / 2 * flat + 0.5, 0, 1))


def _cube(canvas: np.ndarray, surface: Surface) -> None:
    n = len(canvas)
    faces = (([0.05, 0.28], [0.55, 0.40], [0.55, 0.97], [0.05, 0.80]), ([0.55, 0.40], [0.95, 0.24], [0.95, 0.76], [0.55, 0.97]),
             ([0.05, 0.28], [0.45, 0.14], [0.95, 0.24], [0.55, 0.40]))
    for face, light in zip(faces, (0.95, 0.68, 1.12), strict=True):
        mask = np.zeros((n, n), np.uint8)
        cv2.fillPoly(mask, [np.int32(np.array(face) * n * 8)], 255, cv2.LINE_AA, 3)
        rgb = np.broadcast_to((np.float32(surface.rgb) / 255 * light).clip(0, 1), (n, n, 3))
        drawing._over(canvas, rgb, mask.astype(np.float32) / 255)


def _sprig(canvas: np.ndarray, rng: np.random.Generator) -> None:
    n = len(canvas)
    stem = np.linspace([0.15, 0.97], [rng.uniform(0.5, 0.8), 0.25], 8) * n
    hue = rng.uniform(70, 160)
    for i, (x, y) in enumerate(np.repeat(stem, 2, axis=0)):
        angle = -0.9 + (0.8 if i % 2 else -0.8) + rng.uniform(-0.2, 0.2)
        hsv = np.float32([[[hue, rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75)]]])
        mask = np.zeros((n, n), np.uint8)
        cv2.fillPoly(mask, [_leaf_points(x, y, n * rng.uniform(0.22, 0.32), angle, 0.42)], 255, cv2.LINE_AA, 3)
        drawing._over(canvas, np.broadcast_to(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], (n, n, 3)), mask.astype(np.float32) / 255)


@lru_cache(maxsize=STICKERS)
def _sticker(number: int, size: int, seed: int) -> np.ndarray:
    """A promotional sticker, about a third of the photo's side: (h, w, 4) uint8 RGBA."""
    rng = np.random.default_rng([seed, 303, number])
    text, fill = STICKER_TEXTS[number % len(STICKER_TEXTS)], STICKER_COLOURS[int(rng.integers(len(STICKER_COLOURS)))]
    ink = (60, 20, 10) if sum(fill) > 450 else (255, 250, 240)
    round_one = len(text) <= 4 and rng.random() < 0.7
    w, h = (int(size * 0.5), int(size * 0.5)) if round_one else (int(size * 0.74), int(size * 0.24))
    image = Image.new("RGBA", (w, h), (*fill, 0))
    draw = ImageDraw.Draw(image)
    if round_one:
        t = np.linspace(0, 2 * np.pi, 73)[:-1]
        r = w / 2 * (0.94 + 0.05 * np.cos(18 * t) * (number % 2))
        draw.polygon(list(zip(w / 2 + r * np.cos(t), h / 2 + r * np.sin(t), strict=True)), fill=(*fill, 255))
        draw.ellipse((0.1 * w, 0.1 * h, 0.9 * w, 0.9 * h), outline=ink, width=max(1, w // 50))
        lines = [text[:2], text[2:]] if len(text) == 4 else [text]
        for i, line in enumerate(lines):
            drawing.write(draw, (w / 2, h * (0.5 if len(lines) == 1 else 0.34 + 0.31 * i)), line, 0.62 * w, 0.34 * h, ink, False, 0.03)
    else:
        draw.rounded_rectangle((0, 0, w - 1, h - 1), h * (0.5 if number % 3 else 0.12), fill=(*fill, 255))
        drawing.write(draw, (w / 2, h / 2), text, 0.84 * w, 0.7 * h, ink, False, 0.03)
    return cv2.resize(np.asarray(image), (w // 2, h // 2), interpolation=cv2.INTER_AREA)


# ---- products in a pose ----
@lru_cache(maxsize=1024)
def _cut_outs(product: Product, longest: int, seed: int) -> list[np.ndarray]:
    """The product's picture at full, half and quarter size: uint8 RGBA, premultiplied."""
    picture = (drawing.cut_out(product, longest, seed) * 255).round().astype(np.uint8)
    sizes = [(picture.shape[1] // f, picture.shape[0] // f) for f in (1, 2, 4)]
    return [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for size in sizes]


def _placed(pictures: list[np.ndarray], pose: Pose, size: int) -> np.ndarray:
    """A cut-out warped to its pose: (size, size, 4) float32, premultiplied, 0..1."""
    picture = next((p for p in reversed(pictures) if len(p) >= pose.height), pictures[0])
    h, w = picture.shape[:2]
    scale, t = pose.height / h, np.deg2rad(pose.tilt)
    turn = np.float32([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.float32([[1, pose.shear], [0, 1]]) * scale
    middle = np.float32([pose.x, pose.foot - pose.height / 2])
    shift = middle - turn @ np.float32([(w - 1) / 2, (h - 1) / 2])
    return cv2.warpAffine(picture, np.c_[turn, shift], (size, size), flags=cv2.INTER_LINEAR).astype(np.float32) / 255


def _shadow(photo: np.ndarray, alpha: np.ndarray, pose: Pose, strength: float) -> None:
    """Darkens the ground: a soft cast shadow to the lower right and a dark line where the foot stands."""
    size = len(photo)
    small = cv2.resize(alpha, (size // 2, size // 2), interpolation=cv2.INTER_AREA)
    reach = pose.height / 2
    move = np.float32([[1, -0.10, 0.06 * reach + 0.05 * pose.foot], [0, 0.97, 0.015 * pose.foot + 0.03 * reach]])
    cast = cv2.GaussianBlur(cv2.warpAffine(small, move, (size // 2, size // 2)), (0, 0), max(1.0, 0.06 * reach))
    foot = np.zeros((size // 2, size // 2), np.float32)
    axes = (max(1, int(pose.width * 0.24)), max(1, int(pose.width * 0.05)))
    cv2.ellipse(foot, (int(pose.x / 2), int((pose.foot - 1) / 2)), axes, 0, 0, 360, 1.0, -1)
    foot = cv2.GaussianBlur(foot, (0, 0), max(1.0, pose.width * 0.02))
    dark = cv2.resize(np.clip(0.5 * cast + (0.7 * foot if abs(pose.tilt) < 10 else 0), 0, 1), (size, size))
    photo *= (1 - strength * dark)[..., None]


def _tilt(s: StagingSettings, rng: np.random.Generator) -> float:
    return float(rng.uniform(-35, 35) if rng.random() < s.strong_tilt else rng.normal(0, 3.5))


def _single_pose(aspect: float, size: int, s: StagingSettings, rng: np.random.Generator) -> Pose:
    """One product somewhere in the photo, all of it inside."""
    height = rng.uniform(*s.single_height) * size / max(1.0, aspect)
    pose = Pose(0, 0, height, height * aspect, _tilt(s, rng), float(rng.normal(0, 0.03)))
    x1, y1, x2, y2 = pose.box()
    shrink = min(1.0, 0.97 * size / (x2 - x1), 0.97 * size / (y2 - y1))
    free_x, free_y = (size - (x2 - x1) * shrink) / 2, (size - (y2 - y1) * shrink) / 2
    x = size / 2 + free_x * float(np.clip(rng.normal(0, 0.35), -1, 1))
    middle = size / 2 + free_y * float(np.clip(rng.normal(0.2, 0.4), -1, 1))
    return Pose(x, middle + pose.height * shrink / 2, pose.height * shrink, pose.width * shrink, pose.tilt, pose.shear)


def _group_poses(products: list[Product], aspects: list[float], size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Products side by side in one row or two, neighbours overlapping a little; in the order of `products`."""
    low, high = (f * size for f in s.multi_height)
    tall = max(drawing.real_height(p) for p in products)
    base = rng.uniform(0.75, 1.0) * high
    heights = [float(np.clip(base * drawing.real_height(p) / tall * rng.uniform(0.9, 1.1), low / max(1.0, a), high))
               for p, a in zip(products, aspects, strict=True)]
    order = rng.permutation(len(products))
    rows = [order] if len(products) <= 3 or (len(products) == 4 and rng.random() < 0.5) else [order[::2], order[1::2]]
    feet = [rng.uniform(0.72, 0.92)] if len(rows) == 1 else [rng.uniform(0.52, 0.64), rng.uniform(0.86, 0.95)]
    poses: dict[int, Pose] = {}
    for row, foot in zip(rows, feet, strict=True):
        poses |= _row_poses(row, heights, aspects, foot * size, size, s, rng)
    return [poses[i] for i in range(len(products))]


def _row_poses(row: np.ndarray, heights: list[float], aspects: list[float], foot: float, size: int, s: StagingSettings,
               rng: np.random.Generator) -> dict[int, Pose]:
    widths = np.array([heights[i] * aspects[i] for i in row])
    overlap = rng.uniform(-0.12, 0.22) if len(row) > 1 else 0.0
    fit = min(1.0, 0.94 * size / (widths.sum() * (1 - overlap)))
    widths = widths * fit
    steps = widths * (1 - overlap)
    free = max(0.0, 0.94 * size - steps.sum())
    left = 0.03 * size + free * float(np.clip(rng.normal(0.5, 0.18), 0, 1))
    poses = {}
    for n, i in enumerate(row):
        height = heights[i] * fit
        x = left + steps[:n].sum() + widths[n] / 2
        y = min(foot + rng.uniform(-0.05, 0.04) * size, 0.985 * size)
        tilt = _tilt(s, rng) * (0.6 if len(row) > 2 else 1.0)
        poses[int(i)] = Pose(float(x), float(max(y, height + 2)), height, float(widths[n]), tilt, float(rng.normal(0, 0.02)))
    return poses


def _least_visible(poses: list[Pose], order: list[int], size: int) -> float:
    """Share of its box that the most hidden product shows (counted on a coarse grid of boxes)."""
    grid, shown = np.zeros((56, 56), np.int16), []
    cells = []
    for n in order:
        x1, y1, x2, y2 = (int(round(v * 56 / size)) for v in poses[n].box())
        cells.append(max(1, (x2 - x1) * (y2 - y1)))
        grid[max(y1, 0):max(y2, 0), max(x1, 0):max(x2, 0)] = n + 1
    for n, count in zip(order, cells, strict=True):
        shown.append((grid == n + 1).sum() / count)
    return float(min(shown))


def _poses(products: list[Product], aspects: list[float], size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Poses in which every product can be seen; the best of a few tries."""
    if len(products) == 1:
        return [_single_pose(aspects[0], size, s, rng)]
    best, best_share = [], -1.0
    for _ in range(12):
        poses = _group_poses(products, aspects, size, s, rng)
        share = _least_visible(poses, _back_to_front(poses), size)
        if share > best_share:
            best, best_share = poses, share
        if share >= s.least_visible:
            break
    return best


def _back_to_front(poses: list[Pose]) -> list[int]:
    return sorted(range(len(poses)), key=lambda n: poses[n].foot)


# ---- the photo ----
def _paste(photo: np.ndarray, layer: np.ndarray) -> None:
    photo *= 1 - layer[..., 3:]
    photo += layer[..., :3]


def _add_prop(photo: np.ndarray, pieces: np.ndarray, front: bool, size: int, seed: int, rng: np.random.Generator) -> None:
    """A prop near a side of the photo; one in front hides what it covers, which may be a tenth of a product."""
    height = rng.uniform(0.12, 0.22 if front else 0.36) * size
    x = (rng.uniform(-0.02, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1.02)) * size
    pose = Pose(x, rng.uniform(0.9, 1.02) * size if front else rng.uniform(0.6, 0.9) * size, height, height,
                float(rng.uniform(-12, 12)), 0.0)
    layer = _placed([(_prop(int(rng.integers(PROPS)), size, seed) * 255).astype(np.uint8)], pose, size)
    cover = layer[..., 3] > 0.5
    if front and _hides(pieces, cover, 0.1):
        return
    _shadow(photo, layer[..., 3], pose, 0.5)
    _paste(photo, layer)
    pieces[cover] = 0


def _hides(pieces: np.ndarray, cover: np.ndarray, most: float) -> bool:
    """True if a cover would hide more than the share `most` of what is visible of any piece."""
    seen, hidden = np.bincount(pieces.ravel(), minlength=2)[1:], np.bincount(pieces[cover], minlength=2)[1:]
    return bool((hidden > most * seen[:len(hidden)]).any())


def _add_sticker(photo: np.ndarray, pieces: np.ndarray, size: int, seed: int, rng: np.random.Generator) -> None:
    """A sticker in a corner, where it hides at most a fifth of any product."""
    sticker = _sticker(int(rng.integers(STICKERS)), size, seed)
    h, w = sticker.shape[:2]
    for corner in rng.permutation(4):
        x = int(rng.uniform(0.01, 0.06) * size) if corner % 2 else size - w - int(rng.uniform(0.01, 0.06) * size)
        y = int(rng.uniform(0.01, 0.06) * size) if corner < 2 else size - h - int(rng.uniform(0.01, 0.06) * size)
        cover = np.zeros((size, size), bool)
        cover[y:y + h, x:x + w] = sticker[..., 3] > 127
        if not _hides(pieces, cover, 0.2):
            a = sticker[..., 3:].astype(np.float32) / 255
            photo[y:y + h, x:x + w] = photo[y:y + h, x:x + w] * (1 - a) + sticker[..., :3] / np.float32(255) * a
            pieces[cover] = 0
            return


def _add_banner(photo: np.ndarray, pieces: np.ndarray, rng: np.random.Generator) -> None:
    """A strip of promotion along the lower edge."""
    size = len(photo)
    h = int(size * rng.uniform(0.09, 0.13))
    cover = np.zeros((size, size), bool)
    cover[-h:] = True
    if _hides(pieces, cover, 0.2):
        return
    fill = STICKER_COLOURS[int(rng.integers(len(STICKER_COLOURS)))]
    image = Image.new("RGB", (size, h), fill)
    text = "  ".join(STICKER_TEXTS[int(i)] for i in rng.permutation(len(STICKER_TEXTS))[:3])
    drawing.write(ImageDraw.Draw(image), (size / 2, h / 2), text, 0.92 * size, 0.7 * h,
                  (60, 20, 10) if sum(fill) > 450 else (255, 250, 240))
    photo[-h:] = np.asarray(image, np.float32) / 255
    pieces[cover] = 0


def _light(photo: np.ndarray, s: StagingSettings, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour of the light, a gradient, blur and sensor noise; back to uint8."""
    size = len(photo)
    y, x = np.mgrid[0:8, 0:8].astype(np.float32) / 7 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    field = 1 + rng.uniform(0, 0.22) * (x * np.cos(angle) + y * np.sin(angle)) - rng.uniform(0, 0.25) * (x * x + y * y)
    gain = rng.uniform(0.84, 1.10) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    photo = photo * cv2.resize(field.astype(np.float32), (size, size))[..., None] * gain
    if rng.random() < s.blur:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.5, 1.1) * size / 224)
    noise = rng.standard_normal((size, size, 1), np.float32) * rng.uniform(0, 0.012)
    return ((photo + noise).clip(0, 1) * 255).round().astype(np.uint8)


def photo(products: list[Product], size: int, seed: int, rng: np.random.Generator,
          settings: StagingSettings = StagingSettings()) -> tuple[np.ndarray, np.ndarray]:
    """Takes a photo of products (one: alone; more: as a group, in the order given).

    Returns:
        photo: (size, size, 3) uint8 RGB.
        pieces: (size, size) uint8, 0 where no product is visible, n where the n-th product (from 1) is.
    """
    s = settings
    cut_outs = [_cut_outs(p, int(size * 1.5), seed) for p in products]
    aspects = [c[0].shape[1] / c[0].shape[0] for c in cut_outs]
    picture = np.ascontiguousarray(_plain(size, rng) if rng.random() < s.plain else _busy(size, seed, rng))
    pieces = np.zeros((size, size), np.uint8)
    strength, props = rng.uniform(0.25, 0.7), int(rng.integers(1, 4)) if rng.random() < s.props else 0
    for _ in range(props):
        _add_prop(picture, pieces, False, size, seed, rng)
    poses = _poses(products, aspects, size, s, rng)
    for n in _back_to_front(poses):
        layer = _placed(cut_outs[n], poses[n], size)
        _shadow(picture, layer[..., 3], poses[n], strength)
        _paste(picture, layer)
        pieces[layer[..., 3] > 0.5] = n + 1
    if props and rng.random() < 0.5:
        _add_prop(picture, pieces, True, size, seed, rng)
    if rng.random() < s.sticker:
        _add_sticker(picture, pieces, size, seed, rng)
    if rng.random() < s.banner:
        _add_banner(picture, pieces, rng)
    return _light(picture, s, rng), pieces


__all__ = ["GROUNDS", "Pose", "StagingSettings", "font", "photo"]
