"""How the rendered world's products are packed: forms, colours of a brand and its lines, printed labels."""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capture_lib.world.wording import BRANDS, KINDS, Product

RGB = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
# body, accent, ink, chosen by eye: a brand takes one, its further lines turn the body's hue
PALETTES: tuple[tuple[RGB, RGB, RGB], ...] = (
    ((246, 240, 232), (196, 150, 92), (94, 66, 40)), ((32, 58, 72), (214, 178, 120), (244, 236, 220)),
    ((222, 236, 228), (92, 144, 118), (40, 78, 62)), ((244, 208, 206), (198, 92, 106), (118, 40, 56)),
    ((206, 224, 242), (72, 122, 184), (28, 60, 112)), ((44, 42, 46), (206, 170, 98), (240, 226, 190)),
    ((250, 250, 248), (44, 122, 130), (30, 72, 80)), ((156, 34, 44), (226, 188, 116), (252, 238, 214)),
    ((232, 222, 242), (132, 100, 178), (74, 48, 118)), ((252, 230, 176), (224, 132, 50), (126, 66, 20)),
    ((70, 104, 78), (222, 206, 150), (246, 242, 224)), ((252, 244, 246), (236, 126, 158), (150, 44, 84)),
    ((26, 38, 92), (196, 206, 224), (240, 244, 252)), ((236, 232, 220), (122, 126, 84), (66, 66, 40)),
    ((184, 222, 218), (238, 118, 96), (30, 84, 88)), ((98, 60, 48), (232, 202, 160), (250, 236, 216)),
)
GOLD, SILVER, ROSE = (222, 184, 108), (206, 210, 216), (226, 172, 152)


@dataclass(frozen=True)
class Surface:
    """Colour and finish of a part; finish: matte, gloss, metal, glass, wood or foil."""

    rgb: RGB
    finish: str = "gloss"


@dataclass(frozen=True)
class Look:
    """How a line of a brand is dressed: the brand's cap, collar, label and letters, its own colour and ornament."""

    body: Surface
    cap: Surface
    collar: Surface
    accent: RGB
    ink: RGB
    label: str  # panel, band, print or oval
    serif: bool
    capitals: bool
    petals: int  # the ornament: a closed curve of radius 1 + depth cos(petals t)
    depth: float
    ring: bool
    stripes: int  # at the foot of the label


@dataclass(frozen=True)
class Part:
    """A turned body, or a flat polygon; lengths in units of the silhouette's height.

    `outline` runs from top to bottom as (height, half width), or around a polygon as (height, x from the axis).
    """

    role: str  # decides the surface: body, cap, collar, neck, ...
    outline: tuple[tuple[float, float], ...]
    printed: bool = False
    curve: float = 0.10  # how far edges sag in the middle, in half widths: the camera looks down a little
    slant: float = 0.0  # a top cut aslant, as on a lipstick
    polygon: bool = False


@dataclass(frozen=True)
class Silhouette:
    """A form: width over height, real height against a bottle's, parts from back to front."""

    aspect: float
    height: float
    parts: tuple[Part, ...]


def _round(y0: float, y1: float, half: float, corner: float = 0.02) -> tuple[tuple[float, float], ...]:
    """Outline of a straight cylinder with rounded edges."""
    c = corner
    return ((y0, half - c), (y0 + 0.3 * c, half - 0.45 * c), (y0 + c, half),
            (y1 - c, half), (y1 - 0.3 * c, half - 0.45 * c), (y1, half - c))


