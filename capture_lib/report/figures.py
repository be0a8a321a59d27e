"""One visual language for every figure: theme, a palette that colour-blind readers can tell apart, a Chinese font."""

import base64
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from fontTools import subset
from IPython.display import HTML
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

CHINESE = re.compile(r"[\u2e80-\uffff✓◐○]")  # and the signs that our pages use: few fonts have them
PALETTE = sns.color_palette("colorblind")
RIGHT, WRONG, PLAIN = "#0173b2", "#d55e00", "#949494"  # blue, vermilion, grey: apart for every kind of colour vision
COLOURS = [PALETTE[n] for n in (0, 1, 2, 3, 4, 5, 9, 8)]  # without the grey one and the palest
SIGNS = "osD^vPX*"  # a sign for each of these colours
KNOW_NOTHING = ("chance", "popularity")  # rankings that look at no query: grey in every figure


def chinese_font() -> Path:
    """The Noto font that the package mplfonts ships, so that no figure depends on the machine's fonts."""
    folder = importlib.util.find_spec("mplfonts").submodule_search_locations[0]
    return Path(folder) / "fonts" / "NotoSansCJKsc-Regular.otf"


def font_face(text: str) -> str:
    """The CSS rule that brings the Chinese characters of a text as the font "Embedded CJK"; empty without any.

    It must be named first of a list of fonts: as a later one, Chromium draws the first words before it is there, and
    leaves them as boxes.
    """
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
            'unicode-range: U+2E80-FFFF, U+2713, U+25D0, U+25CB; '
            f'src: url(data:font/woff;base64,{source}); }}')


