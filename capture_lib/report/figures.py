"""One visual language for figures: theme, colours that colour-blind readers can tell apart, a Chinese font.

Matplotlib and fontTools are imported where they are used: constants shall cost nothing.
"""

import base64
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from IPython.display import HTML
from PIL import ExifTags, Image, ImageDraw

from capture_lib.catalog.photos import fit, load_photo
from capture_lib.catalog.quality import printable
from capture_lib.utils import write_atomically

if TYPE_CHECKING:
    from capture_lib.experiments.search import Answer

CHINESE = re.compile(r"[\u2e80-\uffff✓◐○]")  # and the signs of our pages: few fonts have them
# Noto of the package mplfonts, so that no figure depends on the machine's fonts
FONT = Path(find_spec("mplfonts").submodule_search_locations[0]) / "fonts" / "NotoSansCJKsc-Regular.otf"
# seaborn's palette "colorblind", without its grey and its palest; a marker for each
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#ece133")
SIGNS = "osD^vPX*"
RIGHT, OTHER, WRONG, PLAIN = "#0173b2", "#de8f05", "#d55e00", "#949494"  # blue, orange, vermilion, grey
MARKS = {"right": ("✓", RIGHT), "other": ("◐", OTHER), "wrong": ("✗", WRONG), "unknown": ("?", PLAIN)}  # of hits
LEGEND = "✓ this box's product · ◐ another product of the photo · ✗ wrong"
PICTURE_MARK = b"drawn by capture search"  # in every picture of a search
KNOW_NOTHING = ("chance", "popularity")  # rankings that look at no query: grey in every figure
THEME = {  # of matplotlib; looks like seaborn's "whitegrid", whose import takes a second
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC"], "font.size": 12, "text.color": "0.15",
    "figure.figsize": (7, 3.6), "figure.constrained_layout.use": True,
    "axes.titlesize": "medium", "axes.labelcolor": "0.15", "axes.edgecolor": "0.8", "axes.linewidth": 1.25,
    "axes.axisbelow": True, "axes.grid": True, "grid.color": "0.8", "grid.linewidth": 1,
    "xtick.bottom": False, "xtick.color": "0.15", "xtick.labelsize": 11,
    "ytick.left": False, "ytick.color": "0.15", "ytick.labelsize": 11,
    "legend.fontsize": 11, "legend.title_fontsize": 12, "lines.solid_capstyle": "round",
    "patch.edgecolor": "white", "patch.force_edgecolor": True, "svg.hashsalt": "capture"}


def font_face(text: str) -> str:
    """Return a CSS rule with the Chinese glyphs of a text, as "Embedded CJK", to be named first among fonts."""
    from fontTools import subset

    options = subset.Options(flavor="woff", desubroutinize=True, layout_features=[])
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "BASE", "VORG", "vhea", "vmtx"]  # upright text needs none of them
    font = subset.load_font(FONT, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(CHINESE.findall(text)))
    subsetter.subset(font)
    buffer = BytesIO()
    subset.save_font(font, buffer, options)
    source = base64.b64encode(buffer.getvalue()).decode()
    return ('@font-face { font-family: "Embedded CJK"; font-display: block; unicode-range: U+2E80-FFFF, '
            f"U+2713, U+25D0, U+25CB; src: url(data:font/woff;base64,{source}); }}")


def with_font(page: str) -> str:
    """Return an HTML page with the glyphs of its Chinese characters inside, legible on any machine."""
    return page.replace("</head>", f"<style>{font_face(page)}</style></head>", 1)


def setup() -> None:
    """Set theme, palette, Chinese font and reproducible SVG for all figures of a notebook."""
    import matplotlib.pyplot as plt
    from cycler import cycler
    from IPython import get_ipython
    from matplotlib.font_manager import fontManager
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    fontManager.addfont(FONT)
    plt.rcParams.update(THEME | {"axes.prop_cycle": cycler(color=COLOURS)})
    if get_ipython():
        set_matplotlib_formats("svg", metadata={"Date": None})


