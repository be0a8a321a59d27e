"""What surrounds the products in the rendered world's photos: grounds, props that are no products, stickers."""

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from capture_lib.world.drawing import paint_over
from capture_lib.world.packaging import RGB, write

GROUNDS_EACH = 8  # pictures of each busy ground; a photo takes a crop, a mirroring and a tint of one
PROPS, STICKERS = 40, 48
STICKER_TEXTS = (
    "正品", "包邮", "买一送一", "新品", "热卖", "官方授权", "限时特惠", "￥59.9", "立减20", "赠品", "假一赔十",
    "收藏有礼", "第二件半价", "顺丰", "爆款", "7天无理由", "￥128", "双11", "NEW", "HOT", "满199减50", "送礼首选",
)
STICKER_COLOURS = (
    (226, 32, 44), (240, 92, 30), (250, 202, 44), (188, 24, 92), (30, 120, 90), (28, 30, 36), (120, 66, 190),
)


# ---- colours and noise
def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A colour of any hue, (3,) float32 in 0..1."""
    return _hsv(rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value))


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return cv2.cvtColor(np.float32([[[hue, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]


def _blend(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + (b - a) * np.clip(share, 0, 1)[..., None]


def _grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an n × n picture as fractions."""
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    return y, x


def _noise(n: int, cells: int, rng: np.random.Generator, octaves: int = 4) -> np.ndarray:
    """Smooth noise, (n, n) float32 of mean 0 and deviation 1; `cells` waves fit into the picture."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        side = min(n, cells * 2 ** octave)
        coarse = rng.standard_normal((side, side)).astype(np.float32)
        total += cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    return (total - total.mean()) / total.std()


# ---- busy grounds: (n, n, 3) float32 RGB, about 0..1
def _marble(n: int, rng: np.random.Generator) -> np.ndarray:
    veins = np.exp(-np.abs(_noise(n, 3, rng, 5)) * rng.uniform(5, 9))
    veins *= 0.5 + 0.5 * np.clip(_noise(n, 2, rng, 2), 0, 1)
    dark = rng.random() < 0.25
    stone = _colour(rng, (0, 0.1), (0.18, 0.3) if dark else (0.88, 0.97))
    vein = _colour(rng, (0, 0.3), (0.7, 0.9) if dark else (0.45, 0.7))
    return _blend(stone + 0.02 * _noise(n, 4, rng)[..., None], vein, 0.9 * veins)


def _cloth(n: int, rng: np.random.Generator) -> np.ndarray:
    (y, x), angle = _grid(n), rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle) + 0.12 * _noise(n, 2, rng, 2)) * rng.uniform(3, 6)
    folds = 0.5 + 0.5 * np.sin(2 * np.pi * along + 2 * np.sin(2.3 * along + rng.uniform(0, 6)))
    colour = _colour(rng, (0.05, 0.55), (0.6, 0.95))
    return colour * (0.72 + 0.33 * folds)[..., None] + 0.06 * (folds ** 6)[..., None]


def _leaves(n: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.full((n, n, 3), _colour(rng, (0.2, 0.5), (0.25, 0.95)) * 255).astype(np.uint8)
    for step in range(70):
        x, y, angle = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0, 2 * np.pi)
        length, wide = n * rng.uniform(0.10, 0.32), rng.uniform(0.25, 0.5)
        green = _hsv(rng.uniform(75, 150), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.45) + step / 175) * 255.0
        shadow = _leaf(x + n * 0.012, y + n * 0.016, length, angle, wide)
        cv2.fillPoly(picture, [shadow], (green * 0.45).tolist(), cv2.LINE_AA, 3)
        cv2.fillPoly(picture, [_leaf(x, y, length, angle, wide)], green.tolist(), cv2.LINE_AA, 3)
        tip = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(picture, (int(x), int(y)), tip, (green * 1.2).clip(0, 255).tolist(), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), n / 200).astype(np.float32) / 255


def _leaf(x: float, y: float, length: float, angle: float, wide: float) -> np.ndarray:
    """Corners of a leaf from its stalk at (x, y), (28, 2) int32 in eighths of a pixel."""
    t = np.linspace(0, 1, 14)
    half = wide * length * np.sin(np.pi * t ** 0.8) * 0.5
    corners = np.r_[np.c_[t * length, half], np.c_[t * length, -half][::-1]]
    turn = np.float32([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.int32(np.round((corners @ turn + [x, y]) * 8))


def _bokeh(n: int, rng: np.random.Generator) -> np.ndarray:
    value = (0.25, 0.5) if rng.random() < 0.4 else (0.7, 0.95)
    top, foot = _colour(rng, (0.2, 0.55), value), _colour(rng, (0.2, 0.55), value)
    picture = np.ascontiguousarray(_blend(top, foot, _grid(n)[0]))
    for _ in range(45):
        layer = picture.copy()
        centre, radius = (int(rng.uniform(0, n)), int(rng.uniform(0, n))), int(n * rng.uniform(0.02, 0.09))
        cv2.circle(layer, centre, radius, _colour(rng, (0.0, 0.5), (0.85, 1.0)).tolist(), -1, cv2.LINE_AA)
        picture = cv2.addWeighted(picture, 0.65, layer, 0.35, 0)
    return cv2.GaussianBlur(picture, (0, 0), n / 90)


def _wood(n: int, rng: np.random.Generator) -> np.ndarray:
    y, _ = _grid(n)
    planks = int(rng.integers(3, 7))
    plank = np.floor(y * planks).astype(int)
    tone = rng.uniform(-0.12, 0.12, planks + 1).astype(np.float32)[plank]
    streaks = cv2.resize(rng.standard_normal((n, 12)).astype(np.float32), (n, n))
    grain = 0.5 * np.sin(60 * (y + 0.03 * _noise(n, 3, rng, 3)) + plank * 9) + 0.5 * streaks
    gap = np.exp(-((y * planks % 1) / 0.025) ** 2)
    brown = np.float32([0.80, 0.62, 0.44]) * rng.uniform(0.55, 1.1) + rng.uniform(-0.05, 0.1)
    return brown * (1 + tone + 0.06 * grain - 0.35 * gap)[..., None]


def _shelf(n: int, rng: np.random.Generator) -> np.ndarray:
    picture = np.full((n, n, 3), _colour(rng, (0.02, 0.25), (0.6, 0.9)), np.float32)
    for board in np.sort(rng.uniform(0.15, 0.95, 3) * n).astype(int).tolist():
        for _ in range(12):  # blurred goods of no known kind
            x, w, h = rng.uniform(0, n), n * rng.uniform(0.03, 0.09), n * rng.uniform(0.06, 0.22)
            goods = _colour(rng, (0.1, 0.6), (0.4, 0.95)).tolist()
            cv2.rectangle(picture, (int(x), int(board - h)), (int(x + w), board), goods, -1)
        plank = _colour(rng, (0.0, 0.3), (0.5, 0.95)).tolist()
        cv2.rectangle(picture, (0, board), (n, int(board + n * 0.03)), plank, -1)
    return cv2.GaussianBlur(picture, (0, 0), n / 55)


def _rays(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(n)
    angle = np.arctan2(y - rng.uniform(0.4, 0.8), x - 0.5) * int(rng.integers(8, 18))
    colour = _colour(rng, (0.25, 0.7), (0.8, 1.0))
    edge = np.clip(np.sin(angle) * 12, -1, 1) * 0.5 + 0.5
    return _blend(colour, np.clip(colour * 0.6 + 0.42, 0, 1), edge * rng.uniform(0.3, 0.9))


def _water(n: int, rng: np.random.Generator) -> np.ndarray:
    light = np.exp(-np.abs(_noise(n, 6, rng, 2)) * 4) + 0.6 * np.exp(-np.abs(_noise(n, 9, rng, 2)) * 5)
    base = _colour(rng, (0.15, 0.45), (0.75, 0.95)) * (0.92 + 0.05 * _noise(n, 3, rng, 2)[..., None])
    return _blend(base, np.ones(3, np.float32), 0.5 * light)


def _tiles(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = (axis * rng.uniform(3, 7) for axis in _grid(n))
    if rng.random() < 0.5:
        x, y = x + y, x - y
    joint = np.exp(-(np.minimum.reduce([x % 1, 1 - x % 1, y % 1, 1 - y % 1]) / 0.03) ** 2)
    colour = _colour(rng, (0.02, 0.35), (0.7, 0.98))
    checks = _blend(colour, colour * rng.uniform(0.75, 0.97), (np.floor(x) + np.floor(y)) % 2)
    return _blend(checks, colour * 0.72, joint)


BUSY_GROUNDS = (_marble, _cloth, _leaves, _bokeh, _wood, _shelf, _rays, _water, _tiles)


@lru_cache(maxsize=len(BUSY_GROUNDS) * GROUNDS_EACH)
def _ground_picture(kind: int, number: int, size: int, seed: int) -> np.ndarray:
    """One of the busy grounds, uint8, 1.5 times the photo's side."""
    rng = np.random.default_rng([seed, 301, kind, number])
    return (BUSY_GROUNDS[kind](int(size * 1.5), rng).clip(0, 1) * 255).astype(np.uint8)


