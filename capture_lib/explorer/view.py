"""What the explorer shows, as HTML: a query with its boxes, hits of one product or of all, neighbours, a map.

`Explorer.show` answers a `State` with the pieces of a page, which `widget` makes live; `Explorer.page` is the
same content for a report, in which nothing can be chosen.
"""

import html
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capture_lib.catalog.labels import parse_label
from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import Item, open_searcher
from capture_lib.explorer.answers import MODELS, Answers, State
from capture_lib.report import figures
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import LEVELS
from capture_lib.retrieval.ranking import METHODS

if TYPE_CHECKING:
    from IPython.display import HTML
    from jinja2 import Template

TEMPLATES = Path(__file__).with_name("templates")
PIECES = ("controls", "picker", "query", "answers", "beside", "note")
STRIP = 12  # queries to pick from at a time


class Explorer(Answers):
    """Answers, drawn: the template asks for what it shows of a state."""

    models = MODELS

    @cached_property
    def template(self) -> "Template":
        """The pieces of the page; all text of a catalog is escaped."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        pieces = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                             lstrip_blocks=True, undefined=StrictUndefined)
        return pieces.get_template("explorer.html.j2")

    def show(self, state: State, note: str = "") -> dict[str, str]:
        """Return the pieces of the page for a settled state, as HTML by name (`PIECES`)."""
        pieces = {name: self.draw(name, state) for name in PIECES if name != "note"}
        return pieces | {"note": html.escape(note)}

    def draw(self, piece: str, *arguments: object, live: bool = True) -> str:
        """Return what a macro of the template makes of a state; only `live` pieces can be clicked."""
        return str(getattr(self.template.module, piece)(self, *arguments, live=live))

    def page(self, number: int, method: str, count: int = 10) -> "HTML":
        """Show query `number` by a method, for a report: its boxes, the merged hits, those of each instance."""
        from IPython.display import HTML

        state = State(query=number, model=method.split("/")[0], level=METHODS[method].level)
        state = self.settle(state)
        rows = [("the whole photo", self.hits(state, count))]
        if state.level == "instance":
            rows = [("all products, merged", self.hits(state, count))]
            for box in range(len(self.boxed(state)["boxes"])):
                rows.append((f"box {box + 1}", self.hits(replace(state, box=box), 5)))
        style = (TEMPLATES / "explorer.css").read_text(encoding="utf-8")
        return HTML(f"<style>{style}</style>{self.draw('page', state, rows, live=False)}")

    @cached_property
    def filters(self) -> dict[str, Counter]:
        """How many queries show each brand, and each kind."""
        return {"brand": Counter(chain(*self.brands)), "kind": Counter(chain(*self.kinds))}

    def strip(self, state: State) -> dict:
        """Return queries to pick from: those around the one that is shown."""
        passing = self.passing(state).tolist()
        first = bisect_left(passing, max(state.query, 0)) // STRIP * STRIP
        shown = []
        for number in passing[first:first + STRIP]:
            sample = self.queries["sample_id"][number]
            shown.append((number, sample, thumbnail(self.run.catalog.photos[sample], 72)))
        after = passing[first + STRIP:]
        return {"shown": shown, "first": first, "count": len(passing), "before": passing[first - 1] if first else None,
                "after": after[0] if after else None, "own": figures.thumbnail(self.own.photo, 72) if self.own else ""}

    def boxed(self, state: State) -> dict:
        """Return the photo with the boxes of its instances: number, left, top, width and height, in pixels."""
        query = self.query(state.query)
        row = query.store.rows([query.name])[0]
        height, width = np.array(query.photo.shape[:2]) * 360 / max(query.photo.shape[:2])
        regions = self.embedded(state.query, self.caption(state)).regions
        boxes = []
        for number, box in enumerate(query.store.boxes[row, regions] * [width, height, width, height]):
            x1, y1, x2, y2 = box.tolist()
            boxes.append((number, x1, y1, x2 - x1, y2 - y1))
        return {"photo": figures.thumbnail(query.photo, 360), "width": width, "height": height,
                "boxes": sorted(boxes, key=lambda box: box[0] == state.box),  # the chosen one on top
                "uncertain": bool(query.store.scores[row, 0] < self.run.profile.instances.min_score)}

    def hits(self, state: State, count: int = 10) -> list[dict]:
        """Return the first hits of what is chosen, as cards."""
        found = self.ranking(state)
        labels = self.query(state.query).labels
        merged = state.level == "instance" and state.box is None
        cards = []
        for row, score, instance in zip(found.rows[:count].tolist(), found.scores, found.instances, strict=False):
            cards.append(self.card(row, float(score), labels, f"box {instance + 1}" if merged else ""))
        return cards

    def near(self, state: State) -> list[dict]:
        """Return the neighbours of the item that is looked at, as cards; right: of the same product."""
        labels = self.searcher.items[state.item].labels
        return [self.card(row, score, labels) for row, score in self.neighbours(state.item, state)]

    def card(self, number: int, score: float = 1.0, labels: Sequence[str] = (), origin: str = "") -> dict:
        """Return a gallery photo as a card; labels are those asked for."""
        item = self.searcher.items[number]
        return {"number": number, "photo": thumbnail(item.path, 150), "score": score, "origin": origin,
                "right": self.is_right(number, labels), "text": title(item), "caption": item.caption}

    def points(self, state: State) -> list[tuple[str, list]]:
        """Return the points of the map by group, the largest first: number, x and y in 0..1, text."""
        numbers, places = self.places(self.representation(state), state.level)
        items = [self.searcher.items[number] for number in numbers.tolist()]
        names = [getattr(parse_label(item.labels[0]), state.map) if item.labels else "" for item in items]
        largest = [name for name, _ in Counter(filter(None, names)).most_common(len(figures.SIGNS))]
        groups: dict[str, list] = {name: [] for name in [*largest, ""]}
        for number, (x, y), item, name in zip(numbers.tolist(), places.tolist(), items, names, strict=True):
            groups[name if name in largest else ""].append((number, x, y, title(item)))
        return [(name, points) for name, points in groups.items() if points]


@lru_cache(maxsize=8192)
def thumbnail(path: Path, side: int) -> str:
    """Return a photo of the catalog, small, as an address."""
    return figures.thumbnail(load_photo(path), side)


def title(item: Item) -> str:
    """Return what a gallery photo shows, as far as it is known."""
    return "; ".join(item.labels) or item.caption or item.sample_id


def open_explorer(run: Run) -> Explorer:
    """Open a run, whatever its catalog holds: test queries, or else those of val, or else any photos.

    Methods take the representation that val chose; where nothing can be chosen, their first, and there is no
    "capture-chosen", which would be the same as "capture".
    """
    searcher = open_searcher(run, LEVELS)
    tables = (stages.samples(run, "test"), stages.samples(run, "val"), stages.photographed(run))
    queries = next(table for table in tables if len(table))
    if not searcher.choices:
        sets = stages.embedded(run)
        if "gallery" in sets and {"val", "test"} & set(sets):
            stages.choices(run, sets)
            searcher.choices = stages.stored_choices(run)

    choices = {}
    for name, method in ranking.possible_methods(searcher.gallery).items():
        stored = searcher.choices.get(name, {"representation": method.representations[0], "val": None})
        if stored["val"] is not None or not name.startswith("capture-chosen"):
            choices[name] = stored["representation"]
    return Explorer(run, searcher, queries, choices)
