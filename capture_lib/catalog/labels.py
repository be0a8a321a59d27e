"""What the text of a product label says: "BRAND line, claim, kind and shade", or nothing at all."""

import ast
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
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
MISSING = set("nan na null none nil missing undefined unknown unlabeled unlabelled nolabel tbd tba 1ind 1qnan "
              "无 無 空 未知 暂无 暫無 未标注".split()) | {""}
MISSING_AS_IT_IS = re.compile(r"NaT|\\N|#[A-Z/0]+[!?]")  # of pandas, of databases, errors of spreadsheets
INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u2800\ufe00-\ufe0f]")  # letters or marks by Unicode
NO_COMMA = re.compile(r"(['\"])\s+(['\"])")  # between two texts, as NumPy prints lists
NAN = re.compile(r"""('[^']*'|"[^"]*")|\bnan\b""")  # as Python prints it, outside of texts
PRINTED = re.compile(  # ['a' …, {'a': 1}, array([…, set(), and numbers as NumPy prints them
    r"([a-z_.]+\()?[\[({]\s*['\"].*|[a-z_.]+\((\[.*)?\)|\{.+\}|\[\s*(-?\d[-+.\de]*|nan)(\s+(-?\d[-+.\de]*|nan))+\s*\]",
    re.S | re.I)


@lru_cache(maxsize=200_000)
def spelling(text: str) -> str:
    """Return a text without case, width, spaces, invisible characters and punctuation, but that between digits."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"(?<=\d)[^\w\s](?=\d)", "|", text)  # 1.5 ml are not 15 ml
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LMNS" or letter in "&%")


@lru_cache(maxsize=200_000)
def is_missing(text: str) -> bool:
    """Return True where a text stands for nothing: nan, NULL, N/A, -, …"""
    short = len(text) < 40
    return short and (spelling(text).strip("<>=|~^`+") in MISSING or bool(MISSING_AS_IT_IS.fullmatch(text.strip())))


def text_of(cell: object) -> str:
    """Return a cell as text; nothing and NaN are "", 3.0 is "3", for pandas makes floats of integers."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and abs(cell) >= 2**53:
        return f"{cell:.16e}"  # it has lost digits: let it look so
    if isinstance(cell, float | Decimal) and cell % 1 == 0:
        cell = int(cell)
    text = str(cell).strip()
    return text[2:-1] if text.startswith('="') and text.endswith('"') else text  # as Excel keeps zeros at the beginning


def labels_of(cell: object, dropped: list[str]) -> list[str]:
    """Return the labels of a list or of `a#;#b`, with single spaces; add to `dropped` those that mean "missing"."""
    texts = cell if isinstance(cell, list) else [cell]
    labels = [" ".join(label.split()) for text in texts for label in text_of(text).split("#;#")]
    dropped += [label for label in labels if is_missing(label) and (label or texts is cell)]
    return [re.sub(r"^(-?\d+)\.0$", r"\1", label) for label in labels if not is_missing(label)]


def listed(cell: object) -> object:
    """Return a list that is written as JSON, or as Python or NumPy prints it; any other cell as it is."""
    if not isinstance(cell, str) or cell.strip()[:1] not in ("[", "(", "{"):
        return cell
    text = cell.strip()
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(text)
            return list(found) if isinstance(found, list | tuple | set) else cell
        text = NAN.sub(lambda part: part[1] or "None", NO_COMMA.sub(r"\1, \2", text))
    return cell


def is_unreadable(cell: object) -> bool:
    """Return True for labels that are no texts or numbers, or a text like a list that `listed` could not read."""
    items = cell if isinstance(cell, list) else [cell]
    return any(isinstance(item, bytes | dict | list | tuple | set)
               or isinstance(item, str) and bool(PRINTED.fullmatch(item.strip())) for item in items)
