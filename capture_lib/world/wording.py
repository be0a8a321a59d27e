"""Brands, products and shop captions of the rendered world. Every name is invented, every word list our own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# name in the label, and the brand's other name, which some captions use instead or as well
BRANDS = (
    ("Ovelune", "欧薇伦"), ("禾沐川", "Hemuch"), ("Tamirra", "塔米蕊"), ("半山雪", "Bansu"), ("Quisenne", "珂瑟娜"),
    ("Brezala", "缤莎岚"), ("云岫堂", "Yunxio"), ("Nuvorra", "诺芙雅"), ("Elquise", "蔼琪诗"), ("青柚集", "Qingyo"),
    ("Pavirelle", "葩维蕾"), ("Zolenne", "卓蓝妮"), ("Hessamy", "荷莎蜜"), ("潮汐语", "Choxy"), ("Yumera", "悠漫拉"),
    ("Kasolin", "卡索琳"), ("松间露", "Sonlu"), ("Dovelane", "朵薇兰"), ("Mirzelle", "蜜芮泽"), ("白鹿漪", "Bailuy"),
    ("Fennaro", "芬纳若"), ("Olisque", "欧莉丝格"), ("苏木记", "Sumoki"), ("Tarrowe", "泰若薇"), ("Vesmira", "微丝蜜"),
    ("桃屿", "Taoyu"), ("Jolvane", "乔梵妮"), ("Ruquelle", "如珂尔"), ("南枝坊", "Nanzif"), ("Almoire", "爱慕瓦"),
    ("Wenmira", "雯蜜拉"), ("月见洲", "Yuejz"), ("Belquor", "贝蔻尔"), ("Isomarne", "伊索曼"), ("溪禾", "Xiherb"),
    ("Thessara", "泰莎罗"), ("Lacovine", "莱可妃"), ("琥珀年", "Hupone"), ("Harumel", "花露沫"), ("Pelluvia", "蓓露薇"),
)
LINES = tuple(
    "雪绒花 水漾 晨露 玉参 海茵 金盏花 白茶 黑松露 红玫瑰 山茶花 积雪草 燕麦 鱼子 冰川 蓝铜 烟酰胺 臻颜 凝时 焕采 "
    "净澈 柔光 丝绒 琉璃 星河 绿豆 桃胶 红石榴 薏仁 樱花 乳木果 稻米 青梅 月光 珍珠 胶原 银耳 竹炭 椰香 薰衣草 沁水 "
    "紧塑 舒敏 赋活 密集 清颜 雾感 流金 木槿 海盐 无花果".split())
CLAIMS = tuple("保湿 修护 亮肤 紧致 清爽 滋养 倍润 透白 舒缓 控油 柔润 多效 丰盈 轻盈".split())


@dataclass(frozen=True)
class Variant:
    """What sets siblings apart: a shade or scent (`rgb`), or a size (`scale`); `mark` is printed on the product."""

    name: str
    mark: str = ""
    rgb: tuple[int, int, int] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Kind:
    """A kind of product: Chinese names, their short forms in captions, and on the product the word and the amount."""

    names: tuple[str, ...]
    short: tuple[str, ...]
    latin: str
    amount: str
    silhouettes: tuple[str, ...]
    variants: str = ""  # key of VARIANTS


# toner, lotion, serum and the like of one line often come in one and the same bottle: they share silhouettes
KINDS = {
    "toner": Kind(
        ("爽肤水", "柔肤水", "精华水"), ("水", "水乳"), "TONER", "150ml", ("bottle", "flask", "vase", "pump")),
    "lotion": Kind(
        ("乳液", "精华乳"), ("乳", "水乳"), "LOTION", "120ml", ("pump", "bottle", "flask", "vase", "airless")),
    "serum": Kind(("精华液", "原液", "肌底液"), ("精华",), "SERUM", "30ml", ("dropper", "pump", "airless", "bottle")),
    "cream": Kind(("面霜", "晚霜", "日霜"), ("霜", "水乳霜"), "CREAM", "50g", ("jar", "pot", "tin", "airless")),
    "eye": Kind(("眼霜", "眼部精华"), ("眼霜",), "EYE CARE", "15g", ("pot", "slimtube", "dropper")),
    "cleanser": Kind(("洁面乳", "洗面奶", "洁面膏"), ("洁面", "洗面奶"), "CLEANSER", "100g", ("tube", "pump", "flask")),
    "mask": Kind(("面膜", "睡眠面膜"), ("面膜",), "MASK", "25ml x 5", ("sachet", "box")),
    "sunscreen": Kind(("防晒霜", "防晒乳"), ("防晒",), "SUN SPF50+", "50ml", ("tube", "flask", "stick")),
    "ampoule": Kind(("安瓶", "安瓶精华"), ("安瓶", "精华"), "AMPOULE", "2ml x 7", ("ampoule",)),
    "giftset": Kind(("礼盒", "护肤礼盒"), ("礼盒",), "GIFT SET", "3 PCS", ("giftbox", "giftopen")),
    "mist": Kind(("喷雾", "保湿喷雾"), ("喷雾",), "MIST", "", ("spray", "bottle"), "size"),
    "remover": Kind(("卸妆水", "卸妆油"), ("卸妆",), "REMOVER", "", ("pump", "bottle", "flask"), "size"),
    "lipstick": Kind(("口红", "唇膏"), ("口红",), "ROUGE", "3.5g", ("lipstick",), "lip"),
    "gloss": Kind(("唇釉", "唇蜜"), ("唇釉",), "GLOSS", "5ml", ("gloss",), "lip"),
    "cushion": Kind(("气垫", "粉饼"), ("气垫", "底妆"), "CUSHION", "15g", ("compact",), "skin"),
    "foundation": Kind(("粉底液",), ("粉底",), "FLUID", "30ml", ("flask", "pump", "airless", "dropper"), "skin"),
    "palette": Kind(("眼影盘", "眼影"), ("眼影",), "EYE PALETTE", "9g", ("palette", "quad"), "eye"),
    "mascara": Kind(("睫毛膏",), ("睫毛膏",), "MASCARA", "8ml", ("mascara", "wand"), "lash"),
    "brow": Kind(("眉笔", "眼线笔"), ("眉笔",), "BROW", "0.2g", ("pencil",), "lash"),
    "hand": Kind(("护手霜",), ("护手",), "HAND CREAM", "60g", ("tube", "slimtube", "tin"), "scent"),
    "shower": Kind(("沐浴露", "身体乳"), ("沐浴",), "BODY", "400ml", ("pump", "bottle"), "scent"),
    "shampoo": Kind(("洗发水", "护发素"), ("洗护",), "HAIR", "380ml", ("pump", "tube", "bottle"), "scent"),
    "soap": Kind(("洗手液",), ("洗手液",), "HAND WASH", "300ml", ("pump",), "scent"),
    "balm": Kind(("润唇膏", "护唇膏"), ("润唇膏",), "LIP BALM", "4g", ("stick", "tin"), "scent"),
    "perfume": Kind(("香水", "淡香水"), ("香氛",), "PARFUM", "", ("perfume", "vase", "spray"), "size"),
}
RANGES = {  # what one line of a brand may hold
    "care": ("toner", "lotion", "serum", "cream", "eye", "cleanser", "mask", "sunscreen", "ampoule", "giftset"),
    "colour": ("lipstick", "gloss", "cushion", "foundation", "palette", "mascara", "brow"),
    "body": ("hand", "shower", "shampoo", "perfume", "mist", "remover", "soap", "balm"),
}
VARIANTS = {
    "": (Variant(""),),
    "lip": (
        Variant("豆沙", "01", (176, 84, 86)), Variant("正红", "02", (190, 24, 40)),
        Variant("枫叶", "03", (158, 52, 34)), Variant("樱粉", "05", (228, 116, 142)),
        Variant("蜜橘", "08", (232, 96, 60)), Variant("梅子", "11", (122, 28, 62)),
    ),
    "skin": (
        Variant("象牙白", "10", (243, 220, 198)), Variant("自然色", "21", (230, 192, 158)),
        Variant("暖杏", "23", (214, 164, 122)),
    ),
    "eye": (
        Variant("大地色", "E1", (158, 112, 80)), Variant("蜜桃粉", "E2", (226, 142, 122)),
        Variant("玫瑰棕", "E3", (164, 90, 96)), Variant("烟熏灰", "E4", (112, 106, 118)),
    ),
    "lash": (Variant("黑色", "BK", (30, 28, 32)), Variant("棕色", "BR", (104, 66, 44))),
    "scent": (
        Variant("茉莉", "A", (250, 244, 206)), Variant("蜜桃", "B", (250, 186, 168)),
        Variant("青柠", "C", (196, 224, 130)), Variant("紫苏", "D", (186, 160, 214)),
    ),
    "volume": (Variant("旅行装", "30ml", None, 0.74), Variant("家用装", "200ml", None, 1.0)),
    "size": (Variant("50ml", "50ml", None, 0.78), Variant("120ml", "120ml", None, 1.0)),
}

RARE = {"giftset": 0.25, "ampoule": 0.4}  # how often a line holds them, against other kinds
BOTTLES = ("bottle", "flask", "pump", "airless", "vase")  # what a line of care may use for all that flows
ONE_BOTTLE = 0.6  # share of the lines that do: lettering and size alone tell their products apart
TWO_SIZES = 0.25  # share of the kinds without shades that a line sells in two sizes, but for these:
ONE_SIZE = ("mask", "ampoule", "giftset")
TWIN_LINES = 0.5  # share of the lines that wear the dress of the line before: only the line's name differs


@dataclass(frozen=True)
class Product:
    """One product. `line` counts within the brand; `look` is the line whose dress it wears (twin lines share one)."""

    brand: int
    line: int
    look: int
    kind: str
    silhouette: str
    variant: Variant
    line_name: str
    claim: str
    noun: str  # the kind as the name has it

    @property
    def name(self) -> str:
        """Line, claim, noun and variant in one."""
        return f"{self.line_name}{self.claim}{self.noun}{self.variant.name}"

    @property
    def label(self) -> str:
        """Brand and name, as the released lists write labels."""
        return f"{BRANDS[self.brand][0]} {self.name}"


def make_products(total: int, brands: int, seed: int) -> list[Product]:
    """`total` different products of the first `brands` brands, in random order (so any slice mixes brands)."""
    rng = np.random.default_rng([seed, 101])
    products = [p for b, n in enumerate(brand_sizes(total, brands)) for p in _brand_products(b, n, rng)]
    return [products[i] for i in rng.permutation(len(products))]


def brand_sizes(total: int, brands: int) -> list[int]:
    """Products per brand, few large brands and many small ones, adding up to `total`, each at least 2.

    The published lists' 392 labels have 40 brands: 53, 29, 29, 27, 27, 21, ... , 2, 1 labels.
    """
    share = (np.arange(brands) + 18.0) ** -2.6
    sizes = np.maximum(2, np.floor(share / share.sum() * total)).astype(int)
    sizes[0] += total - sizes.sum()
    return sizes.tolist()


def _brand_products(brand: int, count: int, rng: np.random.Generator) -> list[Product]:
    """Line after line until the brand has `count` products; some lines are the twin of the line before."""
    names, products, last = rng.permutation(LINES).tolist(), [], []
    for line in range(count):
        twin = bool(last) and rng.random() < TWIN_LINES
        last = _twins(last, line, names[line], rng) if twin else _line_products(brand, line, names[line], rng)
        products += last
        if len(products) >= count:
            break
    return products[:count]


def _line_products(brand: int, line: int, line_name: str, rng: np.random.Generator) -> list[Product]:
    """The products of one line: 4 to 6 kinds of care, or two kinds in up to four shades, scents or sizes each."""
    group = str(rng.choice(list(RANGES), p=[0.62, 0.25, 0.13]))
    count, claim = int(rng.integers(4, 7)) if group == "care" else 2, str(rng.choice(CLAIMS))
    bottle = str(rng.choice(BOTTLES)) if rng.random() < ONE_BOTTLE else ""
    products = []
    weights = np.array([RARE.get(kind, 1.0) for kind in RANGES[group]])
    for kind in rng.choice(RANGES[group], count, replace=False, p=weights / weights.sum()).tolist():
        spec = KINDS[kind]
        forms = [bottle] if bottle in spec.silhouettes else spec.silhouettes
        noun, silhouette = str(rng.choice(spec.names)), str(rng.choice(forms))
        two_sizes = kind not in ONE_SIZE and rng.random() < TWO_SIZES
        variants = VARIANTS[spec.variants or ("volume" if two_sizes else "")]
        said = claim if rng.random() < 0.8 and len(variants) == 1 else ""
        for v in rng.permutation(len(variants))[:4].tolist():
            products.append(Product(brand, line, line, kind, silhouette, variants[v], line_name, said, noun))
    return products


def _twins(line: list[Product], number: int, line_name: str, rng: np.random.Generator) -> list[Product]:
    """A line that copies the look of another: most of its products, under another line's name."""
    chosen = sorted(rng.permutation(len(line))[:max(1, len(line) * 2 // 3)].tolist())
    return [replace(line[i], line=number, line_name=line_name) for i in chosen]


# what siblings have in common, by what sets them apart: the shade or scent, the size, or the line
COMMON = {
    "shade": lambda p: (p.brand, p.line, p.kind, p.noun, p.silhouette, p.variant.scale, p.variant.rgb is None),
    "size": lambda p: (p.brand, p.line, p.kind, p.noun, p.silhouette, p.variant.rgb),
    "line": lambda p: (p.brand, p.look, p.kind, p.noun, p.silhouette, p.claim, p.variant),
}


def siblings(products: Sequence[Product]) -> dict[str, int]:
    """How many products have a sibling that differs in its shade or scent alone, its size alone, its line alone."""
    groups = {name: Counter(map(common, products)) for name, common in COMMON.items()}
    return {name: sum(count for count in group.values() if count > 1) for name, group in groups.items()}


def as_one(products: Sequence[Product], sort: str) -> dict[str, str]:
    """Labels, with those of siblings of a sort ("shade", "size" or "line") all turned into that of the first."""
    first = {COMMON[sort](product): product.label for product in reversed(products)}
    return {product.label: first[COMMON[sort](product)] for product in products}


# ---- captions
PROMISES = tuple(
    "补水 保湿 提亮肤色 淡化细纹 抗皱 紧致毛孔 温和不刺激 深层滋润 锁水 显白 不拔干 修护屏障 清透 持久 舒缓泛红 抗氧化 "
    "去黄气 细腻 服帖 水润".split())
PEOPLE = tuple("女士 学生党 敏感肌 男女通用 干皮 油皮 孕妇可用 妈妈 全肤质 熬夜党 送女友 旅行".split())
SALES = tuple(
    "正品 包邮 官方旗舰店 专柜 现货 代购 新款 礼盒 保税仓 限量 特惠 直播同款 正装 授权 国货 清仓 顺丰 小众 高颜值 "
    "网红爆款 护肤品 化妆品".split())
PADDING = PROMISES + PEOPLE + SALES
NUMBERS = tuple(
    "2024新款 买1送1 第2件半价 30ml 24小时 100ml 7天无理由 15ml 限时8折 99元 新版2代 3瓶装 16岁以上 5片 "
    "1支 88元".split())
LATIN = tuple("SPF50 VC VE ins风 PRO MINI hot Q10 PA+++ gift NEW".split())
GIFTS = tuple("送小样 赠面膜 送化妆棉 赠旅行装 送眼霜小样 赠发带 送口红 送收纳包 赠精华小样 送洁面".split())
SETS = tuple("套装 套盒 礼盒装 组合 护肤套装 全套".split())
COUNTS = (("单支", "一瓶", "1件"), ("两件套", "2件套", "2件装"), ("三件套", "3件套", "3件套装"), ("四件套", "4件套"),
          ("五件套", "5件套装"), ("六件套", "6件套"), ("七件套", "7件套"))


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


def caption(products: list[Product], count: int, decoys: list[Product], rng: np.random.Generator,
            settings: CaptionSettings | None = None) -> str:
    """A shop title for a photo that shows `products` (distinct, of one brand) as `count` pieces; 54 characters at most.

    `decoys` are products of the same brand, shown or not. The title names brand, lines, kinds and variants only
    in part, and is filled with promotion up to a length drawn from the published captions.
    """
    s = settings or CaptionSettings()
    length = round(float(np.interp(rng.random(), s.shares, s.lengths)))
    shown = [products[i] for i in rng.permutation(len(products))]
    core = _fitting(_brand_words(products[0].brand, s, rng) + _mentions(shown, s, rng), length)
    room = length - sum(map(len, core))
    padding = [PADDING[i] for i in rng.permutation(len(PADDING))[:30]]
    extra = _fitting(_filler(count, decoys, s, rng) + padding, room - min(room, int(rng.integers(3))))
    first = int(rng.integers(0, 3))  # words before the brand
    words = extra[:first] + core + [extra[first:][i] for i in rng.permutation(len(extra[first:]))]
    return _joined(words or [_pick(rng, SALES)], length, rng.random() < s.spaces, rng)


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _brand_words(brand: int, s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """The brand in most captions, now and then in small letters, with or by its other name; nothing in a few."""
    name, other = BRANDS[brand]
    if rng.random() < s.brand:
        shown = name.lower() if rng.random() < 0.1 else name
        return [f"{shown}/{other}" if rng.random() < s.both else shown]
    return [other] if rng.random() < s.other else []


def _mentions(products: list[Product], s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """What the caption says of the products, line by line; a careless seller leaves out more."""
    care, listing, words = s.care * float(rng.uniform(-1, 1)), rng.random() < s.listing, []
    for line in dict.fromkeys(product.line_name for product in products):
        named = rng.random() < s.line + care
        for n, product in enumerate(p for p in products if p.line_name == line):
            said = _product_words(product, s, care, rng)
            words.append("".join([line, *said] if named and (n == 0 or (listing and said)) else said))
    return [word for word in dict.fromkeys(words) if word]


def _product_words(product: Product, s: CaptionSettings, care: float, rng: np.random.Generator) -> list[str]:
    """Claim (its own or another), kind and variant of one product, each only at times."""
    words = []
    if product.claim and rng.random() < s.claim + care:
        words.append(product.claim)
    elif rng.random() < s.other_claim:
        words.append(_pick(rng, CLAIMS))
    if rng.random() < s.kind + care:
        words.append(_pick(rng, KINDS[product.kind].short) if rng.random() < s.short - care else product.noun)
    if product.variant.name and rng.random() < s.variant + care:
        words.append(product.variant.name)
    return words


def _filler(count: int, decoys: list[Product], s: CaptionSettings, rng: np.random.Generator) -> list[str]:
    """Words that any caption may hold: a wrong product, a set or its count, a gift, a number, a Latin word."""
    words = []
    if rng.random() < s.decoy:
        other = decoys[int(rng.integers(len(decoys)))]
        words.append(other.line_name if rng.random() < 0.5 else _pick(rng, KINDS[other.kind].short))
    if rng.random() < (0.6 if count > 1 else 0.15):
        words.append(_pick(rng, COUNTS[min(count, len(COUNTS)) - 1] if rng.random() < 0.6 else SETS))
    chances = ((s.gift, GIFTS), (s.number, NUMBERS), (s.latin, LATIN))
    return words + [_pick(rng, pool) for chance, pool in chances if rng.random() < chance]


def _fitting(words: list[str], length: int) -> list[str]:
    """The words that still fit into `length` characters, in order."""
    kept, used = [], 0
    for word in words:
        if used + len(word) <= length:
            kept.append(word)
            used += len(word)
    return kept


def _joined(words: list[str], length: int, spaced: bool, rng: np.random.Generator) -> str:
    """The words as one title, with spaces or a plus as long as `length` has room for them."""
    room, text = length - sum(map(len, words)), words[0]
    for word in words[1:]:
        latin = text[-1].isascii() and word[0].isascii()
        if room > 0 and (latin or (spaced and rng.random() < 0.5)):
            text += " " if latin or rng.random() < 0.85 else "+"
            room -= 1
        text += word
    return text
