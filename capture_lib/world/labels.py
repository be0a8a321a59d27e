"""The printing on products: brand, line, kind, small print, amount, and a line's ornament."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capture_lib.world.packaging import BLACK, Look, Surface, mix
from capture_lib.world.products import BRANDS, KINDS, Product
from capture_lib.world.tables import read_table

Draw = ImageDraw.ImageDraw
Point = tuple[float, float]

_, SMALL_PRINT, LAYOUTS = read_table("labels").values()


# ---- letters and ornaments
@lru_cache(maxsize=24)  # 2.6 MB each
def font(size: int, serif: bool = False) -> ImageFont.FreeTypeFont:
    """Return Noto Sans or Serif CJK from the package mplfonts, `size` pixels high."""
    folder = importlib.util.find_spec("mplfonts").submodule_search_locations[0]
    style = "Serif" if serif else "Sans"
    return ImageFont.truetype(str(Path(folder) / "fonts" / f"Noto{style}CJKsc-Regular.otf"), size)


def write(draw: Draw, centre: Point, text: str, width: float, height: float, fill: tuple,
          serif: bool = False, bold: float = 0.0) -> None:
    """Write letters around a point, as large as fits into width × height pixels."""
    if not text:
        return
    size = int(min(height, width / max(font(40, serif).getlength(text), 1) * 40))
    step = 1 if size < 12 else 2 if size < 28 else 4
    size = max(6, size - size % step)  # few sizes: few fonts in memory
    stroke = round(size * bold)
    draw.text(centre, text, fill=fill, font=font(size, serif), anchor="mm", stroke_width=stroke, stroke_fill=fill)


def ornament_points(centre: Point, radius: float, look: Look, stretch: float = 1.0) -> np.ndarray:
    """Return the outline of a line's ornament, (96, 2) x and y in pixels; `stretch` widens it."""
    t = np.linspace(0, 2 * np.pi, 97)[:-1]
    r = radius * (1 + look.depth * np.cos(look.petals * t)) / (1 + abs(look.depth))
    return np.c_[centre[0] + stretch * r * np.sin(t), centre[1] - r * np.cos(t)]


# ---- the printing of a product
def decal(size: tuple[int, int], product: Product, look: Look, under: Surface) -> np.ndarray:
    """Print a product: (h, w, 4) uint8 RGBA, transparent where the body, `under` it, shows; `size` is w, h."""
    w, h = size
    if h > 2.6 * w:  # slender tubes: letters run along the body
        return np.rot90(decal((h, w), product, look, under), -1)
    if w > 2.6 * h:
        name = "strip"  # slender bodies and compacts: all in one row, without paper
    elif w > 1.5 * h:
        name = "wide"  # jars and gift boxes
    else:
        name = "column" if look.upright else "tall"  # bottles, tubes and cartons
    image = Image.new("RGBA", (2 * w, 2 * h), (*under.rgb, 0))
    _print(ImageDraw.Draw(image), name, 2 * w, 2 * h, product, look, under)
    return cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)


def _print(draw: Draw, name: str, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Print a layout's paper and its marks, one after the other."""
    layout = LAYOUTS[name]
    texts = _texts(product, look)
    span = layout["oval_span" if look.label == "oval" else "span"] * w
    unit = layout["unit"] * h
    if name == "strip":
        ink = (48, 40, 34) if sum(under.rgb) > 520 else (252, 250, 244)
        inks = {"ornament": ink, "line": ink}
    else:
        paper = (252, 250, 246) if sum(look.ink) < 384 else mix(look.body.rgb, BLACK, 0.45)
        if look.label == "panel":
            box = (0.14 * w, 0.10 * h, 0.86 * w, 0.90 * h)
            draw.rounded_rectangle(box, 0.05 * w, fill=paper, outline=look.accent, width=max(1, w // 90))
        elif look.label == "band":  # around the body
            draw.rectangle((0, 0.12 * h, w, 0.86 * h), fill=paper)
            for y in (0.12, 0.86):
                draw.rectangle((0, (y - 0.012) * h, w, (y + 0.012) * h), fill=look.accent)
        elif look.label == "oval":
            box = (0.08 * w, 0.04 * h, 0.92 * w, 0.96 * h)
            draw.ellipse(box, fill=paper, outline=look.accent, width=max(1, w // 70))
        # inks that can be read on it
        behind = sum(under.rgb if look.label == "print" else paper)
        contrast = (40, 36, 36) if behind > 400 else (250, 246, 238)
        ink = look.ink if abs(behind - sum(look.ink)) > 260 else contrast
        line_ink = look.accent if abs(behind - sum(look.accent)) > 200 else ink
        inks = {"ornament": look.accent, "line": line_ink}
    styles = {"brand": (look.serif, 0.03), "line": (look.serif, 0.02)}  # all else in plain letters
    for mark, *numbers in layout["marks"]:
        if mark == "ornament":
            x, y, of_height, of_width = numbers
            radius = min(of_height * h, of_width * w)
            points = ornament_points((x * w, y * h), radius, look)
            draw.polygon([tuple(point) for point in points], fill=inks["ornament"])
            if look.ring:
                draw.circle((x * w, y * h), radius * 0.32, fill=(255, 255, 255, 235))
        elif mark == "stripes":
            left, right, top, distance, thickness = numbers
            for n in range(look.stripes):
                y = (top + distance * n) * h
                draw.rectangle((left * w, y, right * w, y + thickness * h), fill=look.accent)
        elif len(numbers) == 2:  # a column
            x, height = numbers
            step = min(height, 0.36 / len(texts[mark]))
            for n, character in enumerate(texts[mark]):
                centre = (x * w, (0.36 + step * (n + 0.5)) * h)
                write(draw, centre, character, 0.2 * w, 0.94 * step * h, inks.get(mark, ink), look.serif, 0.02)
        else:  # a row
            x, y, width, height = numbers
            style = styles.get(mark, (False, 0.0))
            write(draw, (x * w, y * h), texts[mark], width * span, height * unit, inks.get(mark, ink), *style)


def _texts(product: Product, look: Look) -> dict[str, str]:
    """Return what is printed; a size stands in for the kind's amount, a shade's mark beside the kind."""
    brand = BRANDS[product.brand][0]
    mark = product.variant.mark
    amount = mark if mark.endswith("ml") else KINDS[product.kind].amount
    latin = KINDS[product.kind].latin
    latin = latin if mark.endswith("ml") else f"{latin} {mark}".strip()
    print_, second = SMALL_PRINT[look.petals % len(SMALL_PRINT)]
    return {
        "brand": brand.upper() if look.capitals else brand,
        "line": product.line_name, "noun": product.claim + product.noun, "latin": latin, "amount": amount,
        "latin · amount": f"{latin} · {amount}", "print": print_, "second print": second,
    }