SILHOUETTES = {
    "bottle": Silhouette(0.36, 1.0, (
        Part("neck", ((0.17, 0.06), (0.24, 0.06))),
        Part("body", ((0.21, 0.06), (0.225, 0.10), (0.25, 0.14), (0.29, 0.165), (0.34, 0.17), (0.965, 0.17),
                      (0.99, 0.15)), True),
        Part("cap", _round(0.0, 0.19, 0.085, 0.012)))),
    "flask": Silhouette(0.46, 0.86, (
        Part("body", ((0.24, 0.10), (0.26, 0.17), (0.30, 0.205), (0.36, 0.215), (0.94, 0.20), (0.98, 0.175),
                      (0.99, 0.15)), True),
        Part("collar", _round(0.215, 0.26, 0.125, 0.008)),
        Part("cap", _round(0.0, 0.23, 0.12, 0.03)))),
    "pump": Silhouette(0.42, 1.06, (
        Part("body", ((0.25, 0.07), (0.265, 0.13), (0.29, 0.17), (0.33, 0.19), (0.965, 0.19), (0.99, 0.17)),
             True),
        Part("neck", ((0.07, 0.022), (0.20, 0.022))),
        Part("cap", _round(0.175, 0.27, 0.085, 0.012)),
        Part("cap", ((0.03, -0.20), (0.02, 0.07), (0.075, 0.07), (0.075, -0.16), (0.09, -0.20)), polygon=True),
        Part("cap", _round(0.0, 0.09, 0.07, 0.02)))),
    "dropper": Silhouette(0.38, 0.78, (
        Part("body", ((0.38, 0.07), (0.395, 0.13), (0.42, 0.165), (0.46, 0.178), (0.955, 0.178), (0.99, 0.155)),
             True),
        Part("bulb", ((0.0, 0.03), (0.015, 0.05), (0.05, 0.062), (0.20, 0.066), (0.24, 0.085))),
        Part("collar", _round(0.22, 0.405, 0.098, 0.012)))),
    "jar": Silhouette(1.12, 0.50, (
        Part("body", ((0.33, 0.50), (0.40, 0.535), (0.52, 0.54), (0.84, 0.51), (0.93, 0.46), (0.955, 0.40)),
             True, 0.08),
        Part("collar", _round(0.30, 0.37, 0.505, 0.01), curve=0.08),
        Part("cap", _round(0.045, 0.335, 0.535, 0.03), curve=0.08))),
    "tube": Silhouette(0.42, 0.92, (
        Part("body", ((0.0, 0.195), (0.05, 0.195), (0.055, 0.19), (0.50, 0.188), (0.78, 0.165), (0.83, 0.14)),
             True, 0.02),
        Part("cap", _round(0.815, 0.985, 0.135, 0.02)))),
    "spray": Silhouette(0.30, 1.02, (
        Part("body", ((0.24, 0.085), (0.25, 0.115), (0.275, 0.135), (0.31, 0.142), (0.975, 0.142), (0.99, 0.13)),
             True),
        Part("cap", ((0.0, 0.05), (0.012, 0.085), (0.04, 0.108), (0.08, 0.116), (0.255, 0.12))))),
    "lipstick": Silhouette(0.30, 0.66, (
        Part("shade", ((0.0, 0.075), (0.03, 0.088), (0.10, 0.092), (0.34, 0.092)), slant=0.075),
        Part("collar", _round(0.28, 0.50, 0.112, 0.008)),
        Part("case", _round(0.47, 0.985, 0.14, 0.01), True))),
    "gloss": Silhouette(0.22, 0.70, (
        Part("shade", _round(0.43, 0.985, 0.088, 0.02), True),
        Part("collar", _round(0.405, 0.45, 0.08, 0.006)),
        Part("case", _round(0.0, 0.42, 0.09, 0.015)))),
    "compact": Silhouette(0.94, 0.56, (
        Part("mirror", ((0.0, 0.46), (0.62, 0.46))),
        Part("case", ((0.72, 0.462), (0.76, 0.468), (0.86, 0.468), (0.90, 0.452)), True, 0.20),
        Part("powder", ((0.60, 0.47), (0.84, 0.47))))),
    "perfume": Silhouette(0.66, 0.72, (
        Part("shoulder", ((0.34, -0.30), (0.34, 0.30), (0.985, 0.30), (0.985, -0.30)), True, polygon=True),
        Part("collar", _round(0.27, 0.355, 0.085, 0.01)),
        Part("cap", _round(0.0, 0.285, 0.125, 0.015)))),
    "sachet": Silhouette(0.74, 0.86, (
        Part("sheet", ((0.01, -0.355), (0.01, 0.355), (0.985, 0.36), (0.985, -0.36)), True, polygon=True),)),
    "box": Silhouette(0.56, 0.94, (
        Part("side", ((0.055, 0.165), (0.0, 0.265), (0.925, 0.265), (0.99, 0.165)), polygon=True),
        Part("lid", ((0.055, -0.27), (0.0, -0.14), (0.0, 0.265), (0.055, 0.165)), polygon=True),
        Part("front", ((0.055, -0.27), (0.055, 0.165), (0.99, 0.165), (0.99, -0.27)), True, polygon=True))),
}


