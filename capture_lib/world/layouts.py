"""Where the products of a photo stand or lie: one alone, or a group in one of several arrangements."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StagingSettings:
    """How photos are taken: shares of photos, and heights as fractions of the photo's side."""

    single_height: tuple[float, float] = (0.45, 0.85)  # longest side of a product that stands alone
    multi_height: tuple[float, float] = (0.30, 0.60)   # height of a product in a group
    # how often a group is arranged so, among the arrangements for its number of products
    line: float = 0.32
    rows: float = 0.22
    triangle: float = 0.14
    fan: float = 0.07
    flat: float = 0.14          # scattered, seen from above, turned in any direction
    box: float = 0.08           # side by side in an open gift box, seen from above
    single_flat: float = 0.12   # share of single products that lie, turned in any direction
    stand: tuple[float, float] = (0.12, 0.15)    # share on a podium or a tray: single products, groups in one row
    plain: float = 0.5          # share of photos on a plain ground
    strong_tilt: float = 0.12   # share of standing products tilted by up to 35 degrees; the others by about 4
    perspective: float = 0.05   # deviation of how much a product's far side shrinks
    reflection: float = 0.2     # share of photos on a glossy table
    cast: float = 0.45          # share of photos of standing products with a shadow along the table
    props: tuple[float, float] = (0.20, 0.40)    # share with 1 to 3 props: single products, groups
    sticker: tuple[float, float] = (0.20, 0.28)  # share with a sticker: single products, groups
    banner: tuple[float, float] = (0.05, 0.10)   # share with a banner: single products, groups
    points: tuple[float, float] = (0.06, 0.03)   # share with a list of selling points: single products, groups
    frame: float = 0.08
    logo: float = 0.08          # share with the brand's sign in a corner
    watermark: float = 0.07
    blur: float = 0.12
    least_visible: float = 0.5  # what overlapping products leave of a product, as far as it can be had


@dataclass(frozen=True)
class Pose:
    """Where a cut-out is, in pixels: middle of its foot, height and width; tilt in degrees, shear, perspective."""

    x: float
    foot: float
    height: float
    width: float
    tilt: float = 0.0
    shear: float = 0.0
    shrink: tuple[float, float] = (0.0, 0.0)  # towards the right and towards the foot

    def box(self) -> tuple[float, float, float, float]:
        """The box that holds it, xyxy in pixels (perspective aside)."""
        t = np.deg2rad(self.tilt)
        w = self.width * abs(np.cos(t)) + self.height * (abs(np.sin(t)) + abs(self.shear))
        h = self.height * abs(np.cos(t)) + self.width * abs(np.sin(t))
        middle = self.foot - self.height / 2
        return self.x - w / 2, middle - h / 2, self.x + w / 2, middle + h / 2


@dataclass(frozen=True)
class Layout:
    """Poses of a photo's products, in the order of the products, from what point of view, and on what."""

    name: str
    poses: tuple[Pose, ...]
    above: bool = False  # seen from above: no horizon, no foot
    stand: bool = False  # on a podium or a tray


Sizes = list[tuple[float, float]]  # height and width of every product, in pixels


# ---- one product
def single(aspect: float, size: int, s: StagingSettings, rng: np.random.Generator) -> Layout:
    """One product somewhere near the middle, all of it inside the photo; `aspect` is width over height."""
    above = bool(rng.random() < s.single_flat)
    stand = bool(not above and rng.random() < s.stand[0])
    tilt = float(rng.uniform(-180, 180)) if above else 0.0 if stand else _tilt(s, rng)
    height = rng.uniform(*s.single_height) * size / max(1.0, aspect) * (0.8 if stand else 1.0)
    shear, shrink = float(rng.normal(0, 0.03)), _shrink(s, rng)
    x1, y1, x2, y2 = Pose(0, 0, height, height * aspect, tilt, shear).box()
    fit = min(1.0, 0.95 * size / (x2 - x1), 0.95 * size / (y2 - y1))
    free_x, free_y = (size - (x2 - x1) * fit) / 2, (size - (y2 - y1) * fit) / 2
    x = size / 2 + free_x * float(np.clip(rng.normal(0, 0.35), -1, 1))
    middle = size / 2 + free_y * float(np.clip(rng.normal(0.2, 0.4), -1, 0.35 if stand else 1))
    pose = Pose(x, middle + height * fit / 2, height * fit, height * fit * aspect, tilt, shear, shrink)
    return Layout("flat" if above else "single", (pose,), above, stand)


