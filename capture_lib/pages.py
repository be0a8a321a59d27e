"""What the pages of a report show: an executed notebook that opens offline; the tables of a metrics file."""

import base64
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser, math_to_image
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from capture_lib.figures import font_face
from capture_lib.paths import NOTEBOOKS

TEMPLATES = Path(__file__).with_name("templates")
FORMULA = FontProperties(size=10, math_fontfamily="stix")  # drawn at 10 points, shown at 1 em
SPELLINGS = {  # TeX that matplotlib lacks, and what it has instead
    r"\\([lg])e": r"\\\1eq", r"\\[lr]Vert": r"\\Vert", r"\\[lr]vert": "|", r"\\tfrac": r"\\frac",
    r"\\textbf": r"\\mathbf", r"\\operatorname\*": r"\\operatorname",
    r"\\((no)?limits|displaystyle|[bB]igg?[lrm]?)": "",
}
ALIGNMENT = re.compile(r"\\(begin|end)\{(aligned|align\*?|gather\*?|equation\*?|split)\}|(?<!\\)&")
CHINESE = re.compile(r"[\u2e80-\uffff]")  # the font for formulas has none
ICON = re.compile(r"--jp-icon-[\w-]+:\s*url\([^)]*\);")  # JupyterLab's buttons, 86 kB that no page shows
SHORT = 8  # a list of more numbers is told by its length
DEFINITIONS = {
    "standard": "average precision over the hits that were possible, min(N, positives)",
    "released": "as the authors' script computes: average precision over the hits that were found",
}


# ---------------------------------------------------------------------- a notebook as one page, offline


class OfflineRenderer(IPythonRenderer):
    """Markdown as HTML: formulas and local pictures are inside, and notebooks link to each other's page."""

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return formula(body)

    def block_math(self, body: str) -> str:
        """A formula of its own; an aligned one gives a picture for each line."""
        large = ALIGNMENT.sub("", body).replace(r"\frac", r"\dfrac")
        lines = [line for line in large.split(r"\\") if line.strip()]
        return "".join(f'<div class="math-block">{formula(line)}</div>' for line in lines)

    def latex_environment(self, name: str, body: str) -> str:
        """`\\begin{align}` and its like, without dollars around."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def block_html(self, html: str) -> str:
        """A block of HTML; nbconvert would close the tags of one without pictures, and empty a `<details>`."""
        return super().block_html(html) if "<img" in html else html

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link; one to a notebook beside leads to its page."""
        return super().link(text, re.sub(r"^(\w+)\.ipynb(?=#|$)", r"\1.html", url), title)


