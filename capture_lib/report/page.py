"""An executed notebook as one page that opens offline: pictures, formulas and Chinese glyphs are inside.

Imported only where a page is written: nbconvert takes half a second.
"""

import base64
import html
import io
import re
from functools import cache
from pathlib import Path

from jinja2 import pass_context
from jinja2.runtime import Context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from capture_lib.report.figures import with_font
from capture_lib.utils import NOTEBOOKS

TEMPLATES = Path(__file__).with_name("templates")
FONT_SIZE = 10  # points of a drawn formula, shown as 1 em
SPELLINGS = {  # TeX that matplotlib lacks, and what it has instead
    r"\\([lg])e": r"\\\1eq", r"\\[lr]Vert": r"\\Vert", r"\\[lr]vert": "|", r"\\tfrac": r"\\frac",
    r"\\textbf": r"\\mathbf", r"\\operatorname\*": r"\\operatorname",
    r"\\((no)?limits|displaystyle|[bB]igg?[lrm]?)": "",
}
ALIGNMENT = re.compile(r"\\(begin|end)\{(aligned|align\*?|gather\*?|equation\*?|split)\}|(?<!\\)&")
CHINESE = re.compile(r"[\u2e80-\uffff]")  # the font for formulas has none
ICON = re.compile(r"--jp-icon-[\w-]+:\s*url\([^)]*\);")  # JupyterLab's buttons, 86 kB that no page shows


class OfflineRenderer(IPythonRenderer):
    """Markdown as HTML: formulas and local pictures are inside, and notebooks link to each other's page."""

    def inline_math(self, body: str) -> str:
        """Return a formula within a line."""
        return formula(body)

    def block_math(self, body: str) -> str:
        """Return a formula of its own; an aligned one gives a picture for each line."""
        large = ALIGNMENT.sub("", body).replace(r"\frac", r"\dfrac")
        lines = [line for line in large.split(r"\\") if line.strip()]
        return "".join(f'<div class="math-block">{formula(line)}</div>' for line in lines)

    def latex_environment(self, name: str, body: str) -> str:
        """Return `\\begin{align}` and its like, without dollars around."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def block_html(self, html: str) -> str:
        """Return HTML as it is; nbconvert closes tags of a block without pictures, and empties `<details>`."""
        return super().block_html(html) if "<img" in html else html

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Return a link; one to a notebook beside leads to its page."""
        return super().link(text, re.sub(r"^(\w+)\.ipynb(?=#|$)", r"\1.html", url), title)


class OfflineExporter(HTMLExporter):
    """JupyterLab's page of a notebook, with the renderer above."""

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """Render markdown cells and markdown output; nbconvert's templates call this filter."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = OfflineRenderer(escape=False, attachments=attachments, embed_images=True,
                                   path=str(NOTEBOOKS), exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def to_html(notebook: NotebookNode, title: str) -> str:
    """Return an executed notebook as an HTML page that needs no network, no script and no Chinese font."""
    template = (TEMPLATES / "notebook.html.j2").read_text(encoding="utf-8")
    page, _ = OfflineExporter(raw_template=template).from_notebook_node(notebook, {"metadata": {"name": title}})
    return with_font(ICON.sub("", page))


@cache
def formula(tex: str) -> str:
    """Return TeX as an SVG picture inside the page, drawn by matplotlib; its source where matplotlib cannot."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser, math_to_image

    tex = " ".join(tex.split())
    spelled = tex
    for theirs, ours in SPELLINGS.items():
        spelled = re.sub(rf"{theirs}(?![a-zA-Z])", ours, spelled)
    font = FontProperties(size=FONT_SIZE, math_fontfamily="stix")
    drawn = io.BytesIO()
    try:
        if CHINESE.search(tex):
            raise ValueError("no glyph")
        _, height, depth, *_ = MathTextParser("path").parse(f"${spelled}$", dpi=72, prop=font)
        with matplotlib.rc_context({"svg.hashsalt": "formula", "svg.fonttype": "path"}):
            math_to_image(f"${spelled}$", drawn, prop=font, format="svg", color="black")
    except ValueError:  # matplotlib reads a part of TeX only
        return f'<code class="math">{html.escape(tex)}</code>'
    picture = re.sub(rb"<metadata>.*</metadata>", b"", drawn.getvalue(), flags=re.DOTALL)  # it holds the time
    source = "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
    style = f"height:{height / FONT_SIZE:.2f}em;vertical-align:{-depth / FONT_SIZE:.2f}em"
    return f'<img class="math" alt="{html.escape(tex)}" style="{style}" src="{source}">'
