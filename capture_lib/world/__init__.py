"""The rendered stand-in for Product1M: a shop world drawn on the spot, with known truth.

Product1M's photos come from shop servers and many are gone, so the default catalog is drawn: products of
invented brands and their captions (`wording`), their packaging (`packaging`) and pictures (`drawing`), and
photos of one or several of them (`staging`, `backdrops`). Everything follows from the settings' seed, whatever
the number of workers.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from capture_lib.catalog import write_catalog
from capture_lib.faults import InputError
from capture_lib.paths import remove, write_atomically
from capture_lib.progress import progress
from capture_lib.world import staging, wording

VERSION = 1  # of names, captions and drawing; a build is never taken up by another version
SPLITS = ("train", "val", "test", "gallery")
FOLDER_SIZE = 250  # photos a folder: the unit of work, and of taking up an interrupted build
# Pieces in a multi-product photo: published dev and test queries with that many labels. Queries with one label
# (2%) and with more than seven (0.1%) are left out.
PIECES = {2: 3956, 3: 3193, 4: 1138, 5: 542, 6: 35, 7: 120}
REPEATED = 0.158  # share of multi-product photos with two pieces of one product (published dev and test lists)
SETS_PER_PRODUCT = 0.75  # product sets a product, of train's and of the unseen ones (published: 1.5 in all)


@dataclass(frozen=True)
class WorldSettings:
    """Size of a world: products, products of the gallery alone (distractors), and photos a split."""

    name: str
    products: int
    distractors: int
    train: int
    gallery: int
    val: int
    test: int
    size: int = 224  # photo side in pixels
    seed: int = 0

    def __post_init__(self) -> None:
        if self.products < 20 or self.size < 64:
            raise InputError(f"world {self.name!r}: needs 20 products and photos of 64 pixels at least")

    @property
    def brands(self) -> int:
        """40 brands in the full world (Product1M: 40), 10 in the small one, 5 in the mini one."""
        return int(np.clip((self.products + self.distractors) // 8, 5, 40))


SIZES = {
    "mini": WorldSettings("mini", 20, 4, 400, 200, 40, 40),
    "small": WorldSettings("small", 70, 10, 5000, 1600, 250, 500),
    "full": WorldSettings("full", 392, 66, 100_000, 40_033, 2_673, 6_547),  # Product1M's, but for the train split
}


@dataclass(frozen=True)
class Sample:
    """One photo before it is drawn: `products` are indices into `products_of`, one for each piece."""

    sample_id: str
    split: str
    index: int
    products: tuple[int, ...]
    caption: str
    combination: str | None  # of queries: "seen" or "unseen" in a train photo


@dataclass(frozen=True)
class ProductSets:
    """Which products are sold together, by the number of different products in a set."""

    seen: dict[int, list[tuple[int, ...]]]  # train shows every one of these, and no others
    unseen: dict[int, list[tuple[int, ...]]]  # no set of `seen` contains one of these
    popularity: np.ndarray  # (products,) float64, sums to 1


def build(settings: WorldSettings, folder: Path, workers: int | None = None) -> None:
    """Draws photos into `folder/images/` (JPEG, quality 90) and writes `folder/catalog.parquet` when all are there.

    An interrupted build of the same settings is taken up, a complete one left as it is. `workers`: processes,
    one for each core by default; the result is the same whatever their number.

    Raises:
        InputError: the folder holds another world.
    """
    folder = Path(folder)
    _check_folder(settings, folder)
    if (folder / "catalog.parquet").exists():
        return
    samples = plan(settings)
    shards = [samples[i:i + FOLDER_SIZE] for i in range(0, len(samples), FOLDER_SIZE)]
    missing = [n for n in range(len(shards)) if not _boxes_file(folder, n).exists()]
    jobs = [(settings, folder, n, shards[n]) for n in missing]
    for _ in progress(_run(jobs, workers), f"world {settings.name}, folders of {FOLDER_SIZE} photos", len(jobs)):
        pass
    boxes = [found for n in range(len(shards)) for found in json.loads(_boxes_file(folder, n).read_text())]
    write_catalog(_table(settings, samples, boxes), folder)
    remove(folder / "parts")


def true_mask(settings: WorldSettings, sample_id: str) -> np.ndarray:
    """Redraws a photo and returns where products are visible in it: (size, size) uint8 in {0, 1}.

    Raises:
        InputError: no such sample in this world.
    """
    split, _, number = sample_id.partition("-")
    if split not in SPLITS or not number.isdecimal() or int(number) >= getattr(settings, split):
        raise InputError(f"sample_id {sample_id!r}: not in world {settings.name!r}; ids look like 'gallery-000012'")
    shown, _ = _products(settings, split, int(number))
    return (_draw(settings, split, int(number), shown)[1] > 0).astype(np.uint8)


# ---- planning: products, sets, samples
def plan(settings: WorldSettings) -> list[Sample]:
    """Every sample of the world in the order of the catalog, without drawing anything."""
    samples, used = [], set()
    for split in SPLITS:
        for index in range(getattr(settings, split)):
            shown, combination = _products(settings, split, index)
            text = _new_caption(settings, split, index, shown, used)
            used.add(text)
            samples.append(Sample(f"{split}-{index:06d}", split, index, shown, text, combination))
    return samples


@lru_cache(maxsize=4)
def products_of(settings: WorldSettings) -> tuple[wording.Product, ...]:
    """The world's products; the last `settings.distractors` of them stand in the gallery alone."""
    total = settings.products + settings.distractors
    return tuple(wording.make_products(total, settings.brands, settings.seed))


