"""How the rendered world's products are packed: forms, and the colours of a brand and its lines."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from capture_lib.world.wording import Product

RGB = tuple[int, int, int]
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
    ((255, 250, 240), (224, 86, 60), (62, 58, 60)), ((122, 132, 148), (236, 226, 206), (250, 248, 244)),
    ((210, 188, 164), (120, 74, 48), (70, 42, 28)), ((234, 178, 160), (122, 60, 52), (92, 36, 34)),
    ((18, 92, 96), (240, 196, 130), (250, 240, 222)), ((250, 222, 92), (40, 66, 92), (36, 40, 60)),
    ((86, 52, 92), (232, 196, 214), (250, 238, 246)), ((214, 226, 188), (196, 122, 60), (66, 80, 36)),
    ((200, 206, 214), (64, 74, 92), (34, 40, 54)), ((252, 238, 228), (208, 138, 120), (128, 62, 54)),
    ((12, 60, 46), (206, 176, 96), (246, 236, 204)), ((238, 96, 74), (255, 236, 214), (255, 248, 240)),
    ((172, 196, 226), (250, 214, 140), (34, 52, 96)), ((246, 246, 250), (150, 120, 196), (64, 50, 96)),
)
GOLD, SILVER, ROSE = (222, 184, 108), (206, 210, 216), (226, 172, 152)


@dataclass(frozen=True)
class Surface:
    """Colour and finish of a part; finish: a key of `drawing.GLINT`."""

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
    upright: bool  # the line's name stands in a column
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
    corner: float = 0.0  # radius of a polygon's corners
    x: float = 0.0  # a turned body's axis, from the middle of the product


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


def _plate(y0: float, y1: float, left: float, right: float, taper: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Outline of a flat plate, its upper edge shorter by `taper` at either end."""
    return (y0, left + taper), (y0, right - taper), (y1, right), (y1, left)


def _pans(rows: int, columns: int, box: tuple[float, float, float, float], taper: float = 0.0) -> tuple[Part, ...]:
    """Pans of eye shadow in a grid; `box`: top, bottom, left, right."""
    (y0, y1, x0, x1), parts = box, []
    high, wide = (y1 - y0) / rows, (x1 - x0) / columns
    for n in range(rows * columns):
        row, column = divmod(n, columns)
        outline = _plate(y0 + (row + 0.08) * high, y0 + (row + 0.92) * high, x0 + (column + 0.07) * wide,
                         x0 + (column + 0.93) * wide, taper)
        parts.append(Part(f"pan{n}", outline, polygon=True, corner=0.012))
    return tuple(parts)