def setup() -> None:
    """Sets seaborn's theme, the palette, the Chinese font and reproducible SVG for all figures of a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    font_manager.fontManager.addfont(chinese_font())
    plt.rcParams.update({
        "font.family": ["DejaVu Sans", font_manager.FontProperties(fname=chinese_font()).get_name()],
        "figure.figsize": (7, 3.6), "figure.constrained_layout.use": True, "axes.titlesize": "medium",
        "svg.hashsalt": "capture", "svg.fonttype": "path",
    })
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        pass


def thumbnail(photo: np.ndarray, side: int = 160, quality: int = 80) -> str:
    """A photo (H, W, 3) uint8 as the address of a small WebP that stands in the page itself."""
    scale = min(1.0, side / max(photo.shape[:2]))
    small = Image.fromarray(np.ascontiguousarray(photo)).resize(
        (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))), Image.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def gallery(photos: Sequence[np.ndarray], captions: Sequence[str] = (), colours: Sequence[str] = (),
            side: int = 140) -> HTML:
    """Photos side by side with a line of text below each; the text is escaped, for it comes from catalogs.

    Args:
        photos: (H, W, 3) uint8 each.
        captions: a line for each photo, or none.
        colours: a frame colour for each photo, or none.
        side: longer side of a thumbnail, pixels.
    """
    cards = []
    for i, photo in enumerate(photos):
        text = html.escape(captions[i]) if captions else ""
        frame = f"border:3px solid {colours[i]};" if colours else "border:1px solid #ccc;"
        cards.append(
            f'<figure style="margin:4px;width:{side + 8}px;display:inline-block;vertical-align:top">'
            f'<img src="{thumbnail(photo, side)}" alt="" style="{frame}border-radius:4px;max-width:100%">'
            f'<figcaption style="font-size:12px;line-height:1.3;overflow-wrap:anywhere">{text}</figcaption></figure>')
    return HTML(f'<div>{"".join(cards)}</div>')


def draw_boxes(photo: np.ndarray, boxes: np.ndarray, labels: Sequence[str] = (), colour: str = RIGHT,
               fractions: bool = False, scale: int = 2) -> np.ndarray:
    """A copy of a photo, `scale` times as large, with boxes (n, 4) xyxy drawn in; a short Latin label at each."""
    height, width = photo.shape[:2]
    drawn = cv2.resize(photo, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    rgb = tuple(int(colour[i:i + 2], 16) for i in (1, 3, 5))
    factor = np.array([width, height, width, height]) * scale if fractions else scale
    for i, box in enumerate(np.asarray(boxes, float).reshape(-1, 4) * factor):
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (255, 255, 255), 4)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), rgb, 2)
        if labels:
            cv2.rectangle(drawn, (x1, y1), (x1 + 12 * len(labels[i]) + 6, y1 + 20), rgb, -1)
            cv2.putText(drawn, labels[i], (x1 + 3, y1 + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1,
                        cv2.LINE_AA)
    return drawn


def curves(history: list[dict[str, float]], axes: Sequence[Axes], floors: dict[str, float] | None = None) -> None:
    """Draws each loss of a training history over its steps, smoothed, with a dashed line at what a guess gives."""
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


def intervals(figures: dict[str, dict[str, float]], ax: Axes, label: str) -> None:
    """Horizontal bars with 95% intervals, one for each name; values are fractions, shown in percent."""
    names = list(figures)
    for place, name in enumerate(reversed(names)):
        value = {key: 100 * number for key, number in figures[name].items()}
        ax.barh(place, value["value"], color=PLAIN if name in KNOW_NOTHING else RIGHT, height=0.6)
        ax.plot([value["low"], value["high"]], [place, place], color="black", linewidth=1.5)
        ax.text(value["high"] + 1, place, f"{value['value']:.1f}", va="center", fontsize="small")
    ax.set(yticks=range(len(names)), yticklabels=list(reversed(names)), xlabel=label, xticks=range(0, 101, 20),
           xlim=(0, 110))  # room for the figure beside a full bar


def plain(text: str, most: int = 16) -> str:
    """A text of a catalog as matplotlib shows it: cut, no formula, and not hidden from a legend by a first "_"."""
    short = text if len(text) <= most else text[:most - 1] + "…"
    return short.replace("$", r"\$").lstrip("_") or "–"


def points(places: np.ndarray, of: Sequence[str], ax: Axes) -> None:
    """Points (n, 2) by group: colours and signs for the 8 with the most points, grey dots for the rest."""
    of = np.asarray(of, object)
    largest = [name for name, _ in Counter(of[of != ""]).most_common(len(SIGNS))]
    rest = ~np.isin(of.astype(str), largest)
    if rest.any():
        ax.scatter(*places[rest].T, s=8, color=PLAIN, alpha=0.4, linewidth=0, label="others", rasterized=True)
    for name, colour, sign in zip(largest, COLOURS, SIGNS, strict=False):
        ax.scatter(*places[of == name].T, s=16, color=colour, marker=sign, linewidth=0, label=plain(name),
                   rasterized=True)
    ax.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.4, frameon=False)
    ax.set(xticks=[], yticks=[])


def weighted_boxes(photo: np.ndarray, boxes: np.ndarray, weights: np.ndarray, top: float, told: int = 4) -> np.ndarray:
    """A copy of a photo, twice as large, with boxes (n, 4) xyxy fractions, the heavier the darker and nearer.

    Of weights (n,) `top` is the darkest; the `told` heaviest boxes show theirs, if it is half of that or more.
    """
    drawn, order = draw_boxes(photo, np.zeros((0, 4))), np.argsort(weights)
    for place, box in enumerate(order):
        label = [f"{weights[box]:.1f}x"] if place >= len(order) - told and weights[box] >= top / 2 else []
        drawn = draw_boxes(drawn, boxes[box], label, to_hex(shade(weights[box] / top)), fractions=True, scale=1)
    return drawn


def shade(share: float) -> tuple[float, float, float, float]:
    """Blue as RGBA in 0..1: pale for 0, dark for 1."""
    return plt.colormaps["Blues"](0.1 + 0.9 * share)


def heat_table(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], most: int = 24) -> HTML:
    """Positive numbers (R, C) in tables of `most` columns or fewer, the larger the darker; names are escaped."""
    tables, most = [], -(-len(columns) // -(-len(columns) // most))
    for first in range(0, len(columns), most):
        lines = ["<tr><td>" + "".join(f"<td>{html.escape(name)}" for name in columns[first:first + most])]
        for name, line in zip(rows, values[:, first:first + most], strict=True):
            shares = line / values.max()
            styles = (f"background:{to_hex(shade(s))};color:{'white' if s > 0.65 else 'black'}" for s in shares)
            cells = (f'<td style="{style}">{value:.1f}' for style, value in zip(styles, line, strict=True))
            lines.append(f"<tr><td><b>{html.escape(name)}</b>{''.join(cells)}")
        tables.append(f'<table class="heat">{"".join(lines)}</table>')
    css = ("table.heat {margin: 4px 0} table.heat td {padding: 1px 3px !important; text-align: center !important; "
           "font-size: 11px; white-space: nowrap; border: 0}")
    return HTML(f'<style>{css}</style><div style="overflow-x:auto">{"".join(tables)}</div>')


def percent(figure: dict[str, float] | None) -> str:
    """A fraction with its 95% interval as a reader wants it in a sentence: `68.2% [65.9, 70.4]`."""
    if figure is None:
        return "not available"
    return f"{100 * figure['value']:.1f}% [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def chips(texts: Sequence[str], notes: Sequence[str] = (), colours: Sequence[str] = ()) -> HTML:
    """Short texts such as tokens in a row of little frames, each with a small note below; the texts are escaped.

    Args:
        texts: what stands in the frames.
        notes: a line below each, or none.
        colours: a frame colour for each, or none.
    """
    cards = []
    for i, text in enumerate(texts):
        note, colour = html.escape(notes[i]) if notes else "", colours[i] if colours else PLAIN
        cards.append(f'<span style="display:inline-block;margin:2px;text-align:center;vertical-align:top">'
                     f'<span style="display:block;border:2px solid {colour};border-radius:4px;padding:1px 5px">'
                     f'{html.escape(text)}</span><span style="font-size:11px">{note}</span></span>')
    return HTML(f'<div style="line-height:1.5">{"".join(cards)}</div>')


def overlay(photo: np.ndarray, mask: np.ndarray, colour: str = WRONG) -> np.ndarray:
    """A copy of a photo (H, W, 3) uint8 where a mask (H, W) stays clear, is outlined, and all else fades to grey."""
    faded = 0.25 * photo.mean(axis=2, keepdims=True) + 0.75 * 230
    drawn = np.where(mask[..., None] > 0, photo, faded).astype(np.uint8)
    outlines, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, outlines, -1, tuple(int(colour[i:i + 2], 16) for i in (1, 3, 5)), 1)


def on_paper(picture: np.ndarray, side: int) -> np.ndarray:
    """A cut-out (h, w, 4) RGBA in 0..1, premultiplied, in the middle of grey paper: (side, side, 3) uint8 RGB."""
    paper = np.full((side, side, 3), 0.9, np.float32)
    y, x = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    under = paper[y:y + picture.shape[0], x:x + picture.shape[1]]  # a view
    under[:] = under * (1 - picture[..., 3:]) + picture[..., :3]
    return (paper * 255).round().astype(np.uint8)


def ratios(real: dict[str, float], series: dict[str, dict[str, dict[str, float] | None]], ax: Axes) -> None:
    """Draws ours / real with its 95% interval for each statistic; a band marks ±10%, and None leaves a gap.

    Args:
        real: the real value of each statistic, from top to bottom.
        series: by the name of a catalog, its statistics as {value, low, high}.
    """
    ax.axvspan(0.9, 1.1, color=PLAIN, alpha=0.25, label="within 10%")
    ax.axvline(1, color="black", linewidth=1)
    for n, (name, found) in enumerate(series.items()):
        colour, marker = ((RIGHT, "o"), (WRONG, "D"), ("black", "s"))[n % 3]
        keys = [key for key in real if found[key]]
        low, value, high = (np.array([found[key][end] / real[key] for key in keys]) for end in ("low", "value", "high"))
        places = [list(real).index(key) + 0.26 * n for key in keys]
        ax.errorbar(value, places, xerr=[value - low, high - value], fmt=marker, color=colour, label=name)
    ax.set_xlim(min(0.45, ax.get_xlim()[0]), max(2.2, ax.get_xlim()[1]))
    ticks = [0.5, 0.7, 0.9, 1, 1.1, 1.4, 2]
    ax.set(xscale="log", yticks=range(len(real)), yticklabels=list(real), xlabel="ours / Product1M (log scale)")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.invert_yaxis()


def correspondence(caption: str, labels: Sequence[str], notes: Sequence[str]) -> HTML:
    """A caption, and a line below it for each label with those of its characters that the label holds too.

    The label's first word, the brand, counts as a whole, its other characters wherever they stand; those that the
    caption lacks are grey in the label. A note ends each line. All text is escaped.
    """
    css = ("table.said td {padding: 0 1px; min-width: 13px; text-align: center; border: 0} "
           "table.said td.label {text-align: left; padding-right: 10px; max-width: 230px; overflow-wrap: anywhere} "
           "table.said tr {background: none}")
    lines = ["<tr><td class=label>" + "".join(f"<td><b>{html.escape(c)}</b>" for c in caption)]
    for n, label in enumerate(labels):
        colour, (brand, _, name) = PALETTE.as_hex()[n % len(PALETTE)], label.lower().partition(" ")
        found = {i for match in re.finditer(re.escape(brand), caption, re.I) for i in range(*match.span())}
        found |= {i for i, c in enumerate(caption) if c.lower() in name and not c.isspace()}
        said = {caption[i].lower() for i in found}
        shown = "".join(f"<b>{html.escape(c)}</b>" if c.lower() in said else
                        f'<span style="color:#8a8a8a">{html.escape(c)}</span>' for c in label)
        style = f'style="background:{colour}40;border-bottom:3px solid {colour}"'
        cells = (f"<td {style}>{html.escape(c)}" if i in found else "<td>" for i, c in enumerate(caption))
        lines.append(f"<tr><td class=label>{shown}{''.join(cells)}<td>{html.escape(notes[n])}")
    return HTML(f'<style>{css}</style><div style="overflow-x:auto"><table class="said">{"".join(lines)}</table></div>')
