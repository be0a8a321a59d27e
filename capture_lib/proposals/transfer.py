"""How a detector and an encoder trained on a rendered world do on another catalog: on real photos, say.

`capture transfer CATALOG` prints both tables: how many true boxes the proposals meet, where the catalog has boxes, and
whether nearest neighbours are the same product, where it has labels. Nothing is trained on the other catalog.
With `--only photos` or `--only pairs` a pretrained network is trained on that catalog instead (`adaptation`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

from capture_lib.catalog.photos import load_photo
from capture_lib.catalog.table import Catalog
from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.proposals import adaptation, detector
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import evaluation as detection
from capture_lib.proposals import region_encoder as encoder
from capture_lib.proposals import region_store as regions
from capture_lib.proposals.detector import Detector, DetectorSettings
from capture_lib.proposals.region_encoder import EncoderSettings
from capture_lib.proposals.region_store import RegionSettings
from capture_lib.retrieval.metrics import bootstrap
from capture_lib.utils import InputError, pick_device

CHANCE = "chance"
TABLES = ("proposals", "identity")
TRAINED = {"photos": adaptation.with_photos, "pairs": adaptation.with_pairs}  # on the catalog that is judged


def check(backbone: str, weights: str, scenes: str) -> None:
    """`InputError` for a network, weights or scenes that can't be used: before anything is made, not after."""
    if backbone and not timm.is_model(backbone):
        raise InputError(f"--backbone {backbone!r} is no network of timm; `timm.list_models()` names them")
    if weights:
        detector.load_backbone(Detector(DetectorSettings(backbone=backbone)).backbone, Path(weights))
    synthesis.scene_files(scenes)


def altered(run: Run, backbone: str = "", weights: str = "", scenes: str = "") -> Run:
    """The same run with a pretrained backbone, or composites on photos of scenes; its stages lie beside the profile's.

    Args:
        backbone: a timm name; weights: a local file of weights for it.
        scenes: a folder of photos.
    """
    profile = run.profile
    if weights:
        changed = replace(profile.detector, backbone=backbone, weights=weights)
        profile = replace(profile, name=f"{profile.name}-{backbone}", detector=changed)
    if scenes:
        changed = replace(profile.synthesis, scenes=scenes)
        profile = replace(profile, name=f"{profile.name}-scenes", synthesis=changed)
    return replace(run, profile=profile)


# ------------------------------------------------------------------------------ proposals on true boxes


def recalls(run: Run, catalog: Catalog, sizes: tuple[int, ...]) -> dict:
    """Recall of the run's detector on the true boxes of another catalog, searched at several sizes, and of baselines.

    Returns:
        the numbers of photos and boxes, the NMS threshold, and `rows`, as from `detection.recall_table`; empty where
        no photo of val or test has true boxes.
    """
    table, truth = detection.boxed(catalog)
    if table.empty:
        return {}
    network, _ = stages.trained_detector(run)
    paths = [catalog.photos[sample] for sample in table["sample_id"]]
    found = detection.by_size(paths, truth, network, sizes, run.seed)
    return {"photos": len(paths), "boxes": sum(map(len, truth)), "NMS threshold": network.settings.nms,
            "rows": detection.without_learning(truth, run.seed) | found}


# ---------------------------------------------------------------------------- what the vectors know of identity


@dataclass(frozen=True)
class Asked:
    """Regions of which we know what they show: photos, boxes of each (k, 4) xyxy pixels, and a label for each box."""

    samples: list[str]
    boxes: list[np.ndarray]
    labels: np.ndarray


def labelled_regions(catalog: Catalog, table: pd.DataFrame, limit: int, seed: int) -> Asked:
    """Up to `limit` regions of the rows of a table, in random order.

    Where a catalog has labels but no boxes, the whole of a photo with one label stands for its box.
    """
    samples, boxes, labels = [], [], []
    for row in table.sample(frac=1, random_state=seed).itertuples():
        if not row.boxes and len(row.labels) != 1:
            continue
        height, width = load_photo(catalog.photos[row.sample_id]).shape[:2]
        here = row.boxes or [[0, 0, width, height]]
        if len(labels) + len(here) > limit:
            break
        labels += list(row.box_labels or row.labels)
        samples, boxes = [*samples, row.sample_id], [*boxes, np.array(here, float)]
    return Asked(samples, boxes, np.array(labels))


class QuarterColours(nn.Module):
    """The mean colour of each of a region's 2×2 quarters: what a feature must beat."""

    def features(self, photos: Tensor, boxes: list[Tensor]) -> Tensor:
        """As `CropEncoder.features`, F = 12."""
        return nn.functional.adaptive_avg_pool2d(encoder.crop(photos, boxes, 32, 0.0), 2).flatten(1) - 0.5


