"""Pictures of the rendered world's products: one RGBA cut-out a product, lit from the upper left.

Most parts are turned bodies: an outline rotated about the vertical axis; cartons and sachets are flat polygons.
Here u runs over a part from its left edge to its right one, v from its top (0) to its foot (1).
"""

import cv2
import numpy as np
from numpy import ndarray

from capture_lib.world.labels import Point, decal, ornament_points
from capture_lib.world.packaging import FORMS, PARTS, TABLE, Look, Part, Surface, look_of, surface_of
from capture_lib.world.products import Product

GLINT, STUDIO, FLAT_STUDIO = (TABLE[key] for key in ("glint", "studio", "flat_studio"))


def draw_product(product: Product, longest: int, seed: int) -> ndarray:
    """Draw a product: (h, w, 4) float32 RGBA in 0..1, colours premultiplied, about `longest` pixels long."""
    aspect = FORMS[product.silhouette]["aspect"]
    look = look_of(product.brand, product.look, seed)
    height = int(longest / max(1.0, aspect))
    canvas = np.zeros((height, int(height * aspect) + 6, 4), np.float32)
    for part in PARTS[product.silhouette]:
        surface = surface_of(part.role, look, product)
        printing = None
        if part.printed:  # (h, w, 4) float32 RGBA in 0..1, as large as the part's front
            heights, across = np.array(part.outline).T
            span = np.ptp(across) if part.polygon else 2 * across.max()
            size = (max(8, int(span * height)), max(8, int(np.ptp(heights) * height)))
            printing = decal(size, product, look, surface).astype(np.float32) / 255
        if part.role in ("mirror", "powder", "top"):
            _round_face(canvas, part, surface, look, printing)
        elif part.polygon:
            _flat(canvas, part, surface, printing)
        else:
            _turned(canvas, part, surface, printing)
    return canvas


def paint_over(canvas: ndarray, rgb: ndarray, alpha: ndarray) -> None:
    """Paint colours (h, w, 3) in 0..1 with opacity (h, w) over a premultiplied RGBA canvas, in place."""
    a = alpha[..., None]
    canvas[..., :3] = rgb * a + canvas[..., :3] * (1 - a)
    canvas[..., 3] = alpha + canvas[..., 3] * (1 - alpha)


def _bump(x: ndarray, centre: float, width: float) -> ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


# ---- turned parts
def _turned(canvas: ndarray, part: Part, surface: Surface, printing: ndarray | None) -> None:
    """Paint a turned part; edges are smoothed over one pixel."""
    height, width = canvas.shape[:2]
    # the half width in pixels at every row, corners smoothed
    rows, halves = np.array(part.outline).T * height
    profile = np.interp(np.arange(height + 1), rows, halves).astype(np.float32)[:, None]
    profile = cv2.GaussianBlur(profile, (1, 0), 1, sigmaY=0.006 * height, borderType=cv2.BORDER_REPLICATE)[:, 0]
    first, last = part.outline[0][0] * height, part.outline[-1][0] * height  # rows of its ends
    sag = part.curve * profile.max()
    top, bottom = max(0, int(first - 2)), min(height, int(last + sag + 3))
    y, x = np.mgrid[top:bottom, 0:width].astype(np.float32)
    x -= (width - 1) / 2 + part.x * height
    # the camera looks down a little: what lies at one height of the body sags in the middle of the picture
    rows = np.arange(len(profile))
    half = np.interp(y, rows, profile)
    along = y - part.curve * half * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    half = np.interp(along, rows, profile).astype(np.float32)
    u = np.clip(x / half, -1, 1)
    v = np.clip((along - first) / (last - first), 0, 1).astype(np.float32)
    # where it covers the canvas
    start = first + part.slant * height * (1 + u) * 0.9
    cover = np.clip(half - np.abs(x) + 0.5, 0, 1)
    cover *= np.clip(along - start + 0.5, 0, 1) * np.clip(last - along + 0.5, 0, 1)
    rgb, opacity = _light(surface, u, v, printing)
    paint_over(canvas[top:bottom], rgb, (cover * opacity).astype(np.float32))
    # the top face of a cap
    if part.role in ("cap", "case", "collar") and part.curve > 0.05:
        centre = ((width - 1) / 2 + part.x * height, first + 0.5)
        lid = np.float32(surface.rgb) / 255 * 0.85 + 0.15
        _disc(canvas, centre, profile[int(first)], max(sag * 0.9, 1.0), lid)


