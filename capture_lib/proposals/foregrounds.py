"""Cut products out of photos by GrabCut, without a label, and reject masks that look wrong.

GrabCut follows colour, so it needs a good initial mask: a white jar on a white background, or its
lid alone, look alike to it. Initial masks are regions that edges enclose: a flood fill of the edge
map from the photo's border doesn't reach them. GrabCut starts from the one most like a product and
moves no more than its border. How many of the others agree with the result tells how far to trust it.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog.photos import fit, load_photo

Photo = np.ndarray  # (H, W, 3) uint8 RGB
Mask = np.ndarray  # (H, W) uint8 in {0, 1}
Edges = np.ndarray  # (H, W) float32, Lab units a pixel in a photo of 224 pixels
Outline = np.ndarray  # (n, 1, 2) int32, the pixels x, y of a contour
SIDE = 224  # longer side of a photo to which all distances in pixels below belong
THRESHOLDS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0)  # of edges
MAX_EDGE = 10.0  # a steeper edge counts no more than this one
MIN_SIDE = 16  # pixels: narrower photos are not cut
SQUARE = np.ones((3, 3), np.uint8)  # kernel of the smallest morphology


def disc(radius: int) -> np.ndarray:
    """Return a round kernel (2·radius + 1, 2·radius + 1) uint8 for erosion and dilation."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


# ---- edges
def to_lab(photo: Photo) -> np.ndarray:
    """Return a photo in the Lab colours of OpenCV: (H, W, 3) float32 in 0..255."""
    return cv2.cvtColor(photo, cv2.COLOR_RGB2LAB).astype(np.float32)


def frame_width(photo: Photo) -> int:
    """Return the width in pixels of a frame or a line along the border: 0 without one."""
    lab = to_lab(photo)
    depth = round(0.08 * min(photo.shape[:2]))
    # its inner edge is a step in colour along most of all four sides, at one distance
    steps = []
    for turn in range(4):
        strip = np.rot90(lab, turn)[:depth + 1, depth:-depth]  # along one side, no corners
        change = np.linalg.norm(np.diff(strip, axis=0), axis=-1)
        steps.append(np.median(change, axis=1))
    found = np.flatnonzero(np.min(steps, axis=0) > 6)
    return int(found[-1]) + 2 if len(found) else 0


def sharp_edges(photo: Photo) -> Edges:
    """Return how steeply colour changes, less what a soft change explains."""
    unit = max(photo.shape[:2]) / SIDE
    lab = to_lab(photo)
    # blur hardly lowers the gradient of a shadow or a fold, other than that of a thing's edge
    half = cv2.resize(lab, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    soft = cv2.resize(gradient_norm(half, 1.5 * unit), lab.shape[1::-1]) / 2
    return np.maximum(gradient_norm(lab, unit) - 0.7 * soft, 0) * unit


def gradient_norm(lab: np.ndarray, sigma: float) -> Edges:
    """Return the length of a blurred picture's gradient over all channels."""
    blurred = cv2.GaussianBlur(lab, (0, 0), sigma)
    across = cv2.Scharr(blurred, -1, 1, 0)
    down = cv2.Scharr(blurred, -1, 0, 1)
    squares = across * across + down * down
    total = cv2.transform(squares, np.ones((1, 3), np.float32))  # summed over channels
    return cv2.sqrt(total) / 32


def enclosed_regions(edges: Edges, threshold: float) -> Mask:
    """Return what a flood fill from the border misses: edges above a threshold stop it."""
    walls = (edges > threshold).astype(np.uint8)
    walls = cv2.morphologyEx(walls, cv2.MORPH_CLOSE, SQUARE)
    # fill from a corner of a margin, so that all sides are reached
    filled = np.pad(walls, 1)
    cv2.floodFill(filled, None, (0, 0), 2)
    enclosed = (filled[1:-1, 1:-1] < 2).astype(np.uint8)
    # drop what is thin
    radius = max(1, round(3 * max(edges.shape) / SIDE))
    return cv2.morphologyEx(enclosed, cv2.MORPH_OPEN, disc(radius))


# ---- outlines
def outlines(mask: Mask) -> tuple[Outline, ...]:
    """Return the outer contours of a mask's pieces."""
    return cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]


def plausible_outlines(mask: Mask) -> list[Outline]:
    """Return the contours with a product's size and place: near the middle, off the border."""
    found = []
    for outline in outlines(mask):
        area = cv2.contourArea(outline) / mask.size
        offset, distance = placement(outline, mask)
        central = offset < 0.3 and distance >= 0.01 * mask.shape[1]
        if central and 0.02 < area < 0.7:
            found.append(outline)
    return found


def placement(outline: Outline, mask: Mask) -> tuple[float, int]:
    """Return how far an outline's box is from the middle, in longer sides, and from the border."""
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(outline)
    right = width - x - w
    below = height - y - h
    offset = np.hypot(x - right, y - below) / 2
    return float(offset) / max(height, width), min(x, y, right, below)