def _vial(x: float, printed: bool) -> tuple[Part, ...]:
    """A glass ampoule with its neck and head."""
    return (Part("vial", ((0.0, 0.022), (0.02, 0.045), (0.16, 0.052), (0.24, 0.028), (0.30, 0.028), (0.34, 0.06)), x=x),
            Part("shade", ((0.255, 0.03), (0.285, 0.03)), x=x),
            Part("vial", ((0.31, 0.03), (0.38, 0.088), (0.97, 0.088), (0.99, 0.07)), printed, x=x))


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
    "vase": Silhouette(0.50, 0.90, (
        Part("body", ((0.27, 0.07), (0.29, 0.10), (0.34, 0.145), (0.44, 0.20), (0.58, 0.235), (0.74, 0.235),
                      (0.90, 0.20), (0.97, 0.16), (0.99, 0.13)), True),
        Part("collar", _round(0.235, 0.29, 0.085, 0.006)),
        Part("cap", ((0.0, 0.03), (0.015, 0.065), (0.05, 0.10), (0.10, 0.122), (0.16, 0.118), (0.22, 0.09),
                     (0.25, 0.07)), curve=0.04))),
    "pot": Silhouette(1.06, 0.46, (
        Part("body", ((0.40, 0.50), (0.42, 0.51), (0.90, 0.51), (0.95, 0.49)), True, 0.10),
        Part("collar", _round(0.385, 0.43, 0.47, 0.01), curve=0.10),
        Part("cap", _round(0.06, 0.40, 0.515, 0.02), curve=0.10))),
    "slimtube": Silhouette(0.26, 0.70, (
        Part("body", ((0.0, 0.108), (0.045, 0.108), (0.05, 0.104), (0.45, 0.103), (0.68, 0.085), (0.72, 0.06)), True,
             0.02),
        Part("cap", ((0.70, 0.062), (0.72, 0.066), (0.95, 0.052), (0.985, 0.03))))),
    "airless": Silhouette(0.42, 0.86, (
        Part("clear", _plate(0.29, 0.99, -0.195, 0.195), polygon=True, corner=0.035),
        Part("body", _plate(0.32, 0.95, -0.16, 0.16), True, polygon=True, corner=0.025),
        Part("collar", _round(0.255, 0.305, 0.11, 0.006)),
        Part("cap", _plate(0.0, 0.27, -0.15, 0.15), polygon=True, corner=0.02))),
    "tin": Silhouette(1.50, 0.30, (
        Part("body", ((0.42, 0.70), (0.44, 0.71), (0.72, 0.71), (0.76, 0.69)), curve=0.30),
        Part("top", ((0.02, 0.715), (0.78, 0.715)), True))),
    "stick": Silhouette(0.32, 0.56, (
        Part("balm", ((0.0, 0.03), (0.015, 0.065), (0.05, 0.096), (0.11, 0.108), (0.32, 0.108))),
        Part("collar", _round(0.29, 0.38, 0.122, 0.008)),
        Part("body", _round(0.36, 0.93, 0.14, 0.015), True),
        Part("cap", _round(0.915, 0.99, 0.143, 0.01), curve=0.04))),
    "mascara": Silhouette(0.20, 0.72, (
        Part("body", _round(0.44, 0.985, 0.083, 0.012), True),
        Part("shade", _round(0.425, 0.455, 0.078, 0.004)),
        Part("cap", _round(0.0, 0.43, 0.083, 0.02)))),
    "wand": Silhouette(0.46, 0.74, (
        Part("neck", ((0.27, 0.04), (0.36, 0.04)), x=-0.105),
        Part("body", _round(0.33, 0.985, 0.09, 0.012), True, x=-0.105),
        Part("rod", ((0.38, 0.014), (0.62, 0.014)), x=0.12),
        Part("brush", ((0.60, 0.022), (0.63, 0.05), (0.86, 0.056), (0.95, 0.04), (0.985, 0.02)), x=0.12, curve=0.02),
        Part("cap", _round(0.0, 0.41, 0.083, 0.02), x=0.12))),
    "pencil": Silhouette(0.24, 0.80, (
        Part("shade", ((0.0, 0.006), (0.05, 0.024)), x=-0.055),
        Part("neck", ((0.045, 0.024), (0.12, 0.046)), x=-0.055),
        Part("body", ((0.115, 0.047), (0.98, 0.047), (0.99, 0.04)), True, x=-0.055),
        Part("cap", _round(0.58, 0.985, 0.052, 0.012), x=0.06))),
    "quad": Silhouette(0.98, 0.46, (
        Part("case", _plate(0.02, 0.985, -0.47, 0.47, 0.03), polygon=True, corner=0.06),
        Part("frame", _plate(0.07, 0.78, -0.41, 0.41, 0.015), polygon=True, corner=0.03),
        *_pans(2, 2, (0.09, 0.76, -0.39, 0.39), 0.008),
        Part("print", _plate(0.80, 0.95, -0.36, 0.36), True, polygon=True))),
    "palette": Silhouette(1.18, 0.56, (
        Part("case", _plate(0.01, 0.50, -0.53, 0.53, 0.02), polygon=True, corner=0.04),
        Part("glass", _plate(0.05, 0.45, -0.48, 0.48, 0.015), polygon=True, corner=0.02),
        Part("case", _plate(0.48, 0.985, -0.58, 0.58, 0.05), polygon=True, corner=0.04),
        *_pans(2, 4, (0.51, 0.83, -0.52, 0.52), 0.004),
        Part("print", _plate(0.85, 0.96, -0.45, 0.45), True, polygon=True))),
    "ampoule": Silhouette(0.64, 0.46, (*_vial(-0.205, False), *_vial(0.205, False), *_vial(0.0, True))),
    "giftbox": Silhouette(1.04, 0.84, (
        Part("front", _plate(0.30, 0.985, -0.46, 0.46), polygon=True),
        Part("print", _plate(0.345, 0.985, -0.20, 0.45), True, polygon=True),
        Part("lid", _plate(0.145, 0.22, -0.485, 0.485, 0.05), polygon=True),
        Part("side", _plate(0.215, 0.335, -0.485, 0.485), polygon=True),
        Part("ribbon", _plate(0.145, 0.22, -0.31, -0.20, -0.012), polygon=True),
        Part("ribbon", _plate(0.215, 0.985, -0.32, -0.21), polygon=True),
        Part("ribbon", ((0.17, -0.265), (0.30, -0.40), (0.36, -0.37), (0.30, -0.33)), polygon=True),
        Part("ribbon", ((0.17, -0.265), (0.30, -0.13), (0.36, -0.16), (0.30, -0.20)), polygon=True),
        Part("bow", ((0.16, -0.26), (0.01, -0.42), (0.03, -0.47), (0.17, -0.47), (0.20, -0.43)), polygon=True,
             corner=0.015),
        Part("bow", ((0.16, -0.26), (0.01, -0.10), (0.03, -0.05), (0.17, -0.05), (0.20, -0.09)), polygon=True,
             corner=0.015),
        Part("ribbon", _plate(0.115, 0.205, -0.305, -0.215), polygon=True, corner=0.02))),
    "giftopen": Silhouette(1.16, 0.92, (
        Part("front", _plate(0.0, 0.52, -0.56, 0.56, 0.02), True, polygon=True),
        Part("lining", _plate(0.50, 0.74, -0.57, 0.57, 0.03), polygon=True),
        Part("neck", ((0.37, 0.028), (0.46, 0.028)), x=-0.33),
        Part("body", ((0.40, 0.04), (0.42, 0.09), (0.45, 0.105), (0.90, 0.105)), x=-0.33),
        Part("cap", _round(0.26, 0.40, 0.055, 0.01), x=-0.33),
        Part("body", _round(0.57, 0.90, 0.155, 0.02), x=0.02),
        Part("cap", _round(0.46, 0.60, 0.16, 0.02), x=0.02, curve=0.08),
        Part("body", ((0.30, 0.115), (0.33, 0.115), (0.90, 0.085)), x=0.36, curve=0.02),
        Part("lid", _plate(0.735, 0.985, -0.57, 0.57), polygon=True),
        Part("ribbon", _plate(0.82, 0.90, -0.57, 0.57), polygon=True))),
}