def busy_ground(size: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of marble, cloth, leaves, ... : (size, size, 3) float32 RGB, about 0..1."""
    kind, number = int(rng.integers(len(BUSY_GROUNDS))), int(rng.integers(GROUNDS_EACH))
    picture = _ground_picture(kind, number, size, seed)
    side = int(rng.uniform(0.62, 1.0) * len(picture))
    x, y = rng.integers(0, len(picture) - side + 1, 2)
    crop = cv2.resize(picture[y:y + side, x:x + side], (size, size), interpolation=cv2.INTER_AREA)
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.ascontiguousarray(crop) * (rng.uniform(0.90, 1.08, 3) / 255).astype(np.float32)


def plain_ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """White, a soft gradient, or a wall and a table: (size, size, 3) float32 RGB in 0..1."""
    kind, (y, _) = rng.random(), _grid(size)
    if kind < 0.35:
        return np.full((size, size, 3), rng.uniform(0.96, 1.0), np.float32)
    wall, table = _colour(rng, (0.0, 0.28), (0.84, 1.0)), _colour(rng, (0.0, 0.25), (0.8, 1.0))
    if kind < 0.7:
        return _blend(wall, table, y)
    sharpness = float(rng.choice([8.0, 40.0]))
    return _blend(wall * (1 - 0.1 * y[..., None]), table, (y - rng.uniform(0.55, 0.78)) * sharpness + 0.5)


# ---- props
@lru_cache(maxsize=PROPS)
def prop(number: int, size: int, seed: int) -> np.ndarray:
    """A sphere, a cube, a sprig or a stone: (size/2, size/2, 4) uint8 RGBA, premultiplied."""
    rng = np.random.default_rng([seed, 302, number])
    canvas = np.zeros((size // 2, size // 2, 4), np.float32)
    colour = _colour(rng, (0.05, 0.55), (0.55, 1.0))
    if number % 4 == 1:
        _cube(canvas, colour)
    elif number % 4 == 2:
        _sprig(canvas, rng)
    else:
        _sphere(canvas, colour, 1.0 if number % 4 == 0 else rng.uniform(0.5, 0.7))
    return (canvas * 255).round().astype(np.uint8)


def _sphere(canvas: np.ndarray, colour: np.ndarray, flatness: float) -> None:
    n = len(canvas)
    y, x = (np.mgrid[0:n, 0:n].astype(np.float32) - (n - 1) / 2) / (n / 2 - 1)
    y = (y - (1 - flatness)) / flatness
    r = np.sqrt(x * x + y * y)
    facing = 0.7 * np.sqrt(np.clip(1 - r * r, 0, 1)) - 0.4 * x - 0.5 * y
    glint = 0.3 * np.exp(-((x + 0.35) ** 2 + (y + 0.45) ** 2) / 0.03)
    rgb = colour * (0.45 + 0.68 * np.clip(facing, 0, 1))[..., None] + glint[..., None]
    paint_over(canvas, rgb.clip(0, 1), np.clip((1 - r) * n / 2 * flatness + 0.5, 0, 1))


def _cube(canvas: np.ndarray, colour: np.ndarray) -> None:
    faces = (((0.05, 0.28), (0.55, 0.40), (0.55, 0.97), (0.05, 0.80)),
             ((0.55, 0.40), (0.95, 0.24), (0.95, 0.76), (0.55, 0.97)),
             ((0.05, 0.28), (0.45, 0.14), (0.95, 0.24), (0.55, 0.40)))
    for face, light in zip(faces, (0.95, 0.72, 1.1), strict=True):
        _fill(canvas, np.int32(np.array(face) * len(canvas) * 8), (colour * light).clip(0, 1))


def _sprig(canvas: np.ndarray, rng: np.random.Generator) -> None:
    n, hue = len(canvas), rng.uniform(70, 160)
    stem = np.linspace([0.15, 0.97], [rng.uniform(0.5, 0.8), 0.25], 8) * n
    for i, (x, y) in enumerate(np.repeat(stem, 2, axis=0)):
        angle = -0.9 + (0.8 if i % 2 else -0.8) + rng.uniform(-0.2, 0.2)
        green = _hsv(hue, rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.75))
        _fill(canvas, _leaf(x, y, n * rng.uniform(0.22, 0.32), angle, 0.42), green)


def _fill(canvas: np.ndarray, corners: np.ndarray, colour: np.ndarray) -> None:
    """Paints a polygon (corners in eighths of a pixel) over an RGBA canvas."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 3)
    paint_over(canvas, np.broadcast_to(colour, (*mask.shape, 3)), mask.astype(np.float32) / 255)


# ---- promotion
def _ink_on(fill: RGB) -> RGB:
    return (60, 20, 10) if sum(fill) > 450 else (255, 250, 240)


@lru_cache(maxsize=STICKERS)
def sticker(number: int, size: int, seed: int) -> np.ndarray:
    """A promotional sticker, about a third of the photo's side: (h, w, 4) uint8 RGBA, not premultiplied."""
    rng = np.random.default_rng([seed, 303, number])
    text = STICKER_TEXTS[number % len(STICKER_TEXTS)]
    fill = STICKER_COLOURS[int(rng.integers(len(STICKER_COLOURS)))]
    if len(text) <= 4 and rng.random() < 0.7:
        image = _seal(text, int(size * 0.5), fill, bool(number % 2))
    else:
        image = Image.new("RGBA", (int(size * 0.74), int(size * 0.24)), (*fill, 0))
        draw, (w, h) = ImageDraw.Draw(image), image.size
        draw.rounded_rectangle((0, 0, w - 1, h - 1), h * (0.5 if number % 3 else 0.12), fill=(*fill, 255))
        write(draw, (w / 2, h / 2), text, 0.84 * w, 0.7 * h, _ink_on(fill), bold=0.03)
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))


