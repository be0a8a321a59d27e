"""An executed notebook as one page that opens offline: pictures, formulas and Chinese glyphs are inside."""

import base64
import html
import io
import re
from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from capture_lib.report.figures import with_font
from capture_lib.utils import NOTEBOOKS

TEMPLATE = Path(__file__).with_name("templates") / "notebook.html.j2"
ICON = re.compile(r"--jp-icon-[\w-]+:\s*url\([^)]*\);")  # JupyterLab's buttons, 86 kB that no page shows


class OfflineRenderer(IPythonRenderer):
    """Markdown as HTML: formulas are drawn, and notebooks link to each other's page."""

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return f'<div class="math-block">{formula(body)}</div>'

    def block_html(self, html: str) -> str:  # nbconvert's closes tags of a block, and empties `<details>`
        return super().block_html(html) if "<img" in html else html

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, re.sub(r"^(\w+)\.ipynb(?=#|$)", r"\1.html", url), title)


def to_html(notebook: NotebookNode, title: str) -> str:
    """Return an executed notebook as an HTML page that needs no network, no script and no Chinese font."""
    exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"), filters={"markdown2html": render})
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return with_font(ICON.sub("", page))


def render(source: str) -> str:
    """Render markdown cells and markdown output; nbconvert's templates call this filter."""
    renderer = OfflineRenderer(escape=False, embed_images=True, path=str(NOTEBOOKS), exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


def formula(tex: str) -> str:
    """Return TeX as an SVG picture inside the page, drawn by matplotlib; its source where matplotlib cannot."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    tex = " ".join(tex.split())
    drawn = io.BytesIO()
    try:
        depth = math_to_image(f"${tex}$", drawn, FontProperties(size=12, math_fontfamily="stix"), format="svg")
    except ValueError:  # matplotlib reads a part of TeX only
        return f'<code class="math">{html.escape(tex)}</code>'
    source = "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()
    return f'<img class="math" alt="{html.escape(tex)}" style="vertical-align:-{depth:.1f}pt" src="{source}">'
