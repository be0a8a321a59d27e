"""What the text of a product label says: "BRAND line, claim, kind and shade".

It is read from the text alone, so it works for the drawn world and for Product1M's lists. Where
a label does not say its brand or its kind, that is unknown, and nothing is made up.
"""

from dataclasses import dataclass
from functools import lru_cache

# general words of cosmetics shops; of those in a label, the one that ends last says the kind
KIND_WORDS = {
    "toner": "水 爽肤水 柔肤水 化妆水 洁肤水 润肤水 精华水",
    "lotion": "乳 乳液 精华乳 保湿乳 润肤乳",
    "serum": "精华 精华液 精华露 精华油 原液 肌底液 美容液",
    "cream": "霜 面霜 日霜 晚霜 凝霜",
    "eye care": "眼霜 眼部精华",
    "cleanser": "洁面 洁面乳 洁面膏 洁面霜 洁面啫喱 洁面皂 洗面奶 洗颜霜",
    "mask": "面膜",
    "sunscreen": "防晒 防晒霜 防晒乳 防晒液",
    "ampoule": "安瓶 安瓶精华",
    "gift set": "礼盒",
    "mist": "喷雾",
    "remover": "卸妆水 卸妆油 卸妆乳 卸妆啫喱",
    "lipstick": "口红 唇膏",
    "lip gloss": "唇釉 唇蜜",
    "lip balm": "润唇膏 护唇膏",
    "cushion, powder": "气垫 粉饼",
    "foundation": "粉底 粉底液",
    "eye shadow": "眼影 眼影盘",
    "mascara": "睫毛膏",
    "brow, eyeliner": "眉笔 眼线笔",
    "hand cream": "护手霜",
    "body care": "沐浴露 身体乳 身体霜",
    "hair care": "洗发水 护发素",
    "hand wash": "洗手液",
    "perfume": "香水",
}
KIND_OF = {word: kind for kind, words in KIND_WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class Named:
    """What a label says; brand and kind are empty where it doesn't."""

    brand: str
    kind: str
    product: str  # the label up to its kind: without size, shade or scent


@lru_cache(maxsize=100_000)
def parse_label(label: str) -> Named:
    """Return brand, kind and product of a label.

    The brand is the first of several words, the kind the word of `KIND_OF` that ends last; of
    two that end there, the longer one.
    """
    brand, _, name = label.strip().partition(" ")
    if not name.strip():  # a single word names no brand
        brand = ""
        name = label
    ends = [(name.rfind(word) + len(word), len(word), word) for word in KIND_OF if word in name]
    if not ends:
        return Named(brand, "", label)
    end, _, word = max(ends)
    return Named(brand, KIND_OF[word], f"{brand} {name[:end].strip()}".strip())
