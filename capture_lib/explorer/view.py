"""What the explorer shows: a query with its boxes, the hits of one product or of all, their neighbours, a map.

`Explorer.show` answers a `State`, which says what a reader has chosen, with the pieces of a page. `widget` makes them
live; `Explorer.page` is the same content for a report, in which nothing can be chosen.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals.region_store import RegionStore
from capture_lib.report import figures
from capture_lib.retrieval import analysis
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval.embedding import LEVELS, METHODS, Choice, EmbeddedSet, Ranking
from capture_lib.retrieval.search import Item, Searcher
from capture_lib.utils import InputError

TEMPLATES = Path(__file__).with_name("templates")
MODELS = {  # the first part of a method's name, for readers
    "capture-chosen": "CAPTURE, vectors chosen on val", "capture": "CAPTURE, the paper's product",
    "beyond": "ours, beyond the paper", "image-only": "image alone", "text-only": "text alone",
    "late-fusion": "image + text, late fusion",
}
OWN = -1  # the number of a reader's own photo among the queries
STRIP = 12  # queries to pick from at a time
MOST_POINTS = 1500  # of the map
PIECES = ("controls", "picker", "query", "answers", "beside", "note")


@dataclass(frozen=True)
class State:
    """What a reader has chosen.

    `query` counts the queries, `box` a query's instances (None: all, merged), `item` the gallery (None: none).
    `caption` stands in place of the query's own; without `worded` the query has none at all. `map` is "brand" or
    "kind", which colour its points, or empty.
    """

    query: int = 0
    box: int | None = None
    model: str = ""
    level: str = "instance"
    caption: str | None = None
    worded: bool = True
    brand: str = ""
    kind: str = ""
    item: int | None = None
    map: str = ""

    def changed(self, patch: dict) -> "State":
        """The state with some of it chosen anew. What belongs to a query goes when another one is picked.

        Raises:
            InputError: a name or a type is not that of a field; it comes from a browser.
        """
        types = {field.name: field.type for field in fields(self)}
        for name, value in patch.items():
            if name not in types or not isinstance(value, types[name]) or (
                    isinstance(value, bool) and types[name] is not bool):
                raise InputError(f"explorer: {name!r} cannot be {value!r}")
        fresh = {"box": None, "caption": None, "item": None} if "query" in patch else {}
        return replace(self, **fresh | patch)


@dataclass(frozen=True)
class Question:
    """A query as it is asked: a photo (H, W, 3), its region store and row there, what is known of it."""

    name: str
    photo: np.ndarray
    store: RegionStore
    caption: str
    labels: list[str]

    def table(self, caption: str) -> pd.DataFrame:
        """The row of a catalog that it would be, with this caption."""
        return pd.DataFrame([{"sample_id": self.name, "caption": caption, "labels": self.labels}], dtype=object)


class Explorer:
    """Answers for the queries of a catalog, or for a photo that a reader hands in.

    Args:
        searcher: of the run, with the gallery in both forms.
        queries: rows of the catalog to pick from (sample_id, caption, labels).
        choices: the reading and merge of each method, as val chose; only these methods can be picked.
    """

    def __init__(self, searcher: Searcher, queries: pd.DataFrame, choices: dict[str, Choice]) -> None:
        self.searcher, self.run, self.choices = searcher, searcher.run, choices
        self.queries = queries.reset_index(drop=True)
        self.store, _ = stages.region_store(self.run)
        self.own: Question | None = None
        given = {name.split("/")[0] for name in choices}
        self.models = [name for name in MODELS if name in given] + sorted(given - set(MODELS))
        named = [[analysis.parse_label(label) for label in labels] for labels in self.queries["labels"]]
        self.brands, self.kinds = ([{getattr(one, what) for one in of} - {""} for of in named]
                                   for what in ("brand", "kind"))
        self.template = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                                    lstrip_blocks=True, undefined=StrictUndefined).get_template("explorer.html.j2")
        self.side = lru_cache(maxsize=64)(self._side)
        self.places = lru_cache(maxsize=4)(self._places)

    # ------------------------------------------------------------------------------------------ the answer

    @property
    def best(self) -> str:
        """The method in which an explorer opens: CAPTURE by the vectors that val chose, where there is one."""
        return self.method(self.models[0], self.levels(self.models[0])[0])

    def start(self) -> State:
        """The state in which an explorer opens."""
        return State(model=self.models[0], level=self.levels(self.models[0])[0])

    def levels(self, model: str) -> list[str]:
        """The forms in which a model can be asked."""
        return [level for level in LEVELS if self.method(model, level)]

    def method(self, model: str, level: str) -> str:
        """The name of a method that can be picked; empty where there is none."""
        return next((name for name in (f"{model}/{level}", model)
                     if name in self.choices and METHODS[name].level == level), "")

    def settle(self, state: State) -> State:
        """The state as far as it can be: a method, query, box or item that is not there gives way to one that is."""
        model = state.model if state.model in self.models else self.models[0]
        level = state.level if state.level in self.levels(model) else self.levels(model)[0]
        own = state.query == OWN and self.own is not None
        query = state.query if own or 0 <= state.query < len(self.queries) else 0
        passing = self.passing(state)
        if not own and len(passing) and query not in passing:  # a filter has been set
            state, query = state.changed({"query": int(passing[0])}), int(passing[0])
        state = replace(state, model=model, level=level, query=query,
                        item=state.item if state.item in self.searcher.items else None)
        boxes = self.side(*self.asked(state)).regions
        kept = level == "instance" and state.box is not None and 0 <= state.box < len(boxes)
        return replace(state, box=state.box if kept else None)

    def question(self, query: int) -> Question:
        """The query of a number."""
        if query == OWN:
            return self.own
        row = self.queries.iloc[query]
        photo = load_photo(self.run.catalog.photos[row["sample_id"]])
        return Question(row["sample_id"], photo, self.store, row["caption"], list(row["labels"]))

    def asked(self, state: State) -> tuple[int, str, str]:
        """Number and caption of what is asked, and the name of the photo, which tells own ones apart."""
        question = self.question(state.query)
        caption = question.caption if state.caption is None else state.caption
        return state.query, caption.strip() if state.worded else "", question.name

    def _side(self, query: int, caption: str, name: str) -> EmbeddedSet:
        """One query as vectors."""
        question = self.question(query)
        return self.searcher.embed(question.table(caption), question.store, single=False)

    def ranking(self, state: State) -> Ranking:
        """The hits of a query, or of one of its instances, best first; none where there are no words to compare."""
        side, (_, caption, name) = self.side(*self.asked(state)), self.asked(state)
        if state.model == "text-only" and not caption:
            return Ranking(*(np.zeros(0, kind) for kind in (np.int64, np.float32, np.int64)))
        if state.box is not None:
            one = slice(state.box, state.box + 1)
            side = replace(side, owners=np.zeros(1, np.int64), regions=side.regions[one],
                           instance={key: block[one] for key, block in side.instance.items()})
        found, = self.rankings(side, state)
        others = np.array([self.searcher.items[row].sample_id != name for row in found.rows], bool)  # not itself
        return Ranking(found.rows[others], found.scores[others],
                       found.instances[others] if state.box is None else np.full(others.sum(), state.box))

    def rankings(self, side: EmbeddedSet, state: State) -> list[Ranking]:
        """One ranking for each query of a side, by the method that is picked."""
        choice = self.choices[self.method(state.model, state.level)]
        held = self.searcher.index(choice.representation, state.level)
        return retrieval.rank_in(held, side, state.level, choice, self.run.profile.retrieval.depth)

    def evaluated(self, item: int, labels: Iterable[str]) -> bool | None:
        """Whether a gallery photo shows one of the products asked for; None where nobody knows."""
        known = self.searcher.items[item].labels
        return bool(set(known) & set(labels)) if known and labels else None

    # ------------------------------------------------------------------------------------- what to look at

    def passing(self, state: State) -> np.ndarray:
        """Numbers of the queries that the filters let through: one of whose products has the brand, one the kind."""
        return np.array([number for number in range(len(self.queries))
                         if (not state.brand or state.brand in self.brands[number])
                         and (not state.kind or state.kind in self.kinds[number])], np.int64)

    def next_wrong(self, state: State, parallel_jobs: int = 4) -> int | None:
        """The next query that the filters let through whose first hit is wrong by the method that is picked."""
        passing = self.passing(state)
        order = np.concatenate([passing[passing > state.query], passing[passing <= state.query]])
        for first in range(0, len(order), parallel_jobs):
            few = order[first:first + parallel_jobs]
            table = self.queries.iloc[few] if state.worded else self.queries.iloc[few].assign(caption="")
            side = self.searcher.embed(table, self.store, single=False)
            for number, ranking in zip(few, self.rankings(side, state), strict=True):
                if len(ranking.rows) and self.evaluated(ranking.rows[0], self.queries["labels"][number]) is False:
                    return int(number)
        return None

    def take_photo(self, content: bytes, name: str, caption: str = "") -> None:
        """Takes in a photo that a reader hands in; it is then the query `OWN`.

        Raises:
            InputError: it does not decode.
        """
        try:
            photo = load_photo(BytesIO(content))
        except InputError as error:
            told = str(error).partition(": ")[2].partition(" (cannot identify")[0] if content else "the file is empty"
            raise InputError(f"{name}: {told}; all stays as it was") from None
        label = f"own photo {name}"
        self.own = Question(label, photo, self.searcher.describe(photo, label), caption, [])
        self.side.cache_clear()

    def neighbours(self, item: int, state: State, most: int = 8) -> list[tuple[int, float]]:
        """The gallery photos nearest to one of them in the vectors that are compared, with their cosines."""
        choice = self.choices[self.method(state.model, state.level)]
        vector = self.searcher.vectors(choice.representation, state.level)[item:item + 1]
        scores, rows = self.searcher.index(choice.representation, state.level).search(vector, most + 1)
        return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row != item][:most]

    def _places(self, representation: str, level: str) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of gallery photos, 1,500 at most, and where t-SNE puts them, (n, 2) in 0..1."""
        numbers = np.array(sorted(self.searcher.items), np.int64)
        numbers = np.sort(np.random.default_rng(self.run.seed).permutation(numbers)[:MOST_POINTS])
        if len(numbers) < 4:
            return numbers[:0], np.zeros((0, 2))
        places = analysis.flat_map(self.searcher.vectors(representation, level)[numbers], self.run.seed)
        low, high = places.min(0), places.max(0)
        return numbers, (places - low) / np.maximum(high - low, 1e-9)

    # ------------------------------------------------------------------------------------------- the pieces

    def show(self, state: State, note: str = "") -> dict[str, str]:
        """The pieces of the page for a state that is settled, as HTML by name (`PIECES`)."""
        return {"controls": self.draw("controls", state, **self.controls(state)),
                "picker": self.draw("picker", state, **self.strip(state)),
                "query": self.draw("query", state, **self.query(state)),
                "answers": self.draw("answers", state, hits=self.hits(state, 10), caption=self.asked(state)[1]),
                "beside": self.draw("neighbours", state, **self.near(state))
                + self.draw("map", state, **self.map(state)),
                "note": self.draw("note", state, text=note)}

    def draw(self, piece: str, state: State, live: bool = True, **content: object) -> str:
        """One piece of the page; all text of the catalog is escaped by the template."""
        return str(getattr(self.template.module, piece)(state, live, **content))

    def controls(self, state: State) -> dict:
        """What can be chosen."""
        counts = {name: Counter(word for words in of for word in words).most_common()
                  for name, of in (("brand", self.brands), ("kind", self.kinds))}
        return {"models": [(name, MODELS.get(name, name)) for name in self.models], "forms": self.levels(state.model),
                "filters": counts, "caption": self.question(state.query).caption if state.caption is None
                else state.caption, "judges": any(map(len, self.queries["labels"])),
                "words": self.searcher.words is not None}

    def strip(self, state: State) -> dict:
        """Queries to pick from: those around the one that is shown, of those that the filters let through."""
        passing = self.passing(state)
        place = int(np.searchsorted(passing, max(state.query, 0)))
        first = place // STRIP * STRIP
        photos = self.run.catalog.photos
        shown = [(int(number), self.queries["sample_id"][number], thumbnail(
            photos[self.queries["sample_id"][number]], 72)) for number in passing[first:first + STRIP]]
        before = int(passing[first - 1]) if first else None
        after = int(passing[first + STRIP]) if first + STRIP < len(passing) else None
        return {"shown": shown, "first": first, "count": len(passing), "all": len(self.queries), "before": before,
                "after": after, "own": figures.thumbnail(self.own.photo, 72) if self.own else ""}

    def query(self, state: State) -> dict:
        """The photo with the boxes of its instances, and what is known of it."""
        question, side = self.question(state.query), self.side(*self.asked(state))
        row = question.store.rows([question.name])[0]
        small = figures.thumbnail(question.photo, 360)
        height, width = question.photo.shape[:2]
        scale = 360 / max(height, width)
        boxes = question.store.boxes[row, side.regions] * np.tile([width * scale, height * scale], 2)
        placed = [(number, x1, y1, x2 - x1, y2 - y1) for number, (x1, y1, x2, y2) in enumerate(boxes.tolist())]
        poor = question.store.scores[row, 0] < self.run.profile.instances.min_score
        return {"name": question.name, "photo": small, "width": width * scale, "height": height * scale,
                "boxes": sorted(placed, key=lambda box: box[0] == state.box),  # the chosen one on top
                "caption": self.asked(state)[1], "labels": question.labels, "poor": bool(poor)}

    def hits(self, state: State, most: int) -> list[dict]:
        """The first hits of what is chosen, as cards."""
        ranking, labels = self.ranking(state), self.question(state.query).labels
        several = state.level == "instance" and state.box is None
        return [self.card(int(row), float(score), self.evaluated(row, labels), f"box {instance + 1}" if several else "")
                for row, score, instance in zip(ranking.rows[:most], ranking.scores, ranking.instances, strict=False)]

    def near(self, state: State) -> dict:
        """The photo whose neighbours are shown, and these, as cards; right means: of the same product."""
        if state.item is None:
            return {"item": None, "cards": []}
        labels = self.searcher.items[state.item].labels
        cards = [self.card(row, score, self.evaluated(row, labels)) for row, score in self.neighbours(state.item, state)]
        return {"item": self.card(state.item, 1.0, None), "cards": cards}

    def card(self, number: int, score: float, right: bool | None, origin: str = "") -> dict:
        """A gallery photo as a card."""
        item: Item = self.searcher.items[number]
        return {"number": number, "photo": thumbnail(item.path, 150), "score": score, "right": right, "origin": origin,
                "text": "; ".join(item.labels) or item.caption or item.sample_id, "caption": item.caption}

    def map(self, state: State) -> dict:
        """The points of the map by group, largest first, the hits and the item that is looked at among them."""
        if not state.map:
            return {"groups": [], "hits": set(), "reading": ""}
        choice = self.choices[self.method(state.model, state.level)]
        numbers, places = self.places(choice.representation, state.level)
        items = [self.searcher.items[number] for number in numbers]
        of = [getattr(analysis.parse_label(item.labels[0]), state.map) if item.labels else "" for item in items]
        largest = [name for name, _ in Counter(filter(None, of)).most_common(len(figures.SIGNS))]
        groups: dict[str, list] = {name: [] for name in [*largest, ""]}
        for number, (x, y), item, name in zip(numbers.tolist(), places.tolist(), items, of, strict=True):
            text = "; ".join(item.labels) or item.caption or item.sample_id
            groups[name if name in largest else ""].append((number, x, y, text))
        return {"groups": [(name, points) for name, points in groups.items() if points], "reading": choice.representation,
                "hits": {hit["number"] for hit in self.hits(state, 10)}}

    def page(self, number: int, method: str, most: int = 10) -> HTML:
        """Query `number` by a method, for a report: its boxes, the merged hits, and those of each instance."""
        state = self.settle(replace(self.start(), query=number, model=method.split("/")[0], level=METHODS[method].level))
        rows = [("all products, merged" if state.level == "instance" else "the whole photo", self.hits(state, most))]
        if state.level == "instance":
            rows += [(f"box {box + 1}", self.hits(replace(state, box=box), 5))
                     for box in range(len(self.side(*self.asked(state)).regions))]
        query = self.draw("query", state, live=False, **self.query(state))
        lists = "".join(self.draw("row", state, live=False, name=name, hits=hits) for name, hits in rows)
        return HTML(f'<style>{style()}</style><div class="explorer report"><div data-part="query">{query}</div>'
                    f'<div class="rows">{lists}</div></div>')


