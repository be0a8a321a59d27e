"""What each choice of the synthesis does to the detector: one is left out at a time, and photos of val are searched.

Every variant pastes the same foregrounds anew, trains a detector for a short while, and is compared with the one that
has all choices, photo by photo.
"""

from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from capture_lib.catalog.table import Catalog
from capture_lib.proposals import composites as synthesis
from capture_lib.proposals import detector
from capture_lib.proposals import evaluation as detection
from capture_lib.proposals.composites import SynthesisSettings
from capture_lib.proposals.detector import DetectorSettings
from capture_lib.utils import process_map, progress

ALL, AGAIN = "all choices", "all, another seed"
CHOICES = {"tilt": {"tilt": 0.0}, "overlap": {"overlap": 0.0}, "edge blending": {"blending": False},
           "light": {"light": False}, "shadow": {"shadow": False}, "distractors": {"distractors": False}}
THRESHOLDS = (0.5, 0.75)  # IoU
MOST = 10  # proposals that count


@dataclass(frozen=True)
class AblationSettings:
    """Defaults of the cpu profile."""

    composites: int = 800
    steps: int = 150
    photos: int = 150  # of val
    parallel_jobs: int = 2  # detectors in training, each by a process of one thread


def variants() -> dict[str, tuple[dict, int]]:
    """By name: what changes in the synthesis' settings, and what is added to the seed.

    The same settings with another seed show how far two trainings differ by chance.
    """
    without = {f"without {name}": (change, 0) for name, change in CHOICES.items()}
    none = {key: value for change in CHOICES.values() for key, value in change.items()}
    return {ALL: ({}, 0), AGAIN: ({}, 1000), **without, "none of them": (none, 0)}


def proposals_of(variant: tuple[dict, int], foregrounds: Path, composing: SynthesisSettings,
                 training: DetectorSettings, paths: list[Path], seed: int) -> detection.Found:
    """Composes, trains and searches the photos; the work of one process with one thread, which shows no progress."""
    torch.set_num_threads(1)
    changes, more = variant
    with TemporaryDirectory() as name, redirect_stdout(StringIO()):
        folder = Path(name)
        (folder / "foregrounds.npy").symlink_to(foregrounds)
        synthesis.make_composites(replace(composing, workers=0, **changes), folder, seed + more)
        torch.manual_seed(seed + more)
        detector.train(training, folder, folder, seed + more)
        network = detector.load(training, folder)
    return detection.propose(paths, network, MOST, training.search_size)


def evaluated(catalog: Catalog, settings: AblationSettings, seed: int) -> tuple[pd.DataFrame, detection.Truth]:
    """Some photos of val: their rows of the catalog and their true boxes (t, 4) as fractions."""
    rows, truth = detection.boxed(catalog, ("val",))
    chosen = np.random.default_rng([seed, 9]).permutation(len(rows))[:settings.photos]
    return rows.iloc[chosen], [truth[i] for i in chosen]


def hits(settings: AblationSettings, foregrounds: Path, composing: SynthesisSettings, training: DetectorSettings,
         paths: list[Path], truth: detection.Truth, seed: int) -> dict[str, list]:
    """For each variant and photo: how many true boxes the first proposals meet, at each of `THRESHOLDS`.

    Args:
        foregrounds: the file of a synthesis stage; composing, training: the profile's settings, but for the number of
            composites and of steps, and composites are not enlarged.
        paths, truth: photos with their true boxes, as from `detection.boxed`.
    """
    work = partial(proposals_of, foregrounds=foregrounds.resolve(), paths=paths, seed=seed,
                   composing=replace(composing, composites=settings.composites),
                   training=replace(training, steps=settings.steps, enlarged=(1.0,)))
    with process_map(settings.parallel_jobs) as map_over:
        found = list(progress(map_over(work, variants().values()), "detectors trained", len(variants())))
    return {name: [meetings(boxes, true) for (boxes, _), true in zip(proposals, truth, strict=True)]
            for name, proposals in zip(variants(), found, strict=True)}


def meetings(boxes: np.ndarray, true: np.ndarray) -> list[int]:
    """How many true boxes (t, 4) the proposals (n, 4) meet, at each of `THRESHOLDS`."""
    best = detection.best_so_far(boxes, true, MOST)[:, -1]
    return [int((best >= threshold).sum()) for threshold in THRESHOLDS]


def table(hits: dict[str, list], totals: list[int], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each variant recall, and its difference to that with all choices, with 95% intervals over the P photos.

    Args:
        hits: by variant, (P, thresholds) boxes met; totals: (P,) true boxes.
    """
    rows, whole = {}, np.array(hits[ALL])
    draws = np.random.default_rng(seed).integers(len(totals), size=(1000, len(totals)))
    for name, met in hits.items():
        rows[name] = {}
        for column, threshold in enumerate(THRESHOLDS):
            ours, theirs, all_true = np.array(met)[:, column], whole[:, column], np.array(totals)
            rows[name][f"recall@{threshold}"] = detection.shares(ours, all_true, seed)
            low, high = np.percentile((ours - theirs)[draws].sum(1) / all_true[draws].sum(1), [2.5, 97.5])
            rows[name][f"difference@{threshold}"] = {
                "value": float((ours - theirs).sum() / all_true.sum()), "low": float(low), "high": float(high)}
    return rows
