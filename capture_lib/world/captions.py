"""Shop captions of the rendered world; every word list, in `captions.json`, is our own."""

from types import SimpleNamespace

import numpy as np
from numpy.random import Generator

from capture_lib.world.products import BRANDS, CLAIMS, KINDS, Product
from capture_lib.world.tables import read_settings, read_table

WORDS = read_table("captions")
PADDING = WORDS["promises"] + WORDS["people"] + WORDS["sales"]
CAPTIONS = read_settings("caption_settings")


def write_caption(products: list[Product], count: int, decoys: list[Product], rng: Generator,
                  settings: SimpleNamespace = CAPTIONS) -> str:
    """Write a shop title of up to 54 characters, for a photo of distinct products of one brand in `count` pieces.

    `decoys` are products of the same brand, shown or not.
    """
    length = round(float(np.interp(rng.random(), settings.shares, settings.lengths)))
    shown = [products[i] for i in rng.permutation(len(products))]
    # the brand mostly, now and then in small letters, with or by its other name
    name, other = BRANDS[products[0].brand]
    brand = []
    if rng.random() < settings.brand:
        if rng.random() < 0.1:
            name = name.lower()
        brand.append(f"{name}/{other}" if rng.random() < settings.both else name)
    elif rng.random() < settings.other:
        brand.append(other)
    # a part of what there is to say of the products
    core = _fitting(brand + _mentions(shown, settings, rng), length)
    # promotion, in the room that is left; up to two words of it stand before the brand
    room = length - sum(map(len, core))
    padding = [PADDING[i] for i in rng.permutation(len(PADDING))[:30]]
    filler = []
    if rng.random() < settings.decoy:  # a wrong product
        decoy = decoys[int(rng.integers(len(decoys)))]
        filler.append(decoy.line_name if rng.random() < 0.5 else _pick(rng, KINDS[decoy.kind].short))
    if rng.random() < (0.6 if count > 1 else 0.15):
        counted = WORDS["counts"][:count][-1]  # the list for so many pieces, or the last there is
        filler.append(_pick(rng, counted if rng.random() < 0.6 else WORDS["sets"]))
    for chance, key in ((settings.gift, "gifts"), (settings.number, "numbers"), (settings.latin, "latin")):
        if rng.random() < chance:
            filler.append(_pick(rng, WORDS[key]))
    extra = _fitting(filler + padding, room - min(room, int(rng.integers(3))))
    before = int(rng.integers(0, 3))
    behind = extra[before:]
    words = extra[:before] + core + [behind[i] for i in rng.permutation(len(behind))]
    words = words or [_pick(rng, WORDS["sales"])]
    # one title, with spaces or a plus while there is room for them
    spaced = rng.random() < settings.spaces
    room = length - sum(map(len, words))
    text = words[0]
    for word in words[1:]:
        latin = text[-1].isascii() and word[0].isascii()
        if room > 0 and (latin or (spaced and rng.random() < 0.5)):
            text += " " if latin or rng.random() < 0.85 else "+"
            room -= 1
        text += word
    return text


def _pick(rng: Generator, words: list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _mentions(products: list[Product], settings: SimpleNamespace, rng: Generator) -> list[str]:
    """Describe the products line by line: claim (its own or another), kind and variant, each only at times."""
    care = settings.care * float(rng.uniform(-1, 1))  # a careless seller leaves out more
    listing = rng.random() < settings.listing
    words = []
    for line in dict.fromkeys(product.line_name for product in products):
        named = rng.random() < settings.line + care
        of_line = [product for product in products if product.line_name == line]
        for n, product in enumerate(of_line):
            description = ""
            if product.claim and rng.random() < settings.claim + care:
                description += product.claim
            elif rng.random() < settings.other_claim:
                description += _pick(rng, CLAIMS)
            if rng.random() < settings.kind + care:
                short = rng.random() < settings.short - care
                description += _pick(rng, KINDS[product.kind].short) if short else product.noun
            if product.variant.name and rng.random() < settings.variant + care:
                description += product.variant.name
            if named and (n == 0 or (listing and description)):
                description = line + description
            words.append(description)
    return [word for word in dict.fromkeys(words) if word]


def _fitting(words: list[str], length: int) -> list[str]:
    """Return the words that still fit into `length` characters, in order."""
    fitting = []
    for word in words:
        if sum(map(len, fitting)) + len(word) <= length:
            fitting.append(word)
    return fitting
