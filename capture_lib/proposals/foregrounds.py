"""Cut products out of photos by GrabCut, without a label, and reject masks that look wrong."""
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from capture_lib.catalog.photos import fit, load_photo

Photo = np.ndarray  # (H, W, 3) uint8 RGB
Mask = np.ndarray  # (H, W) uint8 in {0, 1}
Edges = np.ndarray  # (H, W) float32, Lab units a pixel
Outline = np.ndarray  # (n, 1, 2) int32 x, y
SIDE = 224  # longer side to which distances in pixels belong
SQUARE = np.ones((3, 3), np.uint8)


def disc(radius: int) -> np.ndarray:
    """Return a round kernel (2·radius + 1, 2·radius + 1) uint8 for erosion and dilation."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def frame_width(photo: Photo) -> int:
    """Return the width in pixels of a frame or a line along the border: 0 without one."""
    lab = np.float32(cv2.cvtColor(photo, cv2.COLOR_RGB2LAB))  # (H, W, 3) in 0..255
    depth = round(0.08 * min(photo.shape[:2]))
    steps = []  # at each distance, along most of a side
    for turn in range(4):
        strip = np.rot90(lab, turn)[:depth + 1, depth:-depth]  # no corners
        change = np.linalg.norm(np.diff(strip, axis=0), axis=-1)
        steps.append(np.median(change, axis=1))
    found = np.flatnonzero(np.min(steps, axis=0) > 6)
    return int(max(found, default=-2)) + 2


def sharp_edges(photo: Photo) -> Edges:
    """Return how steeply colour changes, less what a soft shadow or a fold explains."""
    unit = max(photo.shape[:2]) / SIDE
    lab = np.float32(cv2.cvtColor(photo, cv2.COLOR_RGB2LAB))  # (H, W, 3) in 0..255
    half = cv2.resize(lab, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    soft = gradient_norm(half, 1.5 * unit)  # of soft edges
    soft = cv2.resize(soft, lab.shape[1::-1]) / 2
    sharp = gradient_norm(lab, unit) - 0.7 * soft
    return np.maximum(sharp, 0) * unit


def gradient_norm(lab: np.ndarray, sigma: float) -> Edges:
    """Return the length of a blurred picture's gradient over all channels."""
    blurred = cv2.GaussianBlur(lab, (0, 0), sigma)
    across = cv2.Scharr(blurred, -1, 1, 0)
    down = cv2.Scharr(blurred, -1, 0, 1)
    squares = across * across + down * down
    total = cv2.transform(squares, np.ones((1, 3), np.float32))
    return cv2.sqrt(total) / 32


def enclosed_regions(edges: Edges, threshold: float) -> Mask:
    """Return what a flood fill from the border misses: edges above a threshold stop it."""
    walls = cv2.morphologyEx(np.uint8(edges > threshold), cv2.MORPH_CLOSE, SQUARE)
    filled = np.pad(walls, 1)  # a margin to flow round
    cv2.floodFill(filled, None, (0, 0), 2)
    enclosed = np.uint8(filled[1:-1, 1:-1] < 2)
    radius = max(1, round(3 * max(edges.shape) / SIDE))  # drop what is thinner
    return cv2.morphologyEx(enclosed, cv2.MORPH_OPEN, disc(radius))


def outlines(mask: Mask) -> tuple:
    """Return the outer contours of a mask's pieces."""
    return cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]


def plausible_outlines(mask: Mask) -> list:
    """Return the contours with a product's size and place: near the middle, off the border."""
    found = []
    for outline in outlines(mask):
        area = cv2.contourArea(outline) / mask.size
        offset, distance, _ = measure(outline, mask)
        if offset < 0.3 and distance >= 0.01 * mask.shape[1] and 0.02 < area < 0.7:
            found.append(outline)
    return found


def measure(outline: Outline, mask: Mask) -> tuple:
    """Return an outline's offset from the middle, as a share, its pixels to the border, solidity."""
    x, y, w, h = cv2.boundingRect(outline)
    right = mask.shape[1] - x - w
    below = mask.shape[0] - y - h
    offset = float(np.hypot(x - right, y - below)) / 2
    hull = cv2.contourArea(cv2.convexHull(outline))
    solidity = cv2.contourArea(outline) / max(hull, 1.0)  # 1 for a box
    return offset / max(mask.shape), min(x, y, right, below), solidity


def fill(pieces: list, like: np.ndarray) -> Mask:
    """Return the mask inside outlines, in a photo like (H, W)."""
    return cv2.drawContours(np.zeros(like.shape, np.uint8), pieces, -1, 1, cv2.FILLED)


