"""How products are packed: forms, and the colours of a brand and its lines. Tables are in `packaging.json`."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from capture_lib.world.products import RGB, Product
from capture_lib.world.tables import read_table

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLD, SILVER, ROSE = (222, 184, 108), (206, 210, 216), (226, 172, 152)


# ---- forms
@dataclass(frozen=True)
class Part:
    """A turned body, or a flat polygon; lengths in units of the silhouette's height."""

    role: str  # decides the surface: body, cap, collar, neck, ...
    outline: list[tuple[float, float]]  # (height, half width) from the top, or (height, x) around a polygon
    printed: bool = False
    curve: float = 0.10  # how far edges sag in the middle, in half widths: the camera looks down a little
    slant: float = 0.0  # a top cut aslant, as on a lipstick
    polygon: bool = False
    corner: float = 0.0  # radius of a polygon's corners
    x: float = 0.0  # a turned body's axis, from the middle of the product


def _read_part(outline: list | None = None, cylinder: list | None = None, **others) -> Part:
    """Return a part whose outline is written out, or a straight cylinder with rounded edges."""
    if cylinder:
        top, bottom, half, c = cylinder  # c: radius of the edges
        edge = half - 0.45 * c
        outline = [(top, half - c), (top + 0.3 * c, edge), (top + c, half),
                   (bottom - c, half), (bottom - 0.3 * c, edge), (bottom, half - c)]
    return Part(outline=outline, **others)


TABLE = read_table("packaging")
PALETTES = TABLE["palettes"]  # body, accent, ink, chosen by eye: a brand takes one, its lines turn the body's hue
PAN_STEPS = TABLE["pan_steps"]  # of eye shadows: share, and the colour that the shade is mixed with
FORMS = TABLE["silhouettes"]  # aspect: width over height; height: the real one, against a bottle's
PARTS = {name: [_read_part(**part) for part in form["parts"]] for name, form in FORMS.items()}  # from back to front


# ---- the dress of a line
@dataclass(frozen=True)
class Surface:
    """Colour and finish of a part; finish: a key of `glint` in packaging.json."""

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


