"""The printing on the rendered world's products: brand, line, kind, small print, amount, and a line's ornament."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capture_lib.world.packaging import RGB, Look, Surface, mix
from capture_lib.world.wording import BRANDS, KINDS, Product

Draw = ImageDraw.ImageDraw
SMALL_PRINT = (
    ("with plant extracts for daily care", "suitable for all skin types"),
    ("apply morning and evening", "gentle, free of colourants"),
    ("light texture, quickly absorbed", "keep cool and out of the sun"),
    ("温和配方 每日使用", "请置于阴凉干燥处"),
    ("植萃成分 细腻质地", "产品批号及限用日期见瓶底"),
)


@lru_cache(maxsize=24)  # 2.6 MB each
def font(size: int, serif: bool = False) -> ImageFont.FreeTypeFont:
    """Noto Sans or Serif CJK from the package mplfonts, `size` pixels high."""
    folder = Path(list(importlib.util.find_spec("mplfonts").submodule_search_locations)[0]) / "fonts"
    return ImageFont.truetype(str(folder / f"Noto{'Serif' if serif else 'Sans'}CJKsc-Regular.otf"), size)


def write(draw: Draw, centre: tuple[float, float], text: str, width: float, height: float,
          fill: tuple, serif: bool = False, bold: float = 0.0) -> None:
    """Letters centred at a point, as large as fits into width × height pixels."""
    if not text:
        return
    size = int(min(height, width / max(font(40, serif).getlength(text), 1) * 40))
    size = max(6, size - size % (1 if size < 12 else 2 if size < 28 else 4))  # few sizes: few fonts in memory
    draw.text(centre, text, fill=fill, font=font(size, serif), anchor="mm", stroke_width=round(size * bold),
              stroke_fill=fill)


def ornament_points(centre: tuple[float, float], radius: float, look: Look, stretch: float = 1.0) -> np.ndarray:
    """The outline of a line's ornament, (96, 2) x and y in pixels; `stretch` widens it."""
    t = np.linspace(0, 2 * np.pi, 97)[:-1]
    r = radius * (1 + look.depth * np.cos(look.petals * t)) / (1 + abs(look.depth))
    return np.c_[centre[0] + stretch * r * np.sin(t), centre[1] - r * np.cos(t)]


def _ornament(draw: Draw, centre: tuple[float, float], radius: float, look: Look, fill: RGB) -> None:
    draw.polygon([tuple(point) for point in ornament_points(centre, radius, look)], fill=fill)
    if look.ring:
        draw.circle(centre, radius * 0.32, fill=(255, 255, 255, 235))


