"""Pictures of the rendered world's products: one RGBA cut-out a product, lit from the upper left.

A product is a stack of parts. Most parts are turned bodies (an outline rotated about the vertical axis), so
shading, highlights and lettering bend around them; cartons, sachets and nozzles are flat polygons.
"""
from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from capture_lib.wording import BRANDS, KINDS, Product

RGB = tuple[int, int, int]
# body, accent, ink: chosen by eye; a brand takes one, its lines shift the body's hue or depth
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
    """Colour and finish of a part; finish: matte, gloss, metal, glass or wood."""
    rgb: RGB
    finish: str = "gloss"


@dataclass(frozen=True)
class Look:
    """How one line of a brand is dressed. Brand: cap, collar, label form, letters. Line: body colour, ornament."""
    body: Surface
    cap: Surface
    collar: Surface
    accent: RGB
    ink: RGB
    label: str          # panel, band, print, oval
    serif: bool
    capitals: bool
    petals: int         # ornament: a closed curve of radius 1 + depth cos(petals t)
    depth: float
    ring: bool
    stripes: int        # accent stripes at the foot of the label


@dataclass(frozen=True)
class Part:
    """A turned body: outline of (height, half width) from top to bottom, in units of the silhouette's height."""
    role: str           # body, cap, collar, neck, bulb, shade, case: decides the surface
    outline: tuple[tuple[float, float], ...]
    printed: bool = False
    curve: float = 0.10  # how far edges sag in the middle, in half widths: the camera looks down a little
    slant: float = 0.0   # a cut top, as on a lipstick
    polygon: bool = False  # flat: `outline` holds (height, x from the axis) corners instead


@dataclass(frozen=True)
class Silhouette:
    """A form: width over height, real height against a bottle's, and its parts from back to front."""
    aspect: float
    height: float
    parts: tuple[Part, ...] = field(default=())


def _round(y0: float, y1: float, half: float, corner: float = 0.02) -> tuple[tuple[float, float], ...]:
    """Outline of a straight cylinder with rounded edges."""
    c = corner
    return ((y0, half - c), (y0 + 0.3 * c, half - 0.45 * c), (y0 + c, half), (y1 - c, half), (y1 - 0.3 * c, half - 0.45 * c),
            (y1, half - c))


