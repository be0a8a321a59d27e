"""One visual language for every figure: theme, colours that colour-blind readers can tell apart, a Chinese font.

Matplotlib, seaborn, fontTools and IPython are imported where they are used: constants shall cost nothing.
"""

import base64
import html
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from capture_lib.catalog.photos import load_photo
from capture_lib.utils import write_atomically

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.axes import Axes

    from capture_lib.experiments.search import Answer

CHINESE = re.compile(r"[\u2e80-\uffff✓◐○]")  # and the signs of our pages: few fonts have them
# seaborn's palette "colorblind", without its grey and its palest; a marker for each
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#ece133")
SIGNS = "osD^vPX*"
RIGHT, WRONG, PLAIN = "#0173b2", "#d55e00", "#949494"  # blue, vermilion, grey
KNOW_NOTHING = ("chance", "popularity")  # rankings that look at no query: grey in every figure


def chinese_font() -> Path:
    """Return the Noto font of the package mplfonts, so that no figure depends on the machine's fonts."""
    from importlib.util import find_spec

    folder = Path(find_spec("mplfonts").submodule_search_locations[0])
    return folder / "fonts" / "NotoSansCJKsc-Regular.otf"


def font_face(text: str) -> str:
    """Return the CSS rule that embeds the Chinese characters of a text as "Embedded CJK"; empty without any.

    It must be named first of a list of fonts: as a later one, Chromium draws the first words before it is
    there, and leaves them as boxes.
    """
    from fontTools import subset

    characters = set(CHINESE.findall(text))
    if not characters:
        return ""
    options = subset.Options(flavor="woff", desubroutinize=True, layout_features=[])
    font = subset.load_font(chinese_font(), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=map(ord, characters))
    subsetter.subset(font)
    buffer = BytesIO()
    subset.save_font(font, buffer, options)
    source = base64.b64encode(buffer.getvalue()).decode()
    return ('@font-face { font-family: "Embedded CJK"; font-display: block; '
            "unicode-range: U+2E80-FFFF, U+2713, U+25D0, U+25CB; "
            f"src: url(data:font/woff;base64,{source}); }}")


def with_font(page: str) -> str:
    """Return an HTML page with the glyphs of its Chinese characters inside, legible on any machine."""
    rule = font_face(page)
    return page.replace("</head>", f"<style>{rule}</style></head>", 1) if rule else page


