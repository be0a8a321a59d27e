"""The printing on products: brand, line, kind, small print, amount, and a line's ornament.

`labels.json` holds four layouts; all lengths are fractions of the label's width or height:

- `span`, `oval_span`: width that a row's width is a fraction of, and the same on oval paper;
- `unit`: height that a row's height is a fraction of;
- `marks`, in the order of printing: a method of `Label` and its arguments.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capture_lib.world.packaging import BLACK, Look, Surface, mix
from capture_lib.world.products import BRANDS, KINDS, RGB, Product
from capture_lib.world.tables import read_table

Draw = ImageDraw.ImageDraw
Point = tuple[float, float]

TABLE = read_table("labels")
SMALL_PRINT = TABLE["small_print"]
LAYOUTS = TABLE["layouts"]


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
    """Return the printing of a product: (h, w, 4) uint8 RGBA, transparent where the body shows.

    Args:
        size: w, h.
        under: what the letters stand on where they have no paper.
    """
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
    label = Label(ImageDraw.Draw(image), image.size, LAYOUTS[name], product, look)
    if name == "strip":
        label.print_bare(under)
    else:
        label.add_paper(under)
    for mark, *numbers in LAYOUTS[name]["marks"]:
        getattr(label, mark)(*numbers)
    return cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)


class Label:
    """A label in the making; its methods are the marks of a layout."""

    def __init__(self, draw: Draw, size: tuple[int, int], layout: dict, product: Product, look: Look) -> None:
        self.draw = draw
        self.w, self.h = size
        self.look = look
        self.texts = _texts(product, look)
        self.span = layout["oval_span" if look.label == "oval" else "span"] * self.w
        self.unit = layout["unit"] * self.h
        self.ornament_ink = look.accent

    def add_paper(self, under: Surface) -> None:
        """Draw paper, and choose inks that can be read on it."""
        paper, self.ink, self.line_ink = _inks(self.look, under)
        _paper(self.draw, self.w, self.h, self.look, paper)

    def print_bare(self, under: Surface) -> None:
        """Do without paper: one ink, light or dark."""
        ink = (48, 40, 34) if sum(under.rgb) > 520 else (252, 250, 244)
        self.ink = self.line_ink = self.ornament_ink = ink

    def row(self, text: str, x: float, y: float, width: float, height: float) -> None:
        """Write a text; brand and line in letters of the brand, all else in plain ones."""
        bold = {"brand": 0.03, "line": 0.02}.get(text, 0.0)
        serif = self.look.serif and bold > 0
        ink = self.line_ink if text == "line" else self.ink
        centre = (x * self.w, y * self.h)
        write(self.draw, centre, self.texts[text], width * self.span, height * self.unit, ink, serif, bold)

    def column(self, text: str, x: float, height: float) -> None:
        """Write a text downwards."""
        ink = self.line_ink if text == "line" else self.ink
        step = min(height, 0.36 / len(self.texts[text]))
        for n, character in enumerate(self.texts[text]):
            centre = (x * self.w, (0.36 + step * (n + 0.5)) * self.h)
            write(self.draw, centre, character, 0.2 * self.w, 0.94 * step * self.h, ink, self.look.serif, 0.02)

    def ornament(self, x: float, y: float, of_height: float, of_width: float) -> None:
        """Draw the line's ornament."""
        centre = (x * self.w, y * self.h)
        radius = min(of_height * self.h, of_width * self.w)
        points = ornament_points(centre, radius, self.look)
        self.draw.polygon([tuple(point) for point in points], fill=self.ornament_ink)
        if self.look.ring:
            self.draw.circle(centre, radius * 0.32, fill=(255, 255, 255, 235))

    def stripes(self, left: float, right: float, top: float, distance: float, thickness: float) -> None:
        """Draw the line's stripes."""
        for n in range(self.look.stripes):
            y = (top + distance * n) * self.h
            box = (left * self.w, y, right * self.w, y + thickness * self.h)
            self.draw.rectangle(box, fill=self.look.accent)


def _texts(product: Product, look: Look) -> dict[str, str]:
    """Return what is printed; a size stands in for the kind's amount, a shade's mark beside the kind."""
    brand = BRANDS[product.brand][0]
    mark = product.variant.mark
    latin = KINDS[product.kind].latin
    if not mark.endswith("ml"):
        latin = f"{latin} {mark}".strip()
    small = SMALL_PRINT[look.petals % len(SMALL_PRINT)]
    return {
        "brand": brand.upper() if look.capitals else brand,
        "line": product.line_name,
        "noun": product.claim + product.noun,
        "latin": latin,
        "amount": amount(product),
        "latin · amount": f"{latin} · {amount(product)}",
        "print": small[0],
        "second print": small[1],
    }


def amount(product: Product) -> str:
    """Return how much is in a product, as printed at the foot of the label."""
    mark = product.variant.mark
    return mark if mark.endswith("ml") else KINDS[product.kind].amount


def _inks(look: Look, under: Surface) -> tuple[RGB, RGB, RGB]:
    """Return colours of the paper, of the letters and of the line's name, readable on each other."""
    paper = (252, 250, 246) if sum(look.ink) < 384 else mix(look.body.rgb, BLACK, 0.45)
    behind = sum(under.rgb if look.label == "print" else paper)
    contrast = (40, 36, 36) if behind > 400 else (250, 246, 238)
    ink = look.ink if abs(behind - sum(look.ink)) > 260 else contrast
    accent = look.accent if abs(behind - sum(look.accent)) > 200 else ink
    return paper, ink, accent


def _paper(draw: Draw, w: int, h: int, look: Look, paper: RGB) -> None:
    """Draw the label under the letters: a panel, a band around the body, an oval, or nothing."""
    if look.label == "panel":
        box = (0.14 * w, 0.10 * h, 0.86 * w, 0.90 * h)
        draw.rounded_rectangle(box, 0.05 * w, fill=paper, outline=look.accent, width=max(1, w // 90))
    elif look.label == "band":
        draw.rectangle((0, 0.12 * h, w, 0.86 * h), fill=paper)
        for y in (0.12, 0.86):
            draw.rectangle((0, (y - 0.012) * h, w, (y + 0.012) * h), fill=look.accent)
    elif look.label == "oval":
        box = (0.08 * w, 0.04 * h, 0.92 * w, 0.96 * h)
        draw.ellipse(box, fill=paper, outline=look.accent, width=max(1, w // 70))
