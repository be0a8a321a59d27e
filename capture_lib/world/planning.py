"""What the rendered world's photos show and say, before anything is drawn: products, sets, splits, captions."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from capture_lib.catalog.table import HELD_OUT, SEEN, SPLITS, UNSEEN
from capture_lib.utils import InputError
from capture_lib.world.captions import write_caption
from capture_lib.world.products import BRANDS, Product, make_products
from capture_lib.world.tables import read_settings, read_table

PLANNING = read_settings("planning_settings")
PIECES = dict(PLANNING.pieces)  # of a multi-product photo: how often it shows so many
QUERY_TURNS = [{"s": SEEN, "u": UNSEEN, "h": HELD_OUT}[letter] for letter in PLANNING.query_turns]
STEPS = (2 ** 0.5 % 1, 5 ** 0.5 / 2 % 1)  # of additive sequences: shares come out nearly exact in small worlds too

ProductSet = tuple[int, ...]  # indices of different products, ascending
Pool = dict[int, list[ProductSet]]  # product sets by their number of products, the most popular first


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
    scenes: str = ""  # a folder of photos to use as busy backgrounds; empty for drawn ones

    def __post_init__(self) -> None:
        if self.products < 20 or self.size < 64 or self.seed < 0:
            raise InputError(f"world {self.name!r}: needs 20 products, photos of 64 pixels and a seed of 0 at least")

    @property
    def brands(self) -> int:
        """40 brands in the full world (Product1M: 40), 10 in the small one, 5 in the mini one."""
        return int(np.clip((self.products + self.distractors) // 8, 5, 40))

    @property
    def held_out(self) -> frozenset[int]:
        """Brands that train never shows: every tenth one, or the last of fewer than ten."""
        return frozenset(range(4, self.brands, 10)) if self.brands >= 10 else frozenset({self.brands - 1})


# "full" has Product1M's numbers, but for the train split
SIZES = {name: WorldSettings(name, **numbers) for name, numbers in read_table("sizes").items()}


@dataclass(frozen=True)
class Sample:
    """A photo before it is drawn: `products` are indices into `products_of`, one for each piece."""

    sample_id: str
    split: str
    index: int
    products: tuple[int, ...]
    caption: str
    combination: str | None  # of val, test and gallery: `SEEN`, `UNSEEN` or `HELD_OUT`


def plan(settings: WorldSettings) -> list[Sample]:
    """Plan every sample of the world in the order of the catalog, without drawing anything."""
    products = products_of(settings)
    of_brand = [[product for product in products if product.brand == brand] for brand in range(settings.brands)]
    samples, used = [], {""}
    for split in SPLITS:
        for index in range(getattr(settings, split)):
            shown, combination = shown_products(settings, split, index)
            distinct = [products[i] for i in dict.fromkeys(shown)]
            # a caption that no earlier sample has
            text, attempt = "", 0
            while text in used:
                rng = np.random.default_rng([settings.seed, SPLITS.index(split), index, 1, attempt])
                text = write_caption(distinct, len(shown), of_brand[distinct[0].brand], rng)
                attempt += 1
            used.add(text)
            samples.append(Sample(f"{split}-{index:06d}", split, index, shown, text, combination))
    return samples


# ---- products
@lru_cache(maxsize=4)
def products_of(settings: WorldSettings) -> tuple[Product, ...]:
    """Return the world's products; the last `settings.distractors` of them stand in the gallery alone."""
    total = settings.products + settings.distractors
    return tuple(make_products(total, settings.brands, settings.seed))


@lru_cache(maxsize=16)
def _popularity(settings: WorldSettings, held_out: bool | None = None) -> np.ndarray:
    """Return how often products of held-out brands (or of others, or all) are shown: (products,), sums to 1."""
    popularity = np.arange(1, settings.products + 1) ** -0.6  # products come in random order
    popularity /= popularity.sum()
    if held_out is None:
        return popularity
    brands = [product.brand in settings.held_out for product in products_of(settings)[:settings.products]]
    weights = popularity * (np.array(brands) == held_out)
    return weights / weights.sum()