class OfflineExporter(HTMLExporter):
    """JupyterLab's page of a notebook, with the renderer above."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        """The filter that nbconvert's templates apply to markdown cells and markdown output."""
        renderer = OfflineRenderer(escape=False, attachments=context.get("cell", {}).get("attachments", {}),
                                   embed_images=True, path=str(NOTEBOOKS), exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def to_html(notebook: NotebookNode, title: str) -> str:
    """An executed notebook as one HTML page that needs no network, no script and no Chinese font."""
    exporter = OfflineExporter(raw_template=(TEMPLATES / "notebook.html.j2").read_text(encoding="utf-8"))
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return with_font(ICON.sub("", page))


def with_font(page: str) -> str:
    """Embeds the glyphs of the Chinese characters in a page, so that they are legible on any machine."""
    rule = font_face(page)
    return page.replace("</head>", f"<style>{rule}</style></head>", 1) if rule else page



def formula(tex: str) -> str:
    """TeX as an SVG picture inside the page, drawn by matplotlib; its source where matplotlib cannot."""
    tex = " ".join(tex.split())
    spelled = tex
    for theirs, ours in SPELLINGS.items():
        spelled = re.sub(rf"{theirs}(?![a-zA-Z])", ours, spelled)
    drawn = io.BytesIO()
    try:
        if CHINESE.search(tex):
            raise ValueError("no glyph")
        _, height, depth, *_ = MathTextParser("path").parse(f"${spelled}$", dpi=72, prop=FORMULA)
        with matplotlib.rc_context({"svg.hashsalt": "formula", "svg.fonttype": "path"}):
            math_to_image(f"${spelled}$", drawn, prop=FORMULA, format="svg", color="black")
    except ValueError:  # matplotlib reads a part of TeX only
        return f'<code class="math">{html.escape(tex)}</code>'
    picture = re.sub(rb"<metadata>.*</metadata>", b"", drawn.getvalue(), flags=re.DOTALL)  # it holds the time
    data = base64.b64encode(picture).decode()
    style = f"height:{height / 10:.2f}em;vertical-align:{-depth / 10:.2f}em"
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img class="math" alt="{html.escape(tex)}" style="{style}" src="{source}">'


# --------------------------------------------------------------------------- the tables of a metrics file


def results_of(stem: str, content: dict) -> dict:
    """What results.html shows of a metrics file: methods, the ledger of claims, all else by name."""
    tables, claims, rest = [], [], {}
    for name, value in content.items():
        if is_methods(value):
            tables += [methods_table(name, definition, value) for definition in DEFINITIONS]
        elif name == "claims":
            claims = [claim_row(claim) for claim in value]
        elif name != "provenance":
            rest[name] = value
    return {"stem": stem, "methods": tables, "claims": claims, "figures": list(flatten(rest)),
            "origin": origin(content["provenance"]), "provenance": list(flatten(content["provenance"]))}


def is_methods(value: object) -> bool:
    """True for `{method: {"released": {…}, "standard": {…}}}`."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(method, dict) and DEFINITIONS.keys() <= method.keys() for method in value.values())


def methods_table(name: str, definition: str, methods: dict) -> dict:
    """Methods by figures, in percent."""
    columns = list(dict.fromkeys(figure for method in methods.values() for figure in method[definition]))
    rows = [(method, [shown(figures[definition].get(column), 100, ".1f") for column in columns])
            for method, figures in methods.items()]
    return {"heading": f"{name}, {definition} definition", "meaning": DEFINITIONS[definition],
            "columns": columns, "rows": rows}


def markdown_table(methods: dict, columns: tuple[tuple[str, str], ...]) -> str:
    """Methods by (definition, figure) as a Markdown table, in percent with 95% intervals."""
    lines = ["| method | " + " | ".join(f"{figure}, {definition}" for definition, figure in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]
    for method, figures in methods.items():
        cells = [shown(figures[definition][figure], 100, ".1f") for definition, figure in columns]
        lines.append(f"| {method} | " + " | ".join(f"{cell['value']} {cell['interval']}" for cell in cells) + " |")
    return "\n".join(lines)


def markdown_ledger(claims: list[dict]) -> str:
    """The ledger as a Markdown table: each claim with its main comparison, our effect in points, and the verdict."""
    lines = ["| claim | compared, standard mAP@10 | our effect, points | verdict |", "|---|---|---|---|"]
    for claim in map(claim_row, claims):
        effect = f"{claim['effect']['value']} {claim['effect']['interval']}" if claim["effect"] else "not available"
        lines.append(f"| {claim['claim']} | {claim['compared']} | {effect} | {claim['verdict']} |")
    return "\n".join(lines)


def claim_row(claim: dict) -> dict:
    """One line of the ledger; our effect is a difference of fractions, shown in points."""
    effect = {name: claim[key] for name, key in (("value", "effect"), ("low", "low"), ("high", "high"))}
    paper = claim["paper"]
    if isinstance(paper, int | float):
        paper = f"{100 * paper:+.1f}"
    return {**claim, "paper": paper or "not available", "effect": shown(effect, 100, "+.1f")}


def shown(value: object, scale: float = 1, form: str = ".4g") -> dict[str, str] | None:
    """A figure as text, `{"value": "68.2", "interval": "[65.9, 70.4]"}`; None where it is not available."""
    if is_interval(value):
        middle, low, high = (shown(value[name], scale, form) for name in ("value", "low", "high"))
        return middle and {**middle, "interval": f"[{low['value']}, {high['value']}]" if low and high else ""}
    if value is None:
        return None
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int) and scale == 1:
        text = str(value)
    elif isinstance(value, int | float):
        text = f"{scale * value:{form}}"
    elif isinstance(value, list):
        few = [shown(item) or {"value": "not available"} for item in value[:SHORT]]
        text = ", ".join(item["value"] for item in few) if len(value) <= SHORT else f"{len(value)} values"
    else:
        text = str(value)
    return {"value": text, "interval": ""}


def is_interval(value: object) -> bool:
    """True for `{"value", "low", "high"}`."""
    return isinstance(value, dict) and {"value", "low", "high"} <= value.keys()


def flatten(figures: dict | list, above: str = "") -> Iterator[tuple[str, dict[str, str] | None]]:
    """Nested figures as pairs of a path ("train · loss") and the figure as text, in order."""
    for name, value in figures.items() if isinstance(figures, dict) else enumerate(figures, start=1):
        path = f"{above} · {name}" if above else str(name)
        inner = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in inner) and not is_interval(value):
            yield from flatten(value, path)
        else:
            yield path, shown(value)


def origin(provenance: dict) -> str:
    """Where figures come from, in one line; what is not recorded is left out."""
    names = ("profile", "catalog", "seed", "commit")
    return " · ".join(f"{name} {provenance[name]}" for name in names if name in provenance)


def duration(seconds: float) -> str:
    """Seconds for a reader: 8.2 s, 92 s, 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