@lru_cache(maxsize=4)
def sets_of(settings: WorldSettings) -> ProductSets:
    """Draws sets by turns for train and against it, large ones first (they are the hardest to place)."""
    rng, products = np.random.default_rng([settings.seed, 102]), products_of(settings)
    popularity = np.arange(1, settings.products + 1) ** -0.6  # products come in random order
    popularity /= popularity.sum()
    seen, unseen = {size: [] for size in PIECES}, {size: [] for size in PIECES}
    for size in sorted(PIECES, reverse=True):
        wanted = round(SETS_PER_PRODUCT * settings.products * PIECES[size] / sum(PIECES.values()))
        for _ in range(8 * wanted):
            found = _draw_set(size, products, popularity, rng)
            if found is None or found in seen[size] or found in unseen[size] or len(unseen[size]) == wanted:
                continue
            if len(seen[size]) > len(unseen[size]):
                if not any(set(found) <= set(other) for other in _all(seen)):
                    unseen[size].append(found)
            elif not any(set(found) >= set(other) for other in _all(unseen)):
                seen[size].append(found)
    return ProductSets(seen, unseen, popularity)


def _all(sets: dict[int, list[tuple[int, ...]]]) -> Iterable[tuple[int, ...]]:
    return (found for of_size in sets.values() for found in of_size)


def _draw_set(size: int, products: tuple[wording.Product, ...], popularity: np.ndarray,
              rng: np.random.Generator) -> tuple[int, ...] | None:
    """A set of `size` products of one brand, mostly of one line; None where the brand is too small.

    One brand a photo as in the published lists (9,216 of 9,220 queries).
    """
    first = int(rng.choice(len(popularity), p=popularity))
    brand, line = products[first].brand, products[first].line
    mates = [i for i in range(len(popularity)) if i != first and products[i].brand == brand]
    if len(mates) < size - 1:
        return None
    weights = np.array([popularity[i] * (6.0 if products[i].line == line else 1.0) for i in mates])
    chosen = rng.choice(mates, size - 1, replace=False, p=weights / weights.sum())
    return tuple(sorted([first, *map(int, chosen)]))


@lru_cache(maxsize=16)
def _order(settings: WorldSettings, split: str) -> np.ndarray:
    """The turn of each sample of a split, shuffled: a sample's number tells nothing about what it shows."""
    return np.random.default_rng([settings.seed, 103, SPLITS.index(split)]).permutation(getattr(settings, split))


