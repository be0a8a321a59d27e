"""Does training on unlabelled photos, or on pairs, help a pretrained network on real photos?

Whole photos of val and test that show one product are asked in the gallery. The start is a network with pretrained
weights, frozen. "photos" trains it on, with composites of the train split: two crops of one foreground are pulled
together. "pairs" pretrains CAPTURE on the train split's image-caption pairs, on the frozen network's features. No label
is read. Learning rates, and what is read of a network, are those with the best mAP on val.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from capture_lib.catalog.table import Catalog
from capture_lib.experiments import composed as beyond
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.model.capture import Capture
from capture_lib.model.losses import nt_xent
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import load_backbone
from capture_lib.proposals.region_encoder import EncoderSettings
from capture_lib.proposals.region_store import RegionStore
from capture_lib.retrieval import embedding as retrieval
from capture_lib.retrieval import wccn as whitening
from capture_lib.retrieval.embedding import unit
from capture_lib.retrieval.statistics import bootstrap
from capture_lib.training import batches, pretrain
from capture_lib.utils import InputError, pick_device, progress

REPRESENTATIONS = {"last stage": ("stage", 1), "last stage, 2×2": ("stage", 2), "head": ("head", 1), "head, 2×2": ("head", 2)}
FROZEN = "frozen"
UNTRAINED, PRETRAINED = "CAPTURE, untrained", "CAPTURE, pretrained on pairs"
BESIDE = f"{PRETRAINED}, beside frozen"
MATCHED = "frozen, whitened by mined pairs"
RIDGES = (0.1, 1.0, 10.0)  # of which val chooses: a pretrained network's vectors are long, its photos few
Vectors = dict[str, np.ndarray]  # (n, F) by split


@dataclass(frozen=True)
class AdaptationSettings:
    """Defaults of `capture transfer --only photos` and `--only pairs`, for two CPU cores; val chooses from tuples."""

    sizes: tuple[int, ...] = (224, 288)  # sides of the squares that photos are fitted into, pixels
    foreground: int = 192  # longer side, pixels
    composites: int = 2_000
    composite: int = 224  # side, pixels
    products: int = 2  # the most in a composite: of more, each would be much smaller than in a whole photo
    crop: int = 128  # side of a crop in training, pixels
    steps: int = 40
    batch: int = 32  # pairs of crops
    rates: tuple[float, ...] = (3e-5, 1e-4)  # learning rates of the network
    temperature: float = 0.1
    pair_rates: tuple[float, ...] = (2e-4, 1e-3)  # learning rates of CAPTURE
    pair_epochs: int = 4  # with more, it was further from the frozen features on val
    shares: tuple[float, ...] = (0.2, 0.5)  # of CAPTURE's vectors, beside the frozen ones


class Network(nn.Module):
    """A convolutional network of timm, without its classifier; a random start without weights."""

    def __init__(self, backbone: str, weights: str = "") -> None:
        super().__init__()
        self.trunk = timm.create_model(backbone, num_classes=0)
        if weights:
            load_backbone(self.trunk, Path(weights))

    def forward(self, photos: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) float in [0, 1] to vectors (B, F), F by reading."""
        head, (stage,) = self.trunk.forward_intermediates((photos - 0.5) / 0.5, indices=1)
        maps = {"stage": stage, "head": head}
        return {name: adaptive_avg_pool2d(maps[kind], grid).flatten(1) for name, (kind, grid) in REPRESENTATIONS.items()}


