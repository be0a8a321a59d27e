"""What the rendered world's photos show and say, before anything is drawn: products, sets, splits, captions."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from capture_lib.catalog.table import HELD_OUT, SEEN, SPLITS, UNSEEN
from capture_lib.utils import InputError
from capture_lib.world import wording

# Pieces in a multi-product photo: published dev and test queries with that many labels. Queries with one label
# (2%) and with more than seven (0.1%) are left out.
PIECES = {2: 3956, 3: 3193, 4: 1138, 5: 542, 6: 35, 7: 120}
REPEATED = 0.158  # share of multi-product photos with two pieces of one product (published dev and test lists)
SETS_PER_PRODUCT = 1.06  # different sets a product (published: 417 for 392)
KINDS_OF_QUERY = tuple({"s": SEEN, "u": UNSEEN, "h": HELD_OUT}[c] for c in "sushususuhsusushusus")  # by turns
CHINESE = 0.36  # share of queries about brands with a Chinese name, so that 69% of captions hold Latin letters
STEPS = (2 ** 0.5 % 1, 5 ** 0.5 / 2 % 1)  # of additive sequences: shares come out nearly exact in small worlds too


@dataclass(frozen=True)
class WorldSettings:
    """Size of a world: products, products of the gallery alone (distractors), and photos a split.

    `scenes`: photos of grounds to use in place of the drawn ones, a folder; empty for the drawn ones.
    """

    name: str
    products: int
    distractors: int
    train: int
    gallery: int
    val: int
    test: int
    size: int = 224  # photo side in pixels
    seed: int = 0
    scenes: str = ""

    def __post_init__(self) -> None:
        if self.products < 20 or self.size < 64:
            raise InputError(f"world {self.name!r}: needs 20 products and photos of 64 pixels at least")
        if self.seed < 0:
            raise InputError(f"world {self.name!r}: seed {self.seed} is negative; use 0 or more")

    @property
    def brands(self) -> int:
        """40 brands in the full world (Product1M: 40), 10 in the small one, 5 in the mini one."""
        return int(np.clip((self.products + self.distractors) // 8, 5, 40))

    @property
    def held_out(self) -> frozenset[int]:
        """Brands that train never shows: every tenth one, or the last of fewer than ten."""
        return frozenset(range(4, self.brands, 10)) if self.brands >= 10 else frozenset({self.brands - 1})


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
    combination: str | None  # of val, test and gallery: `SEEN`, `UNSEEN` or `HELD_OUT`


Pool = dict[int, list[tuple[int, ...]]]  # product sets by their number of different products


@dataclass(frozen=True)
class ProductSets:
    """Which products are sold together."""

    pools: dict[str, Pool]  # of SEEN: train shows every one, and no others; none of the others lies within one of them
    popularity: np.ndarray  # (products,) float64, sums to 1


def plan(settings: WorldSettings) -> list[Sample]:
    """Every sample of the world in the order of the catalog, without drawing anything."""
    samples, used = [], set()
    for split in SPLITS:
        for index in range(getattr(settings, split)):
            shown, combination = shown_products(settings, split, index)
            text = _new_caption(settings, split, index, shown, used)
            used.add(text)
            samples.append(Sample(f"{split}-{index:06d}", split, index, shown, text, combination))
    return samples


# ---- products and the sets that they are sold in
@lru_cache(maxsize=4)
def products_of(settings: WorldSettings) -> tuple[wording.Product, ...]:
    """The world's products; the last `settings.distractors` of them stand in the gallery alone."""
    total = settings.products + settings.distractors
    return tuple(wording.make_products(total, settings.brands, settings.seed))


