"""What the text of a product label says: "BRAND line, claim, kind and shade"."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# general words of cosmetics shops, by the kind that they name
KIND_WORDS = json.loads(Path(__file__).with_name("kind_words.json").read_text(encoding="utf-8"))
KIND_OF = {word: kind for kind, words in KIND_WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class Named:
    """What a label says; "" is unknown."""

    brand: str
    kind: str
    product: str  # the label up to its kind: without size, shade or scent


@lru_cache(maxsize=100_000)
def parse_label(label: str) -> Named:
    """Return brand (the first of several words), kind and product of a label."""
    brand, _, name = label.strip().partition(" ")
    if not name.strip():  # a single word names no brand
        brand = ""
        name = label
    # the kind is the word that ends last; of two that end there, the longer one
    ends = [(name.rfind(word) + len(word), len(word), word) for word in KIND_OF if word in name]
    if not ends:
        return Named(brand, "", label)
    end, _, word = max(ends)
    return Named(brand, KIND_OF[word], f"{brand} {name[:end].strip()}".strip())