@dataclass(frozen=True)
class Photos:
    """The photos of a catalog that show one product, as queries of val and test and as the gallery they are asked in.

    Raises:
        InputError: there is no gallery, or no test query whose product is in it.
    """

    catalog: Catalog

    def __post_init__(self) -> None:
        if self.split("test").empty:
            raise InputError(f"{self.catalog.folder}: no test photo on disk has one label that a gallery photo has too")

    def split(self, name: str) -> pd.DataFrame:
        """The rows of a split, in order; of the queries, those whose product the gallery has."""
        table = self.catalog.split(name)
        table = table[table["sample_id"].isin(self.catalog.photos) & (table["labels"].map(len) == 1)]
        return table if name == "gallery" else table[table["labels"].map(lambda own: own[0] in self.held)]

    def sides(self, *names: str) -> dict[str, pd.DataFrame]:
        """Those of the splits that have rows."""
        return {name: rows for name in names if len(rows := self.split(name))}

    @cached_property
    def held(self) -> set[str]:
        """The labels of the gallery."""
        return {own[0] for own in self.split("gallery")["labels"]}

    def figures(self, vectors: Vectors, name: str) -> np.ndarray:
        """Average precision, and whether the nearest neighbour is right, of a split's queries: (Q, 2)."""
        labels = {side: np.array([own[0] for own in self.split(side)["labels"]]) for side in (name, "gallery")}
        return np.stack(encoder.identity(vectors[name], labels[name], vectors["gallery"], labels["gallery"]), 1)

    def on_val(self, vectors: Vectors) -> float:
        """mAP on val; 0 without one, so that the first of several is chosen."""
        return float(self.figures(vectors, "val")[:, 0].mean()) if "val" in vectors else 0.0


# ----------------------------------------------------------------------------------------------- photos


@torch.inference_mode()
def described(run: Run, table: pd.DataFrame, network: Network, size: int) -> Vectors:
    """The photos of some rows, fitted into squares of `size` pixels, as the network sees them: (n, F) by reading."""
    paths = [run.catalog.photos[sample] for sample in table["sample_id"]]
    squares = regions.photo_batches(paths, replace(run.profile.regions, photo_size=size))
    parts = [network(photos) for photos, _ in squares]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in REPRESENTATIONS}


@dataclass(frozen=True)
class Reader:
    """A network, and what is read of it: one of the readings, photos in squares of `size` pixels."""

    network: Network
    reading: str
    size: int

    def vectors(self, run: Run, table: pd.DataFrame) -> np.ndarray:
        """(n, F) of the photos of some rows."""
        return described(run, table, self.network, self.size)[self.reading]


def readers(run: Run, photos: Photos, network: Network, sizes: tuple[int, ...]) -> dict[str, tuple[Reader, float]]:
    """What can be read of a network, by name, each with its mAP on val."""
    network.to(pick_device()).eval()
    found = {}
    for size in sizes:
        sides = {side: described(run, rows, network, size) for side, rows in photos.sides("val", "gallery").items()}
        for reading in REPRESENTATIONS:
            score = photos.on_val({side: vectors[reading] for side, vectors in sides.items()})
            found[f"{reading}, {size} px"] = Reader(network, reading, size), score
    return found


def best(options: dict[str, tuple[object, float]]) -> str:
    """The name of the option with the best figure on val, the first of several."""
    return max(options, key=lambda name: options[name][1])


def trained(start: Reader, composites: Path, settings: AdaptationSettings, rate: float, seed: int) -> Network:
    """A copy of a network, trained on composites by the vectors that the reader reads; batch norms stay as they are."""
    network = deepcopy(start.network).to(pick_device()).eval()
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, settings.steps)
    stream = encoder.positive_pairs(composites, EncoderSettings(crop=settings.crop, batch=settings.batch), seed)
    for _ in progress(range(settings.steps), f"steps on composites, rate {rate:g}", settings.steps):
        crops = torch.cat(next(stream)).to(pick_device())
        loss = nt_xent(*network(crops)[start.reading].chunk(2), settings.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def composites(run: Run, settings: AdaptationSettings) -> Path:
    """The composites of the catalog's train photos, larger ones than a profile's; a stage, made once."""
    changed = replace(run.profile.synthesis, foreground_size=settings.foreground, composites=settings.composites,
                      size=settings.composite, max_products=settings.products)
    return stages.composites(replace(run, profile=replace(run.profile, name=f"{run.profile.name}-photos",
                                                          synthesis=changed)))


def with_photos(run: Run, backbone: str, weights: str, settings: AdaptationSettings | None = None) -> dict:
    """Frozen features beside those of the network trained on, as from `report`.

    Args:
        backbone: a timm name of a convolutional network; weights: a local file of weights for it.
    """
    settings, photos = settings or AdaptationSettings(), Photos(run.catalog)
    options = {FROZEN: readers(run, photos, Network(backbone, weights), settings.sizes)}
    start = options[FROZEN][best(options[FROZEN])][0]
    source, ours = composites(run, settings), "trained on photos"
    options[ours] = {f"rate {rate:g}, {name}": option for rate in settings.rates for name, option in readers(
        run, photos, trained(start, source, settings, rate, run.seed), settings.sizes).items()}
    torch.manual_seed(run.seed)
    plain = Reader(start.network, "head", settings.sizes[0])
    untrained = Reader(Network(backbone).to(pick_device()).eval(), start.reading, start.size)
    chosen = {"random weights": untrained, f"frozen, head, {plain.size} px": plain}
    chosen |= {name: tried[best(tried)][0] for name, tried in options.items()}
    vectors = {name: {side: reader.vectors(run, photos.split(side)) for side in ("test", "gallery")}
               for name, reader in chosen.items()}
    return report(run, photos, vectors, options, settings)


# ------------------------------------------------------------------------------------------------ pairs


def whole_store(ids: list[str], vectors: np.ndarray) -> RegionStore:
    """A store in which the one region of each photo is the whole, described by a row of the vectors (N, F)."""
    features = (unit(vectors) * vectors.shape[1] ** 0.5)[:, None].astype(np.float16)  # scaled as `regions.encode` does
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(ids), 1, 1))
    return RegionStore(features, boxes, np.ones((len(ids), 1), np.float32), np.ones(len(ids), np.int32), ids)


