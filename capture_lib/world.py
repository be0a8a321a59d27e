"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn: products of
invented brands (`wording`), their pictures (`drawing`), photos of one or several of them (`staging`) and
Chinese shop titles. Everything follows from `WorldSettings.seed`, whatever the number of workers.
"""
from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from capture_lib import staging, wording
from capture_lib.catalog import InputError, write_catalog
from capture_lib.paths import remove, write_atomically
from capture_lib.progress import progress

VERSION = 1             # of the drawing and the wording: folders of another version are not resumed
SPLITS = ("train", "val", "test", "gallery")
FOLDER_SIZE = 250       # photos a folder; also the unit of work and of resuming
# products visible in a query: queries of the published dev and test lists with that many labels (one-label
# queries, 2%, and queries with more than 7, 0.1%, left out)
PIECES = {2: 3956, 3: 3193, 4: 1138, 5: 542, 6: 35, 7: 120}
REPEATED = 0.158        # share of queries that show a product twice (published lists)
KITS_PER_PRODUCT = 1.5  # different product sets a product (published lists: 589 sets of 392 products)


@dataclass(frozen=True)
class WorldSettings:
    """Size of a world: numbers of products, of gallery-only products (distractors) and of photos a split."""

    name: str
    products: int
    distractors: int
    train: int
    gallery: int
    val: int
    test: int
    size: int = 224     # photo side in pixels
    seed: int = 0

    @property
    def brands(self) -> int:
        """40 brands in the full world (Product1M has 40), 10 in the small one, 5 in the mini one."""
        return int(np.clip((self.products + self.distractors) // 8, 5, 40))


SIZES = {
    "mini": WorldSettings("mini", 20, 4, 400, 200, 40, 40),
    "small": WorldSettings("small", 70, 10, 5000, 1600, 250, 500),
    "full": WorldSettings("full", 392, 66, 100_000, 40_033, 2_673, 6_547),
}


@dataclass(frozen=True)
class Sample:
    """One photo before it is drawn. `products` are indices into `products_of(settings)`, repeats repeated."""

    sample_id: str
    split: str
    index: int
    products: tuple[int, ...]
    caption: str
    combination: str | None


@dataclass(frozen=True)
class Kits:
    """Which products are sold together: sets by their number of different products, and how often each occurs."""

    seen: dict[int, list[tuple[int, ...]]]     # train shows every one of these
    unseen: dict[int, list[tuple[int, ...]]]   # no train photo holds all products of one of these
    popularity: np.ndarray                     # (products,), sums to 1


# ---- planning: products, sets, samples ----
@lru_cache(maxsize=4)
def products_of(settings: WorldSettings) -> tuple[wording.Product, ...]:
    """The world's products; the last `settings.distractors` of them stand in the gallery only."""
    total = settings.products + settings.distractors
    return tuple(wording.make_products(total, settings.brands, settings.seed))


def _draw_kit(size: int, products: tuple, popularity: np.ndarray, rng: np.random.Generator) -> tuple[int, ...] | None:
    """A set of `size` products of one brand, mostly of one line; None where the brand is too small."""
    first = int(rng.choice(len(popularity), p=popularity))
    mates = [i for i in range(len(popularity)) if i != first and products[i].brand == products[first].brand]
    if len(mates) < size - 1:
        return None
    weights = np.array([popularity[i] * (6.0 if products[i].line == products[first].line else 1.0) for i in mates])
    chosen = rng.choice(mates, size - 1, replace=False, p=weights / weights.sum())
    return tuple(sorted([first, *map(int, chosen)]))


@lru_cache(maxsize=4)
def kits_of(settings: WorldSettings) -> Kits:
    """Draws sets by turns for train and against it: no seen set contains an unseen one."""
    rng, products = np.random.default_rng([settings.seed, 102]), products_of(settings)
    # products come in random order, so this ties popularity to no brand
    popularity = np.arange(1, settings.products + 1) ** -0.6
    popularity /= popularity.sum()
    wanted = {d: max(1, round(KITS_PER_PRODUCT * settings.products * n / sum(PIECES.values())))
              for d, n in PIECES.items()}
    seen, unseen = {d: [] for d in wanted}, {d: [] for d in wanted}
    for size in _sizes(wanted):
        kit = _draw_kit(size, products, popularity, rng)
        if kit is None or kit in seen[size] or kit in unseen[size] or len(unseen[size]) == wanted[size]:
            continue
        if len(seen[size]) <= len(unseen[size]):
            if not any(set(kit) >= set(other) for kits in unseen.values() for other in kits):
                seen[size].append(kit)
        elif not any(set(kit) <= set(other) for kits in seen.values() for other in kits):
            unseen[size].append(kit)
    return Kits(seen, unseen, popularity)