def _tilt(s: StagingSettings, rng: np.random.Generator) -> float:
    return float(rng.uniform(-35, 35) if rng.random() < s.strong_tilt else rng.normal(0, 3.5))


def _shrink(s: StagingSettings, rng: np.random.Generator) -> tuple[float, float]:
    across, down = rng.normal(0, s.perspective, 2).clip(-0.12, 0.12)
    return float(across), float(down)


# ---- groups
def group(real_heights: list[float], aspects: list[float], size: int, s: StagingSettings,
          rng: np.random.Generator) -> Layout:
    """Several products, in real proportions within limits, in an arrangement that suits their number."""
    fitting = [name for name, (_, fewest, most) in ARRANGEMENTS.items() if fewest <= len(aspects) <= most]
    weights = np.array([getattr(s, name) for name in fitting])
    name = str(rng.choice(fitting, p=weights / weights.sum()))
    stand = bool(name == "line" and rng.random() < s.stand[1])
    sizes = _sizes(real_heights, aspects, size, s, rng)
    poses = ARRANGEMENTS[name][0](sizes, size, s, rng)
    if stand:
        poses = [Pose(p.x, 0.80 * size, p.height, p.width, 0.0, p.shear, p.shrink) for p in poses]
    return Layout(name, tuple(poses), name in ("fan", "flat", "box"), stand)


def spread(aspects: list[float], size: int, s: StagingSettings, rng: np.random.Generator) -> Layout:
    """All products upright in one row, none in front of another: where no other arrangement shows them all."""
    height = s.multi_height[0] * size
    wide = [min(height, 1.1 * height / aspect) * aspect for aspect in aspects]
    fit, poses, left = min(1.0, 0.94 * size / sum(wide)), [], 0.03 * size
    for aspect, width in zip(aspects, wide, strict=True):
        poses.append(Pose(left + width * fit / 2, 0.8 * size, width * fit / aspect, width * fit * 0.98))
        left += width * fit
    return Layout("line", tuple(poses))


def _sizes(real_heights: list[float], aspects: list[float], size: int, s: StagingSettings,
           rng: np.random.Generator) -> Sizes:
    low, high = s.multi_height[0] * size, s.multi_height[1] * size
    unit = rng.uniform(0.75, 1.0) * high / max(real_heights)
    wanted = [unit * real * rng.uniform(0.95, 1.05) for real in real_heights]
    heights = [float(np.clip(h, low / max(1.0, a), high)) for h, a in zip(wanted, aspects, strict=True)]
    return [(h, h * a) for h, a in zip(heights, aspects, strict=True)]


