"""Where the products of a photo stand or lie: one alone, or a group in one of several arrangements."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numpy.random import Generator

from capture_lib.world.tables import read_settings

STAGING = read_settings("staging_settings")  # how often what happens


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
        """Return the box that holds it, xyxy in pixels (perspective aside)."""
        angle = np.deg2rad(self.tilt)
        w = self.width * abs(np.cos(angle)) + self.height * (abs(np.sin(angle)) + abs(self.shear))
        h = self.height * abs(np.cos(angle)) + self.width * abs(np.sin(angle))
        middle = self.foot - self.height / 2
        return self.x - w / 2, middle - h / 2, self.x + w / 2, middle + h / 2


@dataclass(frozen=True)
class Layout:
    """Poses of a photo's products, in the order of the products, from what point of view, and on what."""

    name: str
    poses: tuple[Pose, ...]
    above: bool = False  # seen from above: no horizon, no foot
    stand: bool = False  # on a podium or a tray

    def back_to_front(self) -> list[int]:
        """Return the order in which products are pasted."""
        return sorted(range(len(self.poses)), key=lambda n: self.poses[n].foot)


Sizes = list[tuple[float, float]]  # height and width of every product, in pixels
Poses = dict[int, Pose]  # by the product's number
# for how many products, at least and at most
ARRANGEMENTS = {"line": (2, 4), "rows": (3, 12), "triangle": (3, 5), "fan": (2, 5), "flat": (2, 9), "box": (2, 7)}


