"""What the explorer shows, as HTML: a query with its boxes, hits of one product or of all, neighbours, a map."""

import html
import re
from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from IPython.display import HTML

from capture_lib.catalog.labels import parse_label
from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import NAMES, judge, open_searcher
from capture_lib.explorer.answers import Answers, State
from capture_lib.report import figures
from capture_lib.report.site import environment
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import LEVELS

TEMPLATES = Path(__file__).with_name("templates")
MACROS = environment(TEMPLATES).get_template("explorer.html.j2").module
PIECES = ("controls", "picker", "query", "answers", "beside", "note")
STRIP = 12  # queries to pick from at a time


class Explorer(Answers):
    """Answers, drawn: the template asks for what it shows of a state."""

    names = NAMES

    def show(self, state: State, note: str = "") -> dict[str, str]:
        """Return the pieces of the page for a settled state, as HTML by name (`PIECES`)."""
        pieces = {name: str(getattr(MACROS, name)(self, state, live=True)) for name in PIECES if name != "note"}
        return pieces | {"note": html.escape(note)}  # only `live` pieces can be clicked

    def page(self, number: int, method: str, count: int = 10) -> HTML:
        """Show query `number` by a method, for a report: its boxes, the merged hits, those of each instance."""
        level = ranking.METHODS[method].level
        state = self.settle(State(query=number, model=method.split("/")[0], level=level))
        rows = [("the whole photo" if level == "image" else "all products, merged", state, self.hits(state, count))]
        for box in self.shown(state) if level == "instance" else ():
            asked = replace(state, box=box)
            rows.append((f"box {box + 1}", asked, self.hits(asked, 5)))
        style = (TEMPLATES / "explorer.css").read_text(encoding="utf-8")
        return HTML(f"<style>{style}</style>{MACROS.page(self, state, rows, live=False)}")

    def strip(self, state: State) -> dict:
        """Return queries to pick from: those around the one that is shown."""
        passing = self.passing(state)
        first = bisect_left(passing, max(state.query, 0)) // STRIP * STRIP
        shown = []
        for number in passing[first:first + STRIP]:
            sample = self.queries["sample_id"][number]
            shown.append((number, sample, thumbnail(self.run.catalog.photos[sample], 72)))
        return {"shown": shown, "first": first, "count": len(passing), "before": passing[:first][-1:],
                "after": passing[first + STRIP:][:1], "own": figures.thumbnail(self.own.photo, 72) if self.own else ""}

    def boxed(self, state: State) -> dict:
        """Return the photo with the boxes of its instances: number, left, top, width and height, in pixels."""
        query = self.query(state.query)
        row = query.store.rows([query.name])[0]
        height, width = np.array(query.photo.shape[:2]) * 360 / max(query.photo.shape[:2])
        corners = self.embedded(state.query, self.caption(state)).boxes * [width, height, width, height]
        shown = self.shown(state)
        sides = zip(shown, corners[shown].tolist(), strict=True)
        boxes = [(number, x1, y1, x2 - x1, y2 - y1) for number, (x1, y1, x2, y2) in sides]
        return {"photo": figures.thumbnail(query.photo, 360), "width": width, "height": height,
                "boxes": sorted(boxes, key=lambda box: box[1] + box[2]),  # no number lies below a later box
                "uncertain": query.store.scores[row, 0] < self.run.profile.instances.min_score}

    def hits(self, state: State, count: int = 10) -> list[dict]:
        """Return the first hits of what is chosen, as cards."""
        ranked = self.ranking(state)
        labels, own = self.query(state.query).labels, self.own_labels(state)
        merged = state.level == "instance" and state.box is None
        hits = list(zip(ranked.rows, ranked.scores, ranked.instances, strict=True))[:count]
        return [self.card(int(row), score, labels, own, f"box {instance + 1}" if merged else "")
                for row, score, instance in hits]

    def card(self, number: int, score: float = 1.0, labels: list[str] = (), own: set[str] | None = None,
             origin: str = "") -> dict:
        """Return a gallery photo as a card, judged by the labels asked for and those of the chosen box."""
        item = self.searcher.items[number]
        named = "; ".join(item.labels)
        said = item.caption if not re.search(r"[^\W\d]", named) else ""  # a number alone tells a reader nothing
        text = " · ".join(filter(None, (named, said))) or item.sample_id
        return {"number": number, "photo": thumbnail(item.path, 150), "score": score, "origin": origin,
                "mark": judge(item.labels, labels, own), "text": text, "caption": item.caption, "labels": item.labels}

    def next_wrong(self, state: State) -> dict:
        """Return the change to the next query that the filters let through whose first hit is not right: that of all
        boxes, or where a box is chosen, that of a box that shows a product; nothing where there is none.
        """
        for number in sorted(self.passing(state), key=lambda number: (number <= state.query, number)):
            there = self.settle(state.changed({"query": number}))
            for box in [None] if state.box is None else self.shown(there):
                asked = replace(there, box=box)
                first = self.hits(asked, 1)
                if first and first[0]["mark"] in ("other", "wrong") and self.own_labels(asked) != set():
                    return {"query": number, "box": box}
        return {}

    def points(self, state: State) -> list[tuple[str, list]]:
        """Return the points of the map by group, the largest first: number, x and y in 0..1, text."""
        groups: dict[str, list] = {}
        for number, (x, y) in zip(*self.places(self.representation(state), state.level), strict=True):
            item = self.searcher.items[number]
            name = getattr(parse_label(item.labels[0]), state.map) if item.labels else ""
            groups.setdefault(name, []).append((int(number), x, y, "; ".join(item.labels) or item.caption))
        rest = groups.pop("", [])
        ordered = sorted(groups.items(), key=lambda pair: -len(pair[1]))
        rest += chain(*(points for _, points in ordered[len(figures.SIGNS):]))
        return ordered[:len(figures.SIGNS)] + ([("", rest)] if rest else [])


@lru_cache(maxsize=8192)
def thumbnail(path: Path, side: int) -> str:
    """Return a photo of the catalog, small, as an address."""
    return figures.thumbnail(load_photo(path), side)


def open_explorer(run: Run) -> Explorer:
    """Open a run, whatever its catalog holds: test queries, or else those of val, or else any photos."""
    searcher = open_searcher(run, LEVELS)
    tables = (stages.samples(run, "test"), stages.samples(run, "val"), stages.samples(run))
    queries = next(table for table in tables if len(table))
    # where val chose nothing, methods take their first representation, and "capture-chosen" would be "capture"
    choices = {}
    for name, method in ranking.possible(ranking.METHODS, searcher.gallery).items():
        stored = searcher.choices.get(name, {"representation": method.representations[0], "val": None})
        if stored["val"] is not None or not name.startswith("capture-chosen"):
            choices[name] = stored["representation"]
    return Explorer(run, searcher, queries, choices)
