"""What a reader of the explorer can choose, and the answers: hits of a query, neighbours of an item, a map."""

from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from io import BytesIO
from itertools import chain

import numpy as np
import pandas as pd

from capture_lib.catalog.labels import parse_label
from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import Searcher, labels_of_boxes, telling
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import EmbeddedSet, represent
from capture_lib.retrieval.ranking import METHODS, Ranking
from capture_lib.utils import InputError

OWN = -1  # the number of a reader's own photo among the queries


@dataclass(frozen=True)
class State:
    """All that can be chosen; a browser changes it by `changed`, an explorer makes it fit by `settle`."""

    query: int = 0
    box: int | None = None  # an instance of the query; None: all, merged
    model: str = ""  # the first part of a method's name
    level: str = "instance"
    caption: str | None = None  # in place of the query's own
    worded: bool = True  # False: the query has no caption at all
    brand: str = ""  # of the queries that can be picked; empty: any
    kind: str = ""
    item: int | None = None  # of the gallery, whose neighbours are shown
    map: str = ""  # what colours its points, "brand" or "kind"; empty: no map

    def changed(self, patch: dict) -> "State":
        """Return the state with some of it chosen anew; what belongs to a query goes with it."""
        types = {field.name: field.type for field in fields(self)}
        if not all(isinstance(value, types.get(name, ())) for name, value in patch.items()):
            raise InputError(f"explorer: cannot choose {patch!r}")
        fresh = {"box": None, "caption": None, "item": None} if "query" in patch else {}
        return replace(self, **fresh | patch)


@dataclass(frozen=True)
class Query:
    """A query: its photo (H, W, 3), its region store, what is known of it."""

    name: str
    photo: np.ndarray
    store: RegionStore
    caption: str
    labels: list[str]