@lru_cache(maxsize=4)
def sets_of(settings: WorldSettings) -> ProductSets:
    """Draws sets by turns for train and against it, large ones first (they are the hardest to place)."""
    rng = np.random.default_rng([settings.seed, 102])
    popularity = np.arange(1, settings.products + 1) ** -0.6  # products come in random order
    popularity /= popularity.sum()
    pools = {kind: {size: [] for size in PIECES} for kind in (SEEN, UNSEEN, HELD_OUT)}
    for size in sorted(PIECES, reverse=True):
        wanted = SETS_PER_PRODUCT * settings.products * PIECES[size] / sum(PIECES.values())
        for _ in range(int(12 * wanted) + 12):
            lacking = popularity * ~np.isin(np.arange(settings.products), [*_in_sets(pools)])
            first = lacking if size == 2 and lacking.any() and rng.random() < 0.5 else popularity
            found = _draw_set(size, settings, popularity, first / first.sum(), rng)
            kind = found and _kind_of_new_set(found, pools, settings)
            if kind and len(pools[kind][size]) < wanted * KINDS_OF_QUERY.count(kind) / len(KINDS_OF_QUERY):
                pools[kind][size].append(found)
    for pool in pools.values():
        for size, sets in pool.items():  # popular products sell in popular sets
            luck = dict(zip(sets, rng.normal(0, 1.5, len(sets)), strict=True))
            by_popularity = sorted(sets, key=lambda found: -np.log(popularity[list(found)].mean()) + luck[found])
            pool[size] = _mixed(by_popularity, settings)
    return ProductSets(pools, popularity)


def _mixed(sets: list[tuple[int, ...]], settings: WorldSettings) -> list[tuple[int, ...]]:
    """The sets of a pool in an order in which Chinese and Latin brands are asked for as often as in the lists.

    Else the few sets that sell best decide how many captions hold Latin letters.
    """
    chinese, latin = [], []
    for found in sets:
        brand = wording.BRANDS[products_of(settings)[found[0]].brand][0]
        (latin if brand.isascii() else chinese).append(found)
    mixed, shares, reached = [], _long_tail(len(sets)), 0.0
    for share in shares:
        here = chinese if chinese and (not latin or reached + share / 2 <= CHINESE * shares[:len(mixed) + 1].sum()) \
            else latin
        reached += share * (here is chinese)
        mixed.append(here.pop(0))
    return mixed


def _kind_of_new_set(found: tuple[int, ...], pools: dict[str, Pool], settings: WorldSettings) -> str | None:
    """Where a set may go: never both shown by train and asked for as unseen; None if it is known or fits nowhere."""
    if any(found in pool[len(found)] for pool in pools.values()):
        return None
    if products_of(settings)[found[0]].brand in settings.held_out:
        return HELD_OUT
    seen, unseen = (pools[kind][len(found)] for kind in (SEEN, UNSEEN))
    if len(seen) > len(unseen):
        return None if any(set(found) <= set(other) for other in _all(pools[SEEN])) else UNSEEN
    return None if any(set(found) >= set(other) for other in _all(pools[UNSEEN])) else SEEN


def _all(pool: Pool) -> Iterable[tuple[int, ...]]:
    return (found for of_size in pool.values() for found in of_size)


def _in_sets(pools: dict[str, Pool]) -> set[int]:
    return {product for pool in pools.values() for found in _all(pool) for product in found}


def _draw_set(size: int, settings: WorldSettings, popularity: np.ndarray, of_first: np.ndarray,
              rng: np.random.Generator) -> tuple[int, ...] | None:
    """A set of `size` products of one brand, mostly of one line; None where the brand is too small.

    One brand a photo as in the published lists (9,216 of 9,220 queries). `of_first`: chances of its first product.
    """
    products, first = products_of(settings), int(rng.choice(len(popularity), p=of_first))
    brand, line = products[first].brand, products[first].line
    mates = [i for i in range(len(popularity)) if i != first and products[i].brand == brand]
    if len(mates) < size - 1:
        return None
    weights = np.array([popularity[i] * (6.0 if products[i].line == line else 1.0) for i in mates])
    chosen = rng.choice(mates, size - 1, replace=False, p=weights / weights.sum())
    return tuple(sorted([first, *map(int, chosen)]))