def _line(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Side by side on one line."""
    row = _row(rng.permutation(len(sizes)), sizes, rng.uniform(0.72, 0.92), 0.18, size, s, rng)
    return [row[i] for i in range(len(sizes))]


def _rows(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Two rows, tall products mostly behind."""
    tall = np.argsort([-height * rng.uniform(0.7, 1.3) for height, _ in sizes])
    behind = rng.permutation(tall[:len(sizes) // 2])
    return _two_rows(behind, rng.permutation(tall[len(sizes) // 2:]), sizes, size, s, rng)


def _triangle(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """The tallest behind in the middle, the others before it."""
    tall = np.argsort([-height for height, _ in sizes])
    return _two_rows(tall[:1], rng.permutation(tall[1:]), sizes, size, s, rng)


def _two_rows(behind: np.ndarray, before: np.ndarray, sizes: Sizes, size: int, s: StagingSettings,
              rng: np.random.Generator) -> list[Pose]:
    poses = _row(behind, sizes, rng.uniform(0.56, 0.68), 0.08, size, s, rng)
    poses |= _row(before, sizes, rng.uniform(0.86, 0.95), 0.10, size, s, rng)
    return [poses[i] for i in range(len(sizes))]


def _row(row: np.ndarray, sizes: Sizes, foot: float, aside: float, size: int, s: StagingSettings,
         rng: np.random.Generator) -> dict[int, Pose]:
    """One row: neighbours overlap by up to a fifth of their width or keep a small distance."""
    overlap = rng.uniform(-0.12, 0.22) if len(row) > 1 else 0.0
    widths = np.array([sizes[i][1] for i in row])
    fit = min(1.0, 0.94 * size / (widths.sum() * (1 - overlap)))
    widths, steps = widths * fit, widths * fit * (1 - overlap)
    free = max(0.0, 0.94 * size - steps.sum())
    left = 0.03 * size + free * float(np.clip(rng.normal(0.5, aside), 0, 1))
    poses = {}
    for n, i in enumerate(row):
        height, x = sizes[i][0] * fit, left + steps[:n].sum() + widths[n] / 2
        y = max(min((foot + rng.uniform(-0.03, 0.03)) * size, 0.985 * size), height + 2)
        tilt = _tilt(s, rng) * (0.6 if len(row) > 2 else 1.0)
        poses[int(i)] = Pose(float(x), float(y), height, float(widths[n]), tilt, float(rng.normal(0, 0.02)),
                             _shrink(s, rng))
    return poses


def _fan(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Spread like a hand of cards, feet together."""
    widths, tallest = np.array([width for _, width in sizes]), max(height for height, _ in sizes)
    fit = min(1.3, 0.85 * size / widths.sum(), 0.6 * size / tallest)
    along = (np.cumsum(widths) - widths / 2) / widths.sum() - 0.5
    angles = along * rng.uniform(20, 45) + rng.normal(0, 1.5, len(sizes))
    x, y = rng.uniform(0.45, 0.55) * size, rng.uniform(0.44, 0.52) * size
    poses = []
    for (height, width), angle, place in zip(sizes, angles, along, strict=True):
        lower = 0.5 * size * (1 - np.cos(np.deg2rad(angle)))
        poses.append(Pose(float(x + 0.9 * place * widths.sum() * fit), float(y + lower + height * fit / 2),
                          height * fit, width * fit, float(angle)))
    return poses


def _flat(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Scattered over the photo; all turned alike, or each as it fell."""
    count = len(sizes)
    columns = 2 if count <= 4 else 3
    lines, common, free = -(-count // columns), rng.uniform(-180, 180), rng.random() < 0.6
    cell_w, cell_h, poses = size / columns, size / lines, []
    for n, place in enumerate(rng.permutation(columns * lines)[:count]):
        height, width = sizes[n]
        fit = min(1.0, 1.12 * min(cell_w, cell_h) / max(height, width))
        tilt = float(rng.uniform(-180, 180)) if free else float(common + rng.normal(0, 6))
        x = (place % columns + 0.5 + rng.uniform(-0.1, 0.1)) * cell_w
        y = (place // columns + 0.5 + rng.uniform(-0.1, 0.1)) * cell_h
        poses.append(_inside(Pose(float(x), float(y + height * fit / 2), height * fit, width * fit, tilt), size))
    return poses


def _inside(pose: Pose, size: int) -> Pose:
    """The pose moved to where all of it is in the photo."""
    x1, y1, x2, y2 = pose.box()
    dx, dy = (max(0.02 * size - low, 0.0) + min(0.98 * size - high, 0.0) for low, high in ((x1, x2), (y1, y2)))
    return Pose(pose.x + dx, pose.foot + dy, pose.height, pose.width, pose.tilt, pose.shear, pose.shrink)


def _box(sizes: Sizes, size: int, s: StagingSettings, rng: np.random.Generator) -> list[Pose]:
    """Side by side as in a gift box, in one row or two."""
    order = rng.permutation(len(sizes))
    rows = [order] if len(order) <= 3 else [order[::2], order[1::2]]
    poses, room = {}, 0.84 * size / len(rows)
    for n, row in enumerate(rows):
        gap = 0.03 * size
        wide, high = sum(sizes[i][1] for i in row) + gap * (len(row) - 1), max(sizes[i][0] for i in row)
        fit = min(1.0, 0.80 * size / wide, 0.94 * room / high)
        left, middle = (size - wide * fit) / 2, (0.08 + 0.84 * (n + 0.5) / len(rows)) * size
        for i in row:
            height, width = sizes[i][0] * fit, sizes[i][1] * fit
            poses[int(i)] = Pose(left + width / 2, middle + height / 2, height, width, float(rng.normal(0, 1.5)))
            left += width + gap * fit
    return [poses[i] for i in range(len(sizes))]


Arrange = Callable[[Sizes, int, StagingSettings, np.random.Generator], list[Pose]]
ARRANGEMENTS: dict[str, tuple[Arrange, int, int]] = {  # for how many products, at least and at most
    "line": (_line, 2, 4), "rows": (_rows, 3, 12), "triangle": (_triangle, 3, 5), "fan": (_fan, 2, 5),
    "flat": (_flat, 2, 9), "box": (_box, 2, 7),
}