@dataclass(frozen=True)
class Shot:
    """What a photo follows from, beside its products."""

    size: int  # side in pixels
    seed: int  # of the world
    rng: Generator  # of the photo
    settings: SimpleNamespace

    def single(self, aspect: float) -> Layout:
        """Place a product somewhere near the middle, all of it inside the photo; `aspect` is width over height."""
        size, rng = self.size, self.rng
        above = bool(rng.random() < self.settings.single_flat)
        stand = bool(not above and rng.random() < self.settings.stand[0])
        tilt = float(rng.uniform(-180, 180)) if above else 0.0 if stand else self._tilt()
        height = rng.uniform(*self.settings.single_height) * size / max(1.0, aspect) * (0.8 if stand else 1.0)
        shear, shrink = float(rng.normal(0, 0.03)), self._shrink()
        # shrink it until it fits, and move it within the room that is left
        x1, y1, x2, y2 = Pose(0, 0, height, height * aspect, tilt, shear).box()
        fit = min(1.0, 0.95 * size / (x2 - x1), 0.95 * size / (y2 - y1))
        aside = float(np.clip(rng.normal(0, 0.35), -1, 1))
        lower = float(np.clip(rng.normal(0.2, 0.4), -1, 0.35 if stand else 1))
        x = size / 2 + (size - (x2 - x1) * fit) / 2 * aside
        middle = size / 2 + (size - (y2 - y1) * fit) / 2 * lower
        pose = Pose(x, middle + height * fit / 2, height * fit, height * fit * aspect, tilt, shear, shrink)
        return Layout("flat" if above else "single", (pose,), above, stand)

    def _tilt(self) -> float:
        """Draw the tilt of a standing product, in degrees."""
        strong = self.rng.random() < self.settings.strong_tilt
        return float(self.rng.uniform(-35, 35) if strong else self.rng.normal(0, 3.5))

    def _shrink(self) -> tuple[float, float]:
        """Draw the perspective of a product."""
        across, down = self.rng.normal(0, self.settings.perspective, 2).clip(-0.12, 0.12)
        return float(across), float(down)

    def group(self, real_heights: list[float], aspects: list[float]) -> Layout:
        """Arrange several products, in real proportions within limits, as it suits their number."""
        names = [name for name, (fewest, most) in ARRANGEMENTS.items() if fewest <= len(aspects) <= most]
        weights = np.array([getattr(self.settings, name) for name in names])
        name = str(self.rng.choice(names, p=weights / weights.sum()))
        stand = bool(name == "line" and self.rng.random() < self.settings.stand[1])
        # draw the size of every product, and place it
        low, high = (share * self.size for share in self.settings.multi_height)
        unit = self.rng.uniform(0.75, 1.0) * high / max(real_heights)
        sizes = []
        for real, aspect in zip(real_heights, aspects, strict=True):
            height = unit * real * self.rng.uniform(0.95, 1.05)
            height = float(np.clip(height, low / max(1.0, aspect), high))
            sizes.append((height, height * aspect))
        placed = getattr(self, name)(sizes)
        poses = [placed[n] for n in range(len(sizes))]
        if stand:
            poses = [replace(pose, foot=0.80 * self.size, tilt=0.0) for pose in poses]
        return Layout(name, tuple(poses), name in ("fan", "flat", "box"), stand)

    def spread(self, aspects: list[float]) -> Layout:
        """Stand all products in one row, none in front of another: where no other arrangement shows them all."""
        size = self.size
        height = self.settings.multi_height[0] * size
        widths = [min(height, 1.1 * height / aspect) * aspect for aspect in aspects]
        fit = min(1.0, 0.94 * size / sum(widths))
        poses, left = [], 0.03 * size
        for aspect, width in zip(aspects, widths, strict=True):
            width *= fit
            poses.append(Pose(left + width / 2, 0.8 * size, width / aspect, width * 0.98))
            left += width
        return Layout("line", tuple(poses))

    # ---- arrangements: a pose for each product, in any order
    def line(self, sizes: Sizes) -> Poses:
        """Side by side on one line."""
        return self._row(self.rng.permutation(len(sizes)), sizes, self.rng.uniform(0.72, 0.92), 0.18)

    def rows(self, sizes: Sizes) -> Poses:
        """Two rows, tall products mostly behind."""
        tallest = np.argsort([-height * self.rng.uniform(0.7, 1.3) for height, _ in sizes])
        behind = self.rng.permutation(tallest[:len(sizes) // 2])
        before = self.rng.permutation(tallest[len(sizes) // 2:])
        return self._two_rows(behind, before, sizes)

    def triangle(self, sizes: Sizes) -> Poses:
        """The tallest behind in the middle, the others before it."""
        tallest = np.argsort([-height for height, _ in sizes])
        return self._two_rows(tallest[:1], self.rng.permutation(tallest[1:]), sizes)

    def _two_rows(self, behind: np.ndarray, before: np.ndarray, sizes: Sizes) -> Poses:
        poses = self._row(behind, sizes, self.rng.uniform(0.56, 0.68), 0.08)
        return poses | self._row(before, sizes, self.rng.uniform(0.86, 0.95), 0.10)

    def _row(self, order: np.ndarray, sizes: Sizes, foot: float, aside: float) -> Poses:
        """Stand products side by side; `foot` and `aside` (from the middle) are fractions of the photo's side."""
        size, rng = self.size, self.rng
        # neighbours overlap by up to a fifth of their width, or keep a small distance
        overlap = rng.uniform(-0.12, 0.22) if len(order) > 1 else 0.0
        widths = np.array([sizes[i][1] for i in order])
        fit = min(1.0, 0.94 * size / (widths.sum() * (1 - overlap)))
        widths = widths * fit
        steps = widths * (1 - overlap)
        room = max(0.0, 0.94 * size - steps.sum())
        left = 0.03 * size + room * float(np.clip(rng.normal(0.5, aside), 0, 1))
        poses = {}
        for n, i in enumerate(order):
            height = sizes[i][0] * fit
            x = left + steps[:n].sum() + widths[n] / 2
            y = max(min((foot + rng.uniform(-0.03, 0.03)) * size, 0.985 * size), height + 2)
            tilt = self._tilt() * (0.6 if len(order) > 2 else 1.0)
            shear = float(rng.normal(0, 0.02))
            poses[int(i)] = Pose(float(x), float(y), height, float(widths[n]), tilt, shear, self._shrink())
        return poses

    def fan(self, sizes: Sizes) -> Poses:
        """Spread like a hand of cards, feet together."""
        size, rng = self.size, self.rng
        heights, widths = np.array(sizes).T
        fit = min(1.3, 0.85 * size / widths.sum(), 0.6 * size / heights.max())
        places = (np.cumsum(widths) - widths / 2) / widths.sum() - 0.5
        angles = places * rng.uniform(20, 45) + rng.normal(0, 1.5, len(sizes))
        middle, top = rng.uniform(0.45, 0.55) * size, rng.uniform(0.44, 0.52) * size
        poses = {}
        for n, (height, width) in enumerate(sizes):
            x = middle + 0.9 * places[n] * widths.sum() * fit
            foot = top + 0.5 * size * (1 - np.cos(np.deg2rad(angles[n]))) + height * fit / 2
            poses[n] = Pose(float(x), float(foot), float(height * fit), float(width * fit), float(angles[n]))
        return poses

    def flat(self, sizes: Sizes) -> Poses:
        """Scattered over the photo; all turned alike, or each as it fell."""
        size, rng = self.size, self.rng
        columns = 2 if len(sizes) <= 4 else 3
        lines = -(-len(sizes) // columns)
        common_tilt, free = rng.uniform(-180, 180), rng.random() < 0.6
        cell_w, cell_h = size / columns, size / lines
        cells = rng.permutation(columns * lines)
        poses = {}
        for n, (height, width) in enumerate(sizes):
            fit = min(1.0, 1.12 * min(cell_w, cell_h) / max(height, width))
            tilt = rng.uniform(-180, 180) if free else common_tilt + rng.normal(0, 6)
            x = (cells[n] % columns + 0.5 + rng.uniform(-0.1, 0.1)) * cell_w
            y = (cells[n] // columns + 0.5 + rng.uniform(-0.1, 0.1)) * cell_h
            pose = Pose(float(x), float(y + height * fit / 2), height * fit, width * fit, float(tilt))
            # move it to where all of it is in the photo
            x1, y1, x2, y2 = pose.box()
            x = pose.x + (max(0.02 * size - x1, 0.0) + min(0.98 * size - x2, 0.0))
            foot = pose.foot + (max(0.02 * size - y1, 0.0) + min(0.98 * size - y2, 0.0))
            poses[n] = replace(pose, x=x, foot=foot)
        return poses

    def box(self, sizes: Sizes) -> Poses:
        """Side by side as in a gift box, in one row or two."""
        size, rng = self.size, self.rng
        order = rng.permutation(len(sizes))
        rows = [order] if len(order) <= 3 else [order[::2], order[1::2]]
        room, gap = 0.84 * size / len(rows), 0.03 * size
        poses = {}
        for n, row in enumerate(rows):
            wide = sum(sizes[i][1] for i in row) + gap * (len(row) - 1)
            high = max(sizes[i][0] for i in row)
            fit = min(1.0, 0.80 * size / wide, 0.94 * room / high)
            left = (size - wide * fit) / 2
            middle = (0.08 + 0.84 * (n + 0.5) / len(rows)) * size
            for i in row:
                height, width = sizes[i][0] * fit, sizes[i][1] * fit
                poses[int(i)] = Pose(left + width / 2, middle + height / 2, height, width, float(rng.normal(0, 1.5)))
                left += width + gap * fit
        return poses
