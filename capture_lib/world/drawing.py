"""Pictures of the rendered world's products: one RGBA cut-out a product, lit from the upper left.

Most parts of a product are turned bodies (an outline rotated about the vertical axis), so shading, highlights
and lettering bend around them; cartons, sachets and nozzles are flat polygons.
"""

import cv2
import numpy as np

from capture_lib.world.packaging import (
    SILHOUETTES,
    Look,
    Part,
    Surface,
    decal,
    look_of,
    ornament_points,
    surface_of,
)
from capture_lib.world.wording import Product

GLINT = {"matte": 0.06, "wood": 0.04, "glass": 0.55, "metal": 0.30, "gloss": 0.42}  # strength of the highlight
# a metal cap mirrors a studio: brightness from its left edge to its right one
STUDIO = ((-1, -0.85, -0.6, -0.35, -0.1, 0.2, 0.5, 0.72, 0.9, 1),
          (0.45, 0.8, 0.62, 1.2, 0.95, 0.6, 0.78, 1.05, 0.6, 0.4))


def cut_out(product: Product, longest: int, seed: int) -> np.ndarray:
    """The picture of a product: (h, w, 4) float32 RGBA in 0..1, colours premultiplied, `longest` pixels long."""
    form, look = SILHOUETTES[product.silhouette], look_of(product.brand, product.line, product.look, seed)
    height = int(longest / max(1.0, form.aspect))
    canvas = np.zeros((height, int(height * form.aspect) + 6, 4), np.float32)
    for part in form.parts:
        surface = surface_of(part.role, look, product)
        printing = _printing(part, height, product, look, surface)
        if part.role in ("mirror", "powder"):
            _round_face(canvas, part, surface, look)
        elif part.polygon:
            _flat(canvas, part, surface, printing)
        else:
            _turned(canvas, part, surface, printing)
    return canvas


def _printing(part: Part, height: int, product: Product, look: Look, surface: Surface) -> np.ndarray | None:
    """The printing that fills a part's front, (h, w, 4) float32 RGBA in 0..1; None for a plain part."""
    if not part.printed:
        return None
    heights, across = np.array(part.outline).T
    span = np.ptp(across) if part.polygon else 2 * across.max()
    size = (max(8, int(span * height)), max(8, int(np.ptp(heights) * height)))
    return decal(size, product, look, surface).astype(np.float32) / 255