def fill(outline: Outline, like: np.ndarray) -> Mask:
    """Return the mask inside an outline, in a photo like (H, W)."""
    mask = np.zeros(like.shape, np.uint8)
    return cv2.drawContours(mask, [outline], -1, 1, cv2.FILLED)


def solidity(outline: Outline) -> float:
    """Return the area over that of the convex hull: 1 for a box, less for what has bays."""
    hull = cv2.convexHull(outline)
    return cv2.contourArea(outline) / max(cv2.contourArea(hull), 1.0)


def likeness(outline: Outline, edges: Edges) -> float:
    """Return how much an outline looks like that of one product: 0 or more."""
    unit = max(edges.shape) / SIDE
    mask = fill(outline, edges)
    capped = np.minimum(edges, MAX_EDGE)
    # a product is solid, and holds most of the photo's edges
    held = cv2.mean(capped, mask)[0] * mask.sum()
    share = held / max(capped.sum(), 1e-6)
    score = solidity(outline) ** 3 * share ** 0.5
    # its outline lies on an edge even where that is weakest
    nearby = cv2.dilate(edges, SQUARE)
    columns, rows = outline[:, 0].T
    weakest = np.quantile(nearby[rows, columns], 0.1)
    score = score * weakest / (3 + weakest)
    # a ring round it has no more edges than the photo's border, else a cap is missing
    ring = cv2.dilate(mask, SQUARE, iterations=round(18 * unit))
    ring -= cv2.dilate(mask, SQUARE, iterations=round(4 * unit))
    rim = round(0.054 * min(edges.shape))
    inner = capped[rim:-rim, rim:-rim]
    at_rim = (capped.sum() - inner.sum()) / (capped.size - inner.size)
    score /= 0.6 + max(0.0, cv2.mean(capped, ring)[0] - at_rim)
    # it is near the middle
    offset, _ = placement(outline, mask)
    return float(score * (1 - offset) ** 2)


# ---- initial masks
def initial_masks(photo: Photo, edges: Edges) -> list[Mask]:
    """Return the masks from which GrabCut may start, the one most like a product first."""
    enclosed = []
    for threshold in THRESHOLDS:
        enclosed += plausible_outlines(enclosed_regions(edges, threshold))
    coloured = colour_outlines(photo)
    scores = [-likeness(outline, edges) for outline in enclosed + coloured]
    masks = [fill(outline, edges) for outline in enclosed + coloured]
    for i in range(len(enclosed)):
        masks[i] = cv2.erode(masks[i], disc(1))  # edges enclose half an edge too much
    return [masks[i] for i in np.argsort(scores, kind="stable")]