def thumbnail(photo: np.ndarray, side: int = 160) -> str:
    """Return a photo (H, W, 3) uint8 as the data URI of a WebP whose longer side has `side` pixels at most."""
    small = Image.fromarray(np.ascontiguousarray(photo))
    small.thumbnail((side, side), Image.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery(photos: Sequence, captions: Sequence[str] = (), colours: Sequence[str] = (), side: int = 140) -> HTML:
    """Show photos (H, W, 3) uint8 side by side, each with a line of text below and the colour of its frame."""
    cards = []
    for i, photo in enumerate(photos):
        text = html.escape(captions[i]) if captions else ""
        border = f"3px solid {colours[i]}" if colours else "1px solid #ccc"
        cards.append(
            f'<figure style="margin:4px;width:{side + 8}px;display:inline-block;vertical-align:top">'
            f'<img src="{thumbnail(photo, side)}" alt="" style="border:{border};border-radius:4px;max-width:100%">'
            f'<figcaption style="font-size:12px;line-height:1.3;overflow-wrap:anywhere">{text}</figcaption></figure>')
    return HTML(f'<div>{"".join(cards)}</div>')


def draw_boxes(photo: np.ndarray, boxes: np.ndarray, labels: Sequence[str] = (), colour: str = RIGHT,
               fractions: bool = False, scale: int = 2) -> np.ndarray:
    """Return a copy of a photo (H, W, 3) uint8, `scale` times as large, with boxes and their short Latin labels.

    Boxes (n, 4) are xyxy in pixels, or in `fractions` of width and height; the colour is `#rrggbb`.
    """
    height, width = photo.shape[:2]
    drawn = Image.fromarray(photo).resize((width * scale, height * scale), Image.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    factor = np.array([width, height, width, height]) * scale if fractions else scale
    for i, box in enumerate(np.asarray(boxes, float).reshape(-1, 4) * factor):
        x1, y1, x2, y2 = box.round().tolist()
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=4)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        if labels:
            pen.text((x1 + 4, y1 + 2), labels[i], "white", font_size=16, stroke_width=3, stroke_fill=colour)
    return np.array(drawn)


def draw_answer(answer: "Answer", file: Path) -> None:
    """Save a picture of a search, a row for each instance: the query with its box, then the hits, marked if judged."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    fontManager.addfont(FONT)
    rcParams.update(THEME)
    rows = max(1, len(answer.hits))
    judged = any(hit.mark != "unknown" for hits in answer.hits for hit in hits)
    fig = Figure(figsize=(13.2, 2.6 * rows + 0.6))
    fig.suptitle(answer.how, fontsize="medium", parse_math=False)
    fig.supxlabel(LEGEND if judged else "", fontsize="medium")
    axes = fig.subplots(rows, 6, squeeze=False, subplot_kw={"xticks": [], "yticks": [], "frame_on": False})
    fig.get_layout_engine().set(hspace=0.06)
    photo = fit(answer.photo, 240)
    axes[0, 0].imshow(photo)
    for row, hits in enumerate(answer.hits):
        axes[row, 0].imshow(draw_boxes(photo, answer.boxes[row], [str(row + 1)], fractions=True, scale=1))
        for ax, hit in zip(axes[row, 1:], hits, strict=False):
            ax.imshow(fit(load_photo(hit.path), 240))
            sign, colour = MARKS[hit.mark] if judged else ("", "white")
            label = printable("; ".join(hit.labels))[:14]  # for an SVG may hold no control codes
            ax.set_title(f"{sign} {hit.score:.2f}\n{label}", fontsize="small", parse_math=False)
            ax.set_frame_on(True)
            ax.spines[:].set(color=colour, linewidth=3)
    ending = file.suffix.lower().lstrip(".")
    mark = {"metadata": {"Creator": PICTURE_MARK.decode()}}
    if ending not in ("pdf", "svg"):
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = PICTURE_MARK.decode()
        mark = {"pil_kwargs": {"exif": exif}}
    with write_atomically(file) as beside:
        fig.savefig(beside, format=ending, dpi=80, **mark)


def curves(history: list[dict[str, float]], axes: Sequence, floors: dict[str, float] | None = None) -> None:
    """Draw each loss of a training history over its steps, smoothed, a dashed line at what a guess gives."""
    if not history:  # nothing was trained
        return
    window = max(1, len(history) // 50)
    for ax, name in zip(axes, history[0], strict=True):
        values = np.array([step[name] for step in history])
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        ax.plot(values, color=PLAIN, alpha=0.3, linewidth=0.7, rasterized=True)  # of thousands of steps
        ax.plot(np.arange(len(smooth)) + window / 2, smooth, color=RIGHT)
        if floors and name in floors:
            ax.axhline(floors[name], color=WRONG, linestyle="--", label="uninformed guess")
            ax.legend(fontsize="small")
        ax.set(title=name, xlabel="optimiser step", ylabel="loss", ylim=(0, None))


@cache
def glosses() -> dict[str, str]:
    """Return words of captions with their English."""
    return json.loads(Path(__file__).with_name("glosses.json").read_text(encoding="utf-8"))


def gloss(text: str) -> str:
    """Return the English of what is known in a Chinese text, the longest words first: "face cream · gift box"."""
    words = re.findall("|".join(sorted(map(re.escape, glosses()), key=len, reverse=True)), text)
    return " · ".join(dict.fromkeys(glosses()[word] for word in words))  # each once


def percent(figure: dict[str, float] | None) -> str:
    """Return a fraction with its 95% interval for a sentence: `68.2% [65.9, 70.4]`."""
    if figure is None:
        return "not available"
    return f"{100 * figure['value']:.1f}% [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def brackets(figure: dict[str, float] | None, form: str = ".1f") -> str:
    """Return a fraction with its 95% interval for a table, in percent: `68.2 [65.9, 70.4]`; the middle by any name."""
    if figure is None:
        return "not available"
    middle = next(figure[name] for name in ("value", "mean", "effect") if name in figure)
    value, low, high = (f"{100 * number:{form}}" for number in (middle, figure["low"], figure["high"]))
    return f"{value} [{low}, {high}]"


def points(value: float | None, low: float | None, high: float | None) -> str:
    """Return a difference of fractions in percentage points with its interval: `+2.1 [−0.3, +4.5]`."""
    if value is None:
        return "—"
    return f"{100 * value:+.1f} [{100 * low:+.1f},\u00a0{100 * high:+.1f}]".replace("-", "−")


def forest(series: dict[str, dict[str, dict]], label: str, title: str = "", names: Sequence[str] = ()) -> None:
    """Draw differences of fractions, in points with their intervals: a row a name, a look for each of four series.

    `series`: by legend and by name, `{"value": …, "low": …, "high": …}`. `names`: the rows, if in another order.
    """
    import matplotlib.pyplot as plt

    names = list(names or dict.fromkeys(name for rows in series.values() for name in rows))[::-1]
    every = [name for rows in series.values() for name in rows]
    fig, ax = plt.subplots(figsize=(9, 0.27 * len(names) + 1.4))
    looks = ((RIGHT, "o", RIGHT), (WRONG, "s", "white"), (OTHER, "D", OTHER), (PLAIN, "v", "white"))
    for number, ((legend, rows), (colour, marker, fill)) in enumerate(zip(series.items(), looks, strict=False)):
        # a row that several series share has room for each
        places = [names.index(name) + (0.18 - 0.36 * number) * (every.count(name) > 1) for name in rows]
        low, value, high = (np.array([100 * row[key] for row in rows.values()]) for key in ("low", "value", "high"))
        ax.hlines(places, low, high, color=colour, linewidth=2)
        ax.plot(value, places, marker, color=colour, markerfacecolor=fill, markersize=6, label=legend)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlabel=label, title=title, ylim=(-0.7, len(names) - 0.3))
    ax.set_yticks(range(len(names)), names, fontsize="small")
    fig.legend(ncols=len(series), loc="outside lower center", frameon=False, fontsize="small")
    plt.show()


def diagram(boxes: dict[str, tuple[float, float, str, str]], arrows: Sequence[tuple[str, str]],
            size: tuple[float, float]) -> None:
    """Draw boxes by name, `(column, row, colour, text)` with row 0 on top, and arrows from one to another."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=size)
    columns = [box[0] for box in boxes.values()]
    rows = [box[1] for box in boxes.values()]
    ax.set(xlim=(min(columns) - 0.5, max(columns) + 0.5), ylim=(max(rows) + 0.5, min(rows) - 0.5))
    ax.axis("off")
    drawn = {}
    for name, (column, row, colour, text) in boxes.items():
        frame = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.8}
        drawn[name] = ax.text(column, row, text, ha="center", va="center", fontsize=9, color="black", bbox=frame)
    for tail, head in arrows:
        look = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 1, "shrinkB": 2,
                "patchA": drawn[tail].get_bbox_patch(), "patchB": drawn[head].get_bbox_patch()}
        ax.annotate("", boxes[head][:2], boxes[tail][:2], arrowprops=look)
    plt.show()