def _light(surface: Surface, u: ndarray, v: ndarray, printing: ndarray | None) -> tuple[ndarray, ndarray]:
    """Return colour and opacity of a turned surface; here u is -1 at the left edge."""
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (*u.shape, 3))
    shade = _turned_shade(surface.finish, u, v)
    opacity, paper = np.ones_like(u), np.zeros_like(u)
    if surface.finish == "glass":
        rgb = rgb * (0.80 + 0.35 * v[..., None]) + 0.10 * (1 - v[..., None])
        empty = np.clip((0.13 - v) * 40, 0, 1) + np.clip((v - 0.955) * 40, 0, 1)  # above the liquid, and the thick base
        rgb = rgb + 0.25 * (1 - rgb) * empty[..., None]
        opacity = (0.80 + 0.20 * np.abs(u) ** 3) * (1 - 0.25 * empty)
    if printing is not None:
        # lay it around the body
        h, w = printing.shape[:2]
        across = (u + 0.5 * (np.arcsin(u) - u)) / 1.285  # 1.285 = its value at the right edge
        columns, rows = ((across + 1) / 2 * (w - 1)).astype(np.float32), (v * (h - 1)).astype(np.float32)
        printing = cv2.remap(printing, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        paper = printing[..., 3]
        rgb = rgb * (1 - paper[..., None]) + printing[..., :3] * paper[..., None]
        opacity = np.maximum(opacity, paper)
        shade = shade * (1 - paper) + _turned_shade("matte", u, v) * paper
    glint = GLINT[surface.finish] * np.clip(1.15 - 0.5 * v, 0, 1) * (1 - 0.7 * paper)
    shine = glint * _bump(u, -0.52, 0.13) + 0.45 * glint * _bump(u, 0.80, 0.06)
    return np.clip(rgb * shade[..., None] + shine[..., None], 0, 1), opacity


def _turned_shade(finish: str, u: ndarray, v: ndarray) -> ndarray:
    """Return the brightness of a turned surface."""
    if finish == "metal":
        return np.interp(u, *STUDIO).astype(np.float32)
    shade = 0.50 + 0.55 * np.clip(0.85 * np.sqrt(np.clip(1 - u * u, 0, 1)) - 0.42 * u, 0, 1.1)
    if finish == "frost":  # light scattered in the wall of the bottle: pale edges, a soft middle
        return 0.86 + 0.25 * (shade - 0.75) + 0.16 * _bump(np.abs(u), 0.9, 0.12)
    if finish == "bristle":
        return shade * (0.75 + 0.45 * np.sin(90 * v + 8 * u))
    if finish == "wood":
        return shade * (1 + 0.10 * np.sin(40 * u + 6 * np.sin(5 * v + 3 * u)))
    if finish == "glass":
        return shade * (1 - 0.22 * _bump(np.abs(u), 0.93, 0.07)) + 0.06
    return shade


# ---- round faces, seen aslant
def _disc(canvas: ndarray, centre: Point, rx: float, ry: float, rgb: ndarray, sheen: float = 0.1) -> None:
    """Paint an ellipse, brighter to the upper left; `rgb` is (3,) or (height, width, 3) in 0..1."""
    rows = slice(max(0, int(centre[1] - ry) - 2), int(centre[1] + ry) + 3)
    y, x = np.mgrid[0:canvas.shape[0], 0:canvas.shape[1]].astype(np.float32)[:, rows]
    x, y = (x - centre[0]) / rx, (y - centre[1]) / ry
    cover = np.clip((1 - np.sqrt(x ** 2 + y ** 2)) * min(rx, ry) + 0.5, 0, 1)
    light = 1 - sheen * (x + y)
    rgb = np.broadcast_to(rgb, (*canvas.shape[:2], 3))[rows]
    paint_over(canvas[rows], np.clip(rgb * light[..., None], 0, 1), cover)


def _round_face(canvas: ndarray, part: Part, surface: Surface, look: Look, printing: ndarray | None) -> None:
    """Paint the mirror or the powder pan of a compact, or the printed lid of a tin."""
    # centre and half axes in pixels
    height, width = canvas.shape[:2]
    (top, half), (bottom, _) = part.outline
    centre = ((width - 1) / 2, (top + bottom) / 2 * height)
    rx, ry = half * height, (bottom - top) / 2 * height
    own = np.float32(surface.rgb) / 255
    if part.role == "top":
        _disc(canvas, centre, rx, ry, own * 0.8)
        layer = _layer(canvas, printing, (centre[0] - rx, centre[1] - ry))
        face = own * (1 - layer[..., 3:]) + layer[..., :3]
        _disc(canvas, (centre[0], centre[1] - 1), rx * 0.955, ry * 0.94, face, 0.14)
        return
    if part.role == "mirror":
        rim = own * 0.9
        face = np.float32([0.82, 0.87, 0.92])
    else:  # the line's ornament is pressed into the powder
        rim = np.float32([0.93, 0.92, 0.90])
        relief = np.zeros(canvas.shape[:2], np.float32)
        points = ornament_points(centre, 0.55 * ry, look, 2.6)
        cv2.fillPoly(relief, [np.int32(np.round(points * 8))], 1.0, cv2.LINE_8, 3)
        face = own * (1 - 0.16 * relief[..., None])
    _disc(canvas, centre, rx, ry, rim)
    _disc(canvas, centre, rx * 0.88, ry * 0.88, face, 0.16)


def _layer(canvas: ndarray, printing: ndarray, corner: Point) -> ndarray:
    """Return a printing on an empty canvas, its upper left corner at (x, y): RGBA, premultiplied."""
    layer = np.zeros_like(canvas)
    x, y = (max(0, round(float(value))) for value in corner)
    target = layer[y:y + printing.shape[0], x:x + printing.shape[1]]
    target[:] = printing[:target.shape[0], :target.shape[1]]
    layer[..., :3] *= layer[..., 3:]
    return layer


# ---- flat parts
def _flat(canvas: ndarray, part: Part, surface: Surface, printing: ndarray | None) -> None:
    """Paint a flat polygon with a soft gradient; the printing fills the box around it."""
    height, width = canvas.shape[:2]
    points = np.array([[x * height + (width - 1) / 2, y * height] for y, x in part.outline], np.float32)
    left, top = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    right, bottom = points.max(0).astype(int) + 3
    canvas = canvas[top:bottom, left:right]
    points = points - [left, top]
    # where it lies, each corner cut off by a curve that begins `corner` before it
    outline = points
    if part.corner:
        ends = []
        for shift in (1, -1):
            edge = np.roll(points, shift, axis=0) - points
            reach = part.corner * height / np.linalg.norm(edge, axis=1, keepdims=True)
            ends.append(points + edge * np.minimum(0.5, reach))
        t = np.linspace(0, 1, 7)[:, None, None]
        outline = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * points + t ** 2 * ends[1]
        outline = outline.transpose(1, 0, 2).reshape(-1, 2)
    cover = np.zeros((canvas.shape[0] * 2, canvas.shape[1] * 2), np.uint8)
    cv2.fillPoly(cover, [np.int32(np.round(outline * 2))], 255, cv2.LINE_AA)
    cover = cv2.resize(cover, canvas.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    y, x = np.mgrid[0:canvas.shape[0], 0:canvas.shape[1]].astype(np.float32)
    u = (x - points[:, 0].min()) / np.ptp(points[:, 0])
    v = (y - points[:, 1].min()) / np.ptp(points[:, 1])
    rgb = np.broadcast_to(np.float32(surface.rgb) / 255, (*u.shape, 3))
    if printing is not None:
        layer = _layer(canvas, printing, points.min(0))
        if part.role == "print":  # letters on what is already there
            rgb = layer[..., :3] / np.maximum(layer[..., 3:], 1e-3)
            cover = cover * layer[..., 3]
        else:
            rgb = rgb * (1 - layer[..., 3:]) + layer[..., :3]
    opacity = np.float32(0.6 if surface.finish == "clear" else 1.0)
    shade = _flat_shade(surface.finish, u, v)
    paint_over(canvas, np.clip(rgb * shade[..., None], 0, 1), cover * opacity)


def _flat_shade(finish: str, u: ndarray, v: ndarray) -> ndarray:
    """Return the brightness of a flat face; u is 0 at the left edge."""
    shade = 1.06 - 0.10 * u - 0.08 * v
    if finish == "foil":  # crimped at both ends
        shade = shade + 0.10 * np.sin(5 * u + 4 * v) * _bump(u, 0.5, 0.6)
        shade = shade + 0.22 * _bump(u + 0.25 * v, 0.35, 0.05)
        crimped = (v < 0.055) | (v > 0.945)
        shade = np.where(crimped, shade * (0.9 + 0.08 * np.sin(300 * u)), shade)
    elif finish in ("glass", "clear"):  # thick, with bright edges
        edge = np.minimum.reduce([u, 1 - u, v, 1 - v])
        shade = shade * (1 - 0.3 * _bump(edge, 0.05, 0.025))
        shade = shade + 0.35 * _bump(u, 0.14, 0.03) + 0.2 * _bump(edge, 0.0, 0.02)
    elif finish == "metal":
        shade = shade * np.interp(u + 0.15 * v, *FLAT_STUDIO)
    elif finish in ("gloss", "frost"):
        shade = shade + GLINT[finish] * (0.8 * _bump(u, 0.13, 0.05) + 0.3 * _bump(u, 0.92, 0.03))
    elif finish == "satin":
        shade = shade + 0.14 * np.sin(9 * u + 5 * v)
    elif finish == "shimmer":
        shade = shade + 0.12 * np.sin(211 * u + 37 * np.sin(91 * v)) + 0.12 * _bump(u + v, 0.8, 0.3)
    return shade.astype(np.float32)