def colour_outlines(photo: Photo) -> list[Outline]:
    """Return the outline of what GrabCut finds by colour in a small photo, if plausible."""
    small = fit(photo, 80)
    height, width = small.shape[:2]
    lab = to_lab(cv2.GaussianBlur(small, (3, 3), 0))
    # the four main colours of the border
    rim = max(2, round(0.04 * min(height, width)))
    sides = (lab[:rim], lab[-rim:], lab[:, :rim], lab[:, -rim:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    cv2.setRNGSeed(0)  # k-means starts its clusters at random
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 8, 0)
    _, _, centres = cv2.kmeans(border, 4, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    # the distance to the nearest of them, in halves, split by Otsu's threshold
    distances = np.linalg.norm(lab[:, :, None] - centres, axis=-1)  # (H, W, 4)
    halves = 2 * distances.min(axis=-1)
    grey = np.clip(halves, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    far = halves > threshold
    # the border is background; what has other colours, and is central, may be product
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[2:-2, 2:-2] = cv2.GC_PR_BGD
    y = max(2, round(0.05 * height))
    x = max(2, round(0.05 * width))
    central = np.s_[y:-y, x:-x]
    labels[central][far[central]] = cv2.GC_PR_FGD
    mask, _ = largest_piece(run_grabcut(small, labels, iterations=2))
    # back to the photo's size
    large = cv2.resize(mask.astype(np.float32), photo.shape[1::-1])
    return plausible_outlines((large > 0.5).astype(np.uint8))[:1]


# ---- GrabCut
def grabcut(photo: Photo, initial: Mask) -> Mask:
    """Return the mask of one iteration of GrabCut (Rother et al. 2004) from an initial mask."""
    unit = max(photo.shape[:2]) / SIDE
    # crop to where the mask may change, so that the background's colours are those nearby
    margin = round(12 * unit)
    x, y, w, h = cv2.boundingRect(initial)
    top = max(0, y - margin)
    left = max(0, x - margin)
    near = np.s_[top:y + h + margin, left:x + w + margin]
    mask = np.zeros_like(initial)
    mask[near] = run_grabcut(photo[near], grabcut_labels(initial[near], unit))
    return mask


def grabcut_labels(initial: Mask, unit: float) -> np.ndarray:
    """Return GrabCut's labels (H, W) uint8: probable in a band along the border, else certain."""
    inside = cv2.erode(initial, disc(round(8 * unit)))
    near = cv2.dilate(initial, disc(round(6 * unit)))
    labels = np.where(initial, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels[inside > 0] = cv2.GC_FGD
    labels[near == 0] = cv2.GC_BGD
    return labels.astype(np.uint8)


def run_grabcut(photo: Photo, labels: np.ndarray, iterations: int = 1) -> Mask:
    """Run OpenCV's GrabCut from its four labels (H, W) uint8 and tidy the mask."""
    cv2.setRNGSeed(0)  # its colour clusters start at random
    models = np.zeros((2, 1, 65))  # of the background and of the product
    bgr = np.ascontiguousarray(photo[..., ::-1])
    try:
        cv2.grabCut(bgr, labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # product or background has no pixel, or all have one colour
        return np.zeros_like(labels)
    return tidy(labels & 1)  # the odd labels are those of the product


def tidy(mask: Mask) -> Mask:
    """Remove specks (pieces under a tenth of the largest) and fill holes."""
    pieces = outlines(cv2.morphologyEx(mask, cv2.MORPH_OPEN, SQUARE))
    min_area = 0.1 * max(map(cv2.contourArea, pieces), default=0)
    large = [piece for piece in pieces if cv2.contourArea(piece) >= min_area]
    return cv2.drawContours(np.zeros_like(mask), large, -1, 1, cv2.FILLED)


def largest_piece(mask: Mask) -> tuple[Mask, float]:
    """Return the largest connected component and its share of the mask's area: 0 if empty."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask, 0.0
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = (components == 1 + areas.argmax()).astype(np.uint8)
    return largest, areas.max() / mask.sum()


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over union of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


# ---- a mask and whether to trust it
@dataclass(frozen=True)
class Cut:
    """What was found in a photo: both masks are empty where nothing stands out."""

    mask: Mask
    initial_mask: Mask
    likeness: float = 0.0
    agreement: float = 0.0  # share of the initial masks with an IoU above 0.8 with the mask
    elsewhere: float = 0.0  # area of the largest one beside the mask, over the mask's


def cut_out(photo: Photo) -> Cut:
    """Find the product of a photo."""
    height, width = photo.shape[:2]
    empty = np.zeros((height, width), np.uint8)
    if min(height, width) < MIN_SIDE:
        return Cut(empty, empty)
    # GrabCut from the best initial mask, inside the frame if there is one
    frame = frame_width(photo)
    inner = photo[frame:height - frame, frame:width - frame]
    edges = sharp_edges(inner)
    initial = initial_masks(inner, edges)
    if not initial:
        return Cut(empty, empty)
    mask = grabcut(inner, initial[0])
    piece, _ = largest_piece(mask)
    found = plausible_outlines(piece)
    clarity = likeness(found[0], edges) if found else 0.0
    # do the other initial masks say the same, or something else?
    agreeing = 0
    elsewhere = 0
    for other in initial:
        agreeing += iou(other[::3, ::3], piece[::3, ::3]) > 0.8
        area = other.sum()
        if (other & piece).sum() < 0.1 * area:
            elsewhere = max(elsewhere, area)
    agreement = agreeing / len(initial)
    elsewhere /= max(piece.sum(), 1)
    return Cut(np.pad(mask, frame), np.pad(initial[0], frame), clarity, agreement, elsewhere)


def rejection_reasons(cut: Cut, single: bool) -> list[str]:
    """Return why the largest piece of a mask is not one whole product; empty where it is.

    Of a photo known to show a single product, a clearly largest piece is taken, beside props and
    stickers; of any other only one compact piece with no other initial mask beside it.
    """
    piece, share = largest_piece(cut.mask)
    if not share:
        return ["empty"]
    outline = outlines(piece)[0]
    _, distance = placement(outline, piece)
    reasons = []
    if share < (0.65 if single else 0.9) or (cut.elsewhere > 0.2 and not single):
        reasons.append("several pieces")
    if not 0.02 < piece.mean() < 0.7:
        reasons.append("too small or too large")
    if distance < 2:
        reasons.append("touches the edge")
    if solidity(outline) < (0.85 if single else 0.9):
        reasons.append("not compact")
    if cut.likeness < 0.2:
        reasons.append("unclear outline")
    if cut.agreement < 0.2:
        reasons.append("initial masks disagree")
    return reasons


def extract_foreground(path: Path, single: bool, size: int) -> np.ndarray | list[str]:
    """Return a photo's product, padded to (size, size, 4) uint8 RGBA, or the rejection reasons.

    The photo, known to be `single` or not, is cut at twice the size: a product fills about half
    of it. A larger one is shrunk.
    """
    photo = fit(load_photo(path), 2 * size)
    cut = cut_out(photo)
    reasons = rejection_reasons(cut, single)
    if reasons:
        return reasons
    # crop to the product, with its mask as the fourth channel
    mask, _ = largest_piece(cut.mask)
    x, y, w, h = cv2.boundingRect(mask)
    rgba = np.dstack([photo, 255 * mask])
    cropped = rgba[y:y + h, x:x + w]
    if max(w, h) > size:
        cropped = fit(cropped, size)
    below, right = size - np.array(cropped.shape[:2])
    return np.pad(cropped, ((0, below), (0, right), (0, 0)))