SILHOUETTES = {
    "bottle": Silhouette(0.36, 1.0, (
        Part("neck", ((0.17, 0.06), (0.24, 0.06))),
        Part("body", ((0.21, 0.06), (0.225, 0.10), (0.25, 0.14), (0.29, 0.165), (0.34, 0.17), (0.965, 0.17), (0.99, 0.15)), True),
        Part("cap", _round(0.0, 0.19, 0.085, 0.012)))),
    "flask": Silhouette(0.46, 0.86, (
        Part("body", ((0.24, 0.10), (0.26, 0.17), (0.30, 0.205), (0.36, 0.215), (0.94, 0.20), (0.98, 0.175), (0.99, 0.15)), True),
        Part("collar", _round(0.215, 0.26, 0.125, 0.008)), Part("cap", _round(0.0, 0.23, 0.12, 0.03)))),
    "pump": Silhouette(0.42, 1.06, (
        Part("body", ((0.25, 0.07), (0.265, 0.13), (0.29, 0.17), (0.33, 0.19), (0.965, 0.19), (0.99, 0.17)), True),
        Part("neck", ((0.07, 0.022), (0.20, 0.022))), Part("cap", _round(0.175, 0.27, 0.085, 0.012)),
        Part("cap", ((0.03, -0.20), (0.02, 0.07), (0.075, 0.07), (0.075, -0.16), (0.09, -0.20)), polygon=True),
        Part("cap", _round(0.0, 0.09, 0.07, 0.02)))),
    "dropper": Silhouette(0.38, 0.78, (
        Part("body", ((0.38, 0.07), (0.395, 0.13), (0.42, 0.165), (0.46, 0.178), (0.955, 0.178), (0.99, 0.155)), True),
        Part("bulb", ((0.0, 0.03), (0.015, 0.05), (0.05, 0.062), (0.20, 0.066), (0.24, 0.085))),
        Part("collar", _round(0.22, 0.405, 0.098, 0.012)))),
    "jar": Silhouette(1.12, 0.50, (
        Part("body", ((0.33, 0.50), (0.40, 0.535), (0.52, 0.54), (0.84, 0.51), (0.93, 0.46), (0.955, 0.40)), True, 0.08),
        Part("collar", _round(0.30, 0.37, 0.505, 0.01), curve=0.08),
        Part("cap", _round(0.045, 0.335, 0.535, 0.03), curve=0.08))),
    "tube": Silhouette(0.42, 0.92, (
        Part("body", ((0.0, 0.195), (0.05, 0.195), (0.055, 0.19), (0.50, 0.188), (0.78, 0.165), (0.83, 0.14)), True, 0.02),
        Part("cap", _round(0.815, 0.985, 0.135, 0.02)))),
    "spray": Silhouette(0.30, 1.02, (
        Part("body", ((0.24, 0.085), (0.25, 0.115), (0.275, 0.135), (0.31, 0.142), (0.975, 0.142), (0.99, 0.13)), True),
        Part("cap", ((0.0, 0.05), (0.012, 0.085), (0.04, 0.108), (0.08, 0.116), (0.255, 0.12))))),
    "lipstick": Silhouette(0.30, 0.66, (
        Part("shade", ((0.0, 0.075), (0.03, 0.088), (0.10, 0.092), (0.34, 0.092)), slant=0.075),
        Part("collar", _round(0.28, 0.50, 0.112, 0.008)), Part("case", _round(0.47, 0.985, 0.14, 0.01), True))),
    "gloss": Silhouette(0.22, 0.70, (
        Part("shade", _round(0.43, 0.985, 0.088, 0.02), True), Part("collar", _round(0.405, 0.45, 0.08, 0.006)),
        Part("case", _round(0.0, 0.42, 0.09, 0.015)))),
    "compact": Silhouette(0.94, 0.56, (
        Part("mirror", ((0.0, 0.46), (0.62, 0.46))),
        Part("case", ((0.72, 0.462), (0.76, 0.468), (0.86, 0.468), (0.90, 0.452)), True, 0.20),
        Part("powder", ((0.60, 0.47), (0.84, 0.47))))),
    "perfume": Silhouette(0.66, 0.72, (
        Part("shoulder", ((0.34, -0.30), (0.34, 0.30), (0.985, 0.30), (0.985, -0.30)), True, polygon=True),
        Part("collar", _round(0.27, 0.355, 0.085, 0.01)), Part("cap", _round(0.0, 0.285, 0.125, 0.015)))),
    "sachet": Silhouette(0.74, 0.86, (
        Part("sheet", ((0.01, -0.355), (0.01, 0.355), (0.985, 0.36), (0.985, -0.36)), True, polygon=True),)),
    "box": Silhouette(0.56, 0.94, (
        Part("side", ((0.055, 0.165), (0.0, 0.265), (0.925, 0.265), (0.99, 0.165)), polygon=True),
        Part("lid", ((0.055, -0.27), (0.0, -0.14), (0.0, 0.265), (0.055, 0.165)), polygon=True),
        Part("front", ((0.055, -0.27), (0.055, 0.165), (0.99, 0.165), (0.99, -0.27)), True, polygon=True))),
}


