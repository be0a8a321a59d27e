"""What a reader of the explorer can choose, and the answers: hits of a query, neighbours of an item, a map."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from io import BytesIO

import numpy as np
import pandas as pd

from capture_lib.catalog.labels import parse_label
from capture_lib.catalog.photos import load_photo
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.experiments.search import Searcher
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import ranking
from capture_lib.retrieval.embedding import LEVELS, EmbeddedSet, represent
from capture_lib.retrieval.ranking import METHODS, Ranking
from capture_lib.utils import InputError

MODELS = {  # the first part of a method's name, for readers, in the order of the menu
    "capture-chosen": "CAPTURE, vectors chosen on val", "capture": "CAPTURE, the paper's product",
    "image-only": "image alone", "text-only": "text alone", "late-fusion": "image + text, late fusion",
}
MAX_POINTS = 1500  # of the map
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
        """Return the state with some of it chosen anew; what belongs to a query goes with it.

        Raises:
            InputError: a name or a type is not that of a field; it comes from a browser.
        """
        types = {field.name: field.type for field in fields(self)}
        for name, value in patch.items():
            fits = name in types and isinstance(value, types[name])
            if not fits or (isinstance(value, bool) and types[name] is not bool):
                raise InputError(f"explorer: {name!r} cannot be {value!r}")
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
    """Answers for the queries of a catalog, or for a photo that a reader hands in.

    Args:
        searcher: of the run, with the gallery at both levels.
        queries: rows of the catalog to pick from (sample_id, caption, labels).
        choices: the representation of each method that can be picked.
    """

    def __init__(self, run: Run, searcher: Searcher, queries: pd.DataFrame, choices: dict[str, str]) -> None:
        self.run = run
        self.searcher = searcher
        self.queries = queries.reset_index(drop=True)
        self.choices = choices
        self.store, _ = stages.region_store(run)
        self.own: Query | None = None  # a photo that a reader handed in

        # the method of each model at each level
        self.methods: dict[str, dict[str, str]] = {}
        for name in sorted(choices, key=lambda name: list(MODELS).index(name.split("/")[0])):
            self.methods.setdefault(name.split("/")[0], {})[METHODS[name].level] = name

        # what the labels of each query say
        named = [[parse_label(label) for label in labels] for labels in self.queries["labels"]]
        self.labelled = any(named)
        self.brands = [{one.brand for one in labels} - {""} for labels in named]
        self.kinds = [{one.kind for one in labels} - {""} for labels in named]
        self.query = lru_cache(maxsize=64)(self._query)
        self.embedded = lru_cache(maxsize=64)(self._embedded)
        self.places = lru_cache(maxsize=4)(self._places)

    @property
    def best(self) -> str:
        """The method in which an explorer opens: CAPTURE by the vectors that val chose, where there is one."""
        state = self.settle(State())
        return self.methods[state.model][state.level]

    def representation(self, state: State) -> str:
        """Return the representation of the method that is picked."""
        return self.choices[self.methods[state.model][state.level]]

    def settle(self, state: State) -> State:
        """Return the state with all that is not there replaced by what is."""
        model = state.model if state.model in self.methods else next(iter(self.methods))
        levels = self.methods[model]
        level = state.level if state.level in levels else sorted(levels, key=LEVELS.index)[0]
        item = state.item if state.item in self.searcher.items else None
        state = replace(state, model=model, level=level, item=item)

        # one's own photo, or a query that the filters let through
        passing = self.passing(state)
        if state.query != OWN or self.own is None:
            if state.query not in (passing if len(passing) else range(len(self.queries))):
                state = state.changed({"query": int(passing[0]) if len(passing) else 0})

        boxes = range(len(self.embedded(state.query, self.caption(state)).regions))
        return replace(state, box=state.box if level == "instance" and state.box in boxes else None)

    def passing(self, state: State) -> np.ndarray:
        """Return the numbers of the queries that show the brand, and the kind, of the filters."""
        numbers = []
        for number, (brands, kinds) in enumerate(zip(self.brands, self.kinds, strict=True)):
            if (not state.brand or state.brand in brands) and (not state.kind or state.kind in kinds):
                numbers.append(number)
        return np.array(numbers, np.int64)

    def take_photo(self, content: bytes, name: str) -> None:
        """Take in a photo that a reader hands in; it is then the query `OWN`.

        Raises:
            InputError: it does not decode.
        """
        try:
            photo = load_photo(BytesIO(content))
        except InputError as error:
            reason = str(error).partition(": ")[2].partition(" (cannot identify")[0]
            raise InputError(f"{name}: {reason if content else 'the file is empty'}; all stays as it was") from None
        label = f"own photo {name}"
        self.own = Query(label, photo, self.searcher.describe(photo, label), "", [])
        self.query.cache_clear()
        self.embedded.cache_clear()

    def _query(self, number: int) -> Query:
        if number == OWN:
            return self.own
        row = self.queries.iloc[number]
        photo = load_photo(self.run.catalog.photos[row["sample_id"]])
        return Query(row["sample_id"], photo, self.store, row["caption"], list(row["labels"]))

    def words(self, state: State) -> str:
        """Return the caption of the query, its own or the one that was typed."""
        return (self.query(state.query).caption if state.caption is None else state.caption).strip()

    def caption(self, state: State) -> str:
        """Return the words that the query is asked with."""
        return self.words(state) if state.worded else ""

    def _embedded(self, number: int, caption: str) -> EmbeddedSet:
        query = self.query(number)
        row = {"sample_id": query.name, "caption": caption, "labels": query.labels}
        return self.searcher.embed(pd.DataFrame([row], dtype=object), query.store, single=False)

    def ranking(self, state: State) -> Ranking:
        """Return the hits of a query, or of one of its instances; none where there are no words to compare."""
        caption = self.caption(state)
        if state.model == "text-only" and not caption:
            return Ranking(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
        asked = self.embedded(state.query, caption)
        representation = self.representation(state)
        vectors = represent(asked.vectors(state.level), representation)
        if state.box is not None:
            vectors = vectors[[state.box]]
        index = self.searcher.index(representation, state.level)
        scores, rows = ranking.search_index(index, vectors, self.run.profile.retrieval.depth)
        found = ranking.comb_max(rows, scores, self.run.profile.retrieval.depth)

        # a photo does not answer itself
        name = self.query(state.query).name
        others = np.array([self.searcher.items[row].sample_id != name for row in found.rows], bool)
        instances = found.instances if state.box is None else np.full(len(found.rows), state.box)
        return Ranking(found.rows[others], found.scores[others], instances[others])

    def is_right(self, item: int, labels: Sequence[str]) -> bool | None:
        """Return whether a gallery photo shows one of the products asked for; None where nobody knows."""
        known = self.searcher.items[item].labels
        return bool(set(known) & set(labels)) if known and labels else None

    def next_wrong(self, state: State) -> int | None:
        """Return the next query that the filters let through whose first hit is wrong; None without any."""
        passing = self.passing(state)
        for number in [*passing[passing > state.query], *passing[passing <= state.query]]:
            first = self.ranking(self.settle(state.changed({"query": int(number)}))).rows[:1]
            if len(first) and self.is_right(first[0], self.queries["labels"][number]) is False:
                return int(number)
        return None

    def neighbours(self, item: int, state: State, count: int = 8) -> list[tuple[int, float]]:
        """Return the gallery photos nearest to one of them by the vectors compared, with their cosines."""
        representation = self.representation(state)
        vector = self.searcher.vectors(representation, state.level)[[item]]
        scores, rows = ranking.search_index(self.searcher.index(representation, state.level), vector, count + 1)
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(row, score) for row, score in pairs if row != item][:count]

    def _places(self, representation: str, level: str) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers (n,) of gallery photos, 1,500 at most, and where t-SNE puts them, (n, 2) in 0..1."""
        from sklearn.manifold import TSNE

        numbers = np.random.default_rng(self.run.seed).permutation(len(self.searcher.items))
        numbers = np.sort(numbers[:MAX_POINTS])
        if len(numbers) < 4:
            return numbers[:0], np.zeros((0, 2))
        perplexity = min(30, (len(numbers) - 1) / 3)
        tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=self.run.seed)
        places = tsne.fit_transform(self.searcher.vectors(representation, level)[numbers])
        low = places.min(0)
        return numbers, (places - low) / np.maximum(places.max(0) - low, 1e-9)
