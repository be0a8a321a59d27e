"""One visual language for figures: theme, colours that colour-blind readers can tell apart, a Chinese font.

Matplotlib, seaborn and fontTools are imported where they are used: constants shall cost nothing.
"""

import base64
import html
import re
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from IPython.display import HTML
from PIL import ExifTags, Image, ImageDraw

from capture_lib.catalog.photos import fit, load_photo
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
STYLE = {  # of all figures, beside seaborn's theme
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC"], "axes.titlesize": "medium",
    "figure.constrained_layout.use": True, "svg.hashsalt": "capture"}
KNOW_NOTHING = ("chance", "popularity")  # rankings that look at no query: grey in every figure


def font_face(text: str) -> str:
    """Return a CSS rule with the Chinese glyphs of a text, as "Embedded CJK", to be named first among fonts."""
    from fontTools import subset

    options = subset.Options(flavor="woff", desubroutinize=True, layout_features=[])
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
    import seaborn as sns
    from IPython import get_ipython
    from matplotlib.font_manager import fontManager
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    sns.set_theme(style="whitegrid", palette="colorblind")
    fontManager.addfont(FONT)
    plt.rcParams.update(STYLE | {"figure.figsize": (7, 3.6)})
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
    rcParams.update(STYLE | {"font.size": 12, "text.color": ".15"})  # as seaborn's theme, which is slow to import
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
            ax.set_title(f"{sign} {hit.score:.2f}\n{'; '.join(hit.labels)[:14]}", fontsize="small", parse_math=False)
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
    window = max(1, len(history) // 50)
    for ax, name in zip(axes, history[0], strict=True):
        values = np.array([step[name] for step in history])
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        ax.plot(values, color=PLAIN, alpha=0.3, linewidth=0.7)
        ax.plot(np.arange(len(smooth)) + window / 2, smooth, color=RIGHT)
        if floors and name in floors:
            ax.axhline(floors[name], color=WRONG, linestyle="--", label="uninformed guess")
            ax.legend(fontsize="small")
        ax.set(title=name, xlabel="optimiser step", ylabel="loss", ylim=(0, None))


def percent(figure: dict[str, float] | None) -> str:
    """Return a fraction with its 95% interval for a sentence: `68.2% [65.9, 70.4]`."""
    if figure is None:
        return "not available"
    return f"{100 * figure['value']:.1f}% [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