def baselines(settings: EncoderSettings, trained: nn.Module, network: Detector, seed: int) -> dict[str, nn.Module]:
    """The encoder in use and what it is measured against, by name; all have the method `features(photos, boxes)`."""
    torch.manual_seed(seed)
    ours = "crop encoder, trained" if settings.kind == "crops" else f"{settings.kind} encoder, in use"
    untrained = encoder.CropEncoder(settings if settings.kind == "crops" else EncoderSettings())
    found = {ours: trained, "detector's map (RoIAlign)": encoder.DetectorEncoder(network),
             "crop encoder, untrained": untrained,
             "colours, 2×2": QuarterColours()}
    return {name: model.to(pick_device()).eval() for name, model in found.items()}


def identity_table(vectors: dict[str, np.ndarray], labels: np.ndarray, seed: int,
                   among: tuple[dict[str, np.ndarray], np.ndarray] | None = None) -> dict[str, dict]:
    """mAP and R@1 of nearest neighbours for each kind of vectors (n, F), with 95% intervals over the regions.

    `among`: other vectors of each kind and their labels, where neighbours are looked for; None: among the n themselves.
    """
    rows = {}
    for kind, values in vectors.items():
        figures = encoder.identity(values, labels, *((among[0][kind], among[1]) if among else ()))
        pair = bootstrap(np.stack(figures, 1), 1000, seed)
        rows[kind] = dict(zip(("mAP", "R@1"), pair, strict=True))
    return rows


def identities(run: Run, catalog: Catalog, settings: RegionSettings, weights: tuple[str, str] = ("", ""),
               limit: int = 400) -> dict:
    """What the run's encoder knows of the products of another catalog, beside its rivals; empty without labels.

    Regions of val and test are asked for their neighbours among themselves, and in the gallery where that has labels;
    without any, the gallery's photos are asked among themselves.

    Args:
        weights: a timm name and a file, for one more rival: RoIAlign on the map of a pretrained backbone.
        limit: the most regions that are asked.
    """
    table = catalog.table[catalog.table["sample_id"].isin(catalog.photos)]
    asked = labelled_regions(catalog, table[table["split"].isin(["val", "test"])], limit, run.seed)
    gallery = labelled_regions(catalog, table[table["split"] == "gallery"], 5 * limit, run.seed)
    if not len(asked.labels):
        asked, gallery = gallery, asked
    shared = bool(set(gallery.labels) & set(asked.labels))
    if not (repeated(asked.labels) or shared):
        return {}
    kinds = baselines(run.profile.encoder, stages.trained_encoder(run)[0], stages.trained_detector(run)[0], run.seed)
    if weights[1]:
        pretrained = encoder.BackboneEncoder(EncoderSettings(backbone=weights[0], weights=weights[1]))
        kinds["pretrained backbone (RoIAlign)"] = pretrained.to(pick_device()).eval()
    vectors = vectors_of(asked, catalog, kinds, settings, run.seed)
    rows = identity_table(vectors, asked.labels, run.seed) if repeated(asked.labels) else {kind: {} for kind in vectors}
    if shared:
        among = vectors_of(gallery, catalog, kinds, settings, run.seed + 1), gallery.labels
        for kind, row in identity_table(vectors, asked.labels, run.seed, among).items():
            rows[kind] |= {f"{figure} in the gallery": value for figure, value in row.items()}
    return {"regions": len(asked.labels), "products": len(set(asked.labels)), "gallery": len(gallery.labels),
            "rows": rows}


def vectors_of(known: Asked, catalog: Catalog, kinds: dict[str, nn.Module], settings: RegionSettings, seed: int
               ) -> dict[str, np.ndarray]:
    """The regions (n of them) as every kind of encoder sees them, and at random: (n, F) each."""
    paths = [catalog.photos[sample] for sample in known.samples]
    vectors = {kind: regions.encode_boxes(paths, known.boxes, model, settings) for kind, model in kinds.items()}
    vectors[CHANCE] = np.random.default_rng([seed, 5]).normal(size=(len(known.labels), 64))
    return vectors


def repeated(labels: np.ndarray) -> int:
    """How many regions share their label with another one: only these can be asked for their neighbours."""
    _, place, times = np.unique(labels, return_inverse=True, return_counts=True)
    return int((times[place] > 1).sum()) if len(labels) else 0


def report(run: Run, catalog: Catalog, sizes: tuple[int, ...], weights: tuple[str, str] = ("", ""),
           tables: tuple[str, ...] = TABLES) -> dict:
    """The tables asked for, by name; arguments as above.

    Raises:
        InputError: the catalog has neither true boxes nor labels that tell what a region shows.
    """
    make = {"proposals": lambda: recalls(run, catalog, sizes),
            "identity": lambda: identities(run, catalog, run.profile.regions, weights)}
    found = {name: make[name]() for name in tables}
    if not any(found.values()):
        raise InputError(f"{catalog.folder}: no photo on disk has what {' and '.join(tables)} need: true boxes (column "
                         "boxes), or a label that another one has too")
    return found
