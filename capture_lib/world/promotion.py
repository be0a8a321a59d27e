"""What shops lay over their photos: stickers, prices, selling points, banners, frames, brand signs, watermarks."""

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from capture_lib.world.labels import font, ornament_points, write
from capture_lib.world.packaging import RGB, look_of
from capture_lib.world.wording import BRANDS

STICKERS, POINTS, WATERMARKS = 72, 16, 12  # different ones of each
STICKER_TEXTS = (
    "正品", "包邮", "买一送一", "新品", "热卖", "官方授权", "限时特惠", "立减20", "赠品", "假一赔十", "专柜同款",
    "收藏有礼", "第二件半价", "顺丰", "爆款", "7天无理由", "正品保证", "双11", "NEW", "HOT", "满199减50", "送礼首选",
)
STICKER_COLOURS = (
    (226, 32, 44), (240, 92, 30), (250, 202, 44), (188, 24, 92), (30, 120, 90), (28, 30, 36), (120, 66, 190),
)
SELLING_POINTS = (
    "深层补水", "温和亲肤", "不粘腻", "长效锁水", "显白提气色", "敏感肌可用", "植物萃取", "轻薄透气", "质地细腻",
    "持久留香", "易推开", "0酒精", "小巧便携", "一抹即润",
)
SHOPS = ("花间美妆铺", "小鹿优选", "半糖美妆", "丽人小仓", "LULU BEAUTY", "鹿屿海淘", "初晴专营", "MISS PEACH 美妆")


def _ink_on(fill: RGB) -> RGB:
    return (60, 20, 10) if sum(fill) > 450 else (255, 250, 240)


def _any_fill(rng: np.random.Generator) -> RGB:
    return STICKER_COLOURS[int(rng.integers(len(STICKER_COLOURS)))]


# ---- stickers
@lru_cache(maxsize=STICKERS)
def sticker(number: int, size: int, seed: int) -> np.ndarray:
    """A seal, a tag, a price badge or a ribbon, up to a third of the photo's side: (h, w, 4) uint8 RGBA."""
    rng = np.random.default_rng([seed, 303, number])
    text, fill = STICKER_TEXTS[number % len(STICKER_TEXTS)], _any_fill(rng)
    if number % 4 == 0:
        image = _price(size, fill, rng)
    elif number % 9 == 1 and len(text) <= 5:
        image = _ribbon(text, size, fill)
    elif len(text) <= 4 and rng.random() < 0.7:
        image = _seal(text, int(size * 0.5), fill, bool(number % 2))
    else:
        image = _tag(text, size, fill, round_ends=bool(number % 3))
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))


def _tag(text: str, size: int, fill: RGB, round_ends: bool) -> Image.Image:
    image = Image.new("RGBA", (int(size * 0.74), int(size * 0.24)), (*fill, 0))
    draw, (w, h) = ImageDraw.Draw(image), image.size
    draw.rounded_rectangle((0, 0, w - 1, h - 1), h * (0.5 if round_ends else 0.12), fill=(*fill, 255))
    write(draw, (w / 2, h / 2), text, 0.84 * w, 0.7 * h, _ink_on(fill), bold=0.03)
    return image