@lru_cache(maxsize=1024)
def look_of(brand: int, look: int, seed: int) -> Look:
    """Draw the dress of a line; twin lines share one `look`, and only the lettering tells them apart."""
    of_brand = np.random.default_rng([seed, 201, brand])
    of_colours = np.random.default_rng([seed, 202, brand, look])
    of_line = np.random.default_rng([seed, 203, brand, look])
    # the brand's palette, its body turned for every further line
    body, accent, ink = map(tuple, PALETTES[(7 * brand + seed) % len(PALETTES)])
    if brand >= len(PALETTES):  # palettes return in other colours
        body, accent = _turn_hue(body, 40, 1.0), _turn_hue(accent, 40, 1.0)
    if look:
        degrees = float(of_colours.choice([-70, -35, 35, 70, 150]))
        body = _turn_hue(body, degrees, float(of_colours.uniform(0.82, 1.1)))
    if sum(body) > 480 and sum(ink) > 480:
        ink = mix(ink, BLACK, 0.75)
    # what its products are made of, and what is printed on them
    caps = (
        Surface(GOLD, "metal"), Surface(SILVER, "metal"), Surface(ROSE, "metal"), Surface((28, 28, 30)),
        Surface((248, 248, 246)), Surface(accent, "matte"), Surface((176, 128, 82), "wood"),
        Surface(mix(accent, WHITE, 0.15), "metal"), Surface(ink if sum(ink) < 300 else body),
    )
    finish = str(of_brand.choice(["gloss", "matte", "glass", "frost"], p=[0.38, 0.25, 0.2, 0.17]))
    return Look(
        body=Surface(body, finish), accent=accent, ink=ink,
        cap=caps[int(of_brand.integers(len(caps)))], collar=caps[int(of_brand.integers(3))],
        label=str(of_brand.choice(["panel", "band", "print", "oval"])),
        serif=bool(of_brand.integers(2)), capitals=bool(of_brand.integers(2)), upright=bool(of_brand.random() < 0.3),
        petals=int(of_line.integers(2, 9)), depth=float(of_line.choice([-0.35, 0.2, 0.35, 0.6])),
        ring=bool(of_line.integers(2)), stripes=int(of_line.integers(0, 4)),
    )


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Return a colour with a share of another."""
    return tuple(int(round(x + (y - x) * share)) for x, y in zip(a, b, strict=True))


def _turn_hue(rgb: RGB, degrees: float, factor: float) -> RGB:
    """Return another colour of the same family: hue turned, brightness scaled."""
    hue, saturation, value = cv2.cvtColor(np.uint8([[rgb]]), cv2.COLOR_RGB2HSV)[0, 0].astype(float)
    max_saturation = 235 if value < 140 else 95  # pale tints and deep tones, nothing that glares
    saturation = min(max_saturation, saturation * 1.15 + 8)
    hsv = np.uint8([[[(hue + degrees / 2) % 180, saturation, np.clip(value * factor, 20, 252)]]])
    return tuple(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist())


# ---- what a part is made of
def surface_of(role: str, look: Look, product: Product) -> Surface:
    """Return what a part is made of; shades and scents show in some parts."""
    body = look.body.rgb
    shade = product.variant.rgb or body
    dark, light = mix(body, BLACK, 0.28), mix(body, WHITE, 0.3)
    ribbon = look.accent if abs(sum(look.accent) - sum(body)) > 150 else GOLD  # not too much like the box
    if role.startswith("pan"):  # an eye shadow of a family, light to deep; some have shimmer
        number = int(role[3:])
        share, towards = PAN_STEPS[number % len(PAN_STEPS)]
        return Surface(mix(shade, towards or shade, share), "shimmer" if number % 3 == 1 else "matte")
    # a body: foundation shows its shade through glass, a scent tints the bottle, serums stand in glass
    glassy = product.silhouette == "dropper" or product.kind == "remover"
    own = Surface(body, "glass" if glassy else look.body.finish)
    if product.kind == "foundation":
        own = Surface(shade, "glass")
    elif product.kind in ("mascara", "brow"):
        own = Surface(body, "gloss")
    elif product.variant.rgb:
        own = Surface(mix(body, shade, 0.65), look.body.finish)
    return {
        "body": own,
        "cap": look.cap, "case": look.cap, "mirror": look.cap, "collar": look.collar,
        "neck": Surface((236, 236, 232), "matte"), "rod": Surface((48, 46, 48), "matte"),
        "glass": Surface((206, 222, 234), "glass"), "clear": Surface(light, "clear"),
        "bulb": Surface((40, 38, 40) if sum(body) < 420 else (244, 242, 238), "matte"),
        "shoulder": Surface(mix(body, look.accent, 0.35), "glass"),
        "vial": Surface((140, 78, 28) if sum(body) > 600 else mix(body, WHITE, 0.15), "glass"),
        "shade": Surface(shade, "glass" if product.silhouette == "gloss" else "gloss"),
        "powder": Surface(shade, "matte"), "brush": Surface(shade, "bristle"), "sheet": Surface(body, "foil"),
        "balm": Surface(mix((252, 246, 228), product.variant.rgb or (255, 250, 240), 0.35)),
        "frame": Surface((36, 34, 36) if sum(look.cap.rgb) > 420 else (236, 232, 226), "matte"),
        "print": Surface(look.cap.rgb if product.kind == "palette" else body, "matte"),
        "top": look.cap if product.kind == "hand" else Surface(body),
        "side": Surface(dark, "matte"), "lid": Surface(light, "matte"), "front": Surface(body, "matte"),
        "lining": Surface((246, 240, 230) if sum(body) < 460 else dark, "matte"),
        "ribbon": Surface(ribbon, "satin"), "bow": Surface(mix(ribbon, BLACK, 0.1), "satin"),
    }[role]