# ---- what a brand and a line look like
def mix(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(int(round(x + (y - x) * share)) for x, y in zip(a, b, strict=True))


def _turn_hue(rgb: RGB, degrees: float, depth: float) -> RGB:
    """Another colour of the same family: hue turned, brightness scaled."""
    h, s, v = cv2.cvtColor(np.uint8([[rgb]]), cv2.COLOR_RGB2HSV)[0, 0].astype(float)
    most = 235 if v < 140 else 95  # pale tints and deep tones, nothing that glares
    hsv = np.uint8([[[(h + degrees / 2) % 180, min(most, s * 1.15 + 8), np.clip(v * depth, 20, 252)]]])
    return tuple(int(x) for x in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


@lru_cache(maxsize=1024)
def look_of(brand: int, look: int, seed: int) -> Look:
    """Dress of a line; twin lines share one `look`, and only the lettering tells them apart."""
    of_brand = np.random.default_rng([seed, 201, brand])
    of_line = np.random.default_rng([seed, 203, brand, look])
    body, accent, ink = _colours(brand, look, seed)
    caps = (Surface(GOLD, "metal"), Surface(SILVER, "metal"), Surface(ROSE, "metal"), Surface((28, 28, 30)),
            Surface((248, 248, 246)), Surface(accent, "matte"), Surface((176, 128, 82), "wood"),
            Surface(mix(accent, (255, 255, 255), 0.15), "metal"), Surface(ink if sum(ink) < 300 else body, "gloss"))
    return Look(
        body=Surface(body, str(of_brand.choice(["gloss", "matte", "glass", "frost"], p=[0.38, 0.25, 0.2, 0.17]))),
        cap=caps[int(of_brand.integers(len(caps)))], collar=caps[int(of_brand.integers(3))], accent=accent, ink=ink,
        label=str(of_brand.choice(["panel", "band", "print", "oval"])), serif=bool(of_brand.integers(2)),
        capitals=bool(of_brand.integers(2)), upright=bool(of_brand.random() < 0.3),
        petals=int(of_line.integers(2, 9)),
        depth=float(of_line.choice([-0.35, 0.2, 0.35, 0.6])), ring=bool(of_line.integers(2)),
        stripes=int(of_line.integers(0, 4)))


def _colours(brand: int, look: int, seed: int) -> tuple[RGB, RGB, RGB]:
    """Body, accent and ink of a line: the brand's palette, the body's hue turned for every further line."""
    rng = np.random.default_rng([seed, 202, brand, look])
    body, accent, ink = PALETTES[(7 * brand + seed) % len(PALETTES)]
    if brand >= len(PALETTES):  # palettes return in other colours
        body, accent = _turn_hue(body, 40, 1.0), _turn_hue(accent, 40, 1.0)
    if look:
        body = _turn_hue(body, float(rng.choice([-70, -35, 35, 70, 150])), float(rng.uniform(0.82, 1.1)))
    if sum(body) > 480 and sum(ink) > 480:
        ink = mix(ink, (0, 0, 0), 0.75)
    return body, accent, ink


def surface_of(role: str, look: Look, product: Product) -> Surface:
    """What a part is made of; shades and scents show in some parts."""
    shade, body = product.variant.rgb or look.body.rgb, look.body.rgb
    dark, light = mix(body, (0, 0, 0), 0.28), mix(body, (255, 255, 255), 0.3)
    if role.startswith("pan"):
        return _pan(shade, int(role[3:]))
    return {
        "body": _body(look, product), "cap": look.cap, "case": look.cap, "mirror": look.cap,
        "collar": look.collar, "frame": Surface((36, 34, 36) if sum(look.cap.rgb) > 420 else (236, 232, 226), "matte"),
        "neck": Surface((236, 236, 232), "matte"), "rod": Surface((48, 46, 48), "matte"),
        "bulb": Surface((40, 38, 40) if sum(body) < 420 else (244, 242, 238), "matte"),
        "side": Surface(dark, "matte"), "lid": Surface(light, "matte"), "front": Surface(body, "matte"),
        "print": _under(look, product),
        "sheet": Surface(body, "foil"), "shoulder": Surface(mix(body, look.accent, 0.35), "glass"),
        "shade": Surface(shade, "glass" if product.silhouette == "gloss" else "gloss"),
        "powder": Surface(shade, "matte"), "brush": Surface(shade, "bristle"),
        "glass": Surface((206, 222, 234), "glass"),
        "lining": Surface((246, 240, 230) if sum(body) < 460 else dark, "matte"),
        "balm": Surface(mix((252, 246, 228), product.variant.rgb or (255, 250, 240), 0.35), "gloss"),
        "clear": Surface(light, "clear"),
        "top": look.cap if product.kind == "hand" else Surface(body, "gloss"), "vial": _vial_glass(look),
        "ribbon": Surface(_ribbon(look), "satin"), "bow": Surface(mix(_ribbon(look), (0, 0, 0), 0.1), "satin"),
    }[role]


def _pan(shade: RGB, number: int) -> Surface:
    """Eye shadows of one family, light to deep, some of them with shimmer."""
    steps = ((0.72, (255, 246, 236)), (0.38, (255, 226, 204)), (0.0, shade), (0.3, (60, 30, 34)),
             (0.2, (255, 214, 150)), (0.5, (250, 236, 226)), (0.15, (96, 40, 60)), (0.55, (40, 26, 30)))
    share, towards = steps[number % len(steps)]
    return Surface(mix(shade, towards, share), "shimmer" if number % 3 == 1 else "matte")


def _under(look: Look, product: Product) -> Surface:
    """What letters without a plate of their own stand on: a palette's case, a gift box."""
    return Surface(look.cap.rgb if product.kind == "palette" else look.body.rgb, "matte")


def _vial_glass(look: Look) -> Surface:
    """Amber glass, or the line's colour in it."""
    return Surface((140, 78, 28) if sum(look.body.rgb) > 600 else mix(look.body.rgb, (255, 255, 255), 0.15), "glass")


def _ribbon(look: Look) -> RGB:
    """The line's accent, or gold where that is too much like the box."""
    return look.accent if abs(sum(look.accent) - sum(look.body.rgb)) > 150 else GOLD


def _body(look: Look, product: Product) -> Surface:
    """Foundation shows its shade through glass, a scent tints the bottle, serums and removers stand in glass."""
    if product.kind == "foundation":
        return Surface(product.variant.rgb, "glass")
    if product.kind in ("mascara", "brow"):
        return Surface(look.body.rgb, "gloss")
    if product.variant.rgb:
        return Surface(mix(look.body.rgb, product.variant.rgb, 0.65), look.body.finish)
    glassy = product.silhouette == "dropper" or product.kind == "remover"
    return Surface(look.body.rgb, "glass" if glassy else look.body.finish)


def real_height(product: Product) -> float:
    """Height of a product against a plain bottle's, for groups of products in one photo."""
    return SILHOUETTES[product.silhouette].height * product.variant.scale
