"""What shops lay over their photos: stickers, prices, selling points, banners, frames, brand signs, watermarks."""

from functools import lru_cache

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image, ImageDraw

from capture_lib.world.labels import Draw, font, ornament_points, write
from capture_lib.world.packaging import look_of
from capture_lib.world.products import BRANDS, RGB
from capture_lib.world.tables import read_table

STICKERS, POINTS, WATERMARKS = 72, 16, 12  # different ones of each
TEXTS, COLOURS, SELLING_POINTS, SHOPS = read_table("promotion").values()


def _pick_fill(rng: Generator) -> RGB:
    return tuple(COLOURS[int(rng.integers(len(COLOURS)))])


def _ink_on(fill: RGB) -> RGB:
    return (60, 20, 10) if sum(fill) > 450 else (255, 250, 240)


def _blank(width: float, height: float, fill: RGB) -> tuple[Image.Image, Draw, int, int]:
    """Return a transparent picture, what draws on it, its width and its height."""
    image = Image.new("RGBA", (int(width), int(height)), (*fill, 0))
    return image, ImageDraw.Draw(image), image.width, image.height


def _halve(image: Image.Image) -> ndarray:
    """Return a picture at half its size: (h, w, 4) uint8 RGBA."""
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))


# ---- stickers
@lru_cache(maxsize=STICKERS)
def sticker(number: int, size: int, seed: int) -> ndarray:
    """Draw a seal, a tag, a price badge or a ribbon, up to a third of the photo's side: (h, w, 4) uint8 RGBA."""
    rng = np.random.default_rng([seed, 303, number])
    text, fill = TEXTS[number % len(TEXTS)], _pick_fill(rng)
    ink = _ink_on(fill)
    if number % 4 == 0:  # what it costs now, large, above the old price, struck out
        now = int(rng.integers(3, 40)) * 10 - 1
        before = round(now * rng.uniform(1.4, 2.4))
        image, draw, w, h = _blank(size * 0.58, size * 0.42, fill)
        line = max(1, h // 40)
        draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.16 * h, fill=(*fill, 255), outline=ink, width=line)
        write(draw, (w / 2, 0.36 * h), f"￥{now}", 0.84 * w, 0.5 * h, ink, bold=0.04)
        write(draw, (w / 2, 0.77 * h), f"原价￥{before}", 0.7 * w, 0.2 * h, ink)
        draw.line((0.2 * w, 0.79 * h, 0.8 * w, 0.76 * h), fill=ink, width=line)
    elif number % 9 == 1 and len(text) <= 5:  # a flag that hangs down, its characters one below another
        image, draw, w, h = _blank(size * 0.2, size * (0.17 + 0.15 * len(text)), fill)
        draw.polygon([(0, 0), (w, 0), (w, h), (w / 2, h - 0.35 * w), (0, h)], fill=(*fill, 255))
        for n, character in enumerate(text):
            y = (n + 0.7) * (h - 0.5 * w) / (len(text) + 0.2)
            write(draw, (w / 2, y), character, 0.7 * w, 0.14 * size, ink, bold=0.03)
    elif len(text) <= 4 and rng.random() < 0.7:  # a round seal; four characters stand in two rows, a price in one
        side = int(size * 0.5)
        image, draw, _, _ = _blank(side, side, fill)
        middle = side / 2
        t = np.linspace(0, 2 * np.pi, 145)[:-1]
        r = middle * (0.94 + 0.05 * np.cos(18 * t) * (number % 2))  # jagged or not
        edge = np.c_[middle + r * np.cos(t), middle + r * np.sin(t)]
        draw.polygon([tuple(point) for point in edge], fill=(*fill, 255))
        draw.circle((middle, middle), 0.4 * side, outline=ink, width=max(1, side // 50))
        rows = [(text, 0.5)]
        if len(text) == 4 and text[0] != "￥":
            rows = [(text[:2], 0.34), (text[2:], 0.34 + 0.31)]
        for row, y in rows:
            write(draw, (middle, y * side), row, 0.62 * side, 0.34 * side, ink, bold=0.03)
    else:  # a tag with round ends or not
        image, draw, w, h = _blank(size * 0.74, size * 0.24, fill)
        draw.rounded_rectangle((0, 0, w - 1, h - 1), h * (0.5 if number % 3 else 0.12), fill=(*fill, 255))
        write(draw, (w / 2, h / 2), text, 0.84 * w, 0.7 * h, ink, bold=0.03)
    return _halve(image)


@lru_cache(maxsize=POINTS)
def selling_points(number: int, size: int, seed: int) -> ndarray:
    """Draw three or four selling points on a pale panel: (h, w, 4) uint8 RGBA."""
    rng = np.random.default_rng([seed, 304, number])
    order = rng.permutation(len(SELLING_POINTS))
    rows = [SELLING_POINTS[i] for i in order[:int(rng.integers(3, 5))]]
    fill, step = _pick_fill(rng), int(0.24 * size)
    image, draw, w, h = _blank(0.64 * size, step * len(rows), (255, 255, 255))
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.25 * step, fill=(255, 255, 255, 205))
    for n, row in enumerate(rows):
        y = (n + 0.5) * step
        tick = [(0.09 * w, y), (0.12 * w, y + 0.09 * step), (0.18 * w, y - 0.1 * step)]
        draw.circle((0.13 * w, y), 0.2 * step, fill=(*fill, 255))
        draw.line(tick, fill=(255, 255, 255, 255), width=max(1, step // 16))
        write(draw, (0.58 * w, y), row, 0.66 * w, 0.5 * step, (52, 44, 48, 255))
    return _halve(image)


@lru_cache(maxsize=64)
def logo(brand: int, size: int, seed: int) -> ndarray:
    """Draw the sign of a brand beside its ornament: (h, w, 4) uint8 RGBA."""
    look = look_of(brand, 0, seed)
    dark = min((look.accent, look.ink, look.body.rgb), key=sum)
    image, draw, w, h = _blank(0.66 * size, 0.16 * size, (255, 255, 255))
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.2 * h, fill=(255, 255, 255, 190))
    ornament = ornament_points((0.14 * w, h / 2), 0.34 * h, look)
    draw.polygon([tuple(point) for point in ornament], fill=dark)
    write(draw, (0.6 * w, h / 2), BRANDS[brand][0], 0.66 * w, 0.66 * h, dark, look.serif, 0.03)
    return _halve(image)


def banner(size: int, rng: Generator) -> ndarray:
    """Draw a strip of promotion as wide as the photo: (h, size, 4) uint8 RGBA."""
    fill = _pick_fill(rng)
    height = int(size * rng.uniform(0.09, 0.13))
    image = Image.new("RGBA", (size, height), fill)
    text = "  ".join(TEXTS[i] for i in rng.permutation(len(TEXTS))[:3])
    write(ImageDraw.Draw(image), (size / 2, height / 2), text, 0.92 * size, 0.7 * height, _ink_on(fill))
    return np.asarray(image)


# ---- what hides nothing
def add_frame(picture: ndarray, rng: Generator) -> None:
    """Draw a border, a thin line inside the edge, or coloured corners, in place; products come on top of it."""
    size, kind = len(picture), int(rng.integers(3))
    colour = [value / 255 for value in _pick_fill(rng)]
    if kind == 0:
        width = max(2, int(size * rng.uniform(0.015, 0.04)))
        cv2.rectangle(picture, (width // 2, width // 2), (size - 1 - width // 2,) * 2, colour, width)
    elif kind == 1:
        inset = int(size * rng.uniform(0.025, 0.05))
        cv2.rectangle(picture, (inset, inset), (size - 1 - inset,) * 2, colour, max(1, size // 160))
    else:
        side, far = int(size * rng.uniform(0.12, 0.26)), size - 1
        for corner in ([(0, 0), (side, 0), (0, side)], [(far, far), (far - side, far), (far, far - side)]):
            cv2.fillPoly(picture, [np.int32(corner)], colour, cv2.LINE_AA)


@lru_cache(maxsize=WATERMARKS)
def watermark(number: int, size: int) -> ndarray:
    """Write a shop's name, aslant, over and over: (size, size, 1) float32 in 0..1."""
    image = Image.new("L", (2 * size, 2 * size), 0)
    draw = ImageDraw.Draw(image)
    letters = font(max(8, int(0.075 * size)))
    step = (0.62, 0.45, 0.9)[number % 3] * size
    for row, y in enumerate(np.arange(0, 2 * size, 0.55 * step)):
        for x in np.arange((row % 2) * 0.5 * step, 2 * size + step, step):
            draw.text((x, y), SHOPS[number % len(SHOPS)], fill=255, font=letters, anchor="mm")
    turned = image.rotate(30, Image.Resampling.BILINEAR)
    centre = turned.crop((size // 2, size // 2, size // 2 + size, size // 2 + size))
    return np.asarray(centre, np.float32)[..., None] / 255