# ---- what a brand and a line look like ----
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
    of_brand, of_look = np.random.default_rng([seed, 201, brand]), np.random.default_rng([seed, 202, brand, look])
    of_line = np.random.default_rng([seed, 203, brand, line])
    body, accent, ink = PALETTES[(brand * 7 + seed) % len(PALETTES)]
    caps = (Surface(GOLD, "metal"), Surface(SILVER, "metal"), Surface(ROSE, "metal"), Surface((28, 28, 30)),
            Surface((248, 248, 246)), Surface(accent, "matte"), Surface((176, 128, 82), "wood"))
    cap = caps[int(of_brand.integers(len(caps)))]
    collar = caps[int(of_brand.integers(3))]
    finish, label = str(of_brand.choice(["gloss", "matte", "glass"], p=[0.45, 0.3, 0.25])), str(
        of_brand.choice(["panel", "band", "print", "oval"]))
    serif, capitals = bool(of_brand.integers(2)), bool(of_brand.integers(2))
    if look:
        body = _turn_hue(body, float(of_look.choice([-70, -35, 35, 70, 150])), float(of_look.uniform(0.82, 1.1)))
    if sum(body) > 480 and sum(ink) > 480:
        ink = _mix(ink, (0, 0, 0), 0.75)
    return Look(Surface(body, finish), cap, collar, accent, ink, label, serif, capitals, int(of_line.integers(2, 9)),
                float(of_line.choice([-0.35, 0.2, 0.35, 0.6])), bool(of_line.integers(2)), int(of_line.integers(0, 4)))


def _surface(role: str, look: Look, product: Product) -> Surface:
    shade = product.variant.rgb
    tinted = shade or look.body.rgb
    glassy = product.silhouette in ("dropper", "perfume") or product.kind == "remover"
    surfaces = {
        "cap": look.cap, "collar": look.collar, "neck": Surface((236, 236, 232), "matte"), "case": look.cap,
        "bulb": Surface((40, 38, 40) if sum(look.body.rgb) < 420 else (244, 242, 238), "matte"),
        "side": Surface(_mix(look.body.rgb, (0, 0, 0), 0.28), "matte"), "lid": Surface(_mix(look.body.rgb, (255, 255, 255), 0.3), "matte"),
        "front": Surface(look.body.rgb, "matte"), "sheet": Surface(look.body.rgb, "foil"),
        "shoulder": Surface(_mix(look.body.rgb, look.accent, 0.35), "glass"),
        "shade": Surface(tinted, "glass" if product.silhouette == "gloss" else "gloss"),
        "powder": Surface(tinted, "matte"), "mirror": look.cap,
    }
    if role != "body":
        return surfaces[role]
    if product.kind == "foundation":
        return Surface(tinted, "glass")
    if shade:  # scents tint the bottle
        return Surface(_mix(look.body.rgb, shade, 0.65), look.body.finish)
    return Surface(look.body.rgb, "glass" if glassy else look.body.finish)


# ---- lettering ----
@lru_cache(maxsize=64)
def font(size: int, serif: bool = False) -> ImageFont.FreeTypeFont:
    """Noto Sans or Serif CJK from the package mplfonts, `size` pixels high."""
    folder = Path(list(importlib.util.find_spec("mplfonts").submodule_search_locations)[0]) / "fonts"
    return ImageFont.truetype(str(folder / f"Noto{'Serif' if serif else 'Sans'}CJKsc-Regular.otf"), size)


def write(draw: ImageDraw.ImageDraw, centre: tuple[float, float], text: str, width: float, height: float,
          fill: tuple, serif: bool = False, bold: float = 0.0) -> None:
    """Letters centred at a point, as large as fits into width × height pixels."""
    if not text:
        return
    size = max(6, int(min(height, width / max(font(40, serif).getlength(text), 1) * 40)))
    draw.text(centre, text, fill=fill, font=font(size, serif), anchor="mm", stroke_width=round(size * bold),
              stroke_fill=fill)


def _ornament(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, look: Look, fill: RGB) -> None:
    t = np.linspace(0, 2 * np.pi, 97)[:-1]
    r = radius * (1 + look.depth * np.cos(look.petals * t)) / (1 + abs(look.depth))
    points = list(zip(centre[0] + r * np.sin(t), centre[1] - r * np.cos(t), strict=True))
    draw.polygon(points, fill=fill)
    if look.ring:
        hole = radius * 0.32
        draw.ellipse((centre[0] - hole, centre[1] - hole, centre[0] + hole, centre[1] + hole), fill=(255, 255, 255, 235))