# ---- what a photo shows
@lru_cache(maxsize=16)
def _order(settings: WorldSettings, split: str) -> np.ndarray:
    """The turn of each sample of a split, shuffled: a sample's number tells nothing about what it shows."""
    return np.random.default_rng([settings.seed, 103, SPLITS.index(split)]).permutation(getattr(settings, split))


def shown_products(settings: WorldSettings, split: str, index: int) -> tuple[tuple[int, ...], str | None]:
    """Which products a photo shows, one index a piece; outside of train, what train tells of them."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    turn = int(_order(settings, split)[index])
    if split in ("val", "test"):
        return _several(settings, KINDS_OF_QUERY[turn % len(KINDS_OF_QUERY)], turn, rng)
    if split == "train" and turn % 2 == 1:
        sets = _sets_of_train(settings)  # each at least once
        return (sets[turn // 2] if turn // 2 < len(sets) else _several(settings, SEEN, turn // 2, rng)[0]), None
    product = _one(settings, split, turn // 2 if split == "train" else turn, rng)
    held_out = split == "gallery" and products_of(settings)[product].brand in settings.held_out
    return (product,), HELD_OUT if held_out else None


def _several(settings: WorldSettings, kind: str, turn: int, rng: np.random.Generator) -> tuple[tuple[int, ...], str]:
    """The pieces of a multi-product photo, at most one of them twice, and the kind of query that this makes."""
    sets, (a, b) = sets_of(settings), (float((turn + 1) * step % 1) for step in STEPS)
    shares = np.cumsum(list(PIECES.values())) / sum(PIECES.values())
    pieces, repeated = list(PIECES)[int(np.searchsorted(shares, a, side="right"))], int(b < REPEATED)
    if pieces - repeated == 1:  # two pieces of one product
        product = _known(settings, kind == HELD_OUT, rng)
        return (product, product), HELD_OUT if kind == HELD_OUT else SEEN  # train shows every product alone
    # a small world has no large sets: then the largest there is
    pool = sets.pools[kind]
    chosen = _choose(pool[max(size for size, found in pool.items() if found and size <= pieces - repeated)], rng)
    return (*chosen, *(int(rng.choice(chosen)) for _ in range(repeated))), kind


def _choose(sets: list[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, ...]:
    """One of the sets, the first ones far more often."""
    return sets[int(rng.choice(len(sets), p=_long_tail(len(sets))))]


@lru_cache(maxsize=256)
def _long_tail(count: int) -> np.ndarray:
    """Shares of `count` product sets, fitted to the published ones: 10 of 471 make 23% of the queries, 100 make 85%."""
    weights = (np.arange(1, count + 1) + 5.0) ** -2.4
    return weights / weights.sum()


@lru_cache(maxsize=4)
def _sets_of_train(settings: WorldSettings) -> list[tuple[int, ...]]:
    return list(_all(sets_of(settings).pools[SEEN]))


def _one(settings: WorldSettings, split: str, turn: int, rng: np.random.Generator) -> int:
    """The product of a single-product photo: half of the photos by turns, so that none is missing."""
    if split == "train":
        known = np.flatnonzero(_popularity(settings, False))
        return int(known[turn // 2 % len(known)]) if turn % 2 else _known(settings, False, rng)
    total = settings.products + settings.distractors
    if turn % 2:
        return turn // 2 % total
    if rng.random() < settings.distractors / total:
        return int(rng.integers(settings.products, total))
    return int(rng.choice(settings.products, p=sets_of(settings).popularity))


def _known(settings: WorldSettings, held_out: bool, rng: np.random.Generator) -> int:
    """A product by its popularity, of the brands that train never shows or of all others."""
    return int(rng.choice(settings.products, p=_popularity(settings, held_out)))


@lru_cache(maxsize=8)
def _popularity(settings: WorldSettings, held_out: bool) -> np.ndarray:
    """How often each product is shown, (products,), 0 for those of the other brands, sums to 1."""
    brands = np.array([product.brand in settings.held_out for product in products_of(settings)[:settings.products]])
    weights = sets_of(settings).popularity * (brands == held_out)
    return weights / weights.sum()


# ---- what its caption says
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