def _products(settings: WorldSettings, split: str, index: int) -> tuple[tuple[int, ...], str | None]:
    """Which products a photo shows; of a query, whether train shows them together."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    turn = int(_order(settings, split)[index])
    if split in ("val", "test"):
        return _several(sets_of(settings), turn % 2 == 1, rng)
    if split == "train" and turn % 2 == 1:
        sets = list(_all(sets_of(settings).seen))  # each at least once
        return (sets[turn // 2] if turn // 2 < len(sets) else _several(sets_of(settings), False, rng)[0]), None
    return (_one(settings, split, turn // 2 if split == "train" else turn, rng),), None


def _several(sets: ProductSets, unseen: bool, rng: np.random.Generator) -> tuple[tuple[int, ...], str]:
    """The pieces of a multi-product photo, at most one of them twice, and "seen" or "unseen"."""
    pieces = int(rng.choice(list(PIECES), p=np.array(list(PIECES.values())) / sum(PIECES.values())))
    repeated = int(rng.random() < REPEATED)
    if pieces - repeated == 1:  # two pieces of one product: train shows every product alone
        product = int(rng.choice(len(sets.popularity), p=sets.popularity))
        return (product, product), "seen"
    pool = sets.unseen if unseen else sets.seen
    # a small world has no large sets: then the largest there is
    chosen = _choose(pool[max(size for size, found in pool.items() if found and size <= pieces - repeated)], rng)
    return (*chosen, *(int(rng.choice(chosen)) for _ in range(repeated))), "unseen" if unseen else "seen"


def _choose(sets: list[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, ...]:
    """One of the sets, the first ones far more often (a long tail)."""
    weights = np.arange(1, len(sets) + 1) ** -0.7
    return sets[int(rng.choice(len(sets), p=weights / weights.sum()))]


def _one(settings: WorldSettings, split: str, turn: int, rng: np.random.Generator) -> int:
    """The product of a single-product photo: half of the photos by turns, so that none is missing."""
    total = settings.products + (settings.distractors if split == "gallery" else 0)
    if turn % 2:
        return turn // 2 % total
    if rng.random() < 1 - settings.products / total:
        return int(rng.integers(settings.products, total))
    return int(rng.choice(settings.products, p=sets_of(settings).popularity))


def _new_caption(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...], used: set[str]) -> str:
    """A caption that no earlier sample has."""
    distinct = [products_of(settings)[i] for i in dict.fromkeys(shown)]
    mates = _of_brand(settings, distinct[0].brand)
    text, attempt = "", 0
    while not text or text in used:
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, 1, attempt])
        text, attempt = wording.caption(distinct, len(shown), mates, rng), attempt + 1
    return text


@lru_cache(maxsize=256)
def _of_brand(settings: WorldSettings, brand: int) -> list[wording.Product]:
    return [product for product in products_of(settings) if product.brand == brand]


# ---- drawing and writing
def _draw(settings: WorldSettings, split: str, index: int, shown: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Photo (size, size, 3) uint8 RGB and pieces (size, size) uint8, as `staging.photo` gives them."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, 2])
    return staging.photo([products_of(settings)[i] for i in shown], settings.size, settings.seed, rng)


def boxes_of(pieces: np.ndarray, count: int) -> list[list[float]]:
    """Boxes around the visible pixels of the pieces 1 to `count`: xyxy in pixels, the far edges exclusive."""
    boxes = []
    for n in range(1, count + 1):
        rows, columns = np.nonzero((pieces == n).any(axis=1))[0], np.nonzero((pieces == n).any(axis=0))[0]
        boxes.append([float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)])
    return boxes


def _run(jobs: list[tuple], workers: int | None) -> Iterable[None]:
    """Draws folders one after another, or several at a time in processes of their own."""
    if workers == 1 or len(jobs) < 2:
        yield from (_draw_folder(*job) for job in jobs)
        return
    one_thread = {"initializer": cv2.setNumThreads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **one_thread) as pool:
        yield from pool.map(_draw_folder, *zip(*jobs, strict=True))


def _draw_folder(settings: WorldSettings, folder: Path, number: int, samples: list[Sample]) -> None:
    """Draws one folder of photos and writes their boxes last, which marks the folder as complete."""
    (folder / f"images/{number:03d}").mkdir(parents=True, exist_ok=True)
    boxes = []
    for sample in samples:
        photo, pieces = _draw(settings, sample.split, sample.index, sample.products)
        file = folder / _image(number, sample.sample_id)
        if not cv2.imwrite(str(file), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{file}: the photo cannot be written; is the disk full?")
        boxes.append(boxes_of(pieces, len(sample.products)))
    with write_atomically(_boxes_file(folder, number)) as beside:
        beside.write_text(json.dumps(boxes))


def _image(number: int, sample_id: str) -> str:
    return f"images/{number:03d}/{sample_id}.jpg"


def _boxes_file(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:03d}.json"


def _check_folder(settings: WorldSettings, folder: Path) -> None:
    """Notes in `world.json` which world a folder holds; refuses a folder that holds another one."""
    note, file = {"version": VERSION, **asdict(settings)}, folder / "world.json"
    if not file.exists():
        with write_atomically(file) as beside:
            beside.write_text(json.dumps(note, indent=1))
    elif json.loads(file.read_text()) != note:
        raise InputError(f"{file}: the folder holds another world than {settings.name!r} of these settings; "
                         "remove it or choose another folder")


def _table(settings: WorldSettings, samples: list[Sample], boxes: list[list[list[float]]]) -> pd.DataFrame:
    """The catalog; train rows carry no labels, no boxes, and not the kind of photo either."""
    products, rows = products_of(settings), []
    for position, (sample, found) in enumerate(zip(samples, boxes, strict=True)):
        known = sample.split != "train"
        labels = [products[i].label for i in sample.products] if known else []
        rows.append({
            "sample_id": sample.sample_id, "split": sample.split, "caption": sample.caption,
            "image": _image(position // FOLDER_SIZE, sample.sample_id), "mirror": None, "labels": labels,
            "products": {"train": None, "gallery": "single"}.get(sample.split, "multi"),
            "boxes": found if known else [], "box_labels": list(labels), "combination": sample.combination,
        })
    return pd.DataFrame(rows, dtype=object)