def _paper(draw: ImageDraw.ImageDraw, w: int, h: int, look: Look, paper: RGB) -> None:
    """The label under the letters: a panel, a band around the body, an oval, or nothing."""
    if look.label == "panel":
        draw.rounded_rectangle((0.14 * w, 0.10 * h, 0.86 * w, 0.90 * h), 0.05 * w, fill=paper, outline=look.accent,
                               width=max(1, w // 90))
    elif look.label == "band":
        draw.rectangle((0, 0.12 * h, w, 0.86 * h), fill=paper)
        for y in (0.12, 0.86):
            draw.rectangle((0, (y - 0.012) * h, w, (y + 0.012) * h), fill=look.accent)
    elif look.label == "oval":
        draw.ellipse((0.12 * w, 0.06 * h, 0.88 * w, 0.94 * h), fill=paper, outline=look.accent, width=max(1, w // 70))


def decal(size: tuple[int, int], product: Product, look: Look, under: Surface) -> np.ndarray:
    """The printing of a product: (h, w, 4) uint8 RGBA, transparent where the body shows."""
    w, h = size[0] * 2, size[1] * 2
    image = Image.new("RGBA", (w, h), (*under.rgb, 0))
    draw = ImageDraw.Draw(image)
    light = sum(look.ink) < 384
    paper = (252, 250, 246) if light else _mix(look.body.rgb, (0, 0, 0), 0.45)
    ground = under.rgb if look.label == "print" else paper
    ink = look.ink if abs(sum(ground) - sum(look.ink)) > 220 else ((40, 36, 36) if sum(ground) > 384 else (250, 246, 238))
    _paper(draw, w, h, look, paper)
    brand = BRANDS[product.brand][0]
    brand = brand.upper() if look.capitals else brand
    wide = w > 1.5 * h
    rows = (0.30, 0.50, 0.66, 0.78, 0.0) if wide else (0.36, 0.50, 0.61, 0.71, 0.22)
    unit = h * (1.5 if wide else 0.8)
    span = 0.62 * w
    if rows[4]:
        _ornament(draw, (w / 2, rows[4] * h), min(0.085 * h, 0.15 * w), look, look.accent)
    else:
        for x in (0.24, 0.76):
            _ornament(draw, (x * w, 0.30 * h), 0.07 * h, look, look.accent)
    write(draw, (w / 2, rows[0] * h), brand, span * (0.62 if wide else 1), 0.14 * unit, ink, look.serif, 0.03)
    write(draw, (w / 2, rows[1] * h), product.line_name, span * 0.8, 0.105 * unit, look.accent if look.label != "print" else ink, look.serif, 0.02)
    noun = product.name.removeprefix(product.line_name).removesuffix(product.variant.name)
    write(draw, (w / 2, rows[2] * h), noun, span, 0.075 * unit, ink)
    write(draw, (w / 2, rows[3] * h), f"{KINDS[product.kind].latin} {product.variant.mark}".strip(), span, 0.06 * unit, ink)
    for n in range(look.stripes):
        y = (0.80 + 0.022 * n) * h
        draw.rectangle((0.32 * w, y, 0.68 * w, y + 0.008 * h), fill=look.accent)
    return cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)


# ---- painting parts ----
def _over(canvas: np.ndarray, rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Paints colours (0..1) over a premultiplied RGBA canvas, in place."""
    a = alpha[..., None]
    canvas[..., :3] = rgb * a + canvas[..., :3] * (1 - a)
    canvas[..., 3] = alpha + canvas[..., 3] * (1 - alpha)


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


def _lit(surface: Surface, u: np.ndarray, v: np.ndarray, printing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Colour and opacity of a turned surface. u: -1 (left edge) to 1, v: 0 (top) to 1. printing: RGBA 0..1."""
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (*u.shape, 3))
    nz = np.sqrt(np.clip(1 - u * u, 0, 1))
    opacity = np.ones_like(u)
    shade = 0.50 + 0.55 * np.clip(0.85 * nz - 0.42 * u, 0, 1.1)
    if surface.finish == "metal":
        shade = np.interp(u, [-1, -0.85, -0.6, -0.35, -0.1, 0.2, 0.5, 0.72, 0.9, 1],
                          [0.45, 0.8, 0.62, 1.2, 0.95, 0.6, 0.78, 1.05, 0.6, 0.4]).astype(np.float32)
    if surface.finish == "wood":
        shade = shade * (1 + 0.10 * np.sin(40 * u + 6 * np.sin(5 * v + 3 * u)))
    if surface.finish == "glass":
        rgb = rgb * (0.80 + 0.35 * v[..., None]) + 0.10 * (1 - v[..., None])
        shade = shade * (1 - 0.22 * _bump(np.abs(u), 0.93, 0.07)) + 0.06
        opacity = 0.80 + 0.20 * np.abs(u) ** 3 * np.ones_like(v)
    if printing is not None:
        a = printing[..., 3:]
        rgb = rgb * (1 - a) + printing[..., :3] * a
        opacity = np.maximum(opacity, printing[..., 3])
        if surface.finish == "metal":
            shade = shade * (1 - a[..., 0]) + (0.55 + 0.5 * nz) * a[..., 0]
    lit = rgb * shade[..., None]
    glint = {"matte": 0.06, "wood": 0.04, "glass": 0.55, "metal": 0.30}.get(surface.finish, 0.42)
    fade = np.clip(1.15 - 0.5 * v, 0, 1)
    lit = lit + (glint * fade * _bump(u, -0.52, 0.13) + 0.45 * glint * _bump(u, 0.80, 0.06))[..., None]
    return np.clip(lit, 0, 1), opacity


def _turned(canvas: np.ndarray, part: Part, surface: Surface, printing: np.ndarray | None) -> None:
    """Paints a turned part; edges are smoothed over one pixel."""
    height, width = canvas.shape[:2]
    ys, halves = np.array([p[0] for p in part.outline]) * height, np.array([p[1] for p in part.outline]) * height
    sag = part.curve * halves.max()
    top, bottom = max(0, int(ys[0] - 2 - 2 * part.slant * height)), min(height, int(ys[-1] + sag + 3))
    y, x = np.mgrid[top:bottom, 0:width].astype(np.float32)
    x -= (width - 1) / 2
    half = np.interp(y, ys, halves)
    along = y - part.curve * half * (np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1)))
    half = np.interp(along, ys, halves).astype(np.float32)
    u = np.clip(x / half, -1, 1)
    start = ys[0] + part.slant * height * (1 + u) * 0.9
    cover = np.clip(half - np.abs(x) + 0.5, 0, 1) * np.clip(along - start + 0.5, 0, 1) * np.clip(ys[-1] - along + 0.5, 0, 1)
    v = np.clip((along - ys[0]) / (ys[-1] - ys[0]), 0, 1).astype(np.float32)
    if printing is not None:
        bent = (u + 0.5 * (np.arcsin(u) - u)) / 1.285
        ph, pw = printing.shape[:2]
        printing = cv2.remap(printing, ((bent + 1) / 2 * (pw - 1)).astype(np.float32), (v * (ph - 1)).astype(np.float32),
                             cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32) / 255
    rgb, opacity = _lit(surface, u.astype(np.float32), v, printing)
    _over(canvas[top:bottom], rgb, (cover * opacity).astype(np.float32))
    if part.role in ("cap", "case", "collar") and part.curve > 0.05:
        _lid(canvas, ys[0], halves[0] * 0.99, sag, surface)


def _lid(canvas: np.ndarray, y: float, half: float, sag: float, surface: Surface) -> None:
    """The top face of a cap: a light ellipse."""
    _disc(canvas, y + 0.5, half, max(sag * 0.9, 1.0), np.float32(surface.rgb) / 255 * 0.85 + 0.15)


def _disc(canvas: np.ndarray, y: float, rx: float, ry: float, rgb: np.ndarray, sheen: float = 0.1) -> None:
    height, width = canvas.shape[:2]
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    xx -= (width - 1) / 2
    r = np.sqrt((xx / rx) ** 2 + ((yy - y) / ry) ** 2)
    light = 1 + sheen * (-(xx / rx) - (yy - y) / ry)
    _over(canvas, np.clip(rgb * light[..., None], 0, 1), np.clip((1 - r) * min(rx, ry) + 0.5, 0, 1))


def _flat(canvas: np.ndarray, part: Part, surface: Surface, printing: np.ndarray | None) -> None:
    """Paints a flat polygon with a soft gradient; the printing fills its bounding box."""
    height, width = canvas.shape[:2]
    points = np.array([[x * height + (width - 1) / 2, y * height] for y, x in part.outline], np.float32)
    mask = np.zeros((height * 2, width * 2), np.uint8)
    cv2.fillPoly(mask, [np.int32(np.round(points * 2))], 255, cv2.LINE_AA)
    cover = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = (xx - points[:, 0].min()) / np.ptp(points[:, 0]), (yy - points[:, 1].min()) / np.ptp(points[:, 1])
    shade = 1.06 - 0.10 * u - 0.08 * v
    if surface.finish == "foil":
        shade = shade + 0.10 * np.sin(5 * u + 4 * v) * _bump(u, 0.5, 0.6) + 0.22 * _bump(u + 0.25 * v, 0.35, 0.05)
        shade = np.where((v < 0.055) | (v > 0.945), shade * (0.9 + 0.08 * np.sin(xx * 1.6)), shade)
    if surface.finish == "glass":
        edge = np.minimum.reduce([u, 1 - u, v, 1 - v])
        shade = shade * (1 - 0.3 * _bump(edge, 0.05, 0.025)) + 0.35 * _bump(u, 0.14, 0.03) + 0.2 * _bump(edge, 0.0, 0.02)
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (height, width, 3))
    if printing is not None:
        layer = np.zeros((height, width, 4), np.float32)
        x0, y0 = np.int32(np.round(points.min(0)))
        ph, pw = printing.shape[:2]
        layer[y0:y0 + ph, x0:x0 + pw] = printing[:height - y0, :width - x0].astype(np.float32) / 255
        rgb = rgb * (1 - layer[..., 3:]) + layer[..., :3] * layer[..., 3:]
    _over(canvas, np.clip(rgb * shade[..., None], 0, 1), cover)