def captures(run: Run, table: pd.DataFrame, store: RegionStore, sides: dict[str, pd.DataFrame],
             how: AdaptationSettings) -> dict[float, dict[str, retrieval.EmbeddedSet]]:
    """CAPTURE pretrained on the pairs of a table at each learning rate, and untrained (rate 0): each split embedded."""
    found = {}
    for rate in (0.0, *how.pair_rates):
        with TemporaryDirectory() as name:
            tokenizer = batches.make_tokenizer(run.profile.batches, table["caption"], Path(name))
            pairs = batches.make_pairs(table, store, tokenizer, run.profile.batches)
            model = pretrain.build_model(run.profile.capture, pairs, run.seed).to(pick_device()).eval()
            if rate:
                settings = replace(run.profile.pretrain, learning_rate=rate, epochs=how.pair_epochs)
                pretrain.train(model, pairs, run.profile.batches, settings, Path(name), run.seed)
            found[rate] = {side: embedded(run, rows, store, tokenizer, model) for side, rows in sides.items()}
    return found


def embedded(run: Run, rows: pd.DataFrame, store: RegionStore, tokenizer: batches.BertWordPieceTokenizer,
             model: Capture) -> retrieval.EmbeddedSet:
    """Whole photos with their captions, where they have any, as vectors."""
    pairs = batches.make_pairs(rows, store, tokenizer, run.profile.batches)
    return retrieval.embed_samples(rows, pairs, model, None, run.profile.instances, single=True)


def matched(run: Run, table: pd.DataFrame, store: RegionStore, frozen: Vectors) -> dict[str, Vectors]:
    """The frozen features as they are, and whitened by pairs mined from the photos and captions of a table (notebook
    08), by the ridge; photos and captions have their say, captions of val, test and gallery don't."""
    kinds = {"as they are": frozen}
    with TemporaryDirectory() as name:
        tokenizer = batches.make_tokenizer(run.profile.batches, table["caption"], Path(name))
    pairs = batches.make_pairs(table, store, tokenizer, run.profile.batches)
    found = beyond.composed(pairs, list(table["caption"]), stages.MINING, run.seed)
    if isinstance(found, beyond.ComposedPairs):
        own = np.asarray(store.features[pairs.rows[found.parts], 0], np.float32)
        for ridge in RIDGES:
            root = whitening.learned({"own": own}, found.near, whitening.WhiteningSettings(ridge=ridge))["own"]
            kinds[f"ridge {ridge:g}"] = {side: unit(vectors) @ root for side, vectors in frozen.items()}
    return kinds


def joined(vectors: Vectors, others: Vectors, share: float) -> Vectors:
    """Vectors whose cosine is the weighted mean of two: `share` of the first, the rest of the others."""
    return {side: np.concatenate([share ** 0.5 * unit(vectors[side]), (1 - share) ** 0.5 * unit(others[side])], 1)
            for side in vectors}