def _seal(text: str, side: int, fill: RGB, jagged: bool) -> Image.Image:
    """A round sticker; four characters stand in two rows, a price in one."""
    image = Image.new("RGBA", (side, side), (*fill, 0))
    draw, middle, t = ImageDraw.Draw(image), side / 2, np.linspace(0, 2 * np.pi, 145)[:-1]
    r = middle * (0.94 + 0.05 * np.cos(18 * t) * jagged)
    draw.polygon(list(zip(middle + r * np.cos(t), middle + r * np.sin(t), strict=True)), fill=(*fill, 255))
    draw.circle((middle, middle), 0.4 * side, outline=_ink_on(fill), width=max(1, side // 50))
    rows = [text[:2], text[2:]] if len(text) == 4 and text[0] != "￥" else [text]
    for i, row in enumerate(rows):
        y = 0.5 if len(rows) == 1 else 0.34 + 0.31 * i
        write(draw, (middle, y * side), row, 0.62 * side, 0.34 * side, _ink_on(fill), bold=0.03)
    return image


def banner(size: int, rng: np.random.Generator) -> np.ndarray:
    """A strip of promotion as wide as the photo: (h, size, 3) uint8 RGB."""
    fill = STICKER_COLOURS[int(rng.integers(len(STICKER_COLOURS)))]
    image = Image.new("RGB", (size, int(size * rng.uniform(0.09, 0.13))), fill)
    text = "  ".join(STICKER_TEXTS[int(i)] for i in rng.permutation(len(STICKER_TEXTS))[:3])
    write(ImageDraw.Draw(image), (size / 2, image.height / 2), text, 0.92 * size, 0.7 * image.height, _ink_on(fill))
    return np.asarray(image)