def _sizes(wanted: dict[int, int]) -> list[int]:
    """Set sizes to try: large sets first, which are the hardest to place, each size eight times as often as wanted."""
    return [d for d in sorted(wanted, reverse=True) for _ in range(8 * wanted[d])]


def _choose(kits: list[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, ...]:
    """One of the sets, the first ones far more often (long tail)."""
    weights = np.arange(1, len(kits) + 1) ** -0.7
    return kits[int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random()))]


def _several(kits: Kits, unseen: bool, rng: np.random.Generator) -> tuple[tuple[int, ...], str]:
    """Products of a multi-product photo, with repeats, and whether train shows them together."""
    pieces = int(rng.choice(list(PIECES), p=np.array(list(PIECES.values())) / sum(PIECES.values())))
    repeated = int(rng.random() < REPEATED)
    pool = kits.unseen if unseen and pieces - repeated > 1 else kits.seen
    if pieces - repeated == 1:
        kit = (int(rng.choice(len(kits.popularity), p=kits.popularity)),)
    else:  # a small world has no large sets: then the largest there is
        kit = _choose(pool[max(d for d, found in pool.items() if found and d <= pieces - repeated)], rng)
    pieces = len(kit) + repeated
    repeats = [int(rng.choice(kit)) for _ in range(pieces - len(kit))]
    return (*kit, *repeats), "unseen" if pool is kits.unseen else "seen"