def of_capture(models: dict[float, dict[str, retrieval.EmbeddedSet]], frozen: Vectors, shares: tuple[float, ...]
               ) -> dict[str, dict[str, Vectors]]:
    """The rows of the table that are CAPTURE's, each with the vectors that val chooses from, by name."""
    kinds: dict[str, dict[str, Vectors]] = {UNTRAINED: {}, PRETRAINED: {}, BESIDE: {}}
    for rate, sides in models.items():
        for reading in retrieval.OF_CAPTURE:
            vectors = {side: retrieval.read(found.instance, reading) for side, found in sides.items()}
            if not rate:
                kinds[UNTRAINED][reading] = vectors
                continue
            name = f"rate {rate:g}, {reading}"
            kinds[PRETRAINED][name] = vectors
            kinds[BESIDE] |= {f"{name}, share {share:g}": joined(vectors, frozen, share) for share in shares}
    return kinds


def with_pairs(run: Run, backbone: str, weights: str, settings: AdaptationSettings | None = None) -> dict:
    """Frozen features beside the vectors of CAPTURE pretrained on them and the captions; as `with_photos`.

    Raises:
        InputError: the train split has too few photos with a caption.
    """
    settings, photos = settings or AdaptationSettings(), Photos(run.catalog)
    train = stages.samples(run, "train")
    train = train[train["caption"] != ""]
    if len(train) < stages.MIN_PAIRS:
        raise InputError(f"{run.catalog.folder}: {len(train)} train photos on disk have a caption; pairs needs "
                         f"{stages.MIN_PAIRS}")
    options = {FROZEN: readers(run, photos, Network(backbone, weights), settings.sizes)}
    start = options[FROZEN][best(options[FROZEN])][0]
    sides = photos.sides("val", "test", "gallery")
    everything = pd.concat([train, *sides.values()])
    vectors = start.vectors(run, everything)
    store = whole_store(list(everything["sample_id"]), vectors)
    frozen = {side: vectors[store.rows(list(rows["sample_id"]))] for side, rows in sides.items()}
    kinds = of_capture(captures(run, train, store, sides, settings), frozen, settings.shares)
    kinds[MATCHED] = matched(run, train, store, frozen)
    options |= {kind: {name: (found, photos.on_val(found)) for name, found in tried.items()}
                for kind, tried in kinds.items()}
    chosen = {FROZEN: frozen} | {kind: options[kind][best(options[kind])][0] for kind in kinds}
    return report(run, photos, chosen, options, settings)


# ----------------------------------------------------------------------------------------------- report


def report(run: Run, photos: Photos, vectors: dict[str, Vectors], options: dict[str, dict[str, tuple[object, float]]],
           settings: AdaptationSettings) -> dict:
    """mAP and R@1 on test with 95% intervals over the queries, and how far each is from the frozen features', paired.

    Args:
        vectors: of test and gallery, for each row of the table; among them `FROZEN`.
        options: what was tried for a row, each with its mAP on val.

    Returns:
        the numbers of queries and gallery photos, `rows`, what val chose (`chosen`) from what (`tried`), the settings.
    """
    rng = np.random.default_rng([run.seed, 5])
    random = {side: rng.normal(size=(len(photos.split(side)), 64)) for side in ("test", "gallery")}
    figures = {name: photos.figures(found, "test") for name, found in {"chance": random, **vectors}.items()}
    rows = {}
    for name, values in figures.items():
        own, change = (bootstrap(part, 1000, run.seed) for part in (values, values - figures[FROZEN]))
        rows[name] = dict(zip(("mAP", "R@1"), own, strict=True))
        rows[name] |= dict(zip(("mAP, change", "R@1, change"), change, strict=True))
    return {"queries": len(photos.split("test")), "val": len(photos.split("val")),
            "gallery": len(photos.split("gallery")), "rows": rows,
            "chosen": "; ".join(f"{kind}: {best(tried)}" for kind, tried in options.items()),
            "tried": {kind: {name: score for name, (_, score) in tried.items()} for kind, tried in options.items()},
            "settings": asdict(settings)}