def paint_over(canvas: np.ndarray, rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Paints colours (h, w, 3) in 0..1 with opacity (h, w) over a premultiplied RGBA canvas, in place."""
    a = alpha[..., None]
    canvas[..., :3] = rgb * a + canvas[..., :3] * (1 - a)
    canvas[..., 3] = alpha + canvas[..., 3] * (1 - alpha)


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


# ---- turned parts
def _turned(canvas: np.ndarray, part: Part, surface: Surface, printing: np.ndarray | None) -> None:
    """Paints a turned part; edges are smoothed over one pixel."""
    height, width = canvas.shape[:2]
    ends, profile = _profile(part, height)
    sag = part.curve * profile.max()
    top, bottom = max(0, int(ends[0] - 2)), min(height, int(ends[1] + sag + 3))
    y, x = np.mgrid[top:bottom, 0:width].astype(np.float32)
    x -= (width - 1) / 2
    # the camera looks down a little: what lies at one height of the body sags in the middle of the picture
    half = np.interp(y, np.arange(len(profile)), profile)
    along = y - part.curve * half * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    half = np.interp(along, np.arange(len(profile)), profile).astype(np.float32)
    u = np.clip(x / half, -1, 1)
    v = np.clip((along - ends[0]) / (ends[1] - ends[0]), 0, 1).astype(np.float32)
    start = ends[0] + part.slant * height * (1 + u) * 0.9
    cover = np.clip(half - np.abs(x) + 0.5, 0, 1)
    cover *= np.clip(along - start + 0.5, 0, 1) * np.clip(ends[1] - along + 0.5, 0, 1)
    rgb, opacity = _lit(surface, u, v, None if printing is None else _bent(printing, u, v))
    paint_over(canvas[top:bottom], rgb, (cover * opacity).astype(np.float32))
    if part.role in ("cap", "case", "collar") and part.curve > 0.05:  # the top face of a cap
        lid = np.float32(surface.rgb) / 255 * 0.85 + 0.15
        _disc(canvas, ends[0] + 0.5, profile[int(ends[0])], max(sag * 0.9, 1.0), lid)


def _profile(part: Part, height: int) -> tuple[tuple[float, float], np.ndarray]:
    """Top and bottom in pixels, and the half width at every row, (height + 1,) float32, corners smoothed."""
    ys, halves = np.array(part.outline).T * height
    profile = np.interp(np.arange(height + 1), ys, halves).astype(np.float32)
    smooth = cv2.GaussianBlur(profile[:, None], (1, 0), 1, sigmaY=0.006 * height, borderType=cv2.BORDER_REPLICATE)
    return (float(ys[0]), float(ys[-1])), smooth[:, 0]


def _bent(printing: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The printing as it lies around the body."""
    h, w = printing.shape[:2]
    across = (u + 0.5 * (np.arcsin(u) - u)) / 1.285  # 1.285 = its value at the right edge
    columns, rows = ((across + 1) / 2 * (w - 1)).astype(np.float32), (v * (h - 1)).astype(np.float32)
    return cv2.remap(printing, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _lit(surface: Surface, u: np.ndarray, v: np.ndarray,
         printing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Colour and opacity of a turned surface. u: -1 (left edge) to 1; v: 0 (top) to 1; printing: RGBA, 0..1."""
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (*u.shape, 3))
    shade, opacity, paper = _shade(surface, u, v), np.ones_like(u), np.zeros_like(u)
    if surface.finish == "glass":
        rgb = rgb * (0.80 + 0.35 * v[..., None]) + 0.10 * (1 - v[..., None])
        opacity = 0.80 + 0.20 * np.abs(u) ** 3
    if printing is not None:
        paper = printing[..., 3]
        rgb = rgb * (1 - paper[..., None]) + printing[..., :3] * paper[..., None]
        opacity = np.maximum(opacity, paper)
        shade = shade * (1 - paper) + _shade(Surface(surface.rgb, "matte"), u, v) * paper
    glint = GLINT[surface.finish] * np.clip(1.15 - 0.5 * v, 0, 1) * (1 - 0.7 * paper)
    shine = glint * _bump(u, -0.52, 0.13) + 0.45 * glint * _bump(u, 0.80, 0.06)
    return np.clip(rgb * shade[..., None] + shine[..., None], 0, 1), opacity


def _shade(surface: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness of a turned surface by its finish."""
    if surface.finish == "metal":
        return np.interp(u, *STUDIO).astype(np.float32)
    shade = 0.50 + 0.55 * np.clip(0.85 * np.sqrt(np.clip(1 - u * u, 0, 1)) - 0.42 * u, 0, 1.1)
    if surface.finish == "wood":
        shade = shade * (1 + 0.10 * np.sin(40 * u + 6 * np.sin(5 * v + 3 * u)))
    if surface.finish == "glass":
        shade = shade * (1 - 0.22 * _bump(np.abs(u), 0.93, 0.07)) + 0.06
    return shade


# ---- faces
def _disc(canvas: np.ndarray, y: float, rx: float, ry: float, rgb: np.ndarray, sheen: float = 0.1) -> None:
    """Paints an ellipse about the axis, brighter to the upper left; `rgb` is (3,) or (height, width, 3) in 0..1."""
    height, width = canvas.shape[:2]
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = (across - (width - 1) / 2) / rx, (down - y) / ry
    cover = np.clip((1 - np.sqrt(across ** 2 + down ** 2)) * min(rx, ry) + 0.5, 0, 1)
    light = 1 - sheen * (across + down)
    paint_over(canvas, np.clip(rgb * light[..., None], 0, 1), cover)


def _round_face(canvas: np.ndarray, part: Part, surface: Surface, look: Look) -> None:
    """The mirror or the powder pan of a compact; the line's ornament is pressed into the powder."""
    height, width = canvas.shape[:2]
    (top, half), (bottom, _) = part.outline
    centre, rx, ry = (top + bottom) / 2 * height, half * height, (bottom - top) / 2 * height
    own = np.float32(surface.rgb) / 255
    mirror = part.role == "mirror"
    _disc(canvas, centre, rx, ry, own * 0.9 if mirror else np.float32([0.93, 0.92, 0.90]))
    face = np.float32([0.82, 0.87, 0.92]) if mirror else own
    if not mirror:
        points = ornament_points(((width - 1) / 2, centre), 0.55 * ry, look, 2.6)
        relief = np.zeros((height, width), np.float32)
        cv2.fillPoly(relief, [np.int32(np.round(points * 8))], 1.0, cv2.LINE_8, 3)
        face = face * (1 - 0.16 * relief[..., None])
    _disc(canvas, centre, rx * 0.88, ry * 0.88, face, 0.16)


def _flat(canvas: np.ndarray, part: Part, surface: Surface, printing: np.ndarray | None) -> None:
    """Paints a flat polygon with a soft gradient; the printing fills the box around it."""
    height, width = canvas.shape[:2]
    points = np.array([[x * height + (width - 1) / 2, y * height] for y, x in part.outline], np.float32)
    cover = np.zeros((height * 2, width * 2), np.uint8)
    cv2.fillPoly(cover, [np.int32(np.round(points * 2))], 255, cv2.LINE_AA)
    cover = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    u = (across - points[:, 0].min()) / np.ptp(points[:, 0])
    v = (down - points[:, 1].min()) / np.ptp(points[:, 1])
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (height, width, 3))
    if printing is not None:
        layer = np.zeros((height, width, 4), np.float32)
        x0, y0 = np.int32(np.round(points.min(0)))
        target = layer[y0:y0 + printing.shape[0], x0:x0 + printing.shape[1]]
        target[:] = printing[:target.shape[0], :target.shape[1]]
        rgb = rgb * (1 - layer[..., 3:]) + layer[..., :3] * layer[..., 3:]
    paint_over(canvas, np.clip(rgb * _flat_shade(surface, u, v)[..., None], 0, 1), cover)


def _flat_shade(surface: Surface, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness of a flat face: paper, crimped foil, or thick glass with bright edges."""
    shade = 1.06 - 0.10 * u - 0.08 * v
    if surface.finish == "foil":
        shade = shade + 0.10 * np.sin(5 * u + 4 * v) * _bump(u, 0.5, 0.6)
        shade = shade + 0.22 * _bump(u + 0.25 * v, 0.35, 0.05)
        crimped = (v < 0.055) | (v > 0.945)
        shade = np.where(crimped, shade * (0.9 + 0.08 * np.sin(300 * u)), shade)
    if surface.finish == "glass":
        edge = np.minimum.reduce([u, 1 - u, v, 1 - v])
        shade = shade * (1 - 0.3 * _bump(edge, 0.05, 0.025))
        shade = shade + 0.35 * _bump(u, 0.14, 0.03) + 0.2 * _bump(edge, 0.0, 0.02)
    return shade