def _printing(part: Part, height: int, product: Product, look: Look, surface: Surface) -> np.ndarray | None:
    if not part.printed:
        return None
    if part.polygon:
        span, tall = np.ptp([p[1] for p in part.outline]), np.ptp([p[0] for p in part.outline])
    else:
        span, tall = 2 * max(p[1] for p in part.outline), part.outline[-1][0] - part.outline[0][0]
    return decal((max(8, int(span * height)), max(8, int(tall * height))), product, look, surface)


def cut_out(product: Product, longest: int, seed: int) -> np.ndarray:
    """The product's picture: (h, w, 4) float32 RGBA in 0..1, colours premultiplied, longest side `longest` pixels."""
    form, look = SILHOUETTES[product.silhouette], look_of(product.brand, product.line, product.look, seed)
    height = int(longest / max(1.0, form.aspect))
    canvas = np.zeros((height, int(height * form.aspect) + 6, 4), np.float32)
    for part in form.parts:
        surface = _surface(part.role, look, product)
        printing = _printing(part, height, product, look, surface)
        if part.role in ("mirror", "powder"):
            _round_face(canvas, part, surface)
        elif part.polygon:
            _flat(canvas, part, surface, printing)
        else:
            _turned(canvas, part, surface, printing)
    return canvas


def _round_face(canvas: np.ndarray, part: Part, surface: Surface) -> None:
    """A compact's mirror or powder pan: rim, then the face."""
    height = canvas.shape[0]
    (y0, half), (y1, _) = part.outline
    centre, rx, ry = (y0 + y1) / 2 * height, half * height, (y1 - y0) / 2 * height
    rim = np.float32(surface.rgb) / 255 * 0.9
    face = np.float32([0.82, 0.87, 0.92]) if part.role == "mirror" else np.float32(surface.rgb) / 255
    _disc(canvas, centre, rx, ry, rim if part.role == "mirror" else np.float32([0.93, 0.92, 0.9]))
    _disc(canvas, centre, rx * 0.88, ry * 0.88, face, 0.16)


def real_height(product: Product) -> float:
    """Height of a product against a plain bottle's, for groups of products in one photo."""
    return SILHOUETTES[product.silhouette].height * product.variant.scale
