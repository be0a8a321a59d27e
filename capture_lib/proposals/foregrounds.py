"""Foregrounds: products cut out of photos by GrabCut, without a label; masks that look wrong are thrown out.

GrabCut follows colour, so it needs a good start: a white jar on a white ground, or its lid alone, look alike to it. The
starts are islands: an edge map is flooded from the photo's rim, at rising levels, and what stays dry is enclosed by
edges. The start that looks most like the outline of one product is handed to GrabCut, which then moves no more than the
border. How far all starts agree with its mask tells, without a label, how far the mask can be trusted.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog.photos import fit, load_photo

SIDE = 224  # longer side of a photo to which all distances in pixels below belong
LEVELS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0)  # of flooding, Lab units a pixel
ENOUGH = 10.0  # Lab units a pixel: a steeper edge counts no more than this one
LEAST = 16  # pixels: narrower photos are not cut


def disc(radius: int) -> np.ndarray:
    """A round kernel (2·radius + 1, 2·radius + 1) uint8 for erosion and dilation."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


# ---- edges
def frame_width(photo: np.ndarray) -> int:
    """Pixels at each side that a frame or a line along the rim takes up: 0 without one.

    Its inner edge is a step in colour that runs along most of all four sides, at one distance from them.
    """
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).astype(np.float32)
    most = round(0.08 * min(photo.shape[:2]))
    sides = [np.rot90(lab, turn)[:most + 1, most:-most] for turn in range(4)]
    steps = [np.median(np.linalg.norm(np.diff(side, axis=0), axis=-1), axis=1) for side in sides]  # 4 × (most,)
    found = np.flatnonzero(np.min(steps, axis=0) > 6)
    return int(found[-1]) + 2 if len(found) else 0