# ---- the sets that products are sold in
@lru_cache(maxsize=4)
def sets_of(settings: WorldSettings) -> dict[str, Pool]:
    """Draw product sets by turns for train (it shows all SEEN ones) and against it (none lies within a SEEN one)."""
    rng = np.random.default_rng([settings.seed, 102])
    products, popularity = products_of(settings)[:settings.products], _popularity(settings)
    pools = {combination: {size: [] for size in PIECES} for combination in (SEEN, UNSEEN, HELD_OUT)}
    unused = np.ones(settings.products, bool)
    for size in sorted(PIECES, reverse=True):  # large ones are the hardest to place
        wanted = PLANNING.sets_per_product * settings.products * PIECES[size] / sum(PIECES.values())
        for _ in range(int(12 * wanted) + 12):
            # half of the pairs begin with a product that no set has
            lacking = popularity * unused
            chances = lacking if size == 2 and lacking.any() and rng.random() < 0.5 else popularity
            first = int(rng.choice(len(products), p=chances / chances.sum()))
            brand, line = products[first].brand, products[first].line
            # products of one brand (as 9,216 of 9,220 published queries), mostly of one line
            mates = [i for i, product in enumerate(products) if i != first and product.brand == brand]
            if len(mates) < size - 1:
                continue
            weights = popularity[mates] * np.array([6.0 if products[i].line == line else 1.0 for i in mates])
            others = rng.choice(mates, size - 1, replace=False, p=weights / weights.sum())
            drawn = tuple(sorted([first, *map(int, others)]))
            if any(drawn in pool[size] for pool in pools.values()):
                continue
            # what train tells of a new set, so that no unseen one is shown; some fit nowhere
            members, seen, unseen = set(drawn), pools[SEEN], pools[UNSEEN]
            turn = UNSEEN if len(seen[size]) > len(unseen[size]) else SEEN
            combination = HELD_OUT if brand in settings.held_out else turn
            if combination == UNSEEN and any(members <= set(other) for other in _all_sets(seen)):
                continue
            if combination == SEEN and any(members >= set(other) for other in _all_sets(unseen)):
                continue
            share = QUERY_TURNS.count(combination) / len(QUERY_TURNS)
            if len(pools[combination][size]) < wanted * share:
                pools[combination][size].append(drawn)
                unused[list(drawn)] = False
    # popular products sell in popular sets
    for pool in pools.values():
        for size, sets in pool.items():
            luck = rng.normal(0, 1.5, len(sets))
            ranks = [luck[n] - np.log(popularity[list(members)].mean()) for n, members in enumerate(sets)]
            pool[size] = _mix_brands([sets[n] for n in np.argsort(ranks, kind="stable")], settings)
    return pools


def _all_sets(pool: Pool) -> list[ProductSet]:
    return [products for sets in pool.values() for products in sets]


def _mix_brands(sets: list[ProductSet], settings: WorldSettings) -> list[ProductSet]:
    """Order sets such that Chinese brands are asked for as often as in the published lists, by the best sellers too."""
    chinese, latin = [], []
    for products in sets:
        brand = BRANDS[products_of(settings)[products[0]].brand][0]
        (latin if brand.isascii() else chinese).append(products)
    shares = _long_tail(len(sets))
    mixed, reached = [], 0.0
    for n, share in enumerate(shares):
        lags = reached + share / 2 <= PLANNING.chinese * shares[:n + 1].sum()
        if chinese and (lags or not latin):
            mixed.append(chinese.pop(0))
            reached += share
        else:
            mixed.append(latin.pop(0))
    return mixed


@lru_cache(maxsize=256)
def _long_tail(count: int) -> np.ndarray:
    """Return shares of product sets, fitted to the published ones: 10 of 471 make 23% of the queries, 100 make 85%."""
    weights = (np.arange(1, count + 1) + 5.0) ** -2.4
    return weights / weights.sum()


# ---- what a photo shows
def shown_products(settings: WorldSettings, split: str, index: int) -> tuple[tuple[int, ...], str | None]:
    """Return the products of a photo, one index a piece, and outside of train what train tells of them."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    turn = int(_turns(settings, split)[index])
    if split in ("val", "test"):
        return _draw_group(settings, QUERY_TURNS[turn % len(QUERY_TURNS)], turn, rng)
    if split == "gallery":  # half of the photos by turns, so that no product is missing
        total = settings.products + settings.distractors
        if turn % 2:
            product = turn // 2 % total
        elif rng.random() < settings.distractors / total:
            product = int(rng.integers(settings.products, total))
        else:
            product = int(rng.choice(settings.products, p=_popularity(settings)))
        return (product,), HELD_OUT if products_of(settings)[product].brand in settings.held_out else None
    # train: groups and single products by turns; each set and each product at least once
    half = turn // 2
    if turn % 2:
        sets = _all_sets(sets_of(settings)[SEEN])
        return (sets[half] if half < len(sets) else _draw_group(settings, SEEN, half, rng)[0]), None
    if half % 2:
        products = np.flatnonzero(_popularity(settings, False))
        return (int(products[half // 2 % len(products)]),), None
    return (int(rng.choice(settings.products, p=_popularity(settings, False))),), None


@lru_cache(maxsize=16)
def _turns(settings: WorldSettings, split: str) -> np.ndarray:
    """Return the turn of each sample of a split, shuffled: a sample's number tells nothing about what it shows."""
    return np.random.default_rng([settings.seed, 103, SPLITS.index(split)]).permutation(getattr(settings, split))


def _draw_group(settings: WorldSettings, combination: str, turn: int, rng: Generator) -> tuple[tuple[int, ...], str]:
    """Draw the pieces of a multi-product photo, at most one of them twice, and its combination."""
    place, chance = [(turn + 1) * step % 1 for step in STEPS]
    shares = np.cumsum(list(PIECES.values())) / sum(PIECES.values())
    pieces = list(PIECES)[int(np.searchsorted(shares, place, side="right"))]
    repeated = chance < PLANNING.repeated
    if pieces == 2 and repeated:
        product = int(rng.choice(settings.products, p=_popularity(settings, combination == HELD_OUT)))
        return (product, product), HELD_OUT if combination == HELD_OUT else SEEN  # train shows every product alone
    # a small world has no large sets: then the largest there is
    pool = sets_of(settings)[combination]
    sets = pool[max(size for size in pool if pool[size] and size <= pieces - repeated)]
    chosen = sets[int(rng.choice(len(sets), p=_long_tail(len(sets))))]
    if repeated:
        chosen = (*chosen, int(rng.choice(chosen)))
    return chosen, combination
