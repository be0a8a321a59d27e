"""What the text of a product label says: "BRAND line, claim, kind and shade", or nothing at all."""

import ast
import json
import re
import unicodedata
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


# ---- labels as tables write them

# by `spelling`; "n/a", "<NA>", "(null)", "-" and zero-width characters alone come to one of these
MISSING = set("nan na null none nil missing undefined unknown 1ind 1qnan 无 無 未知".split()) | {""}
MISSING_AS_IT_IS = re.compile(r"NaT|\\N|#[A-Z/0]+[!?]")  # of pandas, of databases, errors of spreadsheets
INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u2800\ufe00-\ufe0f]")  # letters or marks by Unicode
LIST = re.compile(r"\[.*\]|[({]\s*['\"].*[)}]", re.DOTALL)  # JSON, and what Python prints


@lru_cache(maxsize=200_000)
def spelling(text: str) -> str:
    """Return a text without case, width, spaces, invisible characters and punctuation, but that between digits."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"(?<=\d)[^\w\s](?=\d)", "|", text)  # 1.5 ml are not 15 ml
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LMNS" or letter in "&%")


@lru_cache(maxsize=200_000)
def is_missing(text: str) -> bool:
    """Return True where a text stands for nothing: nan, NULL, N/A, -, …"""
    return spelling(text).strip("<>=|~^`+") in MISSING or bool(MISSING_AS_IT_IS.fullmatch(text.strip()))


def text_of(cell: object) -> str:
    """Return a cell as text; nothing and NaN are "", 3.0 is "3", for pandas makes floats of integers."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip()


def split_labels(text: str, dropped: list[str]) -> list[str]:
    """Return `a#;#b` as a list, with single spaces; add to `dropped` the labels that mean "missing"."""
    labels = [" ".join(label.split()) for label in text.split("#;#")]
    dropped += [label for label in labels if label and is_missing(label)]
    return [re.sub(r"^(-?\d+)\.0$", r"\1", label) for label in labels if not is_missing(label)]


def read_labels(cell: object, dropped: list[str]) -> list[str]:
    """Return the labels of a cell: a list, a list as text, or `a#;#b`. ValueError: a list that cannot be read."""
    if isinstance(cell, str) and LIST.fullmatch(cell.strip()):
        cell = parse_labels(cell.strip())
    if not isinstance(cell, list):
        return split_labels(text_of(cell), dropped)
    texts = [text_of(item) for item in cell]
    dropped += [text for text in texts if not text]  # [''] and [null], as pandas writes them
    return [label for text in texts for label in split_labels(text, dropped)]


def parse_labels(text: str) -> list:
    """Return a list in JSON or as Python or NumPy prints it; any other text is one label, such as [new] milk."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(re.sub(r"(['\"])\s+(['\"])", r"\1, \2", text))  # NumPy prints no commas
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = {} if re.match(r"[\[({]\s*['\"]", text) else [text]
    if isinstance(found, dict):
        raise ValueError("looks like a list, but is neither JSON nor what Python prints")
    return list(found)