class Answers:
    """Answers for queries, rows of a catalog, and for a reader's photo; `choices`: representations by method."""

    def __init__(self, run: Run, searcher: Searcher, queries: pd.DataFrame, choices: dict[str, str]) -> None:
        self.run = run
        self.searcher = searcher
        self.queries = queries.reset_index(drop=True)
        self.choices = choices
        self.store, _ = stages.region_store(run)
        self.own: Query | None = None  # a photo that a reader handed in
        self.query = lru_cache(maxsize=64)(self._query)
        self.embedded = lru_cache(maxsize=64)(self._embedded)
        self.places = lru_cache(maxsize=4)(self._places)

        # the method of each model at each level, first the one that is best on val
        self.methods: dict[str, dict[str, str]] = {}
        best = searcher.best("instance", "any words")
        for name in sorted(choices, key=lambda name: name != best):
            self.methods.setdefault(name.split("/")[0], {})[METHODS[name].level] = name

        # brands and kinds that each query shows, and how many queries show each
        self.shows: dict[str, list[set[str]]] = {"brand": [], "kind": []}
        for labels in self.queries["labels"]:
            for aspect, sets in self.shows.items():
                sets.append({getattr(parse_label(label), aspect) for label in labels} - {""})
        self.filters = {aspect: Counter(chain(*sets)) for aspect, sets in self.shows.items()}

    def representation(self, state: State) -> str:
        """Return the representation of the method that is picked."""
        return self.choices[self.methods[state.model][state.level]]

    def how(self, state: State) -> list[str]:
        """Return the method that is picked, in words; the second line says which is better on val, if one is."""
        return self.searcher.how(self.methods[state.model][state.level], self.caption(state)).splitlines()

    def settle(self, state: State) -> State:
        """Return the state with all that is not there replaced by what is."""
        model = state.model if state.model in self.methods else next(iter(self.methods))
        level = state.level if state.level in self.methods[model] else next(iter(self.methods[model]))
        item = state.item if state.item in self.searcher.items else None
        state = replace(state, model=model, level=level, item=item)
        passing = self.passing(state) or range(len(self.queries))
        if state.query not in passing and not (state.query == OWN and self.own):
            state = state.changed({"query": passing[0]})
        return replace(state, box=state.box if level == "instance" and state.box in self.shown(state) else None)

    def shown(self, state: State) -> list[int]:
        """Return the numbers of the query's instances to show."""
        count = len(self.embedded(state.query, self.caption(state)).regions)
        return telling(self.ranking(replace(state, box=None)), count)

    def passing(self, state: State) -> list[int]:
        """Return the numbers of the queries that show the brand, and the kind, of the filters."""
        shows = enumerate(zip(*self.shows.values(), strict=True))
        return [number for number, (brands, kinds) in shows
                if state.brand in ("", *brands) and state.kind in ("", *kinds)]

    def take_photo(self, content: bytes, name: str) -> None:
        """Take in a photo that a reader hands in; it is then the query `OWN`."""
        try:
            photo = load_photo(BytesIO(content))
        except InputError as error:
            reason = str(error).partition(": ")[2]
            raise InputError(f"{name}: {reason}; all stays as it was") from None
        label = f"own photo {name}"
        self.own = Query(label, photo, self.searcher.describe(photo, label), "", [])
        self.query.cache_clear()
        self.embedded.cache_clear()

    def own_labels(self, state: State) -> set[str] | None:
        """Return the labels of the true boxes that the chosen box finds; None: no box is chosen, or none is known."""
        if state.box is None or state.query == OWN:
            return None
        boxes = self.embedded(state.query, self.caption(state)).boxes
        return labels_of_boxes(self.queries.loc[state.query], self.query(state.query).photo, boxes)[state.box]

    def _query(self, number: int) -> Query:
        if number == OWN:
            return self.own
        name, caption, labels = self.queries.loc[number, ["sample_id", "caption", "labels"]]
        return Query(name, load_photo(self.run.catalog.photos[name]), self.store, caption, list(labels))

    def caption(self, state: State) -> str:
        """Return the words that the query is asked with: its own, those that were typed, or none."""
        words = self.query(state.query).caption if state.caption is None else state.caption
        return words.strip() if state.worded else ""

    def _embedded(self, number: int, caption: str, image_text: bool = False) -> EmbeddedSet:
        query = self.query(number)
        sample = {"sample_id": query.name, "caption": caption, "labels": query.labels}
        return self.searcher.embed_query(sample, query.store, query.photo if image_text else None)

    def ranking(self, state: State) -> Ranking:
        """Return the hits of a query, or of one of its instances; none where there are no words to compare."""
        caption = self.caption(state)
        if state.model in ("text-only", "foundation-text") and not caption:
            return Ranking(*np.zeros((3, 0), np.int64))
        name = self.representation(state)
        query = self.embedded(state.query, caption, "foundation" in name)
        vectors = represent(query.vectors(state.level), name)
        if state.box is not None:
            vectors = vectors[[state.box]]
        depth = self.run.profile.retrieval.depth
        scores, rows = ranking.search_index(self.searcher.index(name, state.level), vectors, depth)
        hits = ranking.comb_max(rows, scores, depth)

        # a photo does not answer itself
        asked = self.query(state.query).name
        others = np.array([self.searcher.items[row].sample_id != asked for row in hits.rows], bool)
        return Ranking(hits.rows[others], hits.scores[others], hits.instances[others])

    def neighbours(self, item: int, state: State) -> list[tuple[int, float]]:
        """Return the 8 gallery photos nearest to one of them by the vectors compared, with their cosines."""
        name = self.representation(state)
        vector = self.searcher.vectors(name, state.level)[[item]]
        scores, rows = ranking.search_index(self.searcher.index(name, state.level), vector, 9)
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row != item][:8]

    def _places(self, representation: str, level: str) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers (n,) of gallery photos, and where t-SNE puts them, (n, 2) in 0..1."""
        from sklearn.manifold import TSNE

        order = np.random.default_rng(self.run.seed).permutation(len(self.searcher.items))
        numbers = np.sort(order[:1500])
        if len(numbers) < 4:
            return numbers[:0], np.zeros((0, 2))
        perplexity = min(30, (len(numbers) - 1) / 3)
        tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=self.run.seed)
        places = tsne.fit_transform(self.searcher.vectors(representation, level)[numbers])
        return numbers, (places - places.min(0)) / np.maximum(np.ptp(places, 0), 1e-9)
