"""Shop captions of the rendered world; every word list, in `captions.json`, is our own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capture_lib.world.products import BRANDS, CLAIMS, KINDS, Product
from capture_lib.world.tables import read_table

WORDS = read_table("captions")
PADDING = WORDS["promises"] + WORDS["people"] + WORDS["sales"]
COUNTS = WORDS["counts"]  # how a set of one piece, of two, ... is called


@dataclass(frozen=True)
class CaptionSettings:
    """How often a caption says what; fitted to the published Product1M dev and test lists (val and test queries)."""

    shares: tuple[float, ...] = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.95, 0.99, 1.0)
    lengths: tuple[float, ...] = (7, 9, 21, 25, 30, 32, 35, 39, 42, 54)  # characters at these shares of captions
    brand: float = 0.90      # the brand's name in the label stands in the caption
    both: float = 0.08       # ... together with its other name
    other: float = 0.50      # where it does not: the other name does
    line: float = 0.66
    kind: float = 0.68
    short: float = 0.45      # a kind is given by its short form
    claim: float = 0.47
    variant: float = 0.58
    other_claim: float = 0.42  # a claim of no product of the photo stands between line and kind
    care: float = 0.30       # how much these chances differ from seller to seller
    listing: float = 0.22    # the line is named with each product instead of once
    decoy: float = 0.10      # a line or a kind of the brand that the photo does not show is named
    gift: float = 0.22       # a gift that the photo does not show is promised
    number: float = 0.46     # a number, apart from set counts
    latin: float = 0.08      # a Latin word, apart from the brand
    spaces: float = 0.68


CAPTIONS = CaptionSettings()


def write_caption(
    products: list[Product],
    count: int,
    decoys: list[Product],
    rng: np.random.Generator,
    settings: CaptionSettings = CAPTIONS,
) -> str:
    """Write a shop title of 54 characters at most.

    The title names brand, lines, kinds and variants only in part, and is filled with promotion up to
    a length drawn from the published captions.

    Args:
        products: distinct products of one brand, all that the photo shows.
        count: pieces in the photo.
        decoys: products of the same brand, shown or not.
    """
    length = round(float(np.interp(rng.random(), settings.shares, settings.lengths)))

    # what is said of the products
    shown = [products[i] for i in rng.permutation(len(products))]
    brand = _brand_words(products[0].brand, settings, rng)
    core = _fitting(brand + _mentions(shown, settings, rng), length)

    # promotion, in the room that is left
    room = length - sum(map(len, core))
    padding = [PADDING[i] for i in rng.permutation(len(PADDING))[:30]]
    filler = _filler(count, decoys, settings, rng)
    extra = _fitting(filler + padding, room - min(room, int(rng.integers(3))))

    # up to two words of promotion stand before the brand, the others behind it
    before = int(rng.integers(0, 3))
    behind = extra[before:]
    words = extra[:before] + core + [behind[i] for i in rng.permutation(len(behind))]
    return _joined(words or [_pick(rng, WORDS["sales"])], length, rng.random() < settings.spaces, rng)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _brand_words(brand: int, settings: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """Return the brand for most captions, now and then in small letters, with or by its other name."""
    name, other = BRANDS[brand]
    if rng.random() < settings.brand:
        shown = name.lower() if rng.random() < 0.1 else name
        return [f"{shown}/{other}" if rng.random() < settings.both else shown]
    return [other] if rng.random() < settings.other else []


def _mentions(products: list[Product], settings: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """Describe the products line by line; a careless seller leaves out more."""
    care = settings.care * float(rng.uniform(-1, 1))
    listing = rng.random() < settings.listing
    words = []
    for line in dict.fromkeys(product.line_name for product in products):
        named = rng.random() < settings.line + care
        of_line = [product for product in products if product.line_name == line]
        for n, product in enumerate(of_line):
            description = _product_words(product, settings, care, rng)
            if named and (n == 0 or (listing and description)):
                description = line + description
            words.append(description)
    return [word for word in dict.fromkeys(words) if word]


def _product_words(product: Product, settings: CaptionSettings, care: float, rng: np.random.Generator) -> str:
    """Return claim (its own or another), kind and variant of a product in one, each only at times."""
    words = ""
    if product.claim and rng.random() < settings.claim + care:
        words += product.claim
    elif rng.random() < settings.other_claim:
        words += _pick(rng, CLAIMS)
    if rng.random() < settings.kind + care:
        short = rng.random() < settings.short - care
        words += _pick(rng, KINDS[product.kind].short) if short else product.noun
    if product.variant.name and rng.random() < settings.variant + care:
        words += product.variant.name
    return words


def _filler(count: int, decoys: list[Product], settings: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """Return words of any caption: a wrong product, a set or its count, a gift, a number, a Latin word."""
    words = []
    if rng.random() < settings.decoy:
        decoy = decoys[int(rng.integers(len(decoys)))]
        words.append(decoy.line_name if rng.random() < 0.5 else _pick(rng, KINDS[decoy.kind].short))
    if rng.random() < (0.6 if count > 1 else 0.15):
        counted = rng.random() < 0.6
        words.append(_pick(rng, COUNTS[min(count, len(COUNTS)) - 1] if counted else WORDS["sets"]))
    for chance, key in ((settings.gift, "gifts"), (settings.number, "numbers"), (settings.latin, "latin")):
        if rng.random() < chance:
            words.append(_pick(rng, WORDS[key]))
    return words


def _fitting(words: list[str], length: int) -> list[str]:
    """Return the words that still fit into `length` characters, in order."""
    fitting = []
    for word in words:
        if sum(map(len, fitting)) + len(word) <= length:
            fitting.append(word)
    return fitting


def _joined(words: list[str], length: int, spaced: bool, rng: np.random.Generator) -> str:
    """Return the words as one title, with spaces or a plus while `length` has room for them."""
    room = length - sum(map(len, words))
    text = words[0]
    for word in words[1:]:
        latin = text[-1].isascii() and word[0].isascii()
        if room > 0 and (latin or (spaced and rng.random() < 0.5)):
            text += " " if latin or rng.random() < 0.85 else "+"
            room -= 1
        text += word
    return text
