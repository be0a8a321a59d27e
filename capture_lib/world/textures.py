"""Pictures of marble, cloth, leaves, sand, a lit wall, ...: what busy backgrounds are cut from."""

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator


# ---- colours, noise, shapes
def draw_colour(rng: Generator, saturation: tuple[float, float], value: tuple[float, float]) -> ndarray:
    """Draw a colour of any hue, half of them warm as in most shops, (3,) float32 in 0..1."""
    hue = rng.uniform(-30, 50) % 360 if rng.random() < 0.5 else rng.uniform(0, 360)
    return hsv(hue, rng.uniform(*saturation), rng.uniform(*value))


def hsv(hue: float, saturation: float, value: float) -> ndarray:
    """Return the colour of a hue in degrees, (3,) float32 in 0..1."""
    return cv2.cvtColor(np.float32([[[hue, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]


def blend(a: ndarray, b: ndarray, share: ndarray) -> ndarray:
    """Return a where `share` (h, w) is 0 or less, b where it is 1 or more: (h, w, 3)."""
    return a + (b - a) * np.clip(share, 0, 1)[..., None]


def grid(n: int) -> tuple[ndarray, ndarray]:
    """Return rows and columns of an n × n picture as fractions."""
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    return y, x


def leaf(x: float, y: float, length: float, angle: float, wide: float) -> ndarray:
    """Return the corners of a leaf from its stalk at (x, y), (28, 2) int32 in eighths of a pixel."""
    t = np.linspace(0, 1, 14)
    half = wide * length * np.sin(np.pi * t ** 0.8) * 0.5
    corners = np.r_[np.c_[t * length, half], np.c_[t * length, -half][::-1]]
    turn = np.float32([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.int32(np.round((corners @ turn + [x, y]) * 8))


def _noise(n: int, cells: int, rng: Generator, octaves: int = 4) -> ndarray:
    """Return smooth noise, (n, n) float32 of mean 0 and deviation 1; `cells` waves fit into the picture."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        side = min(n, cells * 2 ** octave)
        coarse = rng.standard_normal((side, side)).astype(np.float32)
        total += cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    return (total - total.mean()) / total.std()


# ---- busy backgrounds: (n, n, 3) float32 RGB, about 0..1
def _marble(n: int, rng: Generator) -> ndarray:
    veins = np.exp(-np.abs(_noise(n, 3, rng, 5)) * rng.uniform(5, 9))
    veins *= 0.5 + 0.5 * np.clip(_noise(n, 2, rng, 2), 0, 1)
    dark = rng.random() < 0.25
    stone = draw_colour(rng, (0, 0.1), (0.18, 0.3) if dark else (0.88, 0.97))
    vein = draw_colour(rng, (0, 0.3), (0.7, 0.9) if dark else (0.45, 0.7))
    return blend(stone + 0.02 * _noise(n, 4, rng)[..., None], vein, 0.9 * veins)


def _cloth(n: int, rng: Generator) -> ndarray:
    y, x = grid(n)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle) + 0.12 * _noise(n, 2, rng, 2)) * rng.uniform(3, 6)
    folds = 0.5 + 0.5 * np.sin(2 * np.pi * along + 2 * np.sin(2.3 * along + rng.uniform(0, 6)))
    colour = draw_colour(rng, (0.05, 0.42), (0.6, 0.95))
    return colour * (0.72 + 0.33 * folds)[..., None] + 0.06 * (folds ** 6)[..., None]


def _leaves(n: int, rng: Generator) -> ndarray:
    picture = np.full((n, n, 3), draw_colour(rng, (0.05, 0.3), (0.3, 0.97)) * 255).astype(np.uint8)
    for step in range(70):
        x, y = rng.uniform(0, n, 2)
        angle, length, wide = rng.uniform(0, 2 * np.pi), n * rng.uniform(0.10, 0.32), rng.uniform(0.25, 0.5)
        green = hsv(rng.uniform(75, 150), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.45) + step / 175) * 255.0
        shadow = leaf(x + n * 0.012, y + n * 0.016, length, angle, wide)
        cv2.fillPoly(picture, [shadow], (green * 0.45).tolist(), cv2.LINE_AA, 3)
        cv2.fillPoly(picture, [leaf(x, y, length, angle, wide)], green.tolist(), cv2.LINE_AA, 3)
        tip = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(picture, (int(x), int(y)), tip, (green * 1.2).clip(0, 255).tolist(), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), n / 200).astype(np.float32) / 255


def _bokeh(n: int, rng: Generator) -> ndarray:
    value = (0.25, 0.5) if rng.random() < 0.4 else (0.7, 0.95)
    top, foot = draw_colour(rng, (0.12, 0.42), value), draw_colour(rng, (0.12, 0.42), value)
    picture = np.ascontiguousarray(blend(top, foot, grid(n)[0]))
    for _ in range(45):
        layer = picture.copy()
        centre = (int(rng.uniform(0, n)), int(rng.uniform(0, n)))
        radius = int(n * rng.uniform(0.02, 0.09))
        cv2.circle(layer, centre, radius, draw_colour(rng, (0.0, 0.5), (0.85, 1.0)).tolist(), -1, cv2.LINE_AA)
        picture = cv2.addWeighted(picture, 0.65, layer, 0.35, 0)
    return cv2.GaussianBlur(picture, (0, 0), n / 90)


def _wood(n: int, rng: Generator) -> ndarray:
    y, _ = grid(n)
    planks = int(rng.integers(3, 7))
    plank = np.floor(y * planks).astype(int)
    tone = rng.uniform(-0.12, 0.12, planks + 1).astype(np.float32)[plank]
    streaks = cv2.resize(rng.standard_normal((n, 12)).astype(np.float32), (n, n))
    grain = 0.5 * np.sin(60 * (y + 0.03 * _noise(n, 3, rng, 3)) + plank * 9) + 0.5 * streaks
    gap = np.exp(-((y * planks % 1) / 0.025) ** 2)
    brown = np.float32([0.80, 0.62, 0.44]) * rng.uniform(0.55, 1.1) + rng.uniform(-0.05, 0.1)
    return brown * (1 + tone + 0.06 * grain - 0.35 * gap)[..., None]


def _shelf(n: int, rng: Generator) -> ndarray:
    """Boards with blurred goods of no known kind."""
    picture = np.full((n, n, 3), draw_colour(rng, (0.02, 0.25), (0.6, 0.9)), np.float32)
    for board in np.sort(rng.uniform(0.15, 0.95, 3) * n).astype(int).tolist():
        for _ in range(12):
            x, w, h = rng.uniform(0, n), n * rng.uniform(0.03, 0.09), n * rng.uniform(0.06, 0.22)
            goods = draw_colour(rng, (0.1, 0.6), (0.4, 0.95)).tolist()
            cv2.rectangle(picture, (int(x), int(board - h)), (int(x + w), board), goods, -1)
        plank = draw_colour(rng, (0.0, 0.3), (0.5, 0.95)).tolist()
        cv2.rectangle(picture, (0, board), (n, int(board + n * 0.03)), plank, -1)
    return cv2.GaussianBlur(picture, (0, 0), n / 55)


def _rays(n: int, rng: Generator) -> ndarray:
    y, x = grid(n)
    angle = np.arctan2(y - rng.uniform(0.4, 0.8), x - 0.5) * int(rng.integers(8, 18))
    colour = draw_colour(rng, (0.15, 0.5), (0.85, 1.0))
    edge = np.clip(np.sin(angle) * 12, -1, 1) * 0.5 + 0.5
    return blend(colour, np.clip(colour * 0.6 + 0.42, 0, 1), edge * rng.uniform(0.3, 0.9))


def _water(n: int, rng: Generator) -> ndarray:
    light = np.exp(-np.abs(_noise(n, 6, rng, 2)) * 4) + 0.6 * np.exp(-np.abs(_noise(n, 9, rng, 2)) * 5)
    base = draw_colour(rng, (0.1, 0.35), (0.78, 0.97)) * (0.92 + 0.05 * _noise(n, 3, rng, 2)[..., None])
    return blend(base, np.ones(3, np.float32), 0.5 * light)


def _tiles(n: int, rng: Generator) -> ndarray:
    y, x = (axis * rng.uniform(3, 7) for axis in grid(n))
    if rng.random() < 0.5:
        x, y = x + y, x - y
    joint = np.exp(-(np.minimum.reduce([x % 1, 1 - x % 1, y % 1, 1 - y % 1]) / 0.03) ** 2)
    colour = draw_colour(rng, (0.02, 0.35), (0.7, 0.98))
    checks = blend(colour, colour * rng.uniform(0.75, 0.97), (np.floor(x) + np.floor(y)) % 2)
    return blend(checks, colour * 0.72, joint)


def _silk(n: int, rng: Generator) -> ndarray:
    y, x = grid(n)
    angle = rng.uniform(0, np.pi)
    folds = np.sin(0.8 * _noise(n, 2, rng, 2) + (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(12, 22))
    colour = draw_colour(rng, (0.06, 0.36), (0.72, 0.97))
    return colour * (0.86 + 0.12 * folds)[..., None] + 0.12 * (np.clip(folds, 0, 1) ** 4)[..., None]


def _sand(n: int, rng: Generator) -> ndarray:
    ripples = np.sin(2 * np.pi * rng.uniform(5, 9) * (grid(n)[0] + 0.05 * _noise(n, 2, rng, 2)))
    colour = hsv(rng.uniform(24, 42), rng.uniform(0.12, 0.32), rng.uniform(0.82, 0.95))
    grain = rng.standard_normal((n, n)).astype(np.float32)
    return colour * (0.95 + 0.06 * ripples * rng.uniform(0, 1) + 0.035 * grain)[..., None]


def _terrazzo(n: int, rng: Generator) -> ndarray:
    picture = np.full((n, n, 3), draw_colour(rng, (0.0, 0.12), (0.86, 0.97)), np.float32)
    for _ in range(170):
        t = np.sort(rng.uniform(0, 2 * np.pi, 6))
        chip = rng.uniform(0, n, 2) + n * rng.uniform(0.006, 0.026) * np.c_[np.cos(t), np.sin(t)]
        shade = draw_colour(rng, (0.05, 0.45), (0.4, 0.9)).tolist()
        cv2.fillPoly(picture, [np.int32(chip * 8)], shade, cv2.LINE_AA, 3)
    return picture


def _window(n: int, rng: Generator) -> ndarray:
    """A wall in the light of a window: its panes, or the shadow of leaves."""
    light = np.zeros((n, n), np.float32)
    if rng.random() < 0.5:
        slant, left, top = rng.uniform(-0.3, 0.3), rng.uniform(0.05, 0.35), rng.uniform(0.0, 0.2)
        for row, column in np.ndindex(3, 2):
            x, y = left + 0.27 * column, top + 0.27 * row
            pane = [(x + slant * y, y), (x + 0.24 + slant * y, y + 0.03), (x + 0.24 + slant * (y + 0.24), y + 0.27),
                    (x + slant * (y + 0.24), y + 0.24)]
            cv2.fillPoly(light, [np.int32(np.array(pane) * n)], 1.0, cv2.LINE_AA)
    else:
        light[:] = 1
        for stalk in rng.uniform(0.05, 0.7, (2, 2)) * n:  # the lower end of a sprig
            sweep = rng.uniform(0, 2 * np.pi)
            for step in range(16):
                x, y = stalk + n * 0.06 * step * np.array([np.cos(sweep), np.sin(sweep)])
                angle = sweep + (0.8 if step % 2 else -0.8)
                cv2.fillPoly(light, [leaf(x, y, n * rng.uniform(0.2, 0.34), angle, 0.22)], 0.0, cv2.LINE_AA, 3)
    light = cv2.GaussianBlur(light, (0, 0), n * rng.uniform(0.008, 0.02))
    wall = draw_colour(rng, (0.04, 0.32), (0.72, 0.9))
    return blend(wall * 0.86, np.clip(wall * 1.12 + 0.05, 0, 1), light)


def _arch(n: int, rng: Generator) -> ndarray:
    """A wall with one or two round arches."""
    wall = draw_colour(rng, (0.08, 0.4), (0.72, 0.95))
    picture = np.full((n, n, 3), wall, np.float32)
    for step in range(int(rng.integers(1, 3))):
        x, top = rng.uniform(0.35, 0.65) * n, rng.uniform(0.15, 0.3) * n
        half = n * rng.uniform(0.2, 0.3) * (1 - 0.25 * step)
        inner = np.clip(wall * rng.uniform(0.78, 1.2), 0, 1)
        for dx, shade in ((0.018 * n, wall * 0.72), (0.0, inner)):
            cv2.circle(picture, (int(x - dx), int(top + half)), int(half), shade.tolist(), -1, cv2.LINE_AA)
            cv2.rectangle(picture, (int(x - dx - half), int(top + half)), (int(x - dx + half), n), shade.tolist(), -1)
    return picture * (1.02 - 0.12 * grid(n)[0])[..., None]


TEXTURES = (_marble, _cloth, _leaves, _bokeh, _wood, _shelf, _rays,
            _water, _tiles, _silk, _sand, _terrazzo, _window, _arch)
# which of them may stand for a wall, a table, what lies under a photo from above
WALLS = (0, 1, 2, 3, 4, 5, 8, 9, 11, 12, 13)
TABLES = (0, 1, 4, 7, 8, 9, 10, 11)
UNDER = (0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 12)