@lru_cache(maxsize=8192)
def thumbnail(path: Path, side: int) -> str:
    """A photo of the catalog, small, as an address."""
    return figures.thumbnail(load_photo(path), side)


def style() -> str:
    """The look of the explorer, live and in a report."""
    return (TEMPLATES / "explorer.css").read_text(encoding="utf-8")


def open_explorer(run: Run) -> Explorer:
    """The explorer of a run, whatever its catalog holds: test queries, or else those of val, or else any photos.

    Methods are read and merged as val chose; where nothing can be chosen, by their first reading, and there is no
    "capture-chosen", which would be the same as "capture".
    """
    searcher = Searcher.open(run, LEVELS)
    queries = next(table for table in (*(stages.samples(run, split) for split in ("test", "val")),
                                       stages.photographed(run)) if len(table))
    if not searcher.choices:
        sides = stages.embedded(run)
        if "gallery" in sides and {"val", "test"} & set(sides):
            stages.choices(run, sides)
            searcher.choices = stages.stored_choices(run)
    if searcher.choices:
        return Explorer(searcher, queries, {name: Choice(found["reading"], found["merge"])
                                            for name, found in searcher.choices.items()
                                            if found["val"] is not None or not name.startswith("capture-chosen")})
    return Explorer(searcher, queries, {name: Choice(method.representations[0]) for name, method
                                        in retrieval.possible_methods(searcher.gallery).items()
                                        if not name.startswith("capture-chosen")})
