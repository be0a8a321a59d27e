"""Brands, products and shop captions of the rendered world. Every name is invented, every word list our own."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# (name in the label, the brand's other name: captions use the other one, both, or none at times)
BRANDS = (
    ("Ovelune", "欧薇伦"), ("禾沐川", "Hemuch"), ("Tamirra", "塔米蕊"), ("Quisenne", "珂瑟娜"), ("半山雪", "Bansu"),
    ("Brezala", "缤莎岚"), ("Nuvorra", "诺芙雅"), ("云岫堂", "Yunxio"), ("Elquise", "蔼琪诗"), ("Pavirelle", "葩维蕾"),
    ("青柚集", "Qingyo"), ("Zolenne", "卓蓝妮"), ("Hessamy", "荷莎蜜"), ("潮汐语", "Choxy"), ("Yumera", "悠漫拉"),
    ("Kasolin", "卡索琳"), ("松间露", "Sonlu"), ("Dovelane", "朵薇兰"), ("Mirzelle", "蜜芮泽"), ("白鹿漪", "Bailuy"),
    ("Fennaro", "芬纳若"), ("Olisque", "欧莉丝格"), ("苏木记", "Sumoki"), ("Tarrowe", "泰若薇"), ("Vesmira", "微丝蜜"),
    ("桃屿", "Taoyu"), ("Jolvane", "乔梵妮"), ("Ruquelle", "如珂尔"), ("南枝坊", "Nanzif"), ("Almoire", "爱慕瓦"),
    ("Wenmira", "雯蜜拉"), ("月见洲", "Yuejz"), ("Belquor", "贝蔻尔"), ("Isomarne", "伊索曼"), ("溪禾", "Xiherb"),
    ("Thessara", "泰莎罗"), ("Lacovine", "莱可妃"), ("琥珀年", "Hupone"), ("Harumel", "花露沫"), ("Pelluvia", "蓓露薇"),
)
LINES = tuple((
    "雪绒花 水漾 晨露 玉参 海茵 金盏花 白茶 黑松露 红玫瑰 山茶花 积雪草 燕麦 鱼子 冰川 蓝铜 烟酰胺 臻颜 凝时 焕采 净澈 柔光 丝绒 琉璃 星河 "
    "绿豆 桃胶 红石榴 薏仁 樱花 乳木果 稻米 青梅 月光 珍珠 胶原 银耳 竹炭 椰香 薰衣草 沁水 紧塑 舒敏 赋活 密集 清颜 雾感 流金 木槿 海盐 无花果"
).split())
CLAIMS = tuple("保湿 修护 亮肤 紧致 清爽 滋养 倍润 透白 舒缓 控油 柔润 多效 丰盈 轻盈".split())


@dataclass(frozen=True)
class Variant:
    """What sets siblings apart: a shade (`rgb`), or a size (`scale` of the drawing, printed `mark`)."""
    name: str
    mark: str = ""
    rgb: tuple[int, int, int] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Kind:
    """A kind of product: its Chinese names, their short forms in captions, Latin word and silhouettes."""
    names: tuple[str, ...]
    short: tuple[str, ...]
    latin: str
    silhouettes: tuple[str, ...]
    variants: str = ""  # "", "lip", "skin", "scent" or "size"


KINDS = {
    "toner": Kind(("爽肤水", "柔肤水", "精华水"), ("水", "水乳"), "TONER", ("bottle", "flask")),
    "lotion": Kind(("乳液", "精华乳"), ("乳", "水乳"), "LOTION", ("pump", "bottle")),
    "serum": Kind(("精华液", "原液", "肌底液"), ("精华",), "SERUM", ("dropper", "pump")),
    "cream": Kind(("面霜", "晚霜", "日霜"), ("霜", "水乳霜"), "CREAM", ("jar",)),
    "eye": Kind(("眼霜", "眼部精华"), ("眼霜",), "EYE CARE", ("jar", "tube")),
    "cleanser": Kind(("洁面乳", "洗面奶", "洁面膏"), ("洁面", "洗面奶"), "CLEANSER", ("tube", "pump")),
    "mask": Kind(("面膜", "睡眠面膜"), ("面膜",), "MASK", ("sachet", "box")),
    "sunscreen": Kind(("防晒霜", "防晒乳"), ("防晒",), "SUN SPF50+", ("tube", "flask")),
    "mist": Kind(("喷雾", "保湿喷雾"), ("喷雾",), "MIST", ("spray",), "size"),
    "remover": Kind(("卸妆水", "卸妆油"), ("卸妆",), "REMOVER", ("pump", "bottle"), "size"),
    "lipstick": Kind(("口红", "唇膏"), ("口红",), "ROUGE", ("lipstick",), "lip"),
    "gloss": Kind(("唇釉", "唇蜜"), ("唇釉",), "GLOSS", ("gloss",), "lip"),
    "cushion": Kind(("气垫", "粉饼"), ("气垫", "底妆"), "CUSHION", ("compact",), "skin"),
    "foundation": Kind(("粉底液",), ("粉底",), "FLUID", ("flask", "pump"), "skin"),
    "hand": Kind(("护手霜",), ("护手",), "HAND CREAM", ("tube",), "scent"),
    "shower": Kind(("沐浴露", "身体乳"), ("沐浴",), "BODY", ("pump",), "scent"),
    "shampoo": Kind(("洗发水", "护发素"), ("洗护",), "HAIR", ("pump", "tube"), "scent"),
    "perfume": Kind(("香水", "淡香水"), ("香氛",), "PARFUM", ("perfume",), "size"),
}
RANGES = {  # what one line of a brand may hold
    "care": ("toner", "lotion", "serum", "cream", "eye", "cleanser", "mask", "sunscreen"),
    "colour": ("lipstick", "gloss", "cushion", "foundation"),
    "body": ("hand", "shower", "shampoo", "perfume", "mist", "remover"),
}
VARIANTS = {
    "": (Variant(""),),
    "lip": (Variant("豆沙", "01", (176, 84, 86)), Variant("正红", "02", (190, 24, 40)), Variant("枫叶", "03", (158, 52, 34)),
            Variant("樱粉", "05", (228, 116, 142)), Variant("蜜橘", "08", (232, 96, 60)), Variant("梅子", "11", (122, 28, 62))),
    "skin": (Variant("象牙白", "10", (243, 220, 198)), Variant("自然色", "21", (230, 192, 158)),
             Variant("暖杏", "23", (214, 164, 122))),
    "scent": (Variant("茉莉", "A", (250, 244, 206)), Variant("蜜桃", "B", (250, 186, 168)),
              Variant("青柠", "C", (196, 224, 130)), Variant("紫苏", "D", (186, 160, 214))),
    "size": (Variant("50ml", "50ml", None, 0.78), Variant("120ml", "120ml", None, 1.0)),
}


@dataclass(frozen=True)
class Product:
    """One product. `line` counts within the brand; `look` is the line whose colours it wears (twin lines share)."""
    brand: int
    line: int
    look: int
    kind: str
    silhouette: str
    variant: Variant
    line_name: str
    claim: str
    name: str

    @property
    def label(self) -> str:
        return f"{BRANDS[self.brand][0]} {self.name}"


def _line_products(brand: int, line: int, look: int, line_name: str, rng: np.random.Generator) -> list[Product]:
    """The products of one line: 3 to 6 kinds of care, or one or two kinds in several shades, scents or sizes."""
    group = str(rng.choice(["care", "colour", "body"], p=[0.62, 0.25, 0.13]))
    kinds = list(RANGES[group])
    count = int(rng.integers(4, 7)) if group == "care" else 2
    claim = str(rng.choice(CLAIMS))
    products = []
    for kind in sorted(rng.permutation(kinds)[:count], key=kinds.index):
        spec = KINDS[kind]
        noun, silhouette = str(rng.choice(spec.names)), str(rng.choice(spec.silhouettes))
        said = claim if rng.random() < 0.4 and not spec.variants else ""
        variants = VARIANTS[spec.variants]
        for v in sorted(rng.permutation(len(variants))[:4]):
            name = f"{line_name}{said}{noun}{variants[v].name}"
            products.append(Product(brand, line, look, kind, silhouette, variants[v], line_name, said, name))
    return products


def _brand_products(brand: int, count: int, rng: np.random.Generator) -> list[Product]:
    names, products, look = rng.permutation(LINES), [], 0
    for line in range(count):
        # a third of the lines copy the colours of the line before: only the lettering tells them apart
        look = line if line == 0 or rng.random() > 0.33 else look
        products += _line_products(brand, line, look, str(names[line]), rng)
        if len(products) >= count:
            return products[:count]
    raise AssertionError("every line adds products")


def brand_sizes(total: int, brands: int) -> list[int]:
    """Products per brand, few large brands and many small ones, each at least 3, adding up to `total`."""
    share = 1.0 / (np.arange(brands) + 5.0)
    sizes = np.maximum(3, np.floor(share / share.sum() * total)).astype(int)
    sizes[0] += total - sizes.sum()
    return sizes.tolist()


def make_products(total: int, brands: int, seed: int) -> list[Product]:
    """`total` different products of the first `brands` brands, in random order (so any slice mixes brands)."""
    rng = np.random.default_rng([seed, 101])
    products = [p for b, n in enumerate(brand_sizes(total, brands)) for p in _brand_products(b, n, rng)]
    return [products[i] for i in rng.permutation(len(products))]


# ---- captions ----
PROMISES = tuple("补水 保湿 提亮肤色 淡化细纹 抗皱 紧致毛孔 温和不刺激 深层滋润 锁水 显白 不拔干 修护屏障 清透 持久 舒缓泛红 抗氧化 去黄气 细腻 服帖 水润".split())
PEOPLE = tuple("女士 学生党 敏感肌 男女通用 干皮 油皮 孕妇可用 妈妈 全肤质 熬夜党 送女友 旅行".split())
SALES = tuple("正品 包邮 官方旗舰店 专柜 现货 代购 新款 礼盒 保税仓 限量 特惠 直播同款 正装 授权 国货 清仓 顺丰 小众 高颜值 网红爆款 护肤品 化妆品".split())
NUMBERS = tuple("2024新款 买1送1 第2件半价 30ml 24小时 50g 100ml 7天无理由 15ml 限时8折 99元 新版2代 3瓶装 120ml 80ml 1支".split())
LATIN = tuple("SPF50 VC VE DHC美 ins风 PRO MINI hot Q10 PA+++ gift NEW".replace(" DHC美", "").split())
GIFTS = tuple("送小样 赠面膜 送化妆棉 赠旅行装 送眼霜小样 赠发带 送口红 送收纳包 赠精华小样 送洁面".split())
SET_WORDS = tuple("套装 套盒 礼盒装 组合 护肤套装 全套".split())
COUNT_WORDS = {1: ("单支", "一瓶", "1件"), 2: ("两件套", "2件套", "2件装"), 3: ("三件套", "3件套", "3件套装"), 4: ("四件套", "4件套"),
               5: ("五件套", "5件套装"), 6: ("六件套", "6件套"), 7: ("七件套", "7件套")}


@dataclass(frozen=True)
class CaptionSettings:
    """How often a caption says what; fitted to the published Product1M dev and test lists."""
    # inverse distribution of caption lengths, in characters
    shares: tuple[float, ...] = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.95, 0.99, 1.0)
    lengths: tuple[float, ...] = (7, 9, 21, 25, 30, 32, 35, 39, 42, 54)
    brand: float = 0.885    # the label's brand name stands in the caption
    both: float = 0.12      # ... together with the brand's other name
    other: float = 0.55     # where it does not: the other name does
    line: float = 0.64
    kind: float = 0.62
    short: float = 0.45     # a mentioned kind is given by its short form
    claim: float = 0.30
    variant: float = 0.55
    number: float = 0.34    # a number among the filler, apart from set counts
    latin: float = 0.10
    decoy: float = 0.10     # names another line, kind or shade of the brand that the photo doesn't show
    gift: float = 0.22      # promises a gift that the photo doesn't show
    listing: float = 0.30   # names product by product instead of once for the set
    spaces: float = 0.40


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _brand_words(brand: int, s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    name, other = BRANDS[brand]
    if rng.random() < s.brand:
        shown = name.lower() if rng.random() < 0.1 else name
        return [f"{shown}/{other}" if rng.random() < s.both else shown]
    return [other] if rng.random() < s.other else []


def _product_words(product: Product, s: CaptionSettings, care: float, rng: np.random.Generator) -> list[str]:
    """Kind, claim and variant of one product, each only at times; `care` in [-1, 1] is the seller's diligence."""
    kind, words = KINDS[product.kind], []
    if rng.random() < s.claim + 0.3 * care and product.claim:
        words.append(product.claim)
    if rng.random() < s.kind + 0.35 * care:
        noun = product.name.removeprefix(product.line_name + product.claim).removesuffix(product.variant.name)
        words.append(_pick(rng, kind.short) if rng.random() < s.short - 0.4 * care else noun)
    if product.variant.name and rng.random() < s.variant + 0.35 * care:
        words.append(product.variant.name)
    return words