def sharp_edges(photo: np.ndarray) -> np.ndarray:
    """How steeply colour changes, less what a soft change explains: (H, W) float32, Lab units a pixel at 224 pixels.

    At the edge of a thing the slope falls fast when the photo is blurred, in a shadow or a fold it hardly does.
    """
    unit = max(photo.shape[:2]) / SIDE
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).astype(np.float32)
    half = cv2.resize(lab, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    soft = cv2.resize(slope(half, 1.5 * unit), lab.shape[1::-1]) / 2
    return np.maximum(slope(lab, unit) - 0.7 * soft, 0) * unit


def slope(lab: np.ndarray, sigma: float) -> np.ndarray:
    """Length of the gradient of a blurred picture (H, W, 3) float32 over all channels: (H, W)."""
    blurred = cv2.GaussianBlur(lab, (0, 0), sigma)
    across, down = cv2.Scharr(blurred, -1, 1, 0), cv2.Scharr(blurred, -1, 0, 1)
    return cv2.sqrt(cv2.transform(across * across + down * down, np.ones((1, 3), np.float32))) / 32


def flood(edges: np.ndarray, level: float) -> np.ndarray:
    """What stays dry, (H, W) uint8 in {0, 1}, when water comes from the rim and edges above a level hold it back."""
    walls = cv2.morphologyEx((edges > level).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, basins = cv2.connectedComponents(1 - walls, connectivity=4)
    wet = np.zeros(basins.max() + 1, np.uint8)
    for side in (basins[0], basins[-1], basins[:, 0], basins[:, -1]):
        wet[side] = 1
    wet[0] = 0  # the walls themselves
    return cv2.morphologyEx(1 - wet[basins], cv2.MORPH_OPEN, disc(max(1, round(3 * max(edges.shape) / SIDE))))


# ---- starts
@dataclass(frozen=True)
class Start:
    """A mask from which GrabCut may start, or its result: (H, W) uint8 in {0, 1}, and its likeness to a product."""

    mask: np.ndarray
    likeness: float
    source: str = ""  # "edges above …" or "colour"


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outer contours (n, 1, 2) of a mask's pieces."""
    return list(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])


def plausible(outline: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether an outline has a product's size and place in a photo of a shape (H, W): near its middle, off its rim."""
    height, width = shape[:2]
    x, y, w, h = cv2.boundingRect(outline)
    inside = min(x, y, width - x - w, height - y - h) >= 0.01 * width
    return 0.02 < cv2.contourArea(outline) / (height * width) < 0.7 and aside(outline, shape) < 0.3 and inside


def aside(outline: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far the middle of an outline's box is from that of a photo of a shape (H, W), in its longer sides."""
    x, y, w, h = cv2.boundingRect(outline)
    return float(np.hypot(x + w / 2 - shape[1] / 2, y + h / 2 - shape[0] / 2) / max(shape[:2]))


def filled(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask (H, W) uint8 inside an outline."""
    return cv2.drawContours(np.zeros(shape[:2], np.uint8), [outline], -1, 1, cv2.FILLED)


def solidity(outline: np.ndarray) -> float:
    """Area over the area of the convex hull: 1 for a box, less for what has bays."""
    return cv2.contourArea(outline) / max(cv2.contourArea(cv2.convexHull(outline)), 1.0)


def likeness(outline: np.ndarray, edges: np.ndarray) -> float:
    """How much an outline looks like that of one product, at least 0; a product of factors, each for one expectation.

    It is solid; it holds most of the photo's edges; it lies on an edge even where that is weakest; the ground round it
    has no more edges than the photo's rim (else a cap is missing); it is near the middle.
    """
    unit, capped = max(edges.shape) / SIDE, np.minimum(edges, ENOUGH)
    far, near, rim = (2 * round(18 * unit) + 1, 2 * round(4 * unit) + 1, round(0.054 * min(edges.shape)))
    mask = filled(outline, edges.shape)
    ring = cv2.dilate(mask, np.ones((far, far), np.uint8)) - cv2.dilate(mask, np.ones((near, near), np.uint8))
    inner = capped[rim:-rim, rim:-rim]
    at_rim = (capped.sum() - inner.sum()) / (capped.size - inner.size)
    unexplained = max(0.0, cv2.mean(capped, ring)[0] - at_rim)
    weakest = np.quantile(cv2.dilate(edges, np.ones((3, 3)))[outline[:, 0, 1], outline[:, 0, 0]], 0.1)
    share = cv2.mean(capped, mask)[0] * mask.sum() / max(capped.sum(), 1e-6)
    return float(solidity(outline) ** 3 * share ** 0.5 * weakest / (3 + weakest) / (0.6 + unexplained)
                 * (1 - aside(outline, edges.shape)) ** 2)


def edge_starts(edges: np.ndarray) -> list[Start]:
    """The plausible islands of an edge map at all levels; an island reaches half an edge too far, so it is trimmed."""
    found = []
    for level in LEVELS:
        for outline in outlines(flood(edges, level)):
            if plausible(outline, edges.shape):
                mask = cv2.erode(filled(outline, edges.shape), disc(1))
                found.append(Start(mask, likeness(outline, edges), f"edges above {level:g}"))
    return found


def colour_starts(photo: np.ndarray, edges: np.ndarray) -> list[Start]:
    """At most one: the largest piece of what GrabCut finds in a small photo if it starts from the border's colours."""
    small = fit(photo, 80)
    marks = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
    marks[unlike_border(small)] = cv2.GC_PR_FGD
    marks[:2], marks[-2:], marks[:, :2], marks[:, -2:] = (cv2.GC_BGD,) * 4
    mask, _ = main_piece(run_grabcut(small, marks, 2))
    mask = cv2.resize(mask.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    found = [outline for outline in outlines(mask.astype(np.uint8)) if plausible(outline, edges.shape)]
    return [Start(filled(outline, edges.shape), likeness(outline, edges), "colour") for outline in found[:1]]


def unlike_border(photo: np.ndarray) -> np.ndarray:
    """What is far in colour from the photo's border, and inside the central 90%: (H, W) bool."""
    height, width = photo.shape[:2]
    lab = cv2.cvtColor(cv2.GaussianBlur(photo, (3, 3), 0), cv2.COLOR_RGB2LAB).astype(np.float32)
    rim = max(2, round(0.04 * min(height, width)))
    border = np.concatenate([lab[:rim].reshape(-1, 3), lab[-rim:].reshape(-1, 3),
                             lab[:, :rim].reshape(-1, 3), lab[:, -rim:].reshape(-1, 3)])
    cv2.setRNGSeed(0)  # k-means starts its clusters at random
    _, _, centres = cv2.kmeans(border, min(4, len(border)), None, (cv2.TERM_CRITERIA_MAX_ITER, 8, 0), 1,
                               cv2.KMEANS_PP_CENTERS)
    distance = np.min(np.linalg.norm(lab[:, :, None] - centres, axis=-1), axis=-1)  # (H, W)
    level, _ = cv2.threshold(np.clip(distance * 2, 0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    likely = distance * 2 > level
    y, x = round(0.05 * height), round(0.05 * width)
    inside = np.zeros_like(likely)
    inside[y:height - y, x:width - x] = True
    return likely & inside


# ---- GrabCut
def grabcut(photo: np.ndarray, start: np.ndarray, iterations: int = 1) -> np.ndarray:
    """The mask (H, W) uint8 in {0, 1} of a photo (H, W, 3) uint8 RGB, from a start (H, W) uint8 in {0, 1}.

    GrabCut (Rother et al. 2004, OpenCV) settles a band along the start's border, 8 pixels inwards and 6 outwards in a
    photo of 224; within it the start is only likely. What lies further in is product, further out it is ground. The
    photo is cropped to where that matters, so the ground's colours are those nearby.
    """
    unit = max(photo.shape[:2]) / SIDE
    x, y, w, h = cv2.boundingRect(start)
    if not w:
        return np.zeros_like(start)
    margin = round(12 * unit)
    near = np.s_[max(0, y - margin):y + h + margin, max(0, x - margin):x + w + margin]
    mask = np.zeros_like(start)
    mask[near] = run_grabcut(photo[near], marks_of(start[near], unit), iterations)
    return mask


def marks_of(start: np.ndarray, unit: float) -> np.ndarray:
    """GrabCut's four kinds of marks (H, W) uint8: certain far from a start's border, likely near it."""
    marks = np.where(start > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    marks[cv2.erode(start, disc(round(8 * unit))) > 0] = cv2.GC_FGD
    marks[cv2.dilate(start, disc(round(6 * unit))) == 0] = cv2.GC_BGD
    return marks


def run_grabcut(photo: np.ndarray, marks: np.ndarray, iterations: int) -> np.ndarray:
    """OpenCV's GrabCut from its four kinds of marks (H, W) uint8, tidied: (H, W) uint8 in {0, 1}."""
    cv2.setRNGSeed(0)  # its colour clusters start at random
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        bgr = np.ascontiguousarray(photo[..., ::-1])
        cv2.grabCut(bgr, marks, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # product or ground has no pixel, or all have one colour: there is nothing to cut
        return np.zeros_like(marks)
    return tidy(np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def tidy(mask: np.ndarray) -> np.ndarray:
    """Removes specks (pieces under a tenth of the largest) and fills holes."""
    pieces = outlines(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    least = 0.1 * max(map(cv2.contourArea, pieces), default=0)
    large = [piece for piece in pieces if cv2.contourArea(piece) >= least]
    return cv2.drawContours(np.zeros_like(mask), large, -1, 1, cv2.FILLED)


def main_piece(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest connected piece of a mask (H, W), and its share of the whole mask's area."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask, 0.0
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return (pieces == largest).astype(np.uint8), stats[largest, cv2.CC_STAT_AREA] / mask.sum()


# ---- a mask and whether to trust it
@dataclass(frozen=True)
class Cut:
    """What was found in a photo: a mask (H, W) uint8, all starts (the one that was taken first), and signs of trust."""

    mask: np.ndarray
    starts: list[Start]
    likeness: float = 0.0
    agreement: float = 0.0  # share of the starts that have an IoU of over 0.8 with the mask
    others: float = 0.0  # area of the largest start elsewhere, as a multiple of the mask's


def cut_out(photo: np.ndarray, iterations: int = 1) -> Cut:
    """Finds the product of a photo (H, W, 3) uint8 RGB; an empty mask where nothing stands out."""
    empty = np.zeros(photo.shape[:2], np.uint8)
    if min(photo.shape[:2]) < LEAST:
        return Cut(empty, [])
    k = frame_width(photo)
    inner = photo[k:photo.shape[0] - k, k:photo.shape[1] - k]
    edges = sharp_edges(inner)
    starts = edge_starts(edges) + colour_starts(inner, edges)
    starts.sort(key=lambda start: -start.likeness)
    if not starts:
        return Cut(empty, [])
    mask = grabcut(inner, starts[0].mask, iterations)
    piece, _ = main_piece(mask)
    found = [outline for outline in outlines(piece) if plausible(outline, edges.shape)]
    like = likeness(found[0], edges) if found else 0.0
    few = np.s_[::3, ::3]  # pixels enough to compare areas
    agreement = float(np.mean([iou(start.mask[few], piece[few]) > 0.8 for start in starts]))
    elsewhere = [start.mask.sum() for start in starts if (start.mask & piece).sum() < 0.1 * start.mask.sum()]
    others = max(elsewhere, default=0) / max(piece.sum(), 1)

    def framed(part: np.ndarray) -> np.ndarray:
        return cv2.copyMakeBorder(part, k, k, k, k, cv2.BORDER_CONSTANT, value=0)

    starts = [Start(framed(start.mask), start.likeness, start.source) for start in starts]
    return Cut(framed(mask), starts, like, agreement, float(others))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W) in {0, 1}."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def faults(cut: Cut, single: bool) -> list[str]:
    """Why the main piece of a mask is not one whole product, as far as one can tell: an empty list where it is.

    Of a photo known to show a single product, a clearly largest piece is taken: the rest are props and stickers.
    Of any other photo only one compact piece is taken, with nothing of its kind beside it: that is what tells one
    product from several.
    """
    height, width = cut.mask.shape
    piece, share = main_piece(cut.mask)
    if not share:
        return ["empty"]
    x, y, w, h = cv2.boundingRect(piece)
    outline = max(outlines(piece), key=cv2.contourArea)
    tests = {
        "several pieces": share < (0.65 if single else 0.9) or (not single and cut.others > 0.2),
        "too small or too large": not 0.02 < piece.mean() < 0.7,
        "touches the edge": min(x, y, width - x - w, height - y - h) < 2,
        "not compact": solidity(outline) < (0.85 if single else 0.9),
        "unclear outline": cut.likeness < 0.2,
        "starts disagree": cut.agreement < 0.2,
    }
    return [fault for fault, found in tests.items() if found]


def cut(photo: tuple[Path, bool], size: int, iterations: int) -> np.ndarray | list[str]:
    """The foreground of a photo (path, known to be single) as a padded (S, S, 4) uint8 RGBA square, or its faults.

    The photo is cut at twice the square's size, because a product fills about half of it, and the foreground shrunk
    into the square where it is larger.
    """
    path, single = photo
    pixels = fit(load_photo(path), 2 * size)
    found = cut_out(pixels, iterations)
    reasons = faults(found, single)
    if reasons:
        return reasons
    mask, _ = main_piece(found.mask)
    x, y, w, h = cv2.boundingRect(mask)
    cropped = np.dstack([pixels, 255 * mask])[y:y + h, x:x + w]
    cropped = fit(cropped, size) if max(w, h) > size else cropped
    square = np.zeros((size, size, 4), np.uint8)
    square[:cropped.shape[0], :cropped.shape[1]] = cropped
    return square