def likeness(outline: Outline, edges: Edges) -> float:
    """Return how much an outline looks like that of one product: 0 or more."""
    unit = max(edges.shape) / SIDE
    mask = fill([outline], edges)
    capped = np.minimum(edges, 10)
    # a product is near the middle, solid, and holds most of the photo's edges
    offset, _, solidity = measure(outline, mask)
    share = cv2.mean(capped, mask)[0] * mask.sum() / max(capped.sum(), 1e-6)
    score = solidity ** 3 * share ** 0.5
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
    return float(score * (1 - offset) ** 2)


def initial_masks(photo: Photo, edges: Edges) -> list:
    """Return the masks from which GrabCut may start, the one most like a product first."""
    scored = []
    for threshold in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0):
        for outline in plausible_outlines(enclosed_regions(edges, threshold)):
            mask = cv2.erode(fill([outline], edges), disc(1))  # too much by half an edge
            scored.append((likeness(outline, edges), mask))
    # and one by colour, which GrabCut finds in a small photo
    small = fit(photo, 80)
    blurred = cv2.GaussianBlur(small, (3, 3), 0)
    lab = np.float32(cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB))
    rim = max(2, round(0.04 * min(small.shape[:2])))  # of the border
    sides = (lab[:rim], lab[-rim:], lab[:, :rim], lab[:, -rim:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    cv2.setRNGSeed(0)  # k-means starts at random
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 8, 0)
    _, _, centres = cv2.kmeans(border, 4, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    distances = np.linalg.norm(lab[:, :, None] - centres, axis=-1)  # (H, W, 4)
    halves = 2 * distances.min(axis=-1)
    threshold, _ = cv2.threshold(np.uint8(halves.clip(0, 255)), 0, 255, cv2.THRESH_OTSU)
    # the border is background; what has other colours, and is central, may be product
    labels = np.full(halves.shape, cv2.GC_BGD, np.uint8)
    labels[2:-2, 2:-2] = cv2.GC_PR_BGD
    y, x = np.multiply(0.05, halves.shape).round().clip(2).astype(int)
    central = np.s_[y:-y, x:-x]
    labels[central][halves[central] > threshold] = cv2.GC_PR_FGD
    mask, _ = largest_piece(run_grabcut(small, labels, iterations=2))
    large = cv2.resize(np.float32(mask), photo.shape[1::-1])
    for outline in plausible_outlines(np.uint8(large > 0.5))[:1]:
        scored.append((likeness(outline, edges), fill([outline], edges)))
    return [mask for _, mask in sorted(scored, key=lambda pair: -pair[0])]


def grabcut(photo: Photo, initial: Mask) -> Mask:
    """Return the mask of one iteration of GrabCut (Rother et al. 2004) from an initial mask."""
    unit = max(photo.shape[:2]) / SIDE
    # what is near the border may be product or not, all else is certain
    labels = np.where(initial, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels[cv2.erode(initial, disc(round(8 * unit))) > 0] = cv2.GC_FGD
    labels[cv2.dilate(initial, disc(round(6 * unit))) == 0] = cv2.GC_BGD
    # crop to where the mask may change, so that the background's colours are those nearby
    around = cv2.dilate(initial, SQUARE, iterations=round(12 * unit))
    x, y, w, h = cv2.boundingRect(around)
    part = np.s_[y:y + h, x:x + w]
    mask = np.zeros_like(initial)
    mask[part] = run_grabcut(photo[part], np.uint8(labels[part]))
    return mask


def run_grabcut(photo: Photo, labels: np.ndarray, iterations: int = 1) -> Mask:
    """Run OpenCV's GrabCut from its four labels (H, W) uint8; remove specks and fill holes."""
    cv2.setRNGSeed(0)  # it starts at random
    bgr = np.ascontiguousarray(photo[..., ::-1])
    try:
        cv2.grabCut(bgr, labels, None, None, None, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # no pixel of either, or one colour
        return np.zeros_like(labels)
    mask = cv2.morphologyEx(labels & 1, cv2.MORPH_OPEN, SQUARE)  # odd labels: product
    pieces = outlines(mask)
    min_area = 0.1 * max(map(cv2.contourArea, pieces), default=0)
    large = [piece for piece in pieces if cv2.contourArea(piece) >= min_area]
    return fill(large, mask)


def largest_piece(mask: Mask) -> tuple:
    """Return the largest connected component and its share of the mask's area: 0 if empty."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask, 0.0
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = components == 1 + areas.argmax()
    return np.uint8(largest), areas.max() / mask.sum()


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over union of two masks."""
    return (a & b).sum() / max((a | b).sum(), 1)


def off_white(photo: Photo) -> Mask | None:
    """Return the product on white, what a flood fill of white from the border leaves; None where it isn't on white."""
    border = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]]).min(axis=1)
    bright = border[border > 234]  # what is darker may be a product
    if len(bright) < 0.5 * len(border) or np.mean(bright > 251) < 0.6:  # the second: a gradient, a podium
        return None
    tinted = np.uint8(cv2.blur(photo, (3, 3)).min(axis=2) < 247)
    radius = max(1, round(3 * max(tinted.shape) / SIDE))  # drop what is thinner
    margin = 2 * radius
    filled = np.pad(tinted, margin)
    cv2.floodFill(filled, None, (0, 0), 2)
    enclosed = cv2.morphologyEx(np.uint8(filled < 2), cv2.MORPH_OPEN, disc(radius))
    enclosed = np.ascontiguousarray(enclosed[margin:-margin, margin:-margin])
    # a shadow or a gradient ends softly, a product sharply
    piece, share = largest_piece(enclosed)
    if not share:
        return enclosed
    nearby = cv2.dilate(sharp_edges(photo), SQUARE)
    inside = np.pad(nearby[2:-2, 2:-2], 2, constant_values=np.nan)  # where the photo ends, nothing is known
    columns, rows = outlines(piece)[0][:, 0].T
    along = inside[rows, columns]
    return None if np.isnan(along).all() or np.nanquantile(along, 0.25) < 2.5 else enclosed


@dataclass(frozen=True)
class Cut:
    """What was found in a photo: both masks are empty where nothing stands out."""
    mask: Mask
    initial_mask: Mask
    likeness: float = 0.0
    agreement: float = 0.0  # share of initial masks like the mask
    elsewhere: float = 0.0  # largest one beside it, over its area
    on_white: bool = False  # where nothing else can be the product


def cut_out(photo: Photo) -> Cut:
    """Find the product of a photo."""
    empty = np.zeros(photo.shape[:2], np.uint8)
    if min(empty.shape) < 16:  # pixels
        return Cut(empty, empty)
    mask = off_white(photo)
    if mask is not None:  # GrabCut would take white caps and mugs for background
        piece, _ = largest_piece(mask)
        beside, _ = largest_piece(mask - piece)
        return Cut(piece, piece, 1.0, 1.0, beside.sum() / max(piece.sum(), 1), on_white=True)
    frame = frame_width(photo)  # the product lies inside
    inner = photo[frame:len(photo) - frame, frame:photo.shape[1] - frame]
    edges = sharp_edges(inner)
    initial = initial_masks(inner, edges)
    if not initial:
        return Cut(empty, empty)
    mask = grabcut(inner, initial[0])
    piece, _ = largest_piece(mask)
    found = plausible_outlines(piece)
    clarity = likeness(found[0], edges) if found else 0.0
    # how many initial masks say the same; how large the largest is that says something else
    agreement = np.mean([iou(other[::3, ::3], piece[::3, ::3]) > 0.8 for other in initial])
    beside = [other.sum() for other in initial if (other & piece).sum() < 0.1 * other.sum()]
    elsewhere = max(beside, default=0) / max(piece.sum(), 1)
    return Cut(np.pad(mask, frame), np.pad(initial[0], frame), clarity, agreement, elsewhere)


def rejection_reasons(cut: Cut, single: bool) -> list:
    """Return why a mask's largest piece is not one whole product; less strict in a `single` photo."""
    piece, share = largest_piece(cut.mask)
    if not share:
        return ["empty"]
    _, distance, solidity = measure(outlines(piece)[0], piece)
    reasons = []
    if share < (0.65 if single else 0.9) or (cut.elsewhere > 0.2 and not single):
        reasons.append("several pieces")
    if not 0.02 < piece.mean() < (0.95 if cut.on_white else 0.7):
        reasons.append("too small or too large")
    if distance < 2 and not cut.on_white:  # shops crop what stands on white
        reasons.append("touches the edge")
    if solidity < (0.85 if single else 0.9):
        reasons.append("not compact")
    if cut.likeness < 0.2:
        reasons.append("unclear outline")
    if cut.agreement < 0.2:
        reasons.append("initial masks disagree")
    return reasons


def extract_foreground(path: Path, single: bool, size: int) -> np.ndarray | list:
    """Return a photo's product, padded to (size, size, 4) uint8 RGBA, or the rejection reasons."""
    photo = fit(load_photo(path), 2 * size)
    cut = cut_out(photo)
    reasons = rejection_reasons(cut, single)
    if reasons:
        return reasons
    mask, _ = largest_piece(cut.mask)
    x, y, w, h = cv2.boundingRect(mask)
    cropped = np.dstack([photo, 255 * mask])[y:y + h, x:x + w]
    if max(w, h) > size:
        cropped = fit(cropped, size)
    square = np.zeros((size, size, 4), np.uint8)
    square[:len(cropped), :cropped.shape[1]] = cropped
    return square
