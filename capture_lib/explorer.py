"""The interactive view: pick a query, see its boxes, click through the hits of each product."""

import html
import subprocess
import sys
from pathlib import Path

import ipywidgets as widgets
import nbformat
from IPython.display import HTML

from capture_lib import figures, retrieval, stages
from capture_lib.catalog import read_catalog
from capture_lib.paths import REPORTS
from capture_lib.photos import load_photo
from capture_lib.retrieval import Choice, Ranking, Side
from capture_lib.runs import Run


class Explorer:
    """Answers for the queries of a split, ready to be looked at.

    Args:
        run: the run whose photos are shown.
        queries, gallery: the embedded sides.
        choices: what val chose, by method; only these can be picked.
    """

    def __init__(self, run: Run, queries: Side, gallery: Side, choices: dict[str, Choice]) -> None:
        self.run, self.queries, self.gallery, self.choices = run, queries, gallery, choices
        self.rankings = {name: retrieval.rank(queries, gallery, retrieval.METHODS[name].form, choice)
                         for name, choice in choices.items()}
        self.store, _ = stages.region_store(run)

    def page(self, number: int, method: str, most: int = 10) -> HTML:
        """Query `number` with its boxes and its best hits under a method, as a static page.

        A blue frame marks a right hit, a vermilion one a wrong one; the sign says the same without colour. Every
        text of the catalog is escaped.
        """
        ranking, asked = self.rankings[method][number], set(self.queries.labels[number])
        regions = self.queries.regions[self.queries.owners == number]
        row = self.store.rows([self.queries.ids[number]])[0]
        photo = load_photo(self.run.catalog.photos[self.queries.ids[number]])
        if retrieval.METHODS[method].form == "instance":
            photo = figures.draw_boxes(photo, self.store.boxes[row, regions],
                                       [str(i + 1) for i in range(len(regions))], fractions=True)
        title = (f"<b>{html.escape(self.queries.ids[number])}</b> · {html.escape(self.queries.captions[number])}"
                 f"<br>asked for: {html.escape('; '.join(self.queries.labels[number]) or 'unknown')}")
        hits = figures.gallery(*self.cards(ranking, asked, method, most)).data
        picture = figures.thumbnail(photo, 300)
        return HTML(f'<div style="display:flex;gap:16px;flex-wrap:wrap"><div style="width:300px">'
                    f'<img src="{picture}" alt="query" style="max-width:100%"><p>{title}</p></div>'
                    f'<div style="flex:1;min-width:320px">{hits}</div></div>')

    def cards(self, ranking: Ranking, asked: set[str], method: str, most: int) -> tuple[list, list[str], list[str]]:
        """Photos, texts and frame colours of the first hits of a ranking."""
        photos, texts, colours = [], [], []
        for row, score, instance in zip(ranking.rows[:most], ranking.scores, ranking.instances, strict=False):
            label = self.gallery.labels[row][0] if self.gallery.labels[row] else "unknown"
            right = label in asked
            origin = f"box {instance + 1} · " if retrieval.METHODS[method].form == "instance" else ""
            photos.append(load_photo(self.run.catalog.photos[self.gallery.ids[row]]))
            texts.append(f"{'✓' if right else '✗'} {score:.2f} · {origin}{label}")
            colours.append(figures.RIGHT if right else figures.WRONG)
        return photos, texts, colours

    def view(self) -> widgets.Widget:
        """The live view: choose a query and a method."""
        options = [(f"{name} · {caption[:30]}", i)
                   for i, (name, caption) in enumerate(zip(self.queries.ids, self.queries.captions, strict=True))]
        query = widgets.Dropdown(options=options, description="query", layout=widgets.Layout(width="520px"))
        method = widgets.Dropdown(options=list(self.choices), description="method")
        step = widgets.Button(description="next query")
        page = widgets.HTML(layout=widgets.Layout(min_height="420px"))
        texts = [*self.queries.captions, *(label for labels in self.gallery.labels + self.queries.labels
                                           for label in labels)]
        font = widgets.HTML(f"<style>{figures.font_face(''.join(texts))} .widget-html, select "
                            '{ font-family: "Embedded CJK", system-ui, sans-serif !important; }</style>')

        def show(_: object = None) -> None:
            page.value = self.page(query.value, method.value).data

        query.observe(show, "value")
        method.observe(show, "value")
        step.on_click(lambda _: setattr(query, "value", (query.value + 1) % len(options)))
        show()
        return widgets.VBox([widgets.HBox([query, step, method]), page, font])


def open_explorer(run: Run) -> Explorer:
    """The explorer of a run's test queries (val where there is no test).

    Raises:
        InputError: the catalog has no gallery or no queries to explore.
    """
    sides = stages.embedded(run)
    chosen, _ = stages.choices(run, sides)
    return Explorer(run, sides.get("test") or sides["val"], sides["gallery"], chosen)


def write_app(profile: str, catalog: Path | None, file: Path) -> Path:
    """Writes the notebook of one cell that Voilà serves as the app."""
    folder = str(catalog.resolve()) if catalog else ""
    source = ("from capture_lib.explorer import open_explorer\nfrom capture_lib.runs import open_run\n\n"
              f"open_explorer(open_run({profile!r}, {folder!r})).view()")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    return file


def serve(profile: str, catalog: Path | None) -> int:
    """Opens the explorer in the browser through Voilà; returns its exit code when it is stopped."""
    if catalog:
        read_catalog(catalog)
    app = write_app(profile, catalog, REPORTS / "explore.ipynb")  # Voilà serves no hidden file
    return subprocess.run([sys.executable, "-m", "voila", str(app)], check=False).returncode