def _price(size: int, fill: RGB, rng: np.random.Generator) -> Image.Image:
    """What it costs now, large, above the old price, struck out."""
    now = int(rng.integers(3, 40)) * 10 - 1
    image = Image.new("RGBA", (int(size * 0.58), int(size * 0.42)), (*fill, 0))
    draw, (w, h), ink = ImageDraw.Draw(image), image.size, _ink_on(fill)
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.16 * h, fill=(*fill, 255), outline=ink, width=max(1, h // 40))
    write(draw, (w / 2, 0.36 * h), f"￥{now}", 0.84 * w, 0.5 * h, ink, bold=0.04)
    write(draw, (w / 2, 0.77 * h), f"原价￥{round(now * rng.uniform(1.4, 2.4))}", 0.7 * w, 0.2 * h, ink)
    draw.line((0.2 * w, 0.79 * h, 0.8 * w, 0.76 * h), fill=ink, width=max(1, h // 40))
    return image


def _ribbon(text: str, size: int, fill: RGB) -> Image.Image:
    """A flag that hangs down, its characters one below another."""
    image = Image.new("RGBA", (int(size * 0.2), int(size * (0.17 + 0.15 * len(text)))), (*fill, 0))
    draw, (w, h) = ImageDraw.Draw(image), image.size
    draw.polygon([(0, 0), (w, 0), (w, h), (w / 2, h - 0.35 * w), (0, h)], fill=(*fill, 255))
    for n, character in enumerate(text):
        y = (n + 0.7) * (h - 0.5 * w) / (len(text) + 0.2)
        write(draw, (w / 2, y), character, 0.7 * w, 0.14 * size, _ink_on(fill), bold=0.03)
    return image


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


@lru_cache(maxsize=POINTS)
def selling_points(number: int, size: int, seed: int) -> np.ndarray:
    """Three or four selling points on a pale panel: (h, w, 4) uint8 RGBA."""
    rng = np.random.default_rng([seed, 304, number])
    rows = [SELLING_POINTS[int(i)] for i in rng.permutation(len(SELLING_POINTS))[:int(rng.integers(3, 5))]]
    fill, h = _any_fill(rng), int(0.24 * size)
    image = Image.new("RGBA", (int(0.64 * size), h * len(rows)), (255, 255, 255, 0))
    draw, w = ImageDraw.Draw(image), image.width
    draw.rounded_rectangle((0, 0, w - 1, image.height - 1), 0.25 * h, fill=(255, 255, 255, 205))
    for n, row in enumerate(rows):
        y = (n + 0.5) * h
        draw.circle((0.13 * w, y), 0.2 * h, fill=(*fill, 255))
        draw.line([(0.09 * w, y), (0.12 * w, y + 0.09 * h), (0.18 * w, y - 0.1 * h)], fill=(255, 255, 255, 255),
                  width=max(1, h // 16))
        write(draw, (0.58 * w, y), row, 0.66 * w, 0.5 * h, (52, 44, 48, 255))
    return np.asarray(image.resize((w // 2, image.height // 2), Image.Resampling.BOX))


@lru_cache(maxsize=64)
def logo(brand: int, size: int, seed: int) -> np.ndarray:
    """The sign of a brand beside its ornament: (h, w, 4) uint8 RGBA."""
    look = look_of(brand, 0, seed)
    dark = min((look.accent, look.ink, look.body.rgb), key=sum)
    image = Image.new("RGBA", (int(0.66 * size), int(0.16 * size)), (255, 255, 255, 0))
    draw, (w, h) = ImageDraw.Draw(image), image.size
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 0.2 * h, fill=(255, 255, 255, 190))
    draw.polygon([tuple(point) for point in ornament_points((0.14 * w, h / 2), 0.34 * h, look)], fill=dark)
    write(draw, (0.6 * w, h / 2), BRANDS[brand][0], 0.66 * w, 0.66 * h, dark, look.serif, 0.03)
    return np.asarray(image.resize((w // 2, h // 2), Image.Resampling.BOX))


def banner(size: int, rng: np.random.Generator) -> np.ndarray:
    """A strip of promotion as wide as the photo: (h, size, 3) uint8 RGB."""
    fill = _any_fill(rng)
    image = Image.new("RGB", (size, int(size * rng.uniform(0.09, 0.13))), fill)
    text = "  ".join(STICKER_TEXTS[int(i)] for i in rng.permutation(len(STICKER_TEXTS))[:3])
    write(ImageDraw.Draw(image), (size / 2, image.height / 2), text, 0.92 * size, 0.7 * image.height, _ink_on(fill))
    return np.asarray(image)


# ---- what hides nothing
def add_frame(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a border, a thin line inside the edge, or coloured corners, in place; products come on top of it."""
    size, kind = len(picture), int(rng.integers(3))
    colour = [float(value) / 255 for value in _any_fill(rng)]
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
def _watermark(number: int, size: int) -> np.ndarray:
    """A shop's name, aslant, over and over: (size, size, 1) float32 in 0..1."""
    image = Image.new("L", (2 * size, 2 * size), 0)
    draw, text = ImageDraw.Draw(image), SHOPS[number % len(SHOPS)]
    step = (0.62, 0.45, 0.9)[number % 3] * size
    for row, y in enumerate(np.arange(0, 2 * size, 0.55 * step)):
        for x in np.arange((row % 2) * 0.5 * step, 2 * size + step, step):
            draw.text((x, y), text, fill=255, font=font(max(8, int(0.075 * size))), anchor="mm")
    turned = image.rotate(30, Image.Resampling.BILINEAR)
    centre = turned.crop((size // 2, size // 2, size // 2 + size, size // 2 + size))
    return np.asarray(centre, np.float32)[..., None] / 255


def add_watermark(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Lays a shop's name over the photo, in place, light or dark and so thin that all is seen through it."""
    alpha = _watermark(int(rng.integers(WATERMARKS)), len(picture)) * np.float32(rng.uniform(0.12, 0.28))
    picture *= 1 - alpha
    picture += alpha * np.float32(rng.random() < 0.6)