def _paper(draw: Draw, w: int, h: int, look: Look, paper: RGB) -> None:
    """The label under the letters: a panel, a band around the body, an oval, or nothing."""
    if look.label == "panel":
        draw.rounded_rectangle((0.14 * w, 0.10 * h, 0.86 * w, 0.90 * h), 0.05 * w, fill=paper, outline=look.accent,
                               width=max(1, w // 90))
    elif look.label == "band":
        draw.rectangle((0, 0.12 * h, w, 0.86 * h), fill=paper)
        for y in (0.12, 0.86):
            draw.rectangle((0, (y - 0.012) * h, w, (y + 0.012) * h), fill=look.accent)
    elif look.label == "oval":
        draw.ellipse((0.08 * w, 0.04 * h, 0.92 * w, 0.96 * h), fill=paper, outline=look.accent,
                     width=max(1, w // 70))


def _inks(look: Look, under: Surface) -> tuple[RGB, RGB, RGB]:
    """Colours of the paper, of the letters and of the line's name, readable on each other."""
    paper = (252, 250, 246) if sum(look.ink) < 384 else mix(look.body.rgb, (0, 0, 0), 0.45)
    ground = under.rgb if look.label == "print" else paper
    contrast = (40, 36, 36) if sum(ground) > 400 else (250, 246, 238)
    ink = look.ink if abs(sum(ground) - sum(look.ink)) > 260 else contrast
    return paper, ink, look.accent if abs(sum(ground) - sum(look.accent)) > 200 else ink


def _words(product: Product, look: Look) -> tuple[str, str, str, str]:
    """What is printed: brand, line, noun, and the kind in Latin letters with the shade's mark."""
    brand = BRANDS[product.brand][0]
    mark = "" if product.variant.mark.endswith("ml") else product.variant.mark
    latin = f"{KINDS[product.kind].latin} {mark}".strip()
    return brand.upper() if look.capitals else brand, product.line_name, product.claim + product.noun, latin


def amount(product: Product) -> str:
    """How much is in it, as printed at the foot of the label."""
    return product.variant.mark if product.variant.mark.endswith("ml") else KINDS[product.kind].amount


def decal(size: tuple[int, int], product: Product, look: Look, under: Surface) -> np.ndarray:
    """The printing of a product: (h, w, 4) uint8 RGBA, transparent where the body shows; `size` is (w, h)."""
    w, h = size
    if h > 2.6 * w:  # slender tubes: letters run along the body
        return np.rot90(decal((h, w), product, look, under), -1)
    image = Image.new("RGBA", (2 * w, 2 * h), (*under.rgb, 0))
    lay_out = _strip if w > 2.6 * h else _wide if w > 1.5 * h else _column if look.upright else _tall
    lay_out(ImageDraw.Draw(image), 2 * w, 2 * h, product, look, under)
    return cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)


def _tall(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of bottles, tubes and cartons: ornament, four rows, small print, stripes, the amount."""
    paper, ink, accent = _inks(look, under)
    brand, line, noun, latin = _words(product, look)
    span = (0.52 if look.label == "oval" else 0.58) * w
    _paper(draw, w, h, look, paper)
    _ornament(draw, (w / 2, 0.20 * h), min(0.075 * h, 0.14 * w), look, look.accent)
    write(draw, (w / 2, 0.325 * h), brand, span, 0.112 * h, ink, look.serif, 0.03)
    write(draw, (w / 2, 0.455 * h), line, 0.8 * span, 0.09 * h, accent, look.serif, 0.02)
    write(draw, (w / 2, 0.56 * h), noun, span, 0.065 * h, ink)
    write(draw, (w / 2, 0.645 * h), latin, 0.9 * span, 0.05 * h, ink)
    for n, row in enumerate(SMALL_PRINT[look.petals % len(SMALL_PRINT)]):
        write(draw, (w / 2, (0.70 + 0.03 * n) * h), row, 0.8 * span, 0.022 * h, ink)
    for n in range(look.stripes):
        y = (0.76 + 0.015 * n) * h
        draw.rectangle((0.38 * w, y, 0.62 * w, y + 0.006 * h), fill=look.accent)
    write(draw, (w / 2, 0.83 * h), amount(product), 0.5 * span, 0.05 * h, ink)


def _column(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of bottles, tubes and cartons whose line's name is written from top to bottom, the noun beside it."""
    paper, ink, accent = _inks(look, under)
    brand, line, noun, latin = _words(product, look)
    span = (0.52 if look.label == "oval" else 0.58) * w
    _paper(draw, w, h, look, paper)
    _ornament(draw, (w / 2, 0.19 * h), min(0.055 * h, 0.1 * w), look, look.accent)
    write(draw, (w / 2, 0.29 * h), brand, span, 0.095 * h, ink, look.serif, 0.03)
    for text, x, high, fill in ((line, 0.54, 0.115, accent), (noun, 0.36, 0.056, ink)):
        step = min(high, 0.36 / len(text))
        for n, character in enumerate(text):
            centre = (x * w, (0.36 + step * (n + 0.5)) * h)
            write(draw, centre, character, 0.2 * w, 0.94 * step * h, fill, look.serif, 0.02)
    write(draw, (w / 2, 0.77 * h), latin, 0.8 * span, 0.042 * h, ink)
    write(draw, (w / 2, 0.83 * h), amount(product), 0.5 * span, 0.045 * h, ink)


def _wide(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of jars and gift boxes: ornaments left and right of the brand, the amount below."""
    paper, ink, accent = _inks(look, under)
    brand, line, noun, latin = _words(product, look)
    _paper(draw, w, h, look, paper)
    for x in (0.22, 0.78):
        _ornament(draw, (x * w, 0.38 * h), 0.08 * h, look, look.accent)
    write(draw, (w / 2, 0.27 * h), brand, 0.42 * w, 0.20 * h, ink, look.serif, 0.03)
    write(draw, (w / 2, 0.46 * h), line, 0.36 * w, 0.15 * h, accent, look.serif, 0.02)
    write(draw, (w / 2, 0.60 * h), noun, 0.44 * w, 0.11 * h, ink)
    write(draw, (w / 2, 0.70 * h), f"{latin} · {amount(product)}", 0.4 * w, 0.075 * h, ink)
    for n in range(look.stripes):
        draw.rectangle((0.4 * w, (0.755 + 0.025 * n) * h, 0.6 * w, (0.765 + 0.025 * n) * h), fill=look.accent)
    write(draw, (w / 2, 0.84 * h), SMALL_PRINT[look.petals % len(SMALL_PRINT)][0], 0.38 * w, 0.04 * h, ink)


def _strip(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of slender bodies and of compacts: everything in one row, without paper."""
    brand, line, noun, latin = _words(product, look)
    ink = (48, 40, 34) if sum(under.rgb) > 520 else (252, 250, 244)
    high = 0.42 * h
    _ornament(draw, (0.14 * w, 0.5 * h), 0.2 * h, look, ink)
    write(draw, (0.38 * w, 0.5 * h), brand, 0.34 * w, high, ink, look.serif, 0.03)
    write(draw, (0.65 * w, 0.5 * h), line, 0.16 * w, 0.8 * high, ink, look.serif, 0.02)
    write(draw, (0.83 * w, 0.30 * h), noun, 0.16 * w, 0.55 * high, ink)
    write(draw, (0.83 * w, 0.55 * h), latin, 0.16 * w, 0.5 * high, ink)
    write(draw, (0.83 * w, 0.76 * h), amount(product), 0.12 * w, 0.3 * high, ink)