def setup() -> None:
    """Set theme, palette, Chinese font and reproducible SVG for all figures of a notebook."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib import font_manager

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    font_manager.fontManager.addfont(chinese_font())
    chinese = font_manager.FontProperties(fname=chinese_font()).get_name()
    plt.rcParams.update({
        "font.family": ["DejaVu Sans", chinese], "svg.hashsalt": "capture", "svg.fonttype": "path",
        "figure.figsize": (7, 3.6), "figure.constrained_layout.use": True, "axes.titlesize": "medium",
    })
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        pass


def thumbnail(photo: np.ndarray, side: int = 160, quality: int = 80) -> str:
    """Return a photo (H, W, 3) uint8 as the data URI of a WebP whose longer side has `side` pixels at most."""
    height, width = photo.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery(
    photos: Sequence[np.ndarray], captions: Sequence[str] = (), colours: Sequence[str] = (), side: int = 140
) -> "HTML":
    """Show photos (H, W, 3) uint8 side by side, `side` pixels large at most.

    Each may have a line of text below, which is escaped, and the colour of its frame.
    """
    from IPython.display import HTML

    figure = f"margin:4px;width:{side + 8}px;display:inline-block;vertical-align:top"
    cards = []
    for i, photo in enumerate(photos):
        text = html.escape(captions[i]) if captions else ""
        border = f"3px solid {colours[i]}" if colours else "1px solid #ccc"
        cards.append(
            f'<figure style="{figure}"><img src="{thumbnail(photo, side)}" alt="" '
            f'style="border:{border};border-radius:4px;max-width:100%">'
            f'<figcaption style="font-size:12px;line-height:1.3;overflow-wrap:anywhere">{text}</figcaption></figure>')
    return HTML(f'<div>{"".join(cards)}</div>')


def draw_boxes(
    photo: np.ndarray, boxes: np.ndarray, labels: Sequence[str] = (), colour: str = RIGHT,
    fractions: bool = False, scale: int = 2,
) -> np.ndarray:
    """Return a copy of a photo (H, W, 3) uint8, `scale` times as large, with boxes and their short Latin labels.

    Boxes (n, 4) are xyxy in pixels, or in `fractions` of width and height; the colour is `#rrggbb`.
    """
    height, width = photo.shape[:2]
    drawn = cv2.resize(photo, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    rgb = tuple(bytes.fromhex(colour.lstrip("#")))
    white = (255, 255, 255)
    factor = np.array([width, height, width, height]) * scale if fractions else scale
    for i, box in enumerate(np.asarray(boxes, float).reshape(-1, 4) * factor):
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), white, 4)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), rgb, 2)
        if labels:
            cv2.rectangle(drawn, (x1, y1), (x1 + 12 * len(labels[i]) + 6, y1 + 20), rgb, -1)
            place = (x1 + 3, y1 + 15)
            cv2.putText(drawn, labels[i], place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)
    return drawn


def draw_answer(answer: "Answer", file: Path, max_hits: int = 5) -> Path:
    """Save a picture of a search and return its path; the suffix decides the format, JPEG without one.

    The query's boxes stand in front of a row of hits for each instance; without any, the query stands alone.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    setup()
    rows = max(1, len(answer.hits))
    size = (2.2 * (max_hits + 1), 2.6 * rows)
    fig, axes = plt.subplots(rows, max_hits + 1, squeeze=False, figsize=size)
    for ax in axes.ravel():
        ax.axis("off")
    axes[0, 0].imshow(answer.photo)
    for row, hits in enumerate(answer.hits):
        boxed = draw_boxes(answer.photo, answer.boxes[row], [str(row + 1)], fractions=True)
        axes[row, 0].imshow(boxed)
        axes[row, 0].set_title(f"product {row + 1}")
        for ax, hit in zip(axes[row, 1:], hits, strict=False):
            title = f"{hit.score:.2f}\n{'; '.join(hit.labels)[:14]}"
            ax.imshow(load_photo(hit.path))
            ax.set_title(title, fontsize="small", parse_math=False)
    with write_atomically(file) as beside:
        fig.savefig(beside, format=file.suffix.lstrip(".") or "jpg", dpi=80)
    plt.close(fig)
    return file


def curves(history: list[dict[str, float]], axes: Sequence["Axes"], floors: dict[str, float] | None = None) -> None:
    """Draw each loss of a training history over its steps, smoothed, a dashed line at what a guess gives."""
    window = max(1, len(history) // 50)
    for ax, name in zip(axes, history[0], strict=True):
        values = np.array([step[name] for step in history])
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        ax.plot(np.arange(len(values)), values, color=PLAIN, alpha=0.3, linewidth=0.7)
        ax.plot(np.arange(len(smooth)) + window / 2, smooth, color=RIGHT)
        if floors and name in floors:
            ax.axhline(floors[name], color=WRONG, linestyle="--", label="uninformed guess")
            ax.legend(fontsize="small")
        ax.set(title=name, xlabel="optimiser step", ylabel="loss", ylim=(0, None))


def plain(text: str, most: int = 16) -> str:
    """Return a catalog's text as matplotlib shows it: cut, no formula, no leading "_" that hides it from legends."""
    short = text if len(text) <= most else text[:most - 1] + "…"
    return short.replace("$", r"\$").lstrip("_") or "–"


def percent(figure: dict[str, float] | None) -> str:
    """Return a fraction with its 95% interval for a sentence: `68.2% [65.9, 70.4]`."""
    if figure is None:
        return "not available"
    return f"{100 * figure['value']:.1f}% [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