def _sample_products(settings: WorldSettings, split: str, index: int) -> tuple[tuple[int, ...], str | None]:
    """What a photo shows. Train: single and multi by turns, every seen set at least once."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    kits = kits_of(settings)
    if split in ("val", "test"):
        return _several(kits, bool(index % 2), rng)
    if split == "train" and index % 2:
        all_seen = [kit for by_size in kits.seen.values() for kit in by_size]
        return (all_seen[index // 2] if index // 2 < len(all_seen) else _several(kits, False, rng)[0]), None
    total = settings.products + (settings.distractors if split == "gallery" else 0)
    if index % 4 < 2:  # half of the single-product photos by turns, so that no product is missing
        return (((index // 4) * 2 + index % 4) % total if split == "gallery" else index // 4 % total,), None
    if split == "gallery" and rng.random() < settings.distractors / total:
        return (int(rng.integers(settings.products, total)),), None
    return (int(rng.choice(settings.products, p=kits.popularity)),), None


def _sample_caption(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...], used: set[str]) -> str:
    """A caption that no earlier sample has."""
    products = products_of(settings)
    distinct = [products[i] for i in dict.fromkeys(shown)]
    decoys = _brand_mates(settings, distinct[0].brand)
    for attempt in range(1000):
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, attempt, 1])
        text = wording.caption(distinct, len(shown), decoys, rng)
        if text not in used:
            used.add(text)
            return text
    raise AssertionError("no new caption in 1000 attempts")


@lru_cache(maxsize=256)
def _brand_mates(settings: WorldSettings, brand: int) -> list[wording.Product]:
    return [p for p in products_of(settings) if p.brand == brand]


def plan(settings: WorldSettings) -> list[Sample]:
    """Every sample of the world, in the order of the catalog, without drawing anything."""
    samples, used = [], set()
    for split in SPLITS:
        for index in range(getattr(settings, split)):
            shown, combination = _sample_products(settings, split, index)
            text = _sample_caption(settings, split, index, shown, used)
            samples.append(Sample(f"{split}-{index:06d}", split, index, shown, text, combination))
    return samples


# ---- drawing ----
def _draw(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Photo (H, W, 3) uint8 RGB and piece map (H, W) uint8: 0 for none, n for the n-th product of `shown`."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, 2])
    products = [products_of(settings)[i] for i in shown]
    return staging.photo(products, settings.size, settings.seed, rng)


def true_mask(settings: WorldSettings, sample_id: str) -> np.ndarray:
    """Redraws the photo of a single-product sample: uint8 (H, W) in {0, 1}, 1 where product pixels are visible.

    Raises:
        InputError: no such sample in this world.
    """
    split, _, number = sample_id.partition("-")
    if split not in SPLITS or not number.isdigit() or int(number) >= getattr(settings, split):
        raise InputError(f"sample_id {sample_id!r}: not in world {settings.name!r}; ids look like 'gallery-000012'")
    shown, _ = _sample_products(settings, split, int(number))
    return (_draw(settings, split, int(number), shown)[1] > 0).astype(np.uint8)


def boxes_of(pieces: np.ndarray, count: int) -> list[list[float]]:
    """Boxes around the visible pixels of the pieces 1..count of a (H, W) piece map: xyxy in pixels, exclusive end."""
    boxes = []
    for n in range(1, count + 1):
        rows, columns = np.nonzero((pieces == n).any(1))[0], np.nonzero((pieces == n).any(0))[0]
        boxes.append([float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)])
    return boxes


def _image_path(position: int, sample_id: str) -> str:
    return f"images/{position // FOLDER_SIZE:03d}/{sample_id}.jpg"


def _draw_folder(settings: WorldSettings, folder: Path, number: int, samples: list[Sample]) -> int:
    """Draws one folder of photos and writes their boxes last; returns the folder's number."""
    cv2.setNumThreads(1)
    boxes = []
    (folder / f"images/{number:03d}").mkdir(parents=True, exist_ok=True)
    for sample in samples:
        photo, pieces = _draw(settings, sample.split, sample.index, sample.products)
        file = folder / _image_path(number * FOLDER_SIZE, sample.sample_id)
        cv2.imwrite(str(file), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
        boxes.append(boxes_of(pieces, len(sample.products)))
    with write_atomically(_boxes_file(folder, number)) as part:
        part.write_text(json.dumps(boxes))
    return number


def _boxes_file(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:03d}.json"


def _begin(settings: WorldSettings, folder: Path) -> None:
    """Notes which world the folder holds; refuses a folder that holds another one."""
    note, file = {"version": VERSION, **asdict(settings)}, folder / "world.json"
    if not file.exists():
        with write_atomically(file) as part:
            part.write_text(json.dumps(note, indent=1))
    elif json.loads(file.read_text()) != note:
        raise InputError(f"{file}: the folder holds another world ({note['name']!r} wanted); choose an empty folder")


def _rows(settings: WorldSettings, samples: list[Sample], boxes: list[list[list[float]]]) -> pd.DataFrame:
    """The catalog table; train rows carry neither labels nor boxes nor the number of products."""
    products, rows = products_of(settings), []
    for position, (s, found) in enumerate(zip(samples, boxes, strict=True)):
        known = s.split != "train"
        labels = [products[i].label for i in s.products] if known else []
        count = {"train": None, "gallery": "single"}.get(s.split, "multi")
        rows.append((s.sample_id, s.split, s.caption, _image_path(position, s.sample_id), None, labels, count,
                     found if known else [], list(labels), s.combination))
    return pd.DataFrame(rows, columns=["sample_id", "split", "caption", "image", "mirror", "labels", "products",
                                       "boxes", "box_labels", "combination"], dtype=object)


def build(settings: WorldSettings, folder: Path, workers: int | None = None) -> None:
    """Draws the world's photos into `folder/images/` and writes `folder/catalog.parquet` when all are there.

    Takes up an interrupted build of the same settings; a complete one is left as it is.

    Raises:
        InputError: the folder holds another world.
    """
    folder = Path(folder)
    _begin(settings, folder)
    if (folder / "catalog.parquet").exists():
        return
    samples = plan(settings)
    folders = [samples[i:i + FOLDER_SIZE] for i in range(0, len(samples), FOLDER_SIZE)]
    missing = [n for n in range(len(folders)) if not _boxes_file(folder, n).exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = pool.map(_draw_folder, *zip(*((settings, folder, n, folders[n]) for n in missing), strict=True))
        for _ in progress(jobs, f"drawing world {settings.name}", len(missing)):
            pass
    boxes = [b for n in range(len(folders)) for b in json.loads(_boxes_file(folder, n).read_text())]
    write_catalog(_rows(settings, samples, boxes), folder)
    remove(folder / "parts")
