"""Products of invented brands: brand × line × kind × shade, scent or size. The words are in `products.json`."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from numpy.random import Generator

from capture_lib.world.tables import read_settings, read_table

RGB = tuple[int, int, int]

SETTINGS = read_settings("product_settings")


@dataclass(frozen=True)
class Variant:
    """A shade or scent (`rgb`), or a size (`scale`); `mark` is printed on the product."""

    name: str
    mark: str = ""
    rgb: RGB | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Product:
    """A product; it wears the dress of the line `look` (twin lines share one), and `noun` names its kind."""

    brand: int
    line: int
    look: int
    kind: str
    silhouette: str
    variant: Variant
    line_name: str
    claim: str
    noun: str

    @property
    def label(self) -> str:
        """Brand and name, as the released lists write labels."""
        return f"{BRANDS[self.brand][0]} {self.line_name}{self.claim}{self.noun}{self.variant.name}"


TABLE = read_table("products")
BRANDS = TABLE["brands"]  # name in the label, and the brand's other name
LINES = TABLE["lines"]
CLAIMS = TABLE["claims"]
RANGES = TABLE["ranges"]  # what one line of a brand may hold
# names, short forms in captions, printed word and amount, silhouettes, and a key of VARIANTS
KINDS = {name: SimpleNamespace(**kind) for name, kind in TABLE["kinds"].items()}
VARIANTS = {
    key: [Variant(name, mark, rgb and tuple(rgb), scale) for name, mark, rgb, scale in rows]
    for key, rows in TABLE["variants"].items()
}


def make_products(total: int, brands: int, seed: int) -> list[Product]:
    """Draw `total` products of the first `brands` brands, in random order (so any slice mixes brands)."""
    rng = np.random.default_rng([seed, 101])
    # products per brand, at least 2, as unequal as the published 392: 53, 29, 29, 27, 27, 21, ... , 1
    share = (np.arange(brands) + 18.0) ** -2.6
    sizes = np.maximum(2, np.floor(share / share.sum() * total)).astype(int)
    sizes[0] += total - sizes.sum()
    products = []
    for brand, count in enumerate(sizes.tolist()):
        names = rng.permutation(LINES).tolist()
        # line after line until the brand has its number of products
        of_brand = []
        last = []
        for line in range(count):
            if last and rng.random() < SETTINGS.twin_share:
                # most products of the line before, under another name
                chosen = sorted(rng.permutation(len(last))[:max(1, len(last) * 2 // 3)])
                last = [replace(last[i], line=line, line_name=names[line]) for i in chosen]
            else:
                last = _line_products(brand, line, names[line], rng)
            of_brand += last
            if len(of_brand) >= count:
                break
        products += of_brand[:count]
    return [products[i] for i in rng.permutation(len(products))]


def _line_products(brand: int, line: int, line_name: str, rng: Generator) -> list[Product]:
    """Draw a line: 4 to 6 kinds of care, or two kinds in up to four shades, scents or sizes."""
    group = str(rng.choice(list(RANGES), p=SETTINGS.range_shares))
    count = int(rng.integers(4, 7)) if group == "care" else 2
    line_claim = str(rng.choice(CLAIMS))
    bottle = str(rng.choice(SETTINGS.bottles)) if rng.random() < SETTINGS.bottle_share else ""
    weights = np.array([SETTINGS.rare.get(kind, 1.0) for kind in RANGES[group]])
    kinds = rng.choice(RANGES[group], count, replace=False, p=weights / weights.sum())
    products = []
    for kind in kinds.tolist():
        spec = KINDS[kind]
        noun = str(rng.choice(spec.names))
        silhouette = str(rng.choice([bottle] if bottle in spec.silhouettes else spec.silhouettes))
        two_sizes = kind not in SETTINGS.one_size and rng.random() < SETTINGS.two_sizes_share
        variants = VARIANTS[spec.variants or ("volume" if two_sizes else "")]
        claim = line_claim if rng.random() < 0.8 and len(variants) == 1 else ""
        for v in rng.permutation(len(variants))[:4]:
            products.append(Product(brand, line, line, kind, silhouette, variants[v], line_name, claim, noun))
    return products