def _mentions(products: list[Product], s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """What the caption says of the products themselves: line by line, each named once or product by product."""
    care, words = float(rng.uniform(-1, 1)), []
    listing = rng.random() < s.listing
    for line in dict.fromkeys(p.line_name for p in products):
        named = rng.random() < s.line + 0.35 * care
        for n, product in enumerate(p for p in products if p.line_name == line):
            said = _product_words(product, s, care, rng)
            if named and (n == 0 or (listing and said)):
                said = [line, *said]
            words.append("".join(said))
    return [w for w in dict.fromkeys(words) if w]


def _filler(photo_count: int, decoys: list[Product], s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """Words that every caption may hold: set words, gifts, numbers, promises, wrong products."""
    words = []
    if decoys and rng.random() < s.decoy:
        other = decoys[int(rng.integers(len(decoys)))]
        words.append(other.line_name if rng.random() < 0.5 else _pick(rng, KINDS[other.kind].short))
    if rng.random() < (0.6 if photo_count > 1 else 0.15):
        words.append(_pick(rng, COUNT_WORDS[min(photo_count, 7)]) if rng.random() < 0.6 else _pick(rng, SET_WORDS))
    for chance, pool in ((s.gift, GIFTS), (s.number, NUMBERS), (s.latin, LATIN)):
        if rng.random() < chance:
            words.append(_pick(rng, pool))
    return words


@lru_cache(maxsize=1)
def _padding() -> tuple[str, ...]:
    return PROMISES + PEOPLE + SALES


def _fit(words: list[str], length: int) -> list[str]:
    """The words that still fit into `length` characters, in order."""
    kept, used = [], 0
    for word in words:
        if used + len(word) <= length:
            kept.append(word)
            used += len(word)
    return kept


def _join(words: list[str], length: int, spaced: bool, rng: np.random.Generator) -> str:
    """Words to one title, with a few spaces or a plus where the length leaves room for them."""
    room, text = length - sum(map(len, words)), words[0]
    for before, word in zip(words, words[1:], strict=False):
        latin = before[-1].isascii() and word[0].isascii()
        if room > 0 and (latin or (spaced and rng.random() < 0.45)):
            text += " " if latin or rng.random() < 0.8 else "+"
            room -= 1
        text += word
    return text


def caption(products: list[Product], count: int, decoys: list[Product], rng: np.random.Generator,
            settings: CaptionSettings = CaptionSettings()) -> str:
    """A shop title for a photo that shows `products` (distinct, one brand) as `count` pieces; at most 54 characters.

    `decoys` are products of the same brand that the photo does not show. The title names brand, lines, kinds
    and variants only in part, and is filled with promotion up to a length drawn from the real distribution.
    """
    s = settings
    length = int(round(float(np.interp(rng.random(), s.shares, s.lengths))))
    order = [products[i] for i in rng.permutation(len(products))]
    core = _fit(_brand_words(products[0].brand, s, rng) + _mentions(order, s, rng), length)
    extra = _filler(count, decoys, s, rng)
    padding = [_padding()[i] for i in rng.permutation(len(_padding()))[:12]]
    extra = _fit(extra + padding, max(length - sum(map(len, core)) - 1, 0))
    cut = int(rng.integers(0, 3)) if len(extra) > 2 else 0
    words = extra[:cut] + core + [extra[i + cut] for i in rng.permutation(len(extra) - cut)]
    return _join(words or [_pick(rng, SALES)], length, rng.random() < s.spaces, rng)