# ---- what a brand and a line look like
def _mix(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(int(round(x + (y - x) * share)) for x, y in zip(a, b, strict=True))


def _turn_hue(rgb: RGB, degrees: float, depth: float) -> RGB:
    """Another colour of the same family: hue turned, brightness scaled."""
    h, s, v = cv2.cvtColor(np.uint8([[rgb]]), cv2.COLOR_RGB2HSV)[0, 0].astype(float)
    hsv = np.uint8([[[(h + degrees / 2) % 180, min(255, s * 1.15 + 8), np.clip(v * depth, 20, 252)]]])
    return tuple(int(x) for x in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


@lru_cache(maxsize=1024)
def look_of(brand: int, line: int, look: int, seed: int) -> Look:
    """Dress of a line: `look` decides its colours (twin lines share them), `line` its ornament."""
    of_brand = np.random.default_rng([seed, 201, brand])
    of_line = np.random.default_rng([seed, 203, brand, line])
    body, accent, ink = _colours(brand, look, seed)
    caps = (Surface(GOLD, "metal"), Surface(SILVER, "metal"), Surface(ROSE, "metal"), Surface((28, 28, 30)),
            Surface((248, 248, 246)), Surface(accent, "matte"), Surface((176, 128, 82), "wood"))
    return Look(
        body=Surface(body, str(of_brand.choice(["gloss", "matte", "glass"], p=[0.45, 0.3, 0.25]))),
        cap=caps[int(of_brand.integers(len(caps)))], collar=caps[int(of_brand.integers(3))], accent=accent, ink=ink,
        label=str(of_brand.choice(["panel", "band", "print", "oval"])), serif=bool(of_brand.integers(2)),
        capitals=bool(of_brand.integers(2)), petals=int(of_line.integers(2, 9)),
        depth=float(of_line.choice([-0.35, 0.2, 0.35, 0.6])), ring=bool(of_line.integers(2)),
        stripes=int(of_line.integers(0, 4)))


def _colours(brand: int, look: int, seed: int) -> tuple[RGB, RGB, RGB]:
    """Body, accent and ink of a line: the brand's palette, the body's hue turned for every further line."""
    rng = np.random.default_rng([seed, 202, brand, look])
    body, accent, ink = PALETTES[(brand * 7 + seed) % len(PALETTES)]
    if brand >= len(PALETTES):  # palettes return in other colours
        body, accent = _turn_hue(body, 40, 1.0), _turn_hue(accent, 40, 1.0)
    if look:
        body = _turn_hue(body, float(rng.choice([-70, -35, 35, 70, 150])), float(rng.uniform(0.82, 1.1)))
    if sum(body) > 480 and sum(ink) > 480:
        ink = _mix(ink, (0, 0, 0), 0.75)
    return body, accent, ink


def surface_of(role: str, look: Look, product: Product) -> Surface:
    """What a part is made of; shades and scents show in some parts."""
    shade, body = product.variant.rgb or look.body.rgb, look.body.rgb
    dark, light = _mix(body, (0, 0, 0), 0.28), _mix(body, (255, 255, 255), 0.3)
    return {
        "body": _body(look, product), "cap": look.cap, "case": look.cap, "mirror": look.cap,
        "collar": look.collar,
        "neck": Surface((236, 236, 232), "matte"),
        "bulb": Surface((40, 38, 40) if sum(body) < 420 else (244, 242, 238), "matte"),
        "side": Surface(dark, "matte"), "lid": Surface(light, "matte"), "front": Surface(body, "matte"),
        "sheet": Surface(body, "foil"), "shoulder": Surface(_mix(body, look.accent, 0.35), "glass"),
        "shade": Surface(shade, "glass" if product.silhouette == "gloss" else "gloss"),
        "powder": Surface(shade, "matte"),
    }[role]


def _body(look: Look, product: Product) -> Surface:
    """Foundation shows its shade through glass, a scent tints the bottle, serums and removers stand in glass."""
    if product.kind == "foundation":
        return Surface(product.variant.rgb, "glass")
    if product.variant.rgb:
        return Surface(_mix(look.body.rgb, product.variant.rgb, 0.65), look.body.finish)
    glassy = product.silhouette == "dropper" or product.kind == "remover"
    return Surface(look.body.rgb, "glass" if glassy else look.body.finish)


# ---- lettering
@lru_cache(maxsize=64)
def font(size: int, serif: bool = False) -> ImageFont.FreeTypeFont:
    """Noto Sans or Serif CJK from the package mplfonts, `size` pixels high."""
    folder = Path(list(importlib.util.find_spec("mplfonts").submodule_search_locations)[0]) / "fonts"
    return ImageFont.truetype(str(folder / f"Noto{'Serif' if serif else 'Sans'}CJKsc-Regular.otf"), size)


def write(draw: Draw, centre: tuple[float, float], text: str, width: float, height: float,
          fill: tuple, serif: bool = False, bold: float = 0.0) -> None:
    """Letters centred at a point, as large as fits into width × height pixels."""
    if not text:
        return
    size = max(6, int(min(height, width / max(font(40, serif).getlength(text), 1) * 40)))
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
    paper = (252, 250, 246) if sum(look.ink) < 384 else _mix(look.body.rgb, (0, 0, 0), 0.45)
    ground = under.rgb if look.label == "print" else paper
    contrast = (40, 36, 36) if sum(ground) > 400 else (250, 246, 238)
    ink = look.ink if abs(sum(ground) - sum(look.ink)) > 260 else contrast
    return paper, ink, look.accent if abs(sum(ground) - sum(look.accent)) > 200 else ink


def _words(product: Product, look: Look) -> tuple[str, str, str, str]:
    """What is printed: brand, line, noun, and the kind in Latin letters with the variant's mark."""
    brand = BRANDS[product.brand][0]
    noun = product.name.removeprefix(product.line_name).removesuffix(product.variant.name)
    latin = f"{KINDS[product.kind].latin} {product.variant.mark}".strip()
    return brand.upper() if look.capitals else brand, product.line_name, noun, latin


def decal(size: tuple[int, int], product: Product, look: Look, under: Surface) -> np.ndarray:
    """The printing of a product: (h, w, 4) uint8 RGBA, transparent where the body shows; `size` is (w, h)."""
    w, h = size
    if h > 2.6 * w:  # slender tubes: letters run along the body
        return np.rot90(decal((h, w), product, look, under), -1)
    image = Image.new("RGBA", (2 * w, 2 * h), (*under.rgb, 0))
    lay_out = _strip if w > 2.6 * h else _wide if w > 1.5 * h else _tall
    lay_out(ImageDraw.Draw(image), 2 * w, 2 * h, product, look, under)
    return cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)


def _tall(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of bottles, tubes and cartons: ornament, four rows, stripes."""
    paper, ink, accent = _inks(look, under)
    brand, line, noun, latin = _words(product, look)
    span = (0.52 if look.label == "oval" else 0.58) * w
    _paper(draw, w, h, look, paper)
    _ornament(draw, (w / 2, 0.22 * h), min(0.085 * h, 0.15 * w), look, look.accent)
    write(draw, (w / 2, 0.36 * h), brand, span, 0.112 * h, ink, look.serif, 0.03)
    write(draw, (w / 2, 0.50 * h), line, 0.8 * span, 0.09 * h, accent, look.serif, 0.02)
    write(draw, (w / 2, 0.61 * h), noun, span, 0.065 * h, ink)
    write(draw, (w / 2, 0.71 * h), latin, 0.9 * span, 0.05 * h, ink)
    for n in range(look.stripes):
        y = (0.775 + 0.022 * n) * h
        draw.rectangle((0.32 * w, y, 0.68 * w, y + 0.008 * h), fill=look.accent)


def _wide(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of jars: ornaments left and right of the brand."""
    paper, ink, accent = _inks(look, under)
    brand, line, noun, latin = _words(product, look)
    _paper(draw, w, h, look, paper)
    for x in (0.22, 0.78):
        _ornament(draw, (x * w, 0.38 * h), 0.08 * h, look, look.accent)
    write(draw, (w / 2, 0.27 * h), brand, 0.42 * w, 0.20 * h, ink, look.serif, 0.03)
    write(draw, (w / 2, 0.46 * h), line, 0.36 * w, 0.15 * h, accent, look.serif, 0.02)
    write(draw, (w / 2, 0.61 * h), noun, 0.44 * w, 0.11 * h, ink)
    write(draw, (w / 2, 0.73 * h), latin, 0.4 * w, 0.085 * h, ink)
    for n in range(look.stripes):
        draw.rectangle((0.4 * w, (0.79 + 0.025 * n) * h, 0.6 * w, (0.80 + 0.025 * n) * h), fill=look.accent)


def _strip(draw: Draw, w: int, h: int, product: Product, look: Look, under: Surface) -> None:
    """Printing of slender bodies and of compacts: everything in one row, without paper."""
    brand, line, noun, latin = _words(product, look)
    ink = (48, 40, 34) if sum(under.rgb) > 520 else (252, 250, 244)
    high = 0.42 * h
    _ornament(draw, (0.14 * w, 0.5 * h), 0.2 * h, look, ink)
    write(draw, (0.38 * w, 0.5 * h), brand, 0.34 * w, high, ink, look.serif, 0.03)
    write(draw, (0.65 * w, 0.5 * h), line, 0.16 * w, 0.8 * high, ink, look.serif, 0.02)
    write(draw, (0.83 * w, 0.38 * h), noun, 0.16 * w, 0.55 * high, ink)
    write(draw, (0.83 * w, 0.66 * h), latin, 0.16 * w, 0.5 * high, ink)


def real_height(product: Product) -> float:
    """Height of a product against a plain bottle's, for groups of products in one photo."""
    return SILHOUETTES[product.silhouette].height * product.variant.scale
